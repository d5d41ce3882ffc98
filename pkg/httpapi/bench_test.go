package httpapi

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"

	"plenum/internal/devenv/devtest"
	"plenum/pkg/feed"
	"plenum/pkg/store"
)

const (
	benchRows = 400_000
	benchDays = 100 // days of telemetry and of the archive beside the one that is read
)

// BenchmarkCatchUp reads the same rows by HTTP, by the SQL function, by COPY and by a sequential scan that prints nothing: how
// far a consumer that was away is from the speed of the disk. Ledger lines have so many rows as the name says.
func BenchmarkCatchUp(b *testing.B) {
	for _, lineRows := range []int{5000, 50, 1} {
		b.Run(fmt.Sprintf("line=%d", lineRows), func(b *testing.B) {
			pool := benchFeed(b, lineRows)
			for _, way := range []struct {
				name string
				read func(testing.TB, *pgxpool.Pool) int
			}{{"http", readHTTP("identity")}, {"gzip", readHTTP("gzip")}, {"sql", readFunction}, {"copy", readCopy}, {"seqscan", readScan}} {
				b.Run(way.name, func(b *testing.B) {
					rows := 0
					for b.Loop() {
						rows += way.read(b, pool)
					}
					b.ReportMetric(float64(rows)/b.Elapsed().Seconds(), "rows/s")
				})
			}
		})
	}
}

func benchFeed(b *testing.B, lineRows int) *pgxpool.Pool {
	b.Helper()
	ctx := context.Background()
	pool, err := store.Open(ctx, store.Config{URL: devtest.Database(b), Schema: "public", Program: "bench", Connections: 8})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(pool.Close)
	if _, err := store.Migrate(ctx, pool); err != nil {
		b.Fatal(err)
	}
	exec := func(sql string, args ...any) {
		b.Helper()
		if _, err := pool.Exec(ctx, sql, args...); err != nil {
			b.Fatalf("%s: %v", sql, err)
		}
	}
	today := time.Now().UTC().Truncate(24 * time.Hour)
	for n := range benchDays {
		from, to := today.AddDate(0, 0, -n).Format(time.DateOnly), today.AddDate(0, 0, 1-n).Format(time.DateOnly)
		table := "telemetry"
		if n > 8 {
			table = "telemetry_archive"
		}
		exec(fmt.Sprintf("create table t_%d partition of %s for values from ('%s') to ('%s')", n, table, from, to))
		exec(fmt.Sprintf("create table b_%d partition of telemetry_batch for values from ('%s') to ('%s')", n, from, to))
	}
	exec(`insert into telemetry (id, last_modified, recorded_at, seq, processed, device_id, kind, payload)
		select n, $1, $1::timestamptz + n * interval '1 millisecond', n, true, 'cmp-' || lpad((n % 500)::text, 5, '0'), 'performance',
			jsonb_build_object('motor_temp_c', n % 1000 / 10.0, 'pressure_bar', n % 77 / 10.0, 'state', 'loaded', 'rpm', n % 3000, 'hours', n)
		from generate_series(1, $2::bigint) n`, today, benchRows)
	exec(`insert into telemetry_batch (first_id, last_id, row_count, day, source, processed_at, feed_position)
		select n, n + $2 - 1, $2, $1, 'bench', now(), nextval('telemetry_feed_position_seq') from generate_series(1, $3::bigint, $2::bigint) n`,
		today, lineRows, benchRows)
	exec("vacuum analyze")
	return pool
}

func readHTTP(encoding string) func(testing.TB, *pgxpool.Pool) int {
	return func(tb testing.TB, pool *pgxpool.Pool) int {
		server, err := Listen(Config{Listen: "127.0.0.1:0", Feed: feed.New(pool, pool), Health: new(Health), Metrics: prometheus.NewRegistry()})
		if err != nil {
			tb.Fatal(err)
		}
		served := make(chan error, 1)
		go func() { served <- server.Serve() }()
		defer func() {
			if err := server.Close(context.Background()); err != nil {
				tb.Error(err)
			}
			<-served
		}()
		url := "http://" + server.Addr() + "/api/v1/feed/bench"
		for bytes := int64(1); bytes > 0; {
			r, err := http.NewRequest(http.MethodGet, url+"?limit=100000", nil)
			if err != nil {
				tb.Fatal(err)
			}
			r.Header.Set("Accept-Encoding", encoding)
			resp, err := http.DefaultClient.Do(r)
			if err != nil {
				tb.Fatal(err)
			}
			if bytes, err = io.Copy(io.Discard, resp.Body); err != nil || resp.StatusCode != 200 {
				tb.Fatal(resp.Status, err)
			}
			_ = resp.Body.Close()
			if _, err := pool.Exec(context.Background(), "update feed_consumer set position = $1::text::bigint", resp.Header.Get("Plenum-Position")); err != nil {
				tb.Fatal(err)
			}
		}
		if _, err := pool.Exec(context.Background(), "delete from feed_consumer"); err != nil {
			tb.Fatal(err)
		}
		return benchRows
	}
}

func readFunction(tb testing.TB, pool *pgxpool.Pool) (rows int) {
	for after := int64(0); ; {
		var n int
		var position *int64
		const q = "select count(payload), max(position) from telemetry_feed($1, 100000)"
		if err := pool.QueryRow(context.Background(), q, after).Scan(&n, &position); err != nil {
			tb.Fatal(err)
		}
		if position == nil {
			return rows
		}
		rows, after = rows+n, *position
	}
}

func readCopy(tb testing.TB, pool *pgxpool.Pool) (rows int) {
	err := pool.AcquireFunc(context.Background(), func(c *pgxpool.Conn) error {
		tag, err := c.Conn().PgConn().CopyTo(context.Background(), io.Discard,
			"copy (select id, device_id, kind, seq, recorded_at, last_modified, payload from telemetry) to stdout")
		rows = int(tag.RowsAffected())
		return err
	})
	if err != nil {
		tb.Fatal(err)
	}
	return rows
}

func readScan(tb testing.TB, pool *pgxpool.Pool) (rows int) {
	err := pgx.BeginFunc(context.Background(), pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(context.Background(), "set local max_parallel_workers_per_gather = 0"); err != nil {
			return err
		}
		return tx.QueryRow(context.Background(), "select count(*) from telemetry where device_id <> ''").Scan(&rows)
	})
	if err != nil {
		tb.Fatal(err)
	}
	return rows
}
