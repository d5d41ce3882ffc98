package partman_test

import (
	"errors"
	"strings"
	"testing"

	"plenum/internal/devenv/devtest"
	"plenum/pkg/partman"
)

// keepTable puts tables that the test made itself under management, each with an index that only leaves have.
func (h *house) keepTable(tables ...string) {
	h.t.Helper()
	for _, table := range tables {
		p := partman.Policy{
			Schema: "public", Table: table, Key: "at", Step: partman.Day, Premake: 1, Retention: 3, Expired: partman.ExpiredDrop,
			Indexes: []partman.Index{{Name: "identity", Unique: true, Columns: []string{"id"}}},
		}
		if _, err := partman.Register(h.ctx, h.pool, "public", p); err != nil {
			h.t.Fatal(err)
		}
	}
}

// leaves counts the partitions of a table.
func (h *house) leaves(table string) int64 {
	h.t.Helper()
	return h.number(`select count(*) from pg_inherits i join pg_class c on c.oid = i.inhparent where c.relname = $1`, table)
}

// TestLongNames: tables whose names are as long as they can be, in letters of several bytes, in need of quotes, and the same in all
// that their partitions' names have room for, are kept like others, beside one another.
func TestLongNames(t *testing.T) {
	t.Parallel()
	stem := strings.Repeat("länge", 10) // 60 bytes; a cut at any byte would be inside a letter for some name below
	names := []string{
		strings.Repeat("x", 63), stem + "abc", stem + "abd", strings.Repeat("ü", 31) + "a", "a" + strings.Repeat("ü", 31),
		strings.Repeat("漢", 21), `qu"ote; Big 'n small`, "telemetry_p20261122",
	}
	h := newHouse(t, nil)
	for _, name := range names {
		h.exec(`create table ` + quoted(name) + ` (id bigint not null, at timestamptz not null) partition by range (at);
			create index on ` + quoted(name) + ` (at, id)`)
	}
	h.keepTable(names...)
	h.once(partman.CreateLoop)
	if again := kinds(h.once(partman.CreateLoop)); again != "[]" {
		t.Errorf("a second round did %s", again)
	}
	h.once(partman.HealthLoop)
	for n, name := range names {
		h.exec("insert into "+quoted(name)+" select $1, now() + make_interval(days => i) from generate_series(0, 1) i", n)
		if got := h.leaves(name); got != 2 {
			t.Errorf("%s has %d partitions, want 2", name, got)
		}
	}
	h.clean()
	// The old day of one goes; that of the other, which is named the same but for a number, stays.
	for _, name := range names[1:3] {
		h.exec("alter table " + quoted(name) + " add constraint unused check (true)")
		h.oldDayOf(name, 5)
	}
	if _, err := h.pool.Exec(h.ctx, "delete from partition_policy where table_name = $1", names[2]); err != nil {
		t.Fatal(err)
	}
	if got := kinds(h.once(partman.RetireLoop)); got != "[index detach]" {
		t.Errorf("the retire round did %s, want the repair and the end of one day", got)
	}
	for n, want := range map[int]int64{1: 2, 2: 3} {
		if got := h.leaves(names[n]); got != want {
			t.Errorf("%s has %d partitions, want %d", names[n], got, want)
		}
	}
}

// oldDayOf attaches a partition of the day n days ago, as a person would.
func (h *house) oldDayOf(table string, n int) {
	h.t.Helper()
	from := h.today.AddDate(0, 0, -n)
	h.exec("create table " + quoted("old_"+randomWord()) + " partition of " + quoted(table) +
		" for values from ('" + from.Format("2006-01-02") + " 00:00+00') to ('" + from.AddDate(0, 0, 1).Format("2006-01-02") + " 00:00+00')")
}

func quoted(name string) string { return `"` + strings.ReplaceAll(name, `"`, `""`) + `"` }

// TestFarFuture: days that a person made far ahead are no premade ones: the days until then are made all the same, inserts are said to
// fail when they would, and the far days stay, with the rows in them.
func TestFarFuture(t *testing.T) {
	t.Parallel()
	h := newHouse(t, nil, live(), archive())
	for days, name := range map[int]string{30: "telemetry_of_next_month", 366: "telemetry_p20000101", 40_000: "telemetry_of_the_grandchildren"} {
		from := h.today.AddDate(0, 0, days)
		h.exec("create table " + name + " partition of telemetry for values from ('" + from.Format("2006-01-02") + " 00:00+00') to ('" +
			from.AddDate(0, 0, 1).Format("2006-01-02") + " 00:00+00')")
		h.exec("insert into telemetry (last_modified) values ($1)", from)
	}
	if found := h.find(partman.FewPremade); len(found) != 1 || found[0].Detail != "0 future partitions of 2" {
		t.Errorf("findings %+v, want none premade of 2", found)
	}
	if got := kinds(h.once(partman.CreateLoop)); got != "[create create create]" {
		t.Errorf("the create round did %s", got)
	}
	h.exec("insert into telemetry (last_modified) select now() + make_interval(days => i) from generate_series(0, 2) i")
	if runway := h.metric("plenum_partition_runway_seconds", "table=telemetry"); runway <= 2*86400 || runway > 3*86400 {
		t.Errorf("runway %v s, want two to three days", runway)
	}
	h.oldDay(8, 10)
	if got := kinds(h.once(partman.RetireLoop)); got != "[archive]" {
		t.Errorf("the retire round did %s, want the old day alone", got)
	}
	if n := h.number("select count(*) from telemetry where last_modified > now() + interval '20 days'"); n != 3 {
		t.Errorf("%d rows of far days, want 3", n)
	}
	if found := h.find(partman.FewPremade); len(found) != 0 {
		t.Errorf("findings %+v", found)
	}
}

// TestAttachBesideDefault: a DEFAULT partition is a finding. A reader of it holds up a new day for the tries of one round, and is named;
// rows for days that are there land meanwhile. A row in it that belongs to a new day keeps that day from being made, as a finding that
// says so, and none of the others.
func TestAttachBesideDefault(t *testing.T) {
	t.Parallel()
	h := newHouse(t, func(c *partman.Config) { c.Tries = 3 }, live(), archive())
	if err := h.m.EnsureNow(h.ctx, "telemetry"); err != nil {
		t.Fatal(err)
	}
	h.exec(`create schema "else"; create table "else"."rest" partition of telemetry default`)
	h.exec("insert into telemetry (last_modified) values (now() - interval '100 days'), (now() + interval '2 days')")
	analyst := h.begin("analyst", "select count(*) from telemetry")
	_, err := h.m.RunOnce(h.ctx, partman.CreateLoop)
	var lock *partman.LockError
	if !errors.As(err, &lock) || lock.Tries != 3 || len(lock.Blockers) != 1 {
		t.Fatalf("beside a reader: %v", err)
	}
	if b := lock.Blockers[0]; b.Application != "analyst" || b.Relation != "else.rest" {
		t.Errorf("blocker %+v, want the analyst on else.rest", b)
	}
	h.exec("insert into telemetry default values")
	h.rollback(analyst)

	_, err = h.m.RunOnce(h.ctx, partman.CreateLoop)
	if err == nil || !contains(err.Error(), "would be violated by some row") {
		t.Errorf("with a row of a new day in DEFAULT: %v", err)
	}
	if n := h.leaves("telemetry"); n != 3 {
		t.Errorf("%d partitions, want today's, tomorrow's and DEFAULT", n)
	}
	if found := h.find(partman.Failed); len(found) == 0 || !contains(found[0].Detail, "would be violated by some row") {
		t.Errorf("findings %+v, want why the day is not made", found)
	}
	if found := h.find(partman.DefaultPresent); len(found) != 1 || found[0].Partition != "rest" {
		t.Errorf("findings %+v, want the DEFAULT partition", found)
	}
	h.exec(`delete from "else"."rest" where last_modified > now()`)
	devtest.Eventually(t, func() error {
		_, err := h.m.RunOnce(h.ctx, partman.CreateLoop)
		return err
	})
	if n := h.number(`select count(*) from "else"."rest"`); n != 1 || h.leaves("telemetry") != 4 {
		t.Errorf("%d rows in DEFAULT, want 1; %d partitions, want 4", n, h.leaves("telemetry"))
	}
}
