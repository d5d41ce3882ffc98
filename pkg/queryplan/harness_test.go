package queryplan_test

import (
	"context"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"plenum/internal/devenv/devtest"
	"plenum/pkg/queryplan"
)

func TestMain(m *testing.M) { devtest.Main(m) }

// bench is a connection to a database with a table of three days, each of 5,000 rows with an index on id; rolled back at the end.
type bench struct {
	*testing.T
	ctx context.Context
	tx  pgx.Tx
}

const schema = `
	create table event (id bigint not null, at timestamptz not null, kind text not null, processed boolean not null default false)
		partition by range (at);
	create table event_p1 partition of event for values from ('2026-06-01 00:00+00') to ('2026-06-02 00:00+00');
	create table event_p2 partition of event for values from ('2026-06-02 00:00+00') to ('2026-06-03 00:00+00');
	create table event_p3 partition of event for values from ('2026-06-03 00:00+00') to ('2026-06-04 00:00+00');
	create index event_id_idx on event (id);
	create index event_at_idx on event using brin (at);
	insert into event select i, timestamptz '2026-06-01 00:00+00' + i * interval '17.28 s', 'k' || i % 10 from generate_series(0, 14999) i;
	analyze event`

func newBench(t *testing.T, also ...string) *bench {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	conn, err := pgx.Connect(ctx, devtest.Database(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	b := &bench{T: t, ctx: ctx}
	for _, sql := range append([]string{"set timezone = 'UTC'", schema}, also...) {
		if _, err := conn.Exec(ctx, sql); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
	if b.tx, err = conn.Begin(ctx); err != nil {
		t.Fatal(err)
	}
	return b
}

func (b *bench) exec(sql string) {
	b.Helper()
	if _, err := b.tx.Exec(b.ctx, sql); err != nil {
		b.Fatalf("%s: %v", sql, err)
	}
}

func (b *bench) explain(analyze bool, sql string, args ...any) queryplan.Plan {
	b.Helper()
	p, err := queryplan.Explain(b.ctx, b.tx, queryplan.Options{Analyze: analyze}, sql, args...)
	if err != nil {
		b.Fatal(err)
	}
	return p
}

// faults are the words of each.
func (b *bench) faults(p queryplan.Plan, needs ...queryplan.Need) []string {
	b.Helper()
	list, err := queryplan.Judge(b.ctx, b.tx, p, needs...)
	if err != nil {
		b.Fatal(err)
	}
	words := []string{}
	for _, f := range list {
		words = append(words, f.String())
	}
	return words
}
