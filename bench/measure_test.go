package bench

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// usage is what something took.
type usage struct {
	process spent
	server  time.Duration // CPU time of PostgreSQL, all its processes
	wal     int64         // bytes
}

// spent is the CPU time of the program under measurement.
type spent struct{ user, system time.Duration }

func (s spent) sum() time.Duration { return s.user + s.system }

func (u usage) minus(v usage) usage {
	process := spent{u.process.user - v.process.user, u.process.system - v.process.system}
	return usage{process, u.server - v.server, u.wal - v.wal}
}

// stage is the measurement of one program at one task; its usage is without that of an idle run.
type stage struct {
	usage
	rows      int
	perSecond float64 // rows/s, from the first batch to the last
}

func (s stage) cpuPerRow() float64    { return s.timePerRow(s.process.sum()) }
func (s stage) systemPerRow() float64 { return s.timePerRow(s.process.system) }
func (s stage) serverPerRow() float64 { return s.timePerRow(s.server) }
func (s stage) walPerRow() float64    { return float64(s.wal) / float64(s.rows) } // bytes

// timePerRow is in µs.
func (s stage) timePerRow(d time.Duration) float64 {
	return float64(d.Nanoseconds()) / 1e3 / float64(s.rows)
}

// repetition is all that is measured once.
type repetition struct {
	ingest, plain stage // storing what waits in a session
	bare          stage // the same as ingest, into partitions without the identity index
	live          stage // ingest storing what comes at a steady rate
	plainLive     stage // the plain consumer doing that
	sync, loop    stage // marking what ingest and plain have stored
	idleIngest    usage // of starting, waiting for nothing and stopping
	idleSync      usage
}

// What the topics begin with: of what waits in both sessions, and of what comes while ingest or the plain consumer runs.
const (
	loadPrefix      = "telemetry"
	livePrefix      = "live"
	plainLivePrefix = "plain"
)

// measure makes all repetitions.
func measure(tb testing.TB, s size) *results {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), hangLimit)
	defer cancel()
	h := newHouse(ctx, tb)
	r := &results{size: s, versions: h.versions()}
	for n := range s.repetitions {
		r.repetitions = append(r.repetitions, h.repeat(n, s))
	}
	return r
}

// repeat is one repetition.
func (h *house) repeat(n int, s size) (rep repetition) {
	h.tb.Helper()
	own, plain, bare := h.database(fmt.Sprintf("own_%d", n)), h.database(fmt.Sprintf("plain_%d", n)), h.database(fmt.Sprintf("bare_%d", n))
	// Makes the schema and today's partitions; its session is never used.
	h.idle("ingest", plain, ingestEnv(h, plain, "setup", "unused")...)
	h.idle("ingest", own, ingestEnv(h, own, "plenum", loadPrefix)...)
	rep.idleIngest = h.idle("ingest", own, ingestEnv(h, own, "plenum", loadPrefix)...)
	rep.idleSync = h.idle("syncjob", own, "PLENUM_DATABASE_URL="+own.url)
	plain.exec("alter sequence telemetry_id_seq increment by 1") // its rows draw their ids singly
	idlePlain := h.idlePlain(plain, loadPrefix)
	h.idle("ingest", bare, ingestEnv(h, bare, "bare", loadPrefix)...)
	bare.exec(withoutIdentity)
	_, err := h.admin.Exec(h.ctx, "checkpoint")
	h.check(err)
	h.check(readings{prefix: loadPrefix, n: s.rows}.publish(h.ctx, h.broker.URL()))

	h.inTurn(n,
		func() { rep.ingest = h.ingest(own, "plenum", s.rows, rep.idleIngest) },
		func() { rep.plain = h.plain(plain, s.rows, idlePlain) },
		func() { rep.bare = h.ingest(bare, "bare", s.rows, rep.idleIngest) })
	rep.bare.perSecond = bare.storedPerSecond(s.rows)
	own.exec("analyze telemetry, telemetry_batch") // as autovacuum would have by then
	plain.exec("analyze telemetry")
	h.inTurn(n, func() { rep.sync = h.sync(own, s.rows, rep.idleSync) }, func() { rep.loop = h.loop(plain, s.rows) })
	rep.ingest.perSecond, rep.plain.perSecond = own.storedPerSecond(s.rows), plain.storedPerSecond(s.rows)
	own.expect("select max(pg_column_size(payload)) from telemetry", jsonbBytes)
	h.inTurn(n, func() { rep.live = h.live(own, s, rep.idleIngest) }, func() { rep.plainLive = h.plainLive(plain, s, idlePlain) })
	for _, d := range []*database{own, plain, bare} {
		d.drop() // only now: dropping a database is a checkpoint, after which each page's first change writes it whole
	}
	return rep
}

// withoutIdentity drops the index that makes readings unique, and keeps ingest from building it again.
const withoutIdentity = `do $$ declare i regclass; begin
		for i in select indexrelid from pg_index where indisunique and indrelid::regclass::text like 'telemetry_p%' loop
			execute format('drop index %s', i);
		end loop;
	end $$;
	create function refuse() returns event_trigger language plpgsql as $$ begin raise exception 'kept without'; end $$;
	create event trigger refuse on ddl_command_start when tag in ('CREATE INDEX') execute function refuse()`

// inTurn calls all, in another order each time.
func (h *house) inTurn(n int, all ...func()) {
	for i := range all {
		all[(i+n)%len(all)]()
	}
}

func ingestEnv(h *house, d *database, clientID, prefix string) []string {
	return []string{
		"PLENUM_DATABASE_URL=" + d.url, "PLENUM_MQTT_BROKERS=" + h.broker.URL(), "PLENUM_MQTT_CLIENT_ID=" + clientID,
		"PLENUM_MQTT_TOPICS=" + prefix + "/{device_id}," + prefix + "/{device_id}/{kind}",
	}
}

// used calls work, which returns what its process spent, and adds what it cost the server.
func (h *house) used(d *database, work func() spent) usage {
	h.tb.Helper()
	serverBefore, err := serverTime(h.postmaster)
	h.check(err)
	walBefore := d.wal()
	u := usage{process: work(), wal: d.wal() - walBefore}
	serverAfter, err := serverTime(h.postmaster)
	h.check(err)
	u.server = serverAfter - serverBefore
	return u
}

// idle starts a program and stops it once it is ready.
func (h *house) idle(name string, d *database, env ...string) usage {
	h.tb.Helper()
	return h.used(d, func() spent { return h.stop(h.start(name, env...)) })
}

const ledgerRows = `select coalesce(sum(row_count), 0) from telemetry_batch`

// ingest has ingest store the rows that wait in its session.
func (h *house) ingest(d *database, clientID string, rows int, idle usage) stage {
	h.tb.Helper()
	u := h.used(d, func() spent {
		p := h.start("ingest", ingestEnv(h, d, clientID, loadPrefix)...)
		d.await(ledgerRows, rows)
		return h.stop(p)
	})
	return stage{usage: u.minus(idle), rows: rows}
}

// plain has the plain consumer store the rows that wait in its session.
func (h *house) plain(d *database, rows int, idle usage) stage {
	h.tb.Helper()
	u := h.used(d, func() spent { return h.wait(h.consume(d, loadPrefix, rows)) })
	return stage{usage: u.minus(idle), rows: rows}
}

// consume starts the plain consumer, which ends when it has stored the rows.
func (h *house) consume(d *database, prefix string, rows int) *process {
	h.tb.Helper()
	self, err := os.Executable()
	h.check(err)
	text, err := json.Marshal(plainConfig{Broker: h.broker.URL(), ClientID: "plain-" + prefix, Filter: prefix + "/+", Database: d.url, Rows: rows})
	h.check(err)
	return h.launch("plain", self, plainVariable+"="+string(text))
}

// idlePlain makes the plain consumer's session.
func (h *house) idlePlain(d *database, prefix string) usage {
	h.tb.Helper()
	return h.used(d, func() spent { return h.wait(h.consume(d, prefix, 0)) })
}

// live has ingest store rows that come at a steady rate.
func (h *house) live(d *database, s size, idle usage) stage {
	h.tb.Helper()
	var took time.Duration
	u := h.used(d, func() spent {
		p := h.start("ingest", ingestEnv(h, d, "live", livePrefix)...)
		took = h.publishLive(livePrefix, s)
		d.await(ledgerRows, s.rows+s.liveRows)
		return h.stop(p)
	})
	d.expect("select count(*) from telemetry", s.rows+s.liveRows)
	return stage{usage: u.minus(idle), rows: s.liveRows, perSecond: float64(s.liveRows) / took.Seconds()}
}

// plainLive has the plain consumer do that. What comes before it is up waits in its session.
func (h *house) plainLive(d *database, s size, idle usage) stage {
	h.tb.Helper()
	h.idlePlain(d, plainLivePrefix)
	var took time.Duration
	u := h.used(d, func() spent {
		p := h.consume(d, plainLivePrefix, s.liveRows)
		took = h.publishLive(plainLivePrefix, s)
		return h.wait(p)
	})
	d.expect("select count(*) from telemetry", s.rows+s.liveRows)
	return stage{usage: u.minus(idle), rows: s.liveRows, perSecond: float64(s.liveRows) / took.Seconds()}
}

// publishLive publishes at the rate, and returns how long that took.
func (h *house) publishLive(prefix string, s size) time.Duration {
	h.tb.Helper()
	start := time.Now()
	h.check(readings{prefix: prefix, first: s.rows, n: s.liveRows, rate: s.liveRate}.publish(h.ctx, h.broker.URL()))
	return time.Since(start)
}

// sync has syncjob mark the rows that are there.
func (h *house) sync(d *database, rows int, idle usage) stage {
	h.tb.Helper()
	const perSecond = `with t as (select processed_at, sum(row_count) as n from telemetry_batch group by 1)
		select (sum(n) - (array_agg(n order by processed_at))[1]) / extract(epoch from max(processed_at) - min(processed_at)) from t`
	u := h.used(d, func() spent {
		p := h.start("syncjob", "PLENUM_DATABASE_URL="+d.url)
		d.await(ledgerRows+` where processed_at is not null`, rows)
		return h.stop(p)
	})
	s := stage{usage: u.minus(idle), rows: rows}
	h.check(d.conn.QueryRow(h.ctx, perSecond).Scan(&s.perSecond))
	d.expect("select count(*) from telemetry where processed", rows)
	return s
}

// loop marks the plain consumer's rows with the plain SQL loop, whose own CPU time is this process's and not measured.
func (h *house) loop(d *database, rows int) stage {
	h.tb.Helper()
	s := stage{rows: rows}
	s.usage = h.used(d, func() spent {
		var err error
		s.perSecond, err = loopPlain(h.ctx, d.url, rows)
		h.check(err)
		return spent{}
	})
	return s
}

// database is one side's database, with a connection to look into it.
type database struct {
	h         *house
	name, url string
	conn      *pgx.Conn
}

func (h *house) database(name string) *database {
	h.tb.Helper()
	h.check(h.postgres.CreateDatabase(h.ctx, name, ""))
	return h.open(name)
}

func (d *database) drop() {
	d.h.tb.Helper()
	d.h.check(d.conn.Close(d.h.ctx))
	d.h.check(d.h.postgres.DropDatabase(d.h.ctx, d.name))
}

func (d *database) exec(sql string) {
	d.h.tb.Helper()
	_, err := d.conn.Exec(d.h.ctx, sql)
	d.h.check(err)
}

// wal is the server's position in its write-ahead log, in bytes.
func (d *database) wal() (bytes int64) {
	d.h.tb.Helper()
	d.h.check(d.conn.QueryRow(d.h.ctx, "select pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint").Scan(&bytes))
	return bytes
}

// await waits until the count is n. The interval is short enough for the CPU of waiting programs not to count, and long enough
// for that of the question not to.
func (d *database) await(count string, n int) {
	d.h.tb.Helper()
	d.h.await(100*time.Millisecond, func() error {
		var got int
		d.h.check(d.conn.QueryRow(d.h.ctx, count).Scan(&got))
		if got < n {
			return fmt.Errorf("%s: %d, not %d", count, got, n)
		}
		return nil
	})
}

// number is the result of a query of one integer.
func (d *database) number(query string) (n int) {
	d.h.tb.Helper()
	d.h.check(d.conn.QueryRow(d.h.ctx, query).Scan(&n))
	return n
}

func (d *database) expect(count string, n int) {
	d.h.tb.Helper()
	if got := d.number(count); got != n {
		d.h.tb.Fatalf("%s: %s: %d, not %d", d.name, count, got, n)
	}
}

// storedPerSecond is rows/s from the start of the first transaction to that of the last. It reads the whole table, so it comes
// after the measurements.
func (d *database) storedPerSecond(rows int) (perSecond float64) {
	d.h.tb.Helper()
	const q = `with t as (select last_modified, count(*) as n from telemetry group by 1)
		select (sum(n) - (array_agg(n order by last_modified desc))[1]) / extract(epoch from max(last_modified) - min(last_modified)) from t`
	d.expect("select count(*) from telemetry", rows)
	d.h.check(d.conn.QueryRow(d.h.ctx, q).Scan(&perSecond))
	return perSecond
}
