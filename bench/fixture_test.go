package bench

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"plenum/pkg/store"
)

// days are a table's consecutive UTC days before today, each with as many rows. Row n of them all, from 1, has the id n: who knows an
// id knows its day.
type days struct {
	first time.Time
	n     int
	rows  int // in each
}

// daysBeforeToday are the last n days before the server's today.
func (h *house) daysBeforeToday(n, rows int) days { return days{h.today().AddDate(0, 0, -n), n, rows} }

func (d days) day(n int) time.Time { return d.first.AddDate(0, 0, n) }
func (d days) end() time.Time      { return d.day(d.n) }
func (d days) total() int          { return d.n * d.rows }

// dayOf is the number of the day that an id stands in.
func (d days) dayOf(id int64) int { return int(id-1) / d.rows }

// rowColumns are Plenum's; rowsSQL are the rows in that order. Every unprocessedEvery-th is unprocessed, as in a table that a sync job
// has nearly caught up with; 1 leaves all of them so, and 0 none.
const rowColumns = "id, last_modified, recorded_at, seq, processed, device_id, kind, payload"

func (d days) rowsSQL(unprocessedEvery int) string {
	processed := "true"
	if unprocessedEvery > 0 {
		processed = fmt.Sprintf("i %% %d <> 0", unprocessedEvery)
	}
	return fmt.Sprintf(`select day * %[1]d::bigint + i, t, t - interval '1 second', day * %[1]d::bigint + i, %[2]s,
			'cmp-' || lpad((i %% %[3]d + 1)::text, 5, '0'), 'parameters', payload
		from generate_series(0, %[4]d) day, generate_series(1, %[1]d) i, bench_payload p,
			lateral (select timestamptz '%[5]s' + make_interval(days => day, secs => 86399.0 * i / %[1]d) as t) x
		where p.n = (day * %[1]d::bigint + i) %% %[6]d`, d.rows, processed, devices, d.n-1, dayOf(d.first), payloads)
}

// payloads is how many different ones there are. A prime, so that devices do not repeat theirs, and enough for the repetitions to be
// further apart than gzip looks back (32 KiB).
const payloads = 997

// makePayloads makes the table that rowsSQL takes payloads from. Their shape is that of an air compressor's signals: seven analogue
// ones with three decimals and eight that are on or off.
func (d *database) makePayloads() {
	d.h.tb.Helper()
	random := rand.New(rand.NewPCG(1, 2))
	analogue := []struct {
		name      string
		low, high float64
	}{
		{"TP2", -0.02, 10.6},
		{"TP3", 8.1, 10.3},
		{"H1", -0.02, 10.3},
		{"DV_pressure", -0.03, 8.1},
		{"Reservoirs", 8.1, 10.3},
		{"Oil_temperature", 45, 75},
		{"Motor_current", 0.02, 9.3},
	}
	var b strings.Builder
	b.WriteString("create table bench_payload (n bigint primary key, payload jsonb not null); insert into bench_payload values ")
	for n := range payloads {
		fmt.Fprintf(&b, "(%d, '{", n)
		for _, a := range analogue {
			fmt.Fprintf(&b, `"%s": %.3f, `, a.name, a.low+random.Float64()*(a.high-a.low))
		}
		fmt.Fprintf(&b, `"digital": "%08b"}'),`, random.IntN(256))
	}
	d.exec(strings.TrimSuffix(b.String(), ","))
	d.exec("analyze bench_payload")
}

// Plenum's own tables are made by ingest, with the migrations of the tree. It makes today's partitions and some ahead; those of the
// days before are made here as the partition manager would.
func (h *house) plenumDatabase(name string, d days) *database {
	h.tb.Helper()
	db := h.database(name)
	h.idle("ingest", db, ingestEnv(h, db, "setup-"+name, "unused")...)
	for n := range d.n {
		db.exec(leafSQL(d.day(n)))
	}
	return db
}

func leafSQL(day time.Time) string {
	bounds := boundsOf(day)
	name, ledger := day.Format("telemetry_p20060102"), day.Format("telemetry_batch_p20060102")
	return fmt.Sprintf(`create table if not exists %[1]s partition of telemetry %[3]s with (fillfactor = 50);
		create unique index if not exists %[1]s_identity_idx on %[1]s (device_id, kind, recorded_at, seq) nulls not distinct;
		create table if not exists %[2]s partition of telemetry_batch for values from ('%[4]s') to ('%[5]s')`,
		name, ledger, bounds, day.Format(time.DateOnly), day.AddDate(0, 0, 1).Format(time.DateOnly))
}

// ledgerSQL writes a line for each lineRows ids of each day, as ingest does; given processed, with feed positions, as syncjob leaves
// them.
func (d days) ledgerSQL(lineRows int, processed bool) string {
	columns, values := "", ""
	if processed {
		columns, values = ", processed_at, feed_position", fmt.Sprintf(", now(), day * %d + line + 1", d.rows/lineRows)
	}
	return fmt.Sprintf(`insert into telemetry_batch (first_id, last_id, row_count, day, source%[1]s)
		select day * %[2]d::bigint + line * %[3]d + 1, day * %[2]d::bigint + (line + 1) * %[3]d, %[3]d, date '%[4]s' + day, 'bench'%[5]s
		from generate_series(0, %[6]d) day, generate_series(0, %[7]d) line order by day, line`,
		columns, d.rows, lineRows, d.first.Format(time.DateOnly), values, d.n-1, d.rows/lineRows-1)
}

// The statements of a marking transaction, as pkg/store runs them.
const (
	markSQL         = store.MarkSQL
	positionLockSQL = `select pg_advisory_xact_lock(1, hashtext(current_schema()))` // a key of the benchmark's own
)

var claimSQL, positionSQL = runningSQL("claim"), runningSQL("position")

// runningSQL is the statement that pkg/store has by that name.
func runningSQL(name string) string {
	list := store.Statements([]time.Time{time.Unix(0, 0)})
	return list[slices.IndexFunc(list, func(s store.Statement) bool { return s.Name == name })].SQL
}

// storySQL makes a table with the columns of ours and the indexes of the system that Plenum replaces: look-ups of a device, ranges of
// time, and two partial ones for the sync job's search.
func storySQL(table, key, options string) string {
	return fmt.Sprintf(`create table %[1]s (
			id bigint not null%[2]s, last_modified timestamptz not null, recorded_at timestamptz not null, seq bigint,
			processed boolean not null default false, device_id text not null, kind text not null, payload jsonb not null
		) %[3]s`, table, key, options)
}

// storyIndexesSQL are those indexes, which are made once the rows are in.
func storyIndexesSQL(table string) string {
	return fmt.Sprintf(`create index on %[1]s (device_id, recorded_at);
		create index on %[1]s (device_id, last_modified);
		create index on %[1]s (last_modified);
		create index on %[1]s (recorded_at);
		create index on %[1]s (last_modified) where not processed;
		create index on %[1]s (device_id, last_modified) where not processed;`, table)
}
