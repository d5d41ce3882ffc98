package bluegreen_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"plenum/internal/devenv"
	"plenum/internal/devenv/devtest"
	"plenum/pkg/bluegreen"
)

// observing is a yard on a server of its own that keeps pg_stat_statements, with an application of role clerk.
func observing(t *testing.T) (y, clerk *yard) {
	t.Helper()
	cfg := devtest.Config()
	cfg.Settings["shared_preload_libraries"] = "pg_stat_statements"
	server, err := devenv.StartPostgres(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Stop(); err != nil {
			t.Error(err)
		}
	})
	if err := server.CreateDatabase(t.Context(), "seen", ""); err != nil {
		t.Fatal(err)
	}
	y = &yard{T: t, url: server.URL("seen")}
	var cancel context.CancelFunc
	y.ctx, cancel = context.WithTimeout(t.Context(), hang)
	t.Cleanup(cancel)
	y.pool = y.connect("")
	y.exec(plain + `create schema "Stats"; create extension pg_stat_statements schema "Stats";
		create role clerk login password 'clerk'; create role keeper login password 'keeper';
		grant all on orders to clerk; grant all on schema public to clerk, keeper`)
	y.m = y.migration(func(string) {})
	c := *y
	c.pool = y.connect("clerk")
	return y, &c
}

// about are the findings of statements that begin so, else all.
func about(list []bluegreen.PlanFinding, begin string) []bluegreen.PlanFinding {
	return slices.DeleteFunc(list, func(f bluegreen.PlanFinding) bool { return !strings.HasPrefix(f.Statement, begin) })
}

func TestPlansOfPgStatStatements(t *testing.T) {
	t.Parallel()
	y, clerk := observing(t)
	y.init("orders")
	clerk.exec("update orders set processed = true where id = any($1)", []int64{1, 2, 3})
	clerk.exec("delete from public.orders where id = 1 and at = $1", "2020-01-01Z")
	clerk.exec("select from orders where at > now() - interval '1 hour' and id = 2") // its text is interval $1, which is no SQL
	clerk.exec("select from orders where state = text 'new'")                        // so is text $1
	clerk.exec("create temp table mine (orders int); insert into mine values (1)")
	y.sync()
	list := y.plans("")
	for _, f := range list {
		if f.Fatal || strings.Contains(f.Statement, "orders_new") || strings.Contains(f.Statement, "bluegreen") || strings.Contains(f.Statement, "isfinite") {
			t.Errorf("finding %+v", f)
		}
	}
	counted := func(words ...string) {
		t.Helper()
		list := y.plans("")
		n := slices.IndexFunc(list, func(f bluegreen.PlanFinding) bool { return strings.Contains(f.Missing, words[0]) })
		if n < 0 {
			t.Errorf("findings %+v, want one with %q", list, words)
			return
		}
		y.tells(list[n:n+1], false, words...)
	}
	counted("2 statements of pg_stat_statements were not explained: without values", "text $")
	y.exec("drop index orders_pkey_new")
	list = y.plans("")
	y.tells(about(slices.Clone(list), "update orders"), true, "has no index on id")
	y.tells(about(slices.Clone(list), "delete from public"), true, "has no index on id")
	y.tells(about(list, "select from orders where at"), true, "has no index on id")
	_, err := y.m.Swap(y.ctx, bluegreen.Green, bluegreen.SwapOptions{})
	var refused *bluegreen.PlanError
	if !errors.As(err, &refused) || len(refused.Findings) != 4 {
		t.Errorf("swap: %v", err)
	}
	// What a stranger's function does in planning is done with our rights.
	clerk.exec("create function pure() returns bigint immutable language sql as 'select 1::bigint'")
	if list := about(y.plans(""), "update"); len(list) != 0 {
		t.Errorf("findings %+v of a role that has functions", list)
	}
	counted("roles ran them that do not own the tables", "pure() of clerk", "4 statements")
}

func TestPlansHiddenInPgStatStatements(t *testing.T) {
	t.Parallel()
	y, clerk := observing(t)
	y.exec(`alter table orders owner to keeper; grant usage on schema "Stats" to keeper`)
	y.pool = y.connect("keeper")
	y.m = y.migration(func(string) {})
	y.init("orders")
	y.sync()
	clerk.exec("update orders set processed = true where id = any($1)", []int64{1, 2, 3})
	list := y.plans("")
	if !slices.ContainsFunc(list, func(f bluegreen.PlanFinding) bool {
		return strings.Contains(f.Missing, "hidden from this role") && !f.Fatal
	}) {
		t.Errorf("findings %+v, want one of hidden statements", list)
	}
}

func TestPlansWhereNothingIsKept(t *testing.T) {
	t.Parallel()
	y := newYard(t, plain+"create extension pg_stat_statements")
	y.init("orders")
	y.sync()
	y.tells(y.plans(batch), false, "cannot be read", "shared_preload_libraries")
}
