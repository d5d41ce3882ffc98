package store_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"plenum/internal/devenv/devtest"
	"plenum/pkg/store"
	"plenum/pkg/telemetry"
)

// COPY's bytes are written by hand: each value is compared with what SQL reads.
func TestWriteEveryKindOfValue(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	at := func(s string) time.Time {
		v, err := time.Parse(time.RFC3339Nano, s)
		if err != nil {
			t.Fatal(err)
		}
		return v.UTC()
	}
	big := `{"big": "` + strings.Repeat("ä", 150_000) + `"}`
	all := []telemetry.Reading{
		{DeviceID: "plain", Kind: "performance", RecordedAt: at("2026-11-22T01:02:03.456789Z"), Seq: 7, Metrics: []byte(`{"a": 1}`)},
		{DeviceID: `it's "quoted"\t\N` + "\t\n\r", Kind: `'`, RecordedAt: at("2000-01-01T00:00:00Z"), Seq: telemetry.NoSeq, Metrics: []byte(`{"q": "\"\\\n"}`)},
		{DeviceID: "Gerät-漢字-🛠", Kind: "störung", RecordedAt: at("1999-12-31T23:59:59.999999Z"), Seq: 0, Metrics: []byte(`{"ä": "漢字 🛠"}`)},
		{DeviceID: strings.Repeat("x", 256), Kind: strings.Repeat("k", 64), RecordedAt: at("2026-02-28T23:59:59.000001Z"), Seq: 1<<53 - 1, Metrics: []byte(big)},
		{DeviceID: "", Kind: "", RecordedAt: at("2099-12-31T12:00:00Z"), Seq: 1, Metrics: []byte(`{}`)},
	}
	want(h, "outcome", h.write(h.writer(), all...), telemetry.Outcome{Stored: len(all)})
	m := store.NewMarker(h.pool)
	h.markAll(m)
	_, rows := h.feed(0)
	want(h, "rows", len(rows), len(all))
	for i, r := range rows {
		got := telemetry.Reading{DeviceID: r.DeviceID, Kind: r.Kind, RecordedAt: r.RecordedAt.UTC(), Seq: telemetry.NoSeq, Metrics: r.Payload}
		if r.Seq != nil {
			got.Seq = *r.Seq
		}
		if d := cmp.Diff(all[i], got, cmpopts.IgnoreUnexported(got)); d != "" {
			t.Errorf("row %d: %s", i, d)
		}
		if age := time.Since(r.LastModified); age < 0 || age > hang {
			t.Errorf("row %d: last_modified %s", i, r.LastModified)
		}
	}
	want(h, "times as SQL prints them", value[string](h, `select string_agg(to_char(recorded_at, 'YYYY-MM-DD HH24:MI:SS.US'), ', ' order by id) from telemetry`),
		"2026-11-22 01:02:03.456789, 2000-01-01 00:00:00.000000, 1999-12-31 23:59:59.999999, 2026-02-28 23:59:59.000001, 2099-12-31 12:00:00.000000")
}

func TestWriteNothingAndRejectsOnly(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	w := h.writer()
	want(h, "an empty batch", h.write(w), telemetry.Outcome{})
	raw := []byte{0, 0xff, '\\', 'x'}
	out, err := w.Write(h.ctx, &telemetry.Batch{Rejects: []telemetry.Reject{
		{Code: telemetry.NotJSON, Detail: "byte 3", Topic: "telemetry/ä", Raw: raw},
		{Code: telemetry.TooLarge},
	}})
	if err != nil {
		t.Fatal(err)
	}
	want(h, "rejects only", out, telemetry.Outcome{Quarantined: 2})
	want(h, "lines", value[int](h, "select count(*) from telemetry_batch"), 0)
	want(h, "blocks of ids drawn", value[bool](h, "select is_called from telemetry_id_seq"), false)
	got := values[string](h, "select code || '|' || detail || '|' || topic || '|' || encode(payload, 'hex') from telemetry_quarantine order by id")
	if d := cmp.Diff([]string{"not_json|byte 3|telemetry/ä|00ff5c78", "too_large|||"}, got); d != "" {
		t.Fatal(d)
	}
}

func TestLedgerCoversExactlyTheRows(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	w := store.NewWriter(h.single(), "the source", nil)
	h.write(w, readings("a", 0, 3000)...)
	h.write(w, readings("b", 0, 1500)...)
	h.checkLedger()
	// One connection: 4500 ids of one block, contiguous.
	want(h, "ids", value[string](h, "select min(id) || ' to ' || max(id) from telemetry"), "1 to 4500")
	h.exec("select nextval('telemetry_id_seq')") // another writer has the next block
	h.write(w, readings("c", 0, 6000)...)
	h.checkLedger()
	got := values[string](h, `select format('%s-%s %s %s %s', first_id, last_id, row_count, source, day = (now() at time zone 'UTC')::date) from telemetry_batch order by batch_id`)
	wanted := []string{"1-3000 3000 the source t", "3001-4500 1500 the source t", "4501-5000 500 the source t", "10001-15500 5500 the source t"}
	if d := cmp.Diff(wanted, got); d != "" {
		t.Fatal(d)
	}
	want(h, "rows whose day is not their partition's", value[int](h, `select count(*) from telemetry t join telemetry_batch b on t.id between first_id and last_id
		where t.tableoid::regclass::text <> 'telemetry_p' || to_char(b.day, 'YYYYMMDD')`), 0)
	want(h, "transaction times of row and line", value[int](h, `select count(*) from telemetry t join telemetry_batch b on t.id between first_id and last_id
		where t.last_modified <> b.created_at`), 0)
}

// single is a pool of one connection.
func (h *house) single() *pgxpool.Pool {
	h.Helper()
	pool, err := store.Open(h.ctx, store.Config{URL: h.url, Schema: "public", Program: "store-test", Connections: 1})
	if err != nil {
		h.Fatal(err)
	}
	h.Cleanup(pool.Close)
	return pool
}

func TestNoIDTwice(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.exec("alter table telemetry_quarantine add constraint no_weather check (code <> 'bad_time')")
	w := h.writer()
	var wg sync.WaitGroup
	for n := range 6 {
		wg.Go(func() {
			random := rand.New(rand.NewPCG(1, uint64(n)))
			next := int64(0)
			for range 12 {
				size := 1 + random.IntN(1500)
				batch := telemetry.Batch{Readings: readings(fmt.Sprint("d", n), next, size)}
				next += int64(size)
				if random.IntN(3) == 0 { // a transaction that fails late: its ids are gone
					bad := batch
					bad.Rejects = []telemetry.Reject{{Code: telemetry.BadTime}}
					if _, err := w.Write(h.ctx, &bad); err == nil {
						t.Error("a reject against the constraint was stored")
					}
				}
				if out, err := w.Write(h.ctx, &batch); err != nil || out.Stored != size {
					t.Errorf("%+v, %v", out, err)
				}
			}
		})
	}
	wg.Wait()
	h.checkLedger()
}

func TestRepeats(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	w := h.writer()
	first := readings("d", 0, 10)
	first[9].Seq = telemetry.NoSeq
	h.write(w, first...)

	again := readings("d", 0, 12) // seq 0 … 8 are stored, 9 … 11 are new
	again[1].Metrics = []byte(`{ "n" :1.0}`)
	again[2] = decoded(t, again[2], `{"n": "other"}`)
	same := first[9] // equal: no seq is a value
	within, differing := again[11], decoded(t, again[11], `{"n": "differs within the batch"}`)
	reject := telemetry.Reject{Code: telemetry.BadTime, Detail: "x", Topic: "t", Raw: []byte("r")}
	out, err := w.Write(h.ctx, &telemetry.Batch{Readings: append(again, same, within, differing), Rejects: []telemetry.Reject{reject}})
	if err != nil {
		t.Fatal(err)
	}
	// jsonb's 1 and 1.0 are equal.
	want(h, "outcome", out, telemetry.Outcome{Stored: 3, Duplicate: 10, Quarantined: 3, Conflicts: 2})
	h.checkLedger()
	want(h, "rows", value[int](h, "select count(*) from telemetry"), 13)
	want(h, "the first of two in one batch is stored", value[string](h, "select payload ->> 'n' from telemetry where seq = 11"), "11")
	got := values[string](h, "select concat_ws(' ', code, topic, convert_from(payload, 'UTF8')) from telemetry_quarantine order by code desc, id")
	conflict := func(seq int, metrics string) string {
		return fmt.Sprintf("conflict telemetry/d/performance "+element, again[seq].RecordedAt.Format(time.RFC3339Nano), seq, metrics)
	}
	if d := cmp.Diff([]string{conflict(2, `{"n": "other"}`), conflict(11, `{"n": "differs within the batch"}`), "bad_time t r"}, got); d != "" {
		t.Fatal(d)
	}
	detail := value[string](h, "select detail from telemetry_quarantine where code = 'conflict' order by id limit 1")
	wantParts(h, detail, `device_id "d"`, `kind "performance"`, "seq 2", "2026-01-02T03:04:05.680901Z",
		fmt.Sprintf("row %d ", value[int64](h, "select id from telemetry where seq = 2")))

	want(h, "the batch once more", h.write(w, append(again[3:], same)...), telemetry.Outcome{Duplicate: 10})
	zero := first[9]
	zero.Seq = 0
	want(h, "seq 0 is not a missing one", h.write(w, zero), telemetry.Outcome{Stored: 1})
	h.checkLedger()
}

const element = `{"ts": %q, "seq": %d, "metrics": %s}`

// decoded is r with other metrics, as the decoder makes it of a message.
func decoded(t *testing.T, r telemetry.Reading, metrics string) telemetry.Reading {
	t.Helper()
	d, err := telemetry.NewDecoder(telemetry.DefaultConfig())
	if err != nil {
		t.Fatal(err)
	}
	var b telemetry.Batch
	d.Decode(telemetry.Message{
		Topic:   "telemetry/" + r.DeviceID + "/" + r.Kind,
		Payload: fmt.Appendf(nil, element, r.RecordedAt.Format(time.RFC3339Nano), r.Seq, metrics), ReceivedAt: r.RecordedAt,
	}, &b)
	if len(b.Readings) != 1 {
		t.Fatalf("%+v", b)
	}
	return b.Readings[0]
}

// Two writers with the same readings in opposite order: each is stored once, and every other is a duplicate.
func TestRepeatsOfConcurrentWriters(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.exec("alter database " + h.database() + " set deadlock_timeout = '20ms'")
	h.pool.Reset()
	w := h.writer()
	const rounds, size = 6, 400
	for round := range int64(rounds) {
		var wg sync.WaitGroup
		outs := make([]telemetry.Outcome, 4)
		for n := range outs {
			wg.Go(func() {
				batch := telemetry.Batch{Readings: readings("d", round*size, size)}
				rand.New(rand.NewPCG(uint64(round), uint64(n))).Shuffle(size, func(i, j int) {
					batch.Readings[i], batch.Readings[j] = batch.Readings[j], batch.Readings[i]
				})
				var err error
				for { // a deadlock is weather: the caller tries again
					if outs[n], err = w.Write(h.ctx, &batch); err == nil {
						return
					}
					if !strings.Contains(err.Error(), "40P01") {
						t.Error(err)
						return
					}
				}
			})
		}
		wg.Wait()
		var total telemetry.Outcome
		for _, o := range outs {
			total.Stored, total.Duplicate = total.Stored+o.Stored, total.Duplicate+o.Duplicate
		}
		want(h, "stored and duplicate", total, telemetry.Outcome{Stored: size, Duplicate: 3 * size})
	}
	h.checkLedger()
}

func TestMissingDay(t *testing.T) {
	t.Parallel()
	h := emptyHouse(t)
	if _, err := store.Migrate(h.ctx, h.pool); err != nil {
		t.Fatal(err)
	}
	calls := 0
	broken := errors.New("nobody may create it")
	w := store.NewWriter(h.pool, "test", func(context.Context) error {
		if calls++; calls == 1 {
			return broken
		}
		h.addDay(h.today)
		h.addDay(h.day(1))
		return nil
	})
	batch := &telemetry.Batch{Readings: readings("d", 0, 5)}
	if _, err := w.Write(h.ctx, batch); !errors.Is(err, broken) || !strings.Contains(err.Error(), "partition") {
		t.Fatalf("got %v, want the reason", err)
	}
	out, err := w.Write(h.ctx, batch)
	if err != nil || out.Stored != 5 {
		t.Fatalf("%+v, %v", out, err)
	}
	want(h, "calls", calls, 2)
	h.checkLedger()
	// Repeats and a missing partition at once: the quarantine has none.
	out, err = store.NewWriter(h.pool, "test", func(context.Context) error {
		h.exec("create table q partition of telemetry_quarantine for values from (minvalue) to (maxvalue)")
		return nil
	}).Write(h.ctx, &telemetry.Batch{Readings: batch.Readings[:2], Rejects: []telemetry.Reject{{Code: telemetry.BadTime}}})
	if err != nil || out != (telemetry.Outcome{Duplicate: 2, Quarantined: 1}) {
		t.Fatalf("%+v, %v", out, err)
	}
}

func TestRollbackLeavesNothing(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.exec("alter table telemetry_quarantine add constraint no_weather check (code <> 'bad_time')")
	w := store.NewWriter(h.pool, "test", func(context.Context) error {
		t.Error("a CHECK is not a missing partition")
		return nil
	})
	batch := &telemetry.Batch{Readings: readings("d", 0, 50), Rejects: []telemetry.Reject{{Code: telemetry.BadTime}}}
	if _, err := w.Write(h.ctx, batch); err == nil || !strings.Contains(err.Error(), "no_weather") || !strings.Contains(err.Error(), "store 50 readings and 1 rejects") {
		t.Fatalf("got %v, want the constraint", err)
	}
	want(h, "rows and lines", value[int](h, "select (select count(*) from telemetry) + (select count(*) from telemetry_batch)"), 0)
	batch.Rejects = nil
	if out, err := w.Write(h.ctx, batch); err != nil || out.Stored != 50 {
		t.Fatalf("%+v, %v", out, err)
	}
	h.checkLedger()
}

// The session dies between the COPY and the commit: a lock on the ledger holds the write there.
func TestConnectionKilledInMidWrite(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	w := h.writer()
	batch := &telemetry.Batch{Readings: readings("d", 0, 500)}
	blocker, err := h.pool.Begin(h.ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = blocker.Rollback(h.ctx) }()
	if _, err := blocker.Exec(h.ctx, "lock table telemetry_batch in share mode"); err != nil {
		t.Fatal(err)
	}
	result := make(chan error, 1)
	go func() {
		_, err := w.Write(h.ctx, batch)
		result <- err
	}()
	devtest.Eventually(t, func() error {
		var n int
		err := h.pool.QueryRow(h.ctx, `select count(pg_terminate_backend(pid)) from pg_stat_activity
			where datname = current_database() and wait_event_type = 'Lock' and query like '%insert into telemetry_batch%'`).Scan(&n)
		if err == nil && n == 0 {
			err = errors.New("the write does not wait for the ledger")
		}
		return err
	})
	if err := <-result; err == nil {
		t.Fatal("a killed write succeeded")
	}
	if err := blocker.Rollback(h.ctx); err != nil && !errors.Is(err, pgx.ErrTxClosed) {
		t.Fatal(err)
	}
	want(h, "rows of the killed write", value[int](h, "select count(*) from telemetry"), 0)
	out, err := w.Write(h.ctx, batch)
	if err != nil || out.Stored != 500 {
		t.Fatalf("%+v, %v", out, err)
	}
	want(h, "after an answer that was lost", h.write(w, batch.Readings...), telemetry.Outcome{Duplicate: 500})
	h.checkLedger()
}

func TestWriteStopsWithItsContext(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	ctx, cancel := context.WithCancel(h.ctx)
	cancel()
	if _, err := h.writer().Write(ctx, &telemetry.Batch{Readings: readings("d", 0, 1)}); !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v", err)
	}
}
