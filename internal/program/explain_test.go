package program

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"plenum/pkg/partman"
	"plenum/pkg/store"
)

// story gives the days before today and today 400 rows each, of processed lines, of which the oldest day is not within 8 days.
func (k *kept) story(days int) {
	k.Helper()
	for n := range days {
		from := k.today.AddDate(0, 0, -n)
		for _, table := range []string{"telemetry", "telemetry_batch"} {
			k.exec(fmt.Sprintf(`do $$ begin if to_regclass('%[1]s') is null then create table %[1]s partition of %s for values from ('%s') to ('%s'); end if; end $$`,
				k.leaf(table, -n), table, from.Format(time.RFC3339), from.AddDate(0, 0, 1).Format(time.RFC3339)))
		}
		k.exec(fmt.Sprintf(`insert into telemetry (id, last_modified, recorded_at, seq, device_id, kind, payload, processed)
			select %[1]d * 10000 + i, timestamptz '%[2]s' + i * interval '1 s', now(), i, 'd', 'k', '{}', true from generate_series(1, 400) i`, n+1, from.Format(time.RFC3339)))
		k.exec(fmt.Sprintf(`insert into telemetry_batch (first_id, last_id, row_count, day, source, processed_at, feed_position)
			select %[1]d * 10000 + i * 10 + 1, %[1]d * 10000 + i * 10 + 10, 10, '%[2]s', 'test', now(), nextval('telemetry_feed_position_seq') from generate_series(0, 39) i`,
			n+1, from.Format(time.DateOnly)))
	}
	k.exec("vacuum analyze telemetry")
}

// state is what a trial must leave as it was: the versions and contents of all rows and lines, and the ids in use.
func (k *kept) state() string {
	k.Helper()
	const q = `select (select coalesce(md5(string_agg(format('%s %s %s %s', id, xmin, ctid, processed), ',' order by id, ctid)), '') from telemetry)
		|| (select coalesce(md5(string_agg(format('%s %s %s %s', batch_id, xmin, processed_at, row_count), ',' order by batch_id)), '') from telemetry_batch)
		|| (select count(*) from pg_class)`
	var s string
	if err := k.owner.QueryRow(k.Context(), q).Scan(&s); err != nil {
		k.Fatal(err)
	}
	return s
}

func (k *kept) explain(sql string) Trials {
	k.Helper()
	t, err := SyncExplain(k.Context(), k.App, sql, 50)
	if err != nil {
		k.Fatal(err)
	}
	return t
}

// The live statement and its variants on 50 rows of ten days: what each reads, and which rows it would leave unmarked.
func TestSyncExplain(t *testing.T) {
	t.Parallel()
	k := newKept(t)
	k.story(10)
	before := k.state()
	all := k.explain("")
	if after := k.state(); after != before {
		t.Error("something is not as it was before")
	}
	if all.Rows != 50 || len(all.Days) != 10 || all.Pending || len(all.Trials) != len(store.MarkVariants) {
		t.Fatalf("%d rows of %v, pending %v, %d trials", all.Rows, all.Days, all.Pending, len(all.Trials))
	}
	live, alone, eight, one, exact := all.Trials[0], all.Trials[1], all.Trials[2], all.Trials[3], all.Trials[4]
	if live.SQL != store.MarkSQL {
		t.Errorf("the live statement is %s", live.SQL)
	}
	for _, trial := range []Trial{live, alone, exact} {
		if trial.Matched != 50 || trial.Expected != 50 || !trial.Completed || trial.Time == 0 || trial.Hit == 0 || trial.WALBytes == 0 || trial.DeadRows != 50 {
			t.Errorf("%+v", trial)
		}
	}
	if live.Runs != 10 || live.Touched() != 10 {
		t.Errorf("the live statement: %d runs, %d partitions", live.Runs, live.Touched())
	}
	if n := alone.Touched(); n < 14 { // those to come, too
		t.Errorf("by id alone: %d partitions", n)
	}
	if slices.ContainsFunc(eight.Verdict, func(v string) bool { return strings.Contains(v, "rows not matched: would be left unmarked") }) == (eight.Matched == 50) || eight.Matched == 50 {
		t.Errorf("within 8 days, of ten: %+v", eight)
	}
	want := fmt.Sprintf("%d of 50 rows not matched: would be left unmarked", 50-one.Matched)
	if one.Matched > 10 || !slices.Contains(one.Verdict, want) {
		t.Errorf("within a day, of ten: want %q: %+v", want, one)
	}
	if one.LeftOut < 8 {
		t.Errorf("within a day: %d partitions left out at the start", one.LeftOut)
	}
}

// Without the index on id of a day the verdict names it, with the rows read.
func TestSyncExplainNamesTheIndex(t *testing.T) {
	t.Parallel()
	k := newKept(t)
	k.story(3)
	k.exec("drop index telemetry_id_idx")
	all := k.explain("update telemetry set processed = true where id = any($1) and last_modified >= $2 and last_modified < $3")
	trial := all.Trials[0]
	if trial.Runs != 3 || trial.RowsRead != 1200 || trial.Matched != 50 {
		t.Errorf("%+v", trial)
	}
	for n := range 3 {
		found := slices.ContainsFunc(trial.Verdict, func(v string) bool {
			return strings.HasPrefix(v, "sequential scan of "+k.leaf("telemetry", -n)+": no index on id (400 rows read to find 1")
		})
		if !found {
			t.Errorf("day %d is not named: %v", -n, trial.Verdict)
		}
	}
}

// Pending rows are taken where none is processed: the worker passes over them, and marks them afterwards.
func TestSyncExplainTakesPendingRows(t *testing.T) {
	t.Parallel()
	k := newKept(t)
	k.story(2)
	k.exec("update telemetry set processed = false; update telemetry_batch set processed_at = null, feed_position = null")
	before := k.state()
	m := store.NewMarker(k.pool)
	var marked store.Marked
	err := inTrial(t.Context(), k.App, func(tx pgx.Tx) error {
		s, err := store.TakeSample(t.Context(), tx, 800)
		if err != nil || !s.Pending || len(s.IDs()) == 0 {
			return fmt.Errorf("%d rows, pending %v: %w", len(s.IDs()), s.Pending, err)
		}
		marked, err = m.Mark(t.Context(), 10000)
		return err
	})
	if err != nil || marked.Rows != 0 {
		t.Errorf("rows were marked that are tried at the moment: %+v, %v", marked, err)
	}
	all := k.explain("")
	if !all.Pending || all.Trials[0].Matched != 50 || before != k.state() {
		t.Errorf("pending %v, %+v", all.Pending, all.Trials[0])
	}
	if done, err := m.Mark(t.Context(), 1); err != nil || done.Lines != 1 {
		t.Errorf("marked afterwards: %+v, %v", done, err)
	}
}

// Each statement is refused, or stopped at a bound, with a word on what to do; nothing is changed by any.
func TestSyncExplainBounds(t *testing.T) {
	t.Parallel()
	k := newKept(t)
	k.story(2)
	k.exec(`create table other (id bigint, done boolean); insert into other select i, false from generate_series(1, 20000) i; analyze other;
		create function planned() returns int immutable language plpgsql as $$ begin perform pg_sleep(9); return 1; end $$;
		create materialized view seen as select 1 as n; create sequence drawn; create procedure ends() language plpgsql as $$ begin commit; end $$;
		create function ends_too() returns int language plpgsql as $$ begin commit; return 1; end $$`)
	before := k.state()
	for sql, c := range map[string]struct {
		code int
		want string
	}{
		" \n":        {ExitUsage, "the file is empty"},
		"-- nothing": {ExitUsage, "no statement that has a plan"},
		"update telemetry set processed = false; commit": {ExitUsage, "more than one statement"},
		"select 1; select 2":                             {ExitUsage, "more than one statement"},
		"commit":                                         {ExitUsage, "no statement that has a plan"},
		"call ends()":                                    {ExitUsage, "no statement that has a plan"},
		"drop table other":                               {ExitUsage, "no statement that has a plan"},
		"begin":                                          {ExitUsage, "no statement that has a plan"},
		"truncate other":                                 {ExitUsage, "no statement that has a plan"},
		"refresh materialized view seen":                 {ExitUsage, "no statement that has a plan"},
		"select planned()":                               {ExitFailed, "not done after 5s, and stopped"},
		"selec 1":                                        {ExitUsage, "syntax error"},
		"select from nowhere":                            {ExitUsage, "name a table elsewhere with its schema"},
		"select $1::bigint[], $2::timestamptz":           {ExitUsage, "has 2 parameters"},
		"select $1::bigint[], $2::int, $3::int, $4::int": {ExitUsage, "has 4 parameters"},
		"select from telemetry where device_id = $1":     {ExitUsage, "$1 is no bigint[]"},
		"select $1::bigint[], $2::timestamptz, $3::int":  {ExitUsage, "$3 is no timestamptz"},
		"update other set done = true":                   {ExitUsage, "the plan expects 20,000 rows of a batch of 50, and no more than 10,000 may be touched"},
		"delete from other":                              {ExitUsage, "the plan expects 20,000 rows"},
		"select ends_too()":                              {ExitFailed, "invalid transaction termination"},
	} {
		_, err := SyncExplain(t.Context(), k.App, sql, 50)
		if strings.TrimSpace(sql) == "" {
			_, err = readVariant(t.Context(), k.App, sql)
		}
		if ExitCode(err) != c.code || !strings.Contains(fmt.Sprint(err), c.want) {
			t.Errorf("%q exits %d, want %d and %q: %v", sql, ExitCode(err), c.code, c.want, err)
		}
		if after := k.state(); after != before {
			t.Fatalf("%q has left something behind", sql)
		}
	}
	for _, rows := range []int{0, -1, 5001} {
		if _, err := SyncExplain(t.Context(), k.App, "", rows); ExitCode(err) != ExitUsage {
			t.Errorf("%d rows: %v", rows, err)
		}
	}

	trial := k.explain(`select from telemetry where id = any($1) and current_setting('client_connection_check_interval') = '500ms'
		and current_setting('statement_timeout') = '5s' and current_setting('lock_timeout') = '100ms'`).Trials[0]
	if trial.Matched != 50 {
		t.Errorf("the bounds are not set, that of a tool which is killed among them: %+v", trial)
	}
	trial = k.explain("update telemetry set processed = true where id = any($1) and pg_sleep(7) is not null").Trials[0]
	if trial.Completed || !strings.Contains(strings.Join(trial.Verdict, " "), "not done after 5s, and stopped") {
		t.Errorf("a statement that takes long: %+v", trial)
	}
	trial = k.explain("select set_config('statement_timeout', '0', true), pg_sleep(4) from telemetry where id = any($1) and last_modified >= $2 and last_modified < $3 limit 1").Trials[0]
	if trial.Completed || trial.Runs != 1 {
		t.Errorf("a statement whose days together take long, and which lifts its own bound: %+v", trial)
	}
	lock, err := k.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = lock.Rollback(context.Background()) }()
	if _, err := lock.Exec(t.Context(), "lock table other"); err != nil {
		t.Fatal(err)
	}
	if _, err = SyncExplain(t.Context(), k.App, "select from other where id = any($1)", 50); err == nil || !strings.Contains(err.Error(), "plenumctl doctor says who holds it") {
		t.Errorf("beside a lock: %v", err)
	}
	if after := k.state(); after != before {
		t.Error("something is left behind")
	}
}

// A table of somebody else will do: without an index on id, and with a primary key.
func TestSyncExplainOnAnyTable(t *testing.T) {
	t.Parallel()
	k := newKept(t)
	k.story(2)
	k.exec(`create schema old; create table old.flat as select id, processed from telemetry; analyze old.flat`)
	trial := k.explain("update old.flat set processed = true where id = any($1)").Trials[0]
	if trial.Matched != 50 || !slices.Contains(trial.Verdict, "sequential scan of flat: no index on id (800 rows read to find 50)") {
		t.Errorf("%+v", trial)
	}
	k.exec("alter table old.flat add primary key (id); set enable_seqscan = off")
	trial = k.explain("select from old.flat where id = 10001").Trials[0]
	if trial.Matched != 1 || trial.Expected != 50 || !slices.Contains(trial.Verdict, "49 of 50 rows not matched: would be left unread") {
		t.Errorf("%+v", trial)
	}

	// A temporary table of the connection's own is behind all else in the search path.
	cfg := k.pool.Config()
	cfg.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error {
		_, err := conn.Exec(ctx, "create temporary table telemetry (like public.telemetry)")
		return err
	}
	pool, err := pgxpool.NewWithConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	other := &App{Settings: k.Settings, Log: k.Log, pool: pool}
	if all, err := SyncExplain(t.Context(), other, "select from telemetry where id = any($1)", 50); err != nil || all.Trials[0].Matched != 50 {
		t.Errorf("beside a temporary table: %+v, %v", all, err)
	}
}

// It rolls back when it is cut short, too, and needs no owner: the role that marks will do, that of ingest is told what it lacks.
func TestSyncExplainIsCutShort(t *testing.T) {
	t.Parallel()
	k := newKept(t)
	k.story(2)
	before := k.state()
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	_, err := SyncExplain(ctx, k.App, "update telemetry set processed = true where id = any($1) and pg_sleep(3) is not null", 50)
	if err != nil && !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("cut short: %v", err)
	}
	if diff := cmp.Diff(before, k.state()); diff != "" {
		t.Error("something is left behind")
	}
	k.round(partman.CreateLoop)
}
