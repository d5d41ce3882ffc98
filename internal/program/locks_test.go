package program

import (
	"context"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"plenum/internal/devenv/devtest"
)

// session is a connection of a person, by the name that pg_stat_activity shows.
func (k *kept) session(name string) *pgx.Conn {
	k.Helper()
	cfg, err := pgx.ParseConfig(k.Settings.Database.URL)
	if err != nil {
		k.Fatal(err)
	}
	cfg.RuntimeParams["application_name"] = name
	conn, err := pgx.ConnectConfig(k.Context(), cfg)
	if err != nil {
		k.Fatal(err)
	}
	k.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

func run(k *kept, conn *pgx.Conn, sql string) {
	k.Helper()
	if _, err := conn.Exec(k.Context(), sql); err != nil {
		k.Fatalf("%s: %v", sql, err)
	}
}

// wait runs the statement, which waits for a lock, until the test ends, and returns when it does.
func wait(k *kept, conn *pgx.Conn, sql string) {
	k.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = conn.Exec(ctx, sql)
	}()
	k.Cleanup(func() {
		cancel()
		<-done
	})
	pid := conn.PgConn().PID()
	devtest.Eventually(k.T, func() error {
		var waits bool
		err := k.owner.QueryRow(k.Context(), "select exists (select from pg_locks where pid = $1 and not granted)", pid).Scan(&waits)
		if err == nil && !waits {
			err = fmt.Errorf("%s does not wait", sql)
		}
		return err
	})
}

// longWaits looks once a wait is long enough to be told.
func (k *kept) longWaits(n int) []Ailment {
	k.Helper()
	var found []Ailment
	devtest.Eventually(k.T, func() error {
		watch, err := watchLocks(k.Context(), k.owner, lookEvery)
		if err != nil {
			k.Fatal(err)
		}
		if found, _ = watch.ailments(); len(found) != n {
			return fmt.Errorf("%d findings, want %d: %v", len(found), n, found)
		}
		return nil
	})
	return found
}

func wantParts(t *testing.T, text string, parts ...string) {
	t.Helper()
	for _, part := range parts {
		if !strings.Contains(text, part) {
			t.Errorf("%q is missing in: %s", part, text)
		}
	}
}

// A chain: the last waits for the second, which waits for the first. Both findings name the first as the one to end.
func TestLockChain(t *testing.T) {
	t.Parallel()
	k := newKept(t)
	leaf := k.leaf("telemetry", 0)
	root := k.session("psql of a person")
	run(k, root, "begin; select count(*) from telemetry; -- and goes for coffee\x1b[31m")
	wait(k, k.session("release 7"), "truncate "+leaf)
	wait(k, k.session("last in the line"), "begin; lock table "+leaf+" in access exclusive mode")
	found := k.longWaits(2)
	rootPID := root.PgConn().PID()
	for _, f := range found {
		if want := fmt.Sprintf("at the root of it: pid %d, which does nothing: select pg_terminate_backend(%[1]d)", rootPID); f.Do != want {
			t.Errorf("what to do is %q, want %q", f.Do, want)
		}
	}
	first := found[0].Message
	if !strings.Contains(first, "release 7") {
		first = found[1].Message
	}
	wantParts(t, first, `application "release 7"`, "on "+leaf, "since", `behind pid `+fmt.Sprint(rootPID)+` (application "psql of a person", role `,
		"idle in transaction since", "transaction since", "select count(*) from telemetry", `"truncate `+leaf)
	if strings.ContainsRune(first, '\x1b') {
		t.Errorf("a terminal gets what somebody wrote into a query: %q", first)
	}
}

// Dozens wait in one line, each behind all before it: what is said is bounded, and the root is named with each.
func TestLongLineOfWaits(t *testing.T) {
	t.Parallel()
	k := newKept(t)
	root := k.session("root")
	run(k, root, "begin; lock table telemetry_batch in share mode")
	for n := range waitsShown + 5 {
		wait(k, k.session(fmt.Sprint("waiter ", n)), "begin; lock table telemetry_batch in access exclusive mode")
	}
	var found []Ailment
	devtest.Eventually(t, func() error {
		watch, err := watchLocks(t.Context(), k.owner, lookEvery)
		if err != nil {
			t.Fatal(err)
		}
		if found, _ = watch.ailments(); len(found) != waitsShown+1 || !strings.HasPrefix(found[waitsShown].Message, "5 more sessions waiting for locks") {
			return fmt.Errorf("%d findings, the last: %v", len(found), found[max(len(found)-1, 0):])
		}
		return nil
	})
	for _, f := range found[:waitsShown] {
		wantParts(t, f.Do, fmt.Sprintf("pid %d, which does nothing", root.PgConn().PID()))
		wantParts(t, f.Message, `application "root"`)
		if n := strings.Count(f.Message, "application"); n > 1+namesShown {
			t.Errorf("%d sessions are named: %s", n, f.Message)
		}
	}
}

// A row, an advisory lock and a prepared transaction are named as such.
func TestLockKinds(t *testing.T) {
	t.Parallel()
	k := newKept(t)
	k.rows(10)
	holder := k.session("holder")
	run(k, holder, "begin; update telemetry set processed = true; select pg_advisory_xact_lock(7, 11)")
	wait(k, k.session("row"), "update telemetry set processed = true")
	wait(k, k.session("advisory"), "select pg_advisory_lock(7, 11)")
	var all strings.Builder
	prepares := k.session("prepares")
	name := "forgotten_" + k.owner.Config().ConnConfig.Database // of the whole server
	run(k, prepares, "begin; lock table telemetry_quarantine in share mode; prepare transaction '"+name+"'")
	t.Cleanup(func() {
		if _, err := prepares.Exec(context.Background(), "rollback prepared '"+name+"'"); err != nil {
			t.Error(err)
		}
	})
	wait(k, k.session("behind nobody"), "begin; lock table telemetry_quarantine in access exclusive mode")
	for _, f := range k.longWaits(3) {
		fmt.Fprintln(&all, f.Message, f.Do)
	}
	wantParts(t, all.String(), "behind a prepared transaction at the root of it: a prepared transaction: select * from pg_prepared_xacts",
		"a row that another transaction has changed", "advisory lock 7, 11", `application "holder"`)
}

// Nobody waits: that is said, and neither the doctor's own sessions nor what was never long are findings.
func TestNobodyWaits(t *testing.T) {
	t.Parallel()
	k := newKept(t)
	found, text, err := Doctor(t.Context(), k.App, 3*lookEvery)
	if err != nil || len(found) > 0 || text != "no session waited for a lock in 3 looks over 750ms" {
		t.Errorf("%v, %q, %v", found, text, err)
	}
	if _, text, err = Doctor(t.Context(), k.App, 0); err != nil || text != "" {
		t.Errorf("no sample: %q, %v", text, err)
	}
	holder := k.session("holder")
	run(k, holder, "begin; lock table telemetry_batch in share mode")
	own, err := k.owner.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(own.Release) // after the wait has ended
	wait(k, own.Conn(), "begin; lock table telemetry_batch in access exclusive mode")
	watch, err := watchLocks(t.Context(), k.owner, lookEvery)
	if found, text := watch.ailments(); err != nil || len(found) > 0 || !strings.HasPrefix(text, "no session waited") {
		t.Errorf("the doctor's own session: %v, %q, %v", found, text, err)
	}
}

// A role without pg_read_all_stats is told that it does not see the queries, and still who waits for whom.
func TestHiddenQueries(t *testing.T) {
	t.Parallel()
	k := newKept(t)
	k.exec("create role hidden_from login password 'x'; grant pg_read_all_stats to current_user")
	t.Cleanup(func() { _, _ = k.owner.Exec(context.Background(), "drop role hidden_from") })
	holder := k.session("holder")
	run(k, holder, "begin; lock table telemetry_batch in share mode")
	wait(k, k.session("waiter"), "begin; lock table telemetry_batch in access exclusive mode")
	u, err := url.Parse(k.Settings.Database.URL)
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.UserPassword("hidden_from", "x")
	s := k.Settings
	s.Database.URL, s.Database.OwnerURL, s.Database.ReadURL = u.String(), u.String(), u.String()
	a, err := NewApp(t.Context(), "test", s, k.Log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.Close)
	found := (&kept{t, a, k.today}).longWaits(1)
	wantParts(t, found[0].Message, "query hidden", `application "waiter"`, `application "holder"`)
	wantParts(t, found[0].Do, "grant pg_read_all_stats")
}

// In a cycle nobody is the root; a session that several wait for is named once each.
func TestLockRoots(t *testing.T) {
	t.Parallel()
	s := lockSample{waits: map[int32]lockWait{
		1: {Blocker: []int32{2}}, 2: {Blocker: []int32{1}}, 3: {Blocker: []int32{4, 5}}, 4: {Blocker: []int32{5}}, 6: {Blocker: []int32{2, 7}},
	}}
	for pid, want := range map[int32]string{1: "[]", 3: "[5]", 4: "[5]", 6: "[7]"} {
		if got := fmt.Sprint(s.roots(pid)); got != want {
			t.Errorf("the roots of %d are %s, want %s", pid, got, want)
		}
	}
	w := lockWatch{looks: 20, last: map[lockKey]lockSeen{{1, "a"}: {lockWait{Waited: 5 * time.Millisecond}, s}}}
	if found, text := w.ailments(); len(found) != 0 || text != "1 session waited for a lock, for less than 1s each, in 20 looks over 5s" {
		t.Errorf("a short wait: %v, %q", found, text)
	}
}
