package store_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"plenum/internal/devenv/devtest"
	"plenum/pkg/store"
)

// sqlRow is a row of telemetry_feed.
type sqlRow struct {
	Position int64
	store.FeedRow
}

const sqlFeed = `select position, id, device_id, kind, seq, recorded_at, last_modified, payload::text from telemetry_feed($1, $2)`

func (h *house) sqlFeed(after int64, maxRows int) []sqlRow {
	h.Helper()
	rows, err := h.pool.Query(h.ctx, sqlFeed, after, maxRows)
	if err != nil {
		h.Fatal(err)
	}
	out, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (r sqlRow, err error) {
		err = row.Scan(&r.Position, &r.ID, &r.DeviceID, &r.Kind, &r.Seq, &r.RecordedAt, &r.LastModified, &r.Payload)
		return r, err
	})
	if err != nil {
		h.Fatal(err)
	}
	return out
}

// wantState fails unless the statement is refused with that SQLSTATE and words.
func (h *house) wantState(db interface {
	Exec(context.Context, string, ...any) (pgconn.CommandTag, error)
}, state string, parts []string, sql string, args ...any,
) {
	h.Helper()
	_, err := db.Exec(h.ctx, sql, args...)
	var pg *pgconn.PgError
	if !errors.As(err, &pg) || pg.Code != state {
		h.Errorf("%s %v: %v, want SQLSTATE %s", sql, args, err, state)
		return
	}
	wantParts(h, pg.Message+" "+pg.Hint, parts...)
}

// The function gives what FeedLines and FeedRows give, with each row's position, page by page, of days in the live table and
// in the archive, in lines that follow each other and do not.
func TestFeedBySQL(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	for i, n := range []int{3, 1, 400, 2, 1, 1, 7, 300, 1} {
		h.insertDay(h.day(-i%3), n)
	}
	h.write(h.writer(), readings("a", 1, 20)...)
	h.markAll(store.NewMarker(h.pool))
	h.archive(h.day(-2))
	lines, rows := h.feed(0)
	at := map[int64]int64{}
	for _, l := range lines {
		for id := l.FirstID; id <= l.LastID; id++ {
			at[id] = l.Position
		}
	}
	for _, maxRows := range []int{1, 2, 10, 401, 100_000} {
		var all []sqlRow
		for after := int64(0); ; {
			page := h.sqlFeed(after, maxRows)
			if len(page) == 0 {
				break
			}
			ends, err := store.FeedLines(h.ctx, h.pool, after, maxRows)
			if err != nil {
				t.Fatal(err)
			}
			after = page[len(page)-1].Position
			want(h, fmt.Sprintf("end of a page of %d", maxRows), after, ends[len(ends)-1].Position)
			all = append(all, page...)
		}
		want(h, "rows", len(all), len(rows))
		for i, r := range rows {
			got := all[i]
			if got.Position != at[r.ID] || got.ID != r.ID || got.DeviceID != r.DeviceID || got.Kind != r.Kind || (got.Seq == nil) != (r.Seq == nil) ||
				!got.RecordedAt.Equal(r.RecordedAt) || !got.LastModified.Equal(r.LastModified) || string(got.Payload) != string(r.Payload) {
				t.Fatalf("row %d: %+v, want %+v at %d", i, got, r, at[r.ID])
			}
		}
	}
}

func TestFeedBySQLRefuses(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.insertDay(h.today, 3)
	l := h.insertDay(h.today, 3)
	h.insertDay(h.today, 3)
	h.markAll(store.NewMarker(h.pool))
	for _, call := range []string{"null, 1", "-1, 1", "0, null", "0, 0", "0, -1", "0, 100001"} {
		h.wantState(h.pool, "22023", []string{"telemetry_feed"}, "select telemetry_feed("+call+")")
	}
	h.wantState(h.pool, "0A000", []string{"repeatable read", "read committed"}, "begin isolation level repeatable read; select telemetry_feed(0, 1); commit")
	want(h, "rows behind the head", len(h.sqlFeed(3, 10)), 0)
	want(h, "rows behind what is no position yet", len(h.sqlFeed(1<<60, 10)), 0)

	h.exec("delete from telemetry where id = $1", l.FirstID+1)
	h.wantState(h.pool, "PF503", []string{"behind position 0 and up to 3", "sync resolve"}, "select telemetry_feed(0, 100)")
	want(h, "rows before the damage", len(h.sqlFeed(0, 1)), 3)
	h.exec("update feed_horizon set position = 2")
	h.wantState(h.pool, "PF410", []string{"behind position 1", "oldest position to read from is 2"}, "select telemetry_feed(1, 100)")
	want(h, "rows from the oldest position", len(h.sqlFeed(2, 100)), 3)
}

// A line too few here and one too many there are as many rows as the ledger counts, and damage.
func TestFeedBySQLCountsEachLine(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	first := h.insertDay(h.today, 3)
	second := h.insertDay(h.today, 3)
	h.markAll(store.NewMarker(h.pool))
	h.exec("delete from telemetry where id = $1", first.FirstID)
	h.insertRows(h.today, second.FirstID, 1)
	h.wantState(h.pool, "PF503", nil, "select telemetry_feed(0, 100)")
	h.wantState(h.pool, "PF503", []string{"behind position 1 and up to 2"}, "select telemetry_feed(1, 100)")
}

// Rows that are dropped while the function reads: it says so, and not that they are missing from a batch.
func TestFeedBySQLWhileADayGoes(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.insertDay(h.today, 3)
	h.markAll(store.NewMarker(h.pool))
	leaf := leafOf("telemetry", h.today)
	tx, err := h.pool.Begin(h.ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(h.ctx) }()
	if _, err := tx.Exec(h.ctx, "truncate "+leaf+"; update feed_horizon set position = 1"); err != nil {
		t.Fatal(err)
	}
	var reader sync.WaitGroup
	reader.Go(func() { h.wantState(h.pool, "PF410", nil, "select telemetry_feed(0, 100)") })
	devtest.Eventually(t, func() error {
		const q = `select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock' and query like '%telemetry_feed%'`
		if n := value[int](h, q); n != 1 {
			return fmt.Errorf("%d readers wait", n)
		}
		return nil
	})
	if err := tx.Commit(h.ctx); err != nil {
		t.Fatal(err)
	}
	reader.Wait()
}

// Rows come by id also where they lie otherwise and the plan reads them as they lie.
func TestFeedBySQLOrdersRows(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	l := h.insertDay(h.today, 3)
	next := h.insertDay(h.today, 1)
	h.markAll(store.NewMarker(h.pool))
	h.exec("with moved as (delete from telemetry where id = $1 returning *) insert into telemetry select * from moved", l.FirstID)
	conn, err := h.pool.Acquire(h.ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()
	if _, err := conn.Exec(h.ctx, "set enable_indexscan = off"); err != nil {
		t.Fatal(err)
	}
	rows, err := conn.Query(h.ctx, "select id from telemetry_feed(0, 10)")
	if err != nil {
		t.Fatal(err)
	}
	ids, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	if err != nil {
		t.Fatal(err)
	}
	want(h, "order", fmt.Sprint(ids), fmt.Sprint([]int64{l.FirstID, l.FirstID + 1, l.FirstID + 2, next.FirstID}))
}

func TestCommitBySQL(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	for range 3 {
		h.insertDay(h.today, 1)
	}
	h.markAll(store.NewMarker(h.pool))
	commit := func(name string, position int64) {
		t.Helper()
		h.exec("select telemetry_feed_commit($1, $2)", name, position)
		want(h, "position", value[int64](h, "select position from feed_consumer where name = $1", name), position)
	}
	commit("erp", 0)
	commit("erp", 2)
	commit("erp", 2)
	h.exec("update feed_consumer set required = true")
	commit("erp", 3)
	want(h, "required", value[bool](h, "select required from feed_consumer"), true)
	const q = "select telemetry_feed_commit($1, $2)"
	h.wantState(h.pool, "PF409", []string{"stands at 3", "does not go back to 1"}, q, "erp", 1)
	h.wantState(h.pool, "PF409", []string{"position 4 is past the feed's head 3"}, q, "erp", 4)
	h.wantState(h.pool, "PF409", []string{"past the feed's head 3"}, q, "new", 4)
	h.exec("insert into feed_consumer (name, position, target) values ('pushed', 1, 'kafka')")
	for position := 0; position <= 2; position++ {
		h.wantState(h.pool, "PF409", []string{"syncjob pushes to consumer pushed (kafka)"}, q, "pushed", position)
	}
	h.exec("delete from feed_consumer where name = 'pushed' and position = 1")
	h.wantState(h.pool, "22023", []string{"position is null"}, q, "erp", nil)
	h.wantState(h.pool, "22023", []string{"position is -1"}, q, "erp", -1)
	for _, name := range []string{"", "a/b", ".a", "a\n", "a b", "ä", strings.Repeat("a", 65)} {
		h.wantState(h.pool, "22023", []string{"the first a letter or digit"}, q, name, 1)
	}
	h.wantState(h.pool, "22023", []string{"consumer is null"}, q, nil, 1)

	h.exec("update feed_horizon set position = 7") // the ledger's lines are gone too
	commit("erp", 7)
	h.exec("update feed_horizon set position = 0")
	commit("erp", 7) // the head has gone back

	// It is the caller's transaction that commits.
	tx, err := h.pool.Begin(h.ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(h.ctx, q, "other", 1); err != nil {
		t.Fatal(err)
	}
	if err := tx.Rollback(h.ctx); err != nil {
		t.Fatal(err)
	}
	want(h, "consumers", value[int](h, "select count(*) from feed_consumer"), 1)
}

// Whoever may call the functions may still not choose what they read: neither by temporary tables nor by a search_path, in a
// schema of any name.
func TestFeedBySQLIsNotFooled(t *testing.T) {
	t.Parallel()
	h := emptyHouse(t)
	const schema = `Plenum "data"`
	quoted := pgx.Identifier{schema}.Sanitize()
	h.exec("create schema " + quoted)
	owned, err := store.Open(h.ctx, store.Config{URL: h.url, Schema: schema, Program: "store-test", Connections: 4})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(owned.Close)
	if _, err := store.Migrate(h.ctx, owned); err != nil {
		t.Fatal(err)
	}
	h.pool = owned
	h.addDay(h.today)
	h.insertDay(h.today, 3)
	h.markAll(store.NewMarker(owned))

	conn := h.caller(schema)
	h.exec("revoke execute on function telemetry_feed, telemetry_feed_commit from caller_" + databaseOf(h.url))
	h.wantState(conn, "42501", []string{"telemetry_feed"}, "select "+quoted+".telemetry_feed(0, 10)")
	h.wantState(conn, "42501", []string{"telemetry_feed_commit"}, "select "+quoted+".telemetry_feed_commit('erp', 1)")
	h.exec("grant execute on function telemetry_feed, telemetry_feed_commit to caller_" + databaseOf(h.url))
	exec := func(sql string) {
		t.Helper()
		if _, err := conn.Exec(h.ctx, sql); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
	exec(`create temp table feed_horizon as select 99::bigint as position;
		create temp table telemetry_batch as select 7::bigint as feed_position, 1::bigint as first_id, 1::bigint as last_id, 1 as row_count, current_date as day;
		create temp table telemetry_all (id bigint, device_id text, kind text, seq bigint, recorded_at timestamptz, last_modified timestamptz, payload jsonb);
		create temp table feed_consumer (name text primary key, position bigint, updated_at timestamptz);
		create schema evil;
		create function evil.coalesce_max(bigint) returns bigint language sql as 'select 99::bigint';
		create function evil.current_setting(text) returns text language plpgsql as $$ begin raise exception 'fooled'; end $$;
		create function evil.format(text, bigint) returns text language plpgsql as $$ begin raise exception 'fooled'; end $$;
		create function evil.ge(bigint, bigint) returns boolean language plpgsql as $$ begin raise exception 'fooled'; end $$;
		create operator evil.>= (leftarg = bigint, rightarg = bigint, function = evil.ge);
		create operator evil.> (leftarg = bigint, rightarg = bigint, function = evil.ge);
		set search_path = pg_temp, evil, pg_catalog`)
	var n, position int64
	if err := conn.QueryRow(h.ctx, "select count(*), max(position) from "+quoted+".telemetry_feed(0, 10)").Scan(&n, &position); err != nil {
		t.Fatal(err)
	}
	want(h, "rows and their position", [2]int64{n, position}, [2]int64{3, 1})
	exec("select " + quoted + ".telemetry_feed_commit('erp', 1)")
	want(h, "consumers", value[int](h, "select count(*) from feed_consumer"), 1)
	h.wantState(conn, "42501", nil, "select from "+quoted+".telemetry_batch")
}

// caller is a connection of a role that may call the functions, create temporary tables and schemas, and read nothing.
func (h *house) caller(schema string) *pgx.Conn {
	h.Helper()
	role := "caller_" + databaseOf(h.url)
	h.exec(fmt.Sprintf("create role %[1]s; grant usage on schema %[2]s to %[1]s; grant create on database %[3]s to %[1]s",
		role, pgx.Identifier{schema}.Sanitize(), pgx.Identifier{databaseOf(h.url)}.Sanitize()))
	h.exec(fmt.Sprintf("grant execute on function telemetry_feed, telemetry_feed_commit to %s", role))
	conn, err := pgx.Connect(h.ctx, h.url)
	if err != nil {
		h.Fatal(err)
	}
	h.Cleanup(func() { _ = conn.Close(context.Background()) })
	if _, err := conn.Exec(h.ctx, "set role "+role); err != nil {
		h.Fatal(err)
	}
	return conn
}

func databaseOf(url string) string {
	cfg, err := pgxpool.ParseConfig(url)
	if err != nil {
		return err.Error()
	}
	return cfg.ConnConfig.Database
}

// The transaction that docs/operations.md shows, as it stands there, by a role that has plenum_feed's rights: each row is used
// once, also where a transaction was rolled back.
func TestTheDocumentedTransaction(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(text), "#### From inside the database")
	_, rest, found := strings.Cut(section, "\n    begin;\n")
	example, _, ended := strings.Cut(rest, "\n    commit;\n")
	if !found || !ended {
		t.Fatal("docs/operations.md shows no transaction")
	}
	h := newHouse(t)
	h.write(h.writer(), readings("a", 1, 20)...)
	h.markAll(store.NewMarker(h.pool))
	h.exec("update telemetry set kind = 'fault' where seq <= 7")
	conn := h.caller("public")
	run := func(sql string) {
		t.Helper()
		if _, err := conn.Exec(h.ctx, sql); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
	run(`create schema reports; create table reports.cursor (only_row boolean primary key, position bigint);
		create table reports.daily (device_id text, day date, faults bigint, primary key (device_id, day))`)
	run("begin;" + example + "rollback")
	run("begin;" + example + "commit")
	run("begin;" + example + "commit") // nothing new
	want(h, "faults", value[int](h, "select sum(faults) from reports.daily"), 7)
	h.write(h.writer(), readings("b", 1, 5)...)
	h.markAll(store.NewMarker(h.pool))
	run("begin;" + example + "commit")
	want(h, "position of cursor and consumer", value[string](h, "select format('%s %s', c.position, r.position) from feed_consumer c, reports.cursor r where name = 'reports'"), "2 2")
}
