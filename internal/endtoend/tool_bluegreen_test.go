package endtoend

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"plenum/internal/devenv/devtest"
)

// legacy makes a table as an application has it, with n rows of eight days, in a database without Plenum's own tables.
func (s *system) legacy(n int) {
	s.t.Helper()
	s.exec(fmt.Sprintf(`create table orders (id bigserial primary key, at timestamptz not null default now(), processed boolean not null default false);
		create index orders_at on orders (at); alter table orders owner to plenum_owner;
		insert into orders (at) select now() - i %% 8 * interval '1 day' from generate_series(1, %d) i`, n))
}

var initOrders = []string{"bluegreen", "init", "--table", "orders", "--key", "at", "--id", "id"}

// TestToolBluegreen walks an operator from a live table to a partitioned one, back, and forth for good; each command also twice.
func TestToolBluegreen(t *testing.T) {
	t.Parallel()
	s := newSystem(t)
	s.legacy(1000)
	expect := s.expect()
	const none = `no blue/green migration is under way in schema "public"`
	for _, command := range []string{"status", "finish", "abort"} {
		expect(0, none, "bluegreen", command)
	}
	for _, command := range []string{"sync", "verify", "swap", "rollback"} {
		expect(1, "begin one with plenumctl bluegreen init", "bluegreen", command)
	}

	expect(0, "the new tables are built, and what is written is captured from now on", initOrders...)
	expect(0, "under way already", initOrders...)
	expect(1, "is under way, and this is one of", append(slices.Clone(initOrders), "--retention", "30")...)
	expect(1, "is not copied completely: run sync first", "bluegreen", "swap", "--no-verify")
	expect(0, "next: sync", "bluegreen", "status")
	expect(0, "public.orders  copied  1000 rows", "bluegreen", "sync")
	s.exec("update orders set processed = true where id <= 3")
	expect(0, "3 entries", "bluegreen", "status")
	expect(0, "0 log entries left", "bluegreen", "sync", "--rate", "100000", "--max-replica-lag", "10s")
	expect(0, "both sides have the same rows\nthe statements find their indexes on both sides", "bluegreen", "verify")
	s.exec("alter table orders_new add constraint odd check (id <> 9) not valid; update orders set processed = true where id in (8, 9)")
	expect(0, "both sides have the same rows, but for those of 2 log entries, which sync carries over", "bluegreen", "verify")
	expect(0, "0 log entries left, 1 ids refused: bluegreen status says why", "bluegreen", "sync")
	expect(3, "stops a swap: public.orders_new refuses id 9: ", "bluegreen", "verify")
	s.exec("alter table orders_new drop constraint odd")
	expect(0, "0 log entries left\n", "bluegreen", "sync")
	s.storyReplayed(expect)

	const byHand = "begin; set local plenum_bluegreen.applying = on; update orders_new set processed = not processed where id = 5; commit"
	s.exec(byHand)
	for _, command := range []string{"verify", "swap"} {
		out := expect(3, "public.orders differs on ", "bluegreen", command)
		if !strings.Contains(out, "only in the old table: id 5: ") || !strings.Contains(out, "only in the new table: id 5: ") {
			t.Errorf("the row is not named:\n%s", out)
		}
	}
	s.exec(byHand)
	s.partitionsRun().awaitReady()
	devtest.Eventually(t, func() error { // partman's first round
		if code, out, errs := s.ctl("bluegreen", "swap", "--budget", "30s"); code != 0 || !strings.Contains(out, "the new tables are the live ones\nothers were held up for ") {
			return fmt.Errorf("swap exits %d:\n%s%s", code, out, errs)
		}
		return nil
	})
	expect(0, "live ones already; nothing is changed", "bluegreen", "swap")
	expect(1, "rollback first", "bluegreen", "abort")
	s.exec("insert into orders default values")
	status := expect(0, "the new tables are the live ones", "bluegreen", "status")
	if !strings.Contains(status, "a rollback now has 1 log entries to drain first") || !strings.Contains(status, "next: rollback") {
		t.Errorf("status:\n%s", status)
	}
	expect(0, "the old tables are the live ones\n", "bluegreen", "rollback", "--budget", "30s")
	expect(0, "live ones already", "bluegreen", "rollback")
	expect(1, "swap first, or abort", "bluegreen", "finish")
	expect(0, `"active": "green"`, "bluegreen", "swap", "--budget", "30s", "--output", "json")
	expect(0, "the old tables are dropped", "bluegreen", "finish", "--drop")
	expect(0, none, "bluegreen", "finish", "--drop")
	if n := s.count("orders"); n != 1001 {
		t.Errorf("%d rows, want 1001", n)
	}
	s.exec("update partition_policy set paused_at = '2026-11-22 20:14:03Z', paused_by = 'night shift', paused_reason = 'case 17'")
	const paused = "\norders: retiring is paused by night shift since 2026-11-22T20:14:03Z: case 17\n"
	if list := expect(0, paused, "partitions", "list"); strings.Count(list, paused) != 1 {
		t.Errorf("the pause is not said once:\n%s", list)
	}
}

// TestToolBluegreenFollows: a sync that follows carries what is written, lets a swap come in between, and ends cleanly.
func TestToolBluegreenFollows(t *testing.T) {
	t.Parallel()
	s := newSystem(t)
	s.legacy(100)
	expect := s.expect()
	expect(0, "the new tables are built", initOrders...)
	cmd := exec.Command(filepath.Join(bin, "plenumctl"), "bluegreen", "sync", "--follow", "--output", "json")
	cmd.Env = []string{"PLENUM_DATABASE_OWNER_URL=" + s.role("owner")}
	var out, errs strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	carried := func(table string, n int) {
		t.Helper()
		devtest.Eventually(t, func() error {
			if got := s.count(table); got != n {
				return fmt.Errorf("%s has %d rows, want %d", table, got, n)
			}
			return nil
		})
	}
	carried("orders_new", 100)
	s.exec("insert into orders default values")
	carried("orders_new", 101)
	s.partitionsRun().awaitReady()
	devtest.Eventually(t, func() error {
		if code, out, errs := s.ctl("bluegreen", "swap", "--budget", "30s"); code != 0 {
			return fmt.Errorf("swap exits %d:\n%s%s", code, out, errs)
		}
		return nil
	})
	s.exec("insert into orders default values")
	carried("orders_old", 102)
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	err := cmd.Wait()
	var tables []struct {
		Table  string
		Copied bool
		Rows   int
	}
	if err := errors.Join(err, json.Unmarshal([]byte(out.String()), &tables)); err != nil || len(tables) != 1 || !tables[0].Copied || tables[0].Rows != 100 {
		t.Errorf("it ends with %v and %+v:\n%s%s", err, tables, &out, &errs)
	}
	if !strings.Contains(errs.String(), "public.orders: copied 100 rows, ") {
		t.Errorf("progress:\n%s", &errs)
	}
}

// storyReplayed drops the new table's index on id by hand: the application's batch update would scan each day.
func (s *system) storyReplayed(expect func(int, string, ...string) string) {
	s.t.Helper()
	const update = "update orders set processed = true where id = any('{7,8,9}')"
	file := filepath.Join(s.t.TempDir(), "workload.sql")
	write := func(sql string) {
		s.t.Helper()
		if err := os.WriteFile(file, []byte(sql), 0o600); err != nil {
			s.t.Fatal(err)
		}
	}
	expect(2, "no such file", "bluegreen", "verify", "--workload", file)
	write("update orders set processed = true where id = any($1);")
	expect(1, "parameter $1 has no value", "bluegreen", "verify", "--workload", file)
	write(strings.Repeat("-- a long file\n", 1<<18))
	expect(1, "the workload has ", "bluegreen", "verify", "--workload", file)
	write("-- the batch\n" + update + ";\nselect count(*) from orders;\n")
	expect(0, "both sides have the same rows", "bluegreen", "verify", "--workload", file)
	var index string
	err := s.query(`select indexrelid::regclass::text from pg_index x join pg_attribute a on a.attrelid = x.indrelid and a.attnum = x.indkey[0]
		where x.indrelid = 'orders_new'::regclass and a.attname = 'id'`, nil, &index)
	if err != nil {
		s.t.Fatal(err)
	}
	s.exec("drop index " + index)
	for _, command := range []string{"verify", "swap"} { // remembered from the file
		out := expect(3, "plans, stops a swap, public.orders", "bluegreen", command)
		if !strings.Contains(out, update) || !strings.Contains(out, "create index") {
			s.t.Errorf("%s names neither the statement nor the index to make:\n%s", command, out)
		}
	}
	s.exec("create index " + index + " on orders_new (id)")
	expect(0, "plans, public.orders: both sides are read whole", "bluegreen", "verify")
}

// TestToolBluegreenFindings: what cannot carry over has exit code 3 until it is accepted, and abort leaves nothing.
func TestToolBluegreenFindings(t *testing.T) {
	t.Parallel()
	s := newSystem(t)
	s.legacy(100)
	s.exec("create materialized view recent as select * from orders; alter materialized view recent owner to plenum_owner")
	expect := s.expect()
	before := s.objects()
	expect(1, `nothing that was found is called "matview:nothing"`, append(slices.Clone(initOrders), "--accept", "matview:nothing")...)
	if got := s.objects(); got != before {
		t.Errorf("a refused init has left something:\n%s\nbefore:\n%s", got, before)
	}
	out := expect(3, "1 stand against a swap", initOrders...)
	if !strings.Contains(out, "after the swap drop it and create it again") {
		t.Errorf("init does not say what to do:\n%s", out)
	}
	expect(0, "copied", "bluegreen", "sync")
	expect(0, "in the way of making the new tables live: matview:", "bluegreen", "status")
	var report struct{ Findings []struct{ Name string } }
	if err := json.Unmarshal([]byte(expect(3, "{", append(slices.Clone(initOrders), "--output", "json")...)), &report); err != nil || len(report.Findings) != 1 {
		t.Fatalf("%v %+v", err, report)
	}
	s.partitionsRun().awaitReady()
	devtest.Eventually(t, func() error {
		if code, out, errs := s.ctl("bluegreen", "swap"); code != 3 || !strings.Contains(out, "refused, and nothing is changed:\nfound: "+report.Findings[0].Name) {
			return fmt.Errorf("swap exits %d:\n%s%s", code, out, errs)
		}
		return nil
	})
	expect(0, "accepted: "+report.Findings[0].Name, append(slices.Clone(initOrders), "--accept", report.Findings[0].Name)...)
	expect(0, "the new tables are the live ones", "bluegreen", "swap", "--budget", "30s")
	expect(0, "the old tables are the live ones", "bluegreen", "rollback", "--budget", "30s")
	expect(0, "as before init", "bluegreen", "abort")
	expect(0, "no blue/green migration is under way", "bluegreen", "abort")
	if n := s.count("pg_trigger where tgrelid = 'orders'::regclass"); n != 0 {
		t.Errorf("abort has left %d triggers", n)
	}
	if n := s.count("pg_class where relname like 'bluegreen%' or relname like 'orders\\_new%'"); n != 0 {
		t.Errorf("abort has left %d of its tables and indexes", n)
	}
}

// objects are the tables, indexes, views, triggers and functions of the schema public.
func (s *system) objects() (list string) {
	s.t.Helper()
	err := s.query(`select string_agg(x, ' ' order by x) from (select relname::text from pg_class where relnamespace = 'public'::regnamespace
		union all select tgname::text from pg_trigger union all select proname::text from pg_proc where pronamespace = 'public'::regnamespace) o (x)`, nil, &list)
	if err != nil {
		s.t.Fatal(err)
	}
	return list
}

// TestToolBluegreenRefuses what cannot be meant, what others hold, and what it may not do, each with its exit code.
func TestToolBluegreenRefuses(t *testing.T) {
	t.Parallel()
	s := newSystem(t)
	s.legacy(100)
	expect := s.expect()
	expect(2, "--table, --key and --id are needed", "bluegreen", "init", "--table", "orders")
	expect(2, "--retention: -1, --premake: 0", append(slices.Clone(initOrders), "--retention", "-1", "--premake", "0")...)
	expect(2, "--table: ", "bluegreen", "init", "--table", "a.b.c", "--key", "at", "--id", "id")
	expect(2, "--lock-timeout: 0s is not between", "bluegreen", "sync", "--lock-timeout", "0s")
	expect(2, "--budget: 1h0m0s is not between", "bluegreen", "swap", "--budget", "1h")
	expect(2, "--rate: -5 is negative", "bluegreen", "sync", "--rate", "-5")
	expect(2, "--max-replica-lag: -1s is negative", "bluegreen", "sync", "--max-replica-lag", "-1s")
	expect(2, `"xml" is neither text nor json`, "bluegreen", "status", "--output", "xml")
	expect(2, "unexpected argument", "bluegreen", "swap", "orders")
	expect(1, `there is no table "public"."nowhere"`, "bluegreen", "init", "--table", "nowhere", "--key", "at", "--id", "id")
	expect(1, `has no column "when" to be partitioned by`, "bluegreen", "init", "--table", "orders", "--key", "when", "--id", "id")
	expect(1, "timestamptz or date is needed", "bluegreen", "init", "--table", "orders", "--key", "id", "--id", "id")
	expect(2, `schema "elsewhere" does not exist`, "bluegreen", "status", "--database.schema", "elsewhere")
	expect(0, "plenumctl bluegreen rollback", "bluegreen", "--help")
	expect(0, "--no-verify", "bluegreen", "rollback", "--help")

	as := func(url string, code int, want string, args ...string) {
		t.Helper()
		cmd := exec.Command(filepath.Join(bin, "plenumctl"), args...)
		cmd.Env = []string{"PLENUM_DATABASE_URL=" + url}
		if got, out, errs := output(t, cmd); got != code || !strings.Contains(out+errs, want) {
			t.Errorf("%q exits %d, want %d and %q:\n%s%s", args, got, code, want, out, errs)
		}
	}
	as("postgres://127.0.0.1:1/plenum", 1, "connection refused", "bluegreen", "status")
	as(s.role("ingest"), 2, "may not create", initOrders...)

	expect(0, "the new tables are built", initOrders...)
	free := s.hold("select pg_advisory_lock(hashtextextended('plenum bluegreen public', 0))")
	for _, command := range []string{"sync", "finish", "abort"} {
		expect(4, "another process works on this migration", "bluegreen", command)
	}
	expect(0, "next: sync", "bluegreen", "status")
	free()
	expect(0, "copied", "bluegreen", "sync")
	s.partitionsRun().awaitReady()
	reader := s.hold("select from orders")
	devtest.Eventually(t, func() error {
		code, out, errs := s.ctl("bluegreen", "swap", "--lock-timeout", "50ms", "--budget", "120ms")
		if code != 1 || !strings.Contains(errs, "gave up after ") || !strings.Contains(errs, "in the way: pid ") {
			return fmt.Errorf("swap exits %d:\n%s%s", code, out, errs)
		}
		return nil
	})
	expect(0, "the old tables are the live ones", "bluegreen", "status")
	reader()
	expect(0, "the new tables are the live ones", "bluegreen", "swap", "--budget", "30s")
}
