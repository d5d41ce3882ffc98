package partman_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap/zaptest"

	"plenum/internal/devenv/devtest"
	"plenum/pkg/partman"
)

// hang is when a test has failed; nothing takes a tenth of it.
const hang = 2 * time.Minute

// house is a database with a table and its archive, kept by a manager.
type house struct {
	t        *testing.T
	ctx      context.Context
	url      string
	pool     *pgxpool.Pool
	cfg      partman.Config
	m        *partman.Manager
	registry *prometheus.Registry
	today    time.Time
}

const tables = `
create sequence telemetry_id_seq increment 5000;
create table telemetry (
	id bigint not null default nextval('telemetry_id_seq'),
	last_modified timestamptz not null default now(),
	recorded_at timestamptz not null default now(),
	seq bigint,
	processed boolean not null default false,
	device_id text not null default 'd',
	kind text not null default 'k',
	payload jsonb not null default '{}' check (jsonb_typeof(payload) = 'object')
) partition by range (last_modified);
comment on column telemetry.seq is 'optional';
create index on telemetry (id);
create index on telemetry using brin (last_modified);
create table telemetry_archive (like telemetry including all) partition by range (last_modified);
create view telemetry_all as select * from telemetry union all select * from telemetry_archive;`

// newHouse makes the tables, registers policies, and a manager that tries fast. change may alter its configuration.
func newHouse(t *testing.T, change func(*partman.Config), policies ...partman.Policy) *house {
	t.Helper()
	return newHouseAt(t, devtest.Database(t), change, policies...)
}

// newHouseAt is newHouse in a database that is there and empty.
func newHouseAt(t *testing.T, url string, change func(*partman.Config), policies ...partman.Policy) *house {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), hang)
	t.Cleanup(cancel)
	h := &house{t: t, ctx: ctx, url: url}
	h.pool = h.connect("test", nil)
	h.exec(tables)
	h.today = time.Now().UTC().Truncate(24 * time.Hour)
	if err := partman.Install(ctx, h.pool, "public"); err != nil {
		t.Fatal(err)
	}
	for _, p := range policies {
		if _, err := partman.Register(ctx, h.pool, "public", p); err != nil {
			t.Fatal(err)
		}
	}
	h.cfg = partman.Config{Pool: h.pool, Schema: "public", Pause: time.Millisecond, Log: zaptest.NewLogger(t)}
	if change != nil {
		change(&h.cfg)
	}
	h.m, h.registry = h.manager(h.cfg)
	return h
}

func (h *house) manager(cfg partman.Config) (*partman.Manager, *prometheus.Registry) {
	h.t.Helper()
	registry := prometheus.NewPedanticRegistry()
	cfg.Registerer = registry
	m, err := partman.New(cfg)
	if err != nil {
		h.t.Fatal(err)
	}
	return m, registry
}

func (h *house) connect(application string, settings map[string]string) *pgxpool.Pool {
	h.t.Helper()
	cfg, err := pgxpool.ParseConfig(h.url)
	if err != nil {
		h.t.Fatal(err)
	}
	cfg.MaxConns = 8
	cfg.ConnConfig.RuntimeParams["application_name"] = application
	for k, v := range settings {
		cfg.ConnConfig.RuntimeParams[k] = v
	}
	pool, err := pgxpool.NewWithConfig(h.ctx, cfg)
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(pool.Close)
	return pool
}

func (h *house) exec(sql string, args ...any) {
	h.t.Helper()
	if _, err := h.pool.Exec(h.ctx, sql, args...); err != nil {
		h.t.Fatalf("%s: %v", sql, err)
	}
}

// number is the result of a query of one bigint.
func (h *house) number(sql string, args ...any) int64 {
	h.t.Helper()
	var n int64
	if err := h.pool.QueryRow(h.ctx, sql, args...).Scan(&n); err != nil {
		h.t.Fatalf("%s: %v", sql, err)
	}
	return n
}

// once runs a round and expects no error.
func (h *house) once(loop partman.Loop) partman.Result {
	h.t.Helper()
	r, err := h.m.RunOnce(h.ctx, loop)
	if err != nil {
		h.t.Fatalf("%s round: %v", loop, err)
	}
	return r
}

// oldDay attaches a partition of the day n days ago, made by the manager as of that day, with rows in it.
func (h *house) oldDay(n, rows int) string {
	h.t.Helper()
	from := h.today.AddDate(0, 0, -n)
	cfg := h.cfg
	cfg.Now = func(time.Time) time.Time { return from.Add(time.Hour) }
	m, _ := h.manager(cfg)
	plan, err := m.Plan(h.ctx, "telemetry")
	if err != nil {
		h.t.Fatal(err)
	}
	plan.Actions = plan.Actions[:1] // the day itself, and not those premade as of then
	if _, err := m.Apply(h.ctx, plan); err != nil {
		h.t.Fatal(err)
	}
	h.exec("update partition_policy set last_run = null") // it was as of that day
	h.exec("insert into telemetry (last_modified, recorded_at) select $1::timestamptz + make_interval(secs => i), "+
		"$1::timestamptz + make_interval(secs => i) from generate_series(0, $2 - 1) i", from, rows)
	return "telemetry_p" + from.Format("20060102")
}

// begin opens a transaction on a session of its own, which ends with the test at the latest.
func (h *house) begin(application, sql string) pgx.Tx {
	h.t.Helper()
	tx, err := h.connect(application, nil).Begin(h.ctx)
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { _ = tx.Rollback(context.Background()) })
	if _, err := tx.Exec(h.ctx, sql); err != nil {
		h.t.Fatalf("%s: %v", sql, err)
	}
	return tx
}

func (h *house) rollback(tx pgx.Tx) {
	h.t.Helper()
	if err := tx.Rollback(h.ctx); err != nil {
		h.t.Fatal(err)
	}
}

// clean expects a check without findings.
func (h *house) clean() {
	h.t.Helper()
	found, err := h.m.Check(h.ctx)
	if err != nil {
		h.t.Fatal(err)
	}
	for _, f := range found {
		h.t.Errorf("finding %s %s: %s", f.Code, f.Partition, f.Detail)
	}
}

func (h *house) find(code partman.Code) []partman.Finding {
	h.t.Helper()
	all, err := h.m.Check(h.ctx)
	if err != nil {
		h.t.Fatal(err)
	}
	var found []partman.Finding
	for _, f := range all {
		if f.Code == code {
			found = append(found, f)
		}
	}
	return found
}

func (h *house) metric(name string, labels ...string) float64 {
	h.t.Helper()
	families, err := h.registry.Gather()
	if err != nil {
		h.t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			var have []string
			for _, l := range m.GetLabel() {
				have = append(have, l.GetName()+"="+l.GetValue())
			}
			if strings.Join(have, ",") == strings.Join(labels, ",") {
				return m.GetGauge().GetValue() + m.GetCounter().GetValue()
			}
		}
	}
	return -1
}

func kinds(r partman.Result) string {
	var list []string
	for _, a := range r.Done {
		list = append(list, string(a.Kind))
	}
	return fmt.Sprint(list)
}

// created is the round that makes n partitions.
func created(n int) string { return "[" + strings.TrimSpace(strings.Repeat("create ", n)) + "]" }

// archive keeps what moves to it for 90 days.
func archive() partman.Policy {
	return partman.Policy{
		Schema: "public", Table: "telemetry_archive", Key: "last_modified", Step: partman.Day,
		Premake: partman.NoPremake, Retention: 90, Expired: partman.ExpiredDrop, Indexes: live().Indexes, Storage: live().Storage,
	}
}

func (h *house) poolOf(cfg *pgxpool.Config) *pgxpool.Pool {
	h.t.Helper()
	pool, err := pgxpool.NewWithConfig(h.ctx, cfg)
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(pool.Close)
	return pool
}

// ranOn is nil once a round of retiring has gone through every table on the n-th day from now.
func (h *house) ranOn(n int) error {
	h.t.Helper()
	if left := h.number("select count(*) from partition_policy where last_run is null or last_run < now() + make_interval(days => $1) - interval '1 hour'", n); left > 0 {
		return fmt.Errorf("%d tables have had no round on day %d", left, n)
	}
	return nil
}

// acceptClock takes the clock of every table for right, as a person would after months without a run.
func (h *house) acceptClock() {
	h.t.Helper()
	for _, table := range []string{"telemetry", "telemetry_archive"} {
		if err := h.m.AcceptClock(h.ctx, table); err != nil {
			h.t.Fatal(err)
		}
	}
}
