package partman_test

import (
	"context"
	"testing"

	"plenum/pkg/partman"
)

// text is the result of a query of one value.
func (h *house) text(sql string) string {
	h.t.Helper()
	var text string
	if err := h.pool.QueryRow(h.ctx, "select ("+sql+")::text").Scan(&text); err != nil {
		h.t.Fatalf("%s: %v", sql, err)
	}
	return text
}

func (h *house) rename(from, to string) {
	h.t.Helper()
	if err := partman.Rename(h.ctx, h.pool, "public", [2]string{"public", from}, [2]string{"public", to}); err != nil {
		h.t.Fatal(err)
	}
}

// TestRename: policy, holds, pause, what waits and the last round follow the table, as does what names it as an archive; the
// manager goes on with the table under its new name, where a detached day is dropped as before.
func TestRename(t *testing.T) {
	t.Parallel()
	h := newHouse(t, nil, live(), archive())
	h.once(partman.CreateLoop)
	shorter := live()
	shorter.Retention = 2
	if _, err := partman.Register(h.ctx, h.pool, "public", shorter); err != nil {
		t.Fatal(err)
	}
	h.hold("telemetry", h.dayHold(3))
	h.pause("telemetry")
	h.once(partman.RetireLoop)
	const remembered = "select to_jsonb(p) - '{table_schema,table_name,updated_at,archive_table,pending}'::text[] from partition_policy p where table_name = "
	before := h.text(remembered + "'telemetry'")
	h.exec("alter table telemetry rename to \"O'ld\"; alter table telemetry_archive rename to old_archive")
	h.rename("telemetry", "O'ld")
	h.rename("telemetry_archive", "old_archive")
	compareValue(t, before, h.text(remembered+"'O''ld'"))
	if n := h.number("select count(*) from partition_policy where archive_table = 'old_archive' and pending ->> 'archive_table' = 'old_archive'"); n != 1 {
		t.Error("the archive, and the one that waits, are not those of the new name")
	}
	want := live()
	want.Table, want.ArchiveTable = "O'ld", "old_archive"
	list, err := partman.Policies(h.ctx, h.pool, "public")
	if err != nil || len(list) != 2 {
		t.Fatalf("%v: %v", list, err)
	}
	compareValue(t, want, list[0])
	h.resume("O'ld")
	for _, loop := range []partman.Loop{partman.CreateLoop, partman.HealthLoop, partman.RetireLoop} {
		h.once(loop)
	}
	if found := h.find(partman.ArchiveNotReady); len(found) != 0 {
		t.Errorf("found %v", found)
	}
	if n := h.metric("plenum_partition_retention_paused_seconds", "table=telemetry"); n != -1 {
		t.Errorf("the old name has a metric still: %v", n)
	}
}

// TestRenameSwapsTwo: in the transaction that exchanges two tables' names their policies are exchanged, or nothing is.
func TestRenameSwapsTwo(t *testing.T) {
	t.Parallel()
	green := dropping()
	green.Table = "telemetry_new"
	h := newHouse(t, nil, live(), archive(), green)
	h.exec("create table telemetry_new (like telemetry including all) partition by range (last_modified)")
	tx := h.begin("swap", "alter table telemetry rename to telemetry_old; alter table telemetry_new rename to telemetry")
	for _, r := range [][2]string{{"telemetry", "telemetry_old"}, {"telemetry_new", "telemetry"}} {
		if err := partman.Rename(h.ctx, tx, "public", [2]string{"public", r[0]}, [2]string{"public", r[1]}); err != nil {
			t.Fatal(err)
		}
	}
	const dropped = "select count(*) from partition_policy where expired = 'drop' and table_name = 'telemetry'"
	if n := h.number(dropped); n != 0 {
		t.Error("the swap is seen before its commit")
	}
	if err := tx.Commit(h.ctx); err != nil {
		t.Fatal(err)
	}
	if n := h.number(dropped); n != 1 {
		t.Error("the green table's policy is not that of the active name")
	}
	if n := h.number("select count(*) from partition_policy where archive_table = 'telemetry_archive' and table_name = 'telemetry_old'"); n != 1 {
		t.Error("the blue table's policy is not that of its new name")
	}
}

// TestRenameIsRefused where it would lose a policy, or part a table from its archive; nothing is changed then.
func TestRenameIsRefused(t *testing.T) {
	t.Parallel()
	h := newHouse(t, nil, live(), archive())
	const all = "select jsonb_agg(p order by table_name) from partition_policy p"
	before := h.text(all)
	live, there := [2]string{"public", "telemetry"}, [2]string{"public", "telemetry_archive"}
	for name, c := range map[string]struct {
		from, to [2]string
		say      string
	}{
		"to one that has a policy":        {live, there, "has a policy already"},
		"of one that has none":            {[2]string{"public", "nowhere"}, [2]string{"public", "x"}, partman.ErrUnknownTable.Error()},
		"of an archive, to other schemas": {there, [2]string{"other", "telemetry_archive"}, `is the archive of table "public.telemetry"`},
		"to no name":                      {live, [2]string{"public", ""}, "an identifier"},
	} {
		if err := partman.Rename(h.ctx, h.pool, "public", c.from, c.to); err == nil || !contains(err.Error(), c.say) {
			t.Errorf("%s: %v", name, err)
		}
	}
	compareValue(t, before, h.text(all))
	h.exec("create schema other; alter table telemetry set schema other")
	if err := partman.Rename(h.ctx, h.pool, "public", live, [2]string{"other", "telemetry"}); err != nil {
		t.Errorf("to another schema: %v", err)
	}
}

// TestRenameTakesDetachedDaysAlong: they are dropped by their own table's policy, and never by that of the table which has the
// name now.
func TestRenameTakesDetachedDaysAlong(t *testing.T) {
	t.Parallel()
	green := dropping()
	green.Table = "telemetry_new"
	h := newHouse(t, nil, dropping(), green)
	h.exec("create table telemetry_new (like telemetry including all) partition by range (last_modified)")
	h.dropDue()
	h.exec("alter table telemetry rename to telemetry_old; alter table telemetry_new rename to telemetry")
	h.rename("telemetry", "telemetry_old")
	h.rename("telemetry_new", "telemetry")
	h.pause("telemetry_old")
	if got := kinds(h.once(partman.RetireLoop)); got != "[]" {
		t.Fatalf("the table of the same name did %s", got)
	}
	h.resume("telemetry_old")
	r := h.once(partman.RetireLoop)
	if kinds(r) != "[drop]" || r.Done[0].Table != "telemetry_old" {
		t.Errorf("the round did %s", kinds(r))
	}
}

// TestRenameTakesCountsAlong: what a crash left to count is counted under the new names, and then held no more.
func TestRenameTakesCountsAlong(t *testing.T) {
	t.Parallel()
	h := newHouse(t, nil, live(), archive())
	name := h.oldDay(8, 10)
	cfg := h.cfg
	ctx, cancel := context.WithCancel(h.ctx)
	cfg.Step = func(_ context.Context, p partman.Point) {
		if p.Moment == partman.AfterCommit && p.Action.Kind == partman.Move && p.Action.Statements[p.Statement+1].Hook == partman.HookRecount {
			cancel()
		}
	}
	m, _ := h.manager(cfg)
	if _, err := m.RunOnce(ctx, partman.RetireLoop); err == nil {
		t.Fatal("the round was not cut short")
	}
	if n := h.number("select count(*) from partition_policy where held <> '[]'"); n != 2 {
		t.Fatalf("%d tables hold the day that moved, want 2", n)
	}
	h.exec("alter table telemetry rename to telemetry_old; alter table telemetry_archive rename to archive_old")
	h.rename("telemetry", "telemetry_old")
	h.rename("telemetry_archive", "archive_old")
	r := h.once(partman.RetireLoop)
	if kinds(r) != "[count]" || r.Done[0].Partition != name {
		t.Errorf("the round did %s", kinds(r))
	}
	if n := h.number("select count(*) from partition_policy where held <> '[]'"); n != 0 {
		t.Errorf("%d tables hold the day still", n)
	}
}

// TestRenameWinsUnderTheLock: a day of the plan made before does not leave by the policy of the name.
func TestRenameWinsUnderTheLock(t *testing.T) {
	t.Parallel()
	var h *house
	done := false
	h = newHouse(t, func(c *partman.Config) {
		c.Step = func(_ context.Context, p partman.Point) {
			if p.Action.Kind == partman.Detach && p.Action.Statements[p.Statement].Hook == partman.HookGuard && !done {
				done = true
				h.rename("telemetry", "telemetry_old")
			}
		}
	}, dropping())
	h.oldDay(8, 10)
	r, err := h.m.RunOnce(h.ctx, partman.RetireLoop)
	if len(r.Done) != 0 || len(r.Refused) != 1 || r.Refused[0].Blocked.Reason != "policy" || err != nil {
		t.Errorf("the round did %s, refused %+v: %v", kinds(r), r.Refused, err)
	}
}
