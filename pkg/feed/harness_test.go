package feed_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"plenum/internal/devenv/devtest"
	"plenum/pkg/feed"
	"plenum/pkg/store"
	"plenum/pkg/telemetry"
)

func TestMain(m *testing.M) { devtest.Main(m) }

// database is a migrated database with partitions for now.
type database struct {
	t    *testing.T
	pool *pgxpool.Pool
	feed *feed.Feed
	rows int
}

func newDatabase(t *testing.T) *database {
	t.Helper()
	url := devtest.Database(t)
	d := &database{t: t, pool: open(t, url)}
	if _, err := store.Migrate(t.Context(), d.pool); err != nil {
		t.Fatal(err)
	}
	day := time.Now().UTC().Truncate(24 * time.Hour)
	for _, table := range []string{"telemetry", "telemetry_batch"} {
		d.exec(fmt.Sprintf("create table %s_p partition of %[1]s for values from ('%s') to ('%s')", table,
			day.AddDate(0, 0, -1).Format(time.DateOnly), day.AddDate(0, 0, 3).Format(time.DateOnly)))
	}
	d.feed = feed.New(d.pool, open(t, url))
	return d
}

func open(t *testing.T, url string) *pgxpool.Pool {
	t.Helper()
	pool, err := store.Open(t.Context(), store.Config{URL: url, Schema: "public", Program: "test", Connections: 4})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return pool
}

func (d *database) exec(sql string, args ...any) {
	d.t.Helper()
	if _, err := d.pool.Exec(d.t.Context(), sql, args...); err != nil {
		d.t.Fatalf("%s: %v", sql, err)
	}
}

// add stores batches of these sizes and marks them, and returns the position of the last.
func (d *database) add(sizes ...int) int64 {
	d.t.Helper()
	ctx := context.WithoutCancel(d.t.Context())
	writer, marker := store.NewWriter(d.pool, "test", func(context.Context) error { return errors.New("no partition") }), store.NewMarker(d.pool)
	for _, n := range sizes {
		var b telemetry.Batch
		for range n {
			d.rows++
			b.Readings = append(b.Readings, telemetry.Reading{
				DeviceID: "a", Kind: "parameters", RecordedAt: time.Now().UTC(), Seq: int64(d.rows), Metrics: []byte("{}"),
			})
		}
		if _, err := writer.Write(ctx, &b); err != nil {
			d.t.Fatal(err)
		}
		if m, err := marker.Mark(ctx, 1); err != nil || m.Rows != n {
			d.t.Fatalf("marked %+v of %d rows: %v", m, n, err)
		}
	}
	var head int64
	if err := d.pool.QueryRow(ctx, "select max(feed_position) from telemetry_batch").Scan(&head); err != nil {
		d.t.Fatal(err)
	}
	return head
}

// read reads, and checks that the rows begin behind sequence number after and follow each other.
func (d *database) read(r feed.Request, after, n int) feed.Page {
	d.t.Helper()
	if r.Limit == 0 {
		r.Limit = feed.DefaultLimit
	}
	page, err := d.feed.Read(d.t.Context(), r)
	if err != nil {
		d.t.Fatalf("%+v: %v", r, err)
	}
	if len(page.Rows) != n {
		d.t.Fatalf("%+v: %d rows, want %d", r, len(page.Rows), n)
	}
	for i, row := range page.Rows {
		if *row.Seq != int64(after+i+1) {
			d.t.Fatalf("%+v: row %d has seq %d, want %d", r, i, *row.Seq, after+i+1)
		}
	}
	return page
}

func (d *database) commit(name string, position int64) {
	d.t.Helper()
	if err := d.feed.Commit(d.t.Context(), name, position); err != nil {
		d.t.Fatal(err)
	}
}
