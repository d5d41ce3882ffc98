package bluegreen_test

import (
	"context"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"go.uber.org/zap/zaptest"

	"plenum/internal/devenv/devtest"
	"plenum/pkg/bluegreen"
	"plenum/pkg/partman"
)

func TestMain(m *testing.M) { devtest.Main(m) }

// hang is when a test has failed; the longest takes a minute where it has the machine to itself.
const hang = 8 * time.Minute

// yard is a database with a table that a migration is made of.
type yard struct {
	*testing.T
	ctx  context.Context
	url  string
	pool *pgxpool.Pool
	m    *bluegreen.Migration
}

// plain is the usual source: one table, with rows of today's first instant and the ten days before.
const plain = `
create table orders (
	id bigserial primary key,
	at timestamptz not null,
	state text not null default 'new',
	processed boolean not null default false
);
create index orders_at on orders (at);
insert into orders (at) select date_trunc('day', now(), 'UTC') - i * interval '1 hour' from generate_series(0, 239) i;`

func newYard(t *testing.T, sql string) *yard {
	t.Helper()
	return newYardAt(t, devtest.Database(t), sql)
}

func newYardAt(t *testing.T, url, sql string) *yard {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), hang)
	t.Cleanup(cancel)
	y := &yard{T: t, ctx: ctx, url: url}
	y.pool = y.connect("")
	y.exec(sql)
	y.m = y.migration(func(string) {})
	return y
}

// connect is a pool of the superuser, or of a role whose password is its name.
func (y *yard) connect(role string) *pgxpool.Pool {
	y.Helper()
	cfg, err := pgxpool.ParseConfig(y.url)
	if err != nil {
		y.Fatal(err)
	}
	if role != "" {
		cfg.ConnConfig.User, cfg.ConnConfig.Password = role, role
	}
	cfg.MaxConns = 8
	pool, err := pgxpool.NewWithConfig(y.ctx, cfg)
	if err != nil {
		y.Fatal(err)
	}
	y.Cleanup(pool.Close)
	return pool
}

func (y *yard) migration(step func(string)) *bluegreen.Migration {
	y.Helper()
	m, err := bluegreen.New(bluegreen.Config{Pool: y.pool, Schema: "public", Log: zaptest.NewLogger(y.T), Step: step, Budget: hang})
	if err != nil {
		y.Fatal(err)
	}
	return m
}

func (y *yard) exec(sql string, args ...any) {
	y.Helper()
	if _, err := y.pool.Exec(y.ctx, sql, args...); err != nil {
		y.Fatalf("%s: %v", sql, err)
	}
}

// init makes a migration of tables by at and id.
func (y *yard) init(tables ...string) bluegreen.Report {
	y.Helper()
	r, err := y.m.Init(y.ctx, bluegreen.InitOptions{Tables: tables, Key: "at", ID: "id"})
	if err != nil {
		y.Fatalf("init %q: %v", tables, err)
	}
	y.round()
	return r
}

// round is one of partman's, as a program has it that runs beside.
func (y *yard) round() {
	y.Helper()
	p, err := partman.New(partman.Config{Pool: y.pool, Schema: "public"})
	if err != nil {
		y.Fatal(err)
	}
	for _, loop := range []partman.Loop{partman.CreateLoop, partman.RetireLoop} {
		if _, err := p.RunOnce(y.ctx, loop); err != nil {
			y.Fatal(err)
		}
	}
}

// there goes to green and back again, with write on each side; both sides are alike each time. Tables are quoted as SQL has them.
func (y *yard) there(table, old, green, write string) {
	y.Helper()
	y.round()
	y.sync()
	y.exec(write)
	y.swap(bluegreen.Green)
	y.alike(table, old)
	y.is("p", "select relkind from pg_class where oid = $1::text::regclass", table)
	y.exec(write)
	y.swap(bluegreen.Blue)
	y.alike(table, green)
	y.exec(write)
	y.sync()
	y.sync()
	if list := y.verify(); len(list) > 0 {
		y.Errorf("differences %v", list)
	}
	y.alike(table, green)
}

// text is the result of a query of one value.
func (y *yard) text(sql string, args ...any) string {
	y.Helper()
	var s string
	if err := y.pool.QueryRow(y.ctx, "select coalesce((select ("+sql+")::text), 'null')", args...).Scan(&s); err != nil {
		y.Fatalf("%s: %v", sql, err)
	}
	return s
}

// is checks the result of a query.
func (y *yard) is(want, sql string, args ...any) {
	y.Helper()
	if got := y.text(sql, args...); got != want {
		y.Errorf("%s: %q, want %q", sql, got, want)
	}
}

func names(list []bluegreen.Finding) []string {
	all := []string{}
	for _, f := range list {
		all = append(all, f.Name)
	}
	return all
}
