package store_test

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"plenum/internal/devenv/devtest"
	"plenum/pkg/store"
	"plenum/pkg/telemetry"
)

func TestMain(m *testing.M) { devtest.Main(m) }

// hang is when a test has failed; nothing takes a tenth of it.
const hang = 3 * time.Minute

// house is a database with Plenum's tables, and partitions from two days ago to tomorrow.
type house struct {
	*testing.T
	ctx   context.Context
	url   string
	pool  *pgxpool.Pool
	today time.Time
}

func newHouse(t *testing.T) *house {
	t.Helper()
	h := emptyHouse(t)
	if _, err := store.Migrate(h.ctx, h.pool); err != nil {
		t.Fatal(err)
	}
	for n := -2; n <= 1; n++ {
		h.addDay(h.day(n))
	}
	h.exec("create table telemetry_quarantine_all partition of telemetry_quarantine for values from (minvalue) to (maxvalue)")
	return h
}

// emptyHouse is a database without tables.
func emptyHouse(t *testing.T) *house {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), hang)
	t.Cleanup(cancel)
	h := &house{T: t, ctx: ctx, url: devtest.Database(t), today: time.Now().UTC().Truncate(24 * time.Hour)}
	h.pool = h.open(h.url)
	return h
}

// open returns a pool as the programs have it.
func (h *house) open(url string) *pgxpool.Pool {
	h.Helper()
	pool, err := store.Open(h.ctx, store.Config{URL: url, Schema: "public", Program: "store-test", Connections: 12})
	if err != nil {
		h.Fatal(err)
	}
	h.Cleanup(pool.Close)
	return pool
}

// poolOf returns a pool of a changed configuration.
func (h *house) poolOf(cfg *pgxpool.Config) *pgxpool.Pool {
	h.Helper()
	pool, err := pgxpool.NewWithConfig(h.ctx, cfg)
	if err != nil {
		h.Fatal(err)
	}
	h.Cleanup(pool.Close)
	return pool
}

// day returns midnight UTC, n days from today.
func (h *house) day(n int) time.Time { return h.today.AddDate(0, 0, n) }

func leafOf(table string, day time.Time) string { return table + "_p" + day.Format("20060102") }

// addDay makes one day's partitions, with the indexes and storage parameters that partman's policies give them.
func (h *house) addDay(day time.Time) {
	h.Helper()
	h.addLedgerDay(day)
	leaf, to := leafOf("telemetry", day), day.AddDate(0, 0, 1)
	h.exec(fmt.Sprintf("create table %s partition of telemetry for values from ('%s') to ('%s') with (fillfactor = 50)",
		leaf, day.Format(time.RFC3339), to.Format(time.RFC3339)))
	h.exec(fmt.Sprintf("create unique index on %s (device_id, kind, recorded_at, seq) nulls not distinct", leaf))
}

func (h *house) addLedgerDay(day time.Time) {
	h.Helper()
	h.exec(fmt.Sprintf("create table %s partition of telemetry_batch for values from ('%s') to ('%s')",
		leafOf("telemetry_batch", day), day.Format(time.DateOnly), day.AddDate(0, 0, 1).Format(time.DateOnly)))
}

// move takes the day's leaf from one table to another in one transaction, as partman does: both parents locked first.
func (h *house) move(from, to string, day time.Time) {
	h.Helper()
	h.exec(fmt.Sprintf(`do $$ begin
		lock table telemetry, telemetry_archive in access exclusive mode;
		alter table %[1]s detach partition %[3]s;
		alter table %[2]s attach partition %[3]s for values from ('%[4]s') to ('%[5]s');
	end $$`, from, to, leafOf("telemetry", day), day.Format(time.RFC3339), day.AddDate(0, 0, 1).Format(time.RFC3339)))
}

func (h *house) archive(day time.Time) {
	h.Helper()
	h.move("telemetry", "telemetry_archive", day)
}

func (h *house) exec(sql string, args ...any) {
	h.Helper()
	if _, err := h.pool.Exec(h.ctx, sql, args...); err != nil {
		h.Fatalf("%s: %v", sql, err)
	}
}

// value is the single value of a query.
func value[T any](h *house, sql string, args ...any) T {
	h.Helper()
	var v T
	if err := h.pool.QueryRow(h.ctx, sql, args...).Scan(&v); err != nil {
		h.Fatalf("%s: %v", sql, err)
	}
	return v
}

// values is a query's only column.
func values[T any](h *house, sql string, args ...any) []T {
	h.Helper()
	rows, err := h.pool.Query(h.ctx, sql, args...)
	if err != nil {
		h.Fatalf("%s: %v", sql, err)
	}
	out, err := pgx.CollectRows(rows, pgx.RowTo[T])
	if err != nil {
		h.Fatalf("%s: %v", sql, err)
	}
	return out
}

func want[T comparable](h *house, what string, got, want T) {
	h.Helper()
	if got != want {
		h.Fatalf("%s: got %v, want %v", what, got, want)
	}
}

func wantParts(h *house, text string, parts ...string) {
	h.Helper()
	for _, part := range parts {
		if !strings.Contains(text, part) {
			h.Errorf("%q does not say %q", text, part)
		}
	}
}

// writer returns a Writer that has every partition it needs.
func (h *house) writer() *store.Writer {
	return store.NewWriter(h.pool, "test", func(context.Context) error {
		return fmt.Errorf("a partition is missing that the test has made")
	})
}

func (h *house) write(w *store.Writer, readings ...telemetry.Reading) telemetry.Outcome {
	h.Helper()
	out, err := w.Write(h.ctx, &telemetry.Batch{Readings: readings})
	if err != nil {
		h.Fatal(err)
	}
	return out
}

// readings returns n of device, their seq ascending from first.
func readings(device string, first int64, n int) []telemetry.Reading {
	out := make([]telemetry.Reading, n)
	base := time.Date(2026, 1, 2, 3, 4, 5, 678901000, time.UTC)
	for i := range out {
		seq := first + int64(i)
		out[i] = telemetry.Reading{
			DeviceID: device, Kind: "performance", RecordedAt: base.Add(time.Duration(seq) * time.Millisecond),
			Seq: seq, Metrics: fmt.Appendf(nil, `{"n": %d}`, seq),
		}
	}
	return out
}

// insertDay inserts n rows and their ledger line into day, as a writer would have on that day.
func (h *house) insertDay(day time.Time, n int) store.Line {
	h.Helper()
	first := value[int64](h, "select nextval('telemetry_id_seq')")
	h.insertRows(day.Add(time.Hour), first, n)
	l := store.Line{FirstID: first, LastID: first + int64(n) - 1, Rows: n, Day: day}
	l.BatchID = value[int64](h, `insert into telemetry_batch (first_id, last_id, row_count, day, source, created_at)
		values ($1, $2, $3, $4, 'test', $5) returning batch_id`, l.FirstID, l.LastID, n, day, day.Add(time.Hour))
	return l
}

// insertRows inserts the rows first … first+n-1 by hand, without a ledger line.
func (h *house) insertRows(at time.Time, first int64, n int) {
	h.Helper()
	h.exec(`insert into telemetry (id, last_modified, recorded_at, device_id, kind, payload)
		select id, $1, $1, 'hand-' || id, 'k', '{}' from generate_series($2::bigint, $3) id`, at, first, first+int64(n)-1)
}

// markAll marks until nothing is pending.
func (h *house) markAll(m *store.Marker) (total store.Marked) {
	h.Helper()
	for {
		done, err := m.Mark(h.ctx, 1000)
		if err != nil {
			h.Fatal(err)
		}
		if done == (store.Marked{}) && h.pending(m).Lines == 0 {
			return total
		}
		total.Lines, total.Rows, total.SetAside = total.Lines+done.Lines, total.Rows+done.Rows, total.SetAside+done.SetAside
	}
}

func (h *house) pending(m *store.Marker) store.Pending {
	h.Helper()
	p, err := m.Pending(h.ctx)
	if err != nil {
		h.Fatal(err)
	}
	return p
}

// feed reads everything behind position after, and fails where positions do not ascend.
func (h *house) feed(after int64) (lines []store.Line, rows []store.FeedRow) {
	h.Helper()
	for {
		page, err := store.FeedLines(h.ctx, h.pool, after, 500)
		if err != nil {
			h.Fatal(err)
		}
		if len(page) == 0 {
			return lines, rows
		}
		for _, l := range page {
			if l.Position <= after {
				h.Fatalf("position %d after %d", l.Position, after)
			}
			after = l.Position
		}
		more, err := store.FeedRows(h.ctx, h.pool, page)
		if err != nil {
			h.Fatal(err)
		}
		lines, rows = append(lines, page...), append(rows, more...)
	}
}

// checkLedger fails unless each row of telemetry has exactly one ledger line, and each line all its rows.
func (h *house) checkLedger() {
	h.Helper()
	const q = `with row_lines as (
			select t.id, count(b.batch_id) as n from telemetry t left join telemetry_batch b
				on t.id between b.first_id and b.last_id and b.day = (t.last_modified at time zone 'UTC')::date
			group by t.id, t.last_modified)
		select (select count(*) from row_lines where n <> 1), (select count(*) from telemetry) - (select coalesce(sum(row_count), 0) from telemetry_batch),
			(select count(*) - count(distinct id) from telemetry)`
	var bad, difference, doubled int64
	if err := h.pool.QueryRow(h.ctx, q).Scan(&bad, &difference, &doubled); err != nil {
		h.Fatal(err)
	}
	if bad != 0 || difference != 0 || doubled != 0 {
		h.Fatalf("%d rows without exactly one line, rows minus the lines' counts %d, ids that exist twice %d", bad, difference, doubled)
	}
}

// plans is a pool whose every statement leaves its plan, as the server ran it.
type plans struct {
	*pgxpool.Pool
	mu    sync.Mutex
	texts []string
}

// withPlans makes plans by auto_explain; settings are further ones for its connections.
func (h *house) withPlans(settings map[string]string) *plans {
	h.Helper()
	p := &plans{}
	base, err := store.Open(h.ctx, store.Config{URL: h.url, Schema: "public", Program: "store-test", Connections: 2})
	if err != nil {
		h.Fatal(err)
	}
	cfg := base.Config()
	base.Close()
	params := cfg.ConnConfig.RuntimeParams
	params["session_preload_libraries"] = "auto_explain"
	params["auto_explain.log_min_duration"] = "0"
	params["auto_explain.log_analyze"] = "on"
	params["auto_explain.log_level"] = "notice"
	for k, v := range settings {
		params[k] = v
	}
	cfg.ConnConfig.OnNotice = func(_ *pgconn.PgConn, n *pgconn.Notice) {
		p.mu.Lock()
		p.texts = append(p.texts, n.Message)
		p.mu.Unlock()
	}
	if p.Pool, err = pgxpool.NewWithConfig(h.ctx, cfg); err != nil {
		h.Fatal(err)
	}
	h.Cleanup(p.Close)
	return p
}

// take returns the plans since the last call.
func (p *plans) take() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := slices.Clone(p.texts)
	p.texts = nil
	return out
}

// wantPlan fails unless the plan scans of telemetry the one leaf only, by the one index.
func wantPlan(h *house, plan, index, leaf string) {
	h.Helper()
	if strings.Contains(plan, "Seq Scan on telemetry") || !strings.Contains(plan, leaf+index) {
		h.Fatalf("want %s%s and no sequential scan:\n%s", leaf, index, plan)
	}
	for _, other := range regexp.MustCompile(`telemetry_(archive_)?p\d{8}`).FindAllString(plan, -1) {
		if other != leaf {
			h.Fatalf("partition %s beside %s:\n%s", other, leaf, plan)
		}
	}
}
