package partman_test

import (
	"errors"
	"testing"
	"time"

	"plenum/pkg/partman"
)

// policy is the one in force.
func (h *house) policy() partman.Policy {
	h.t.Helper()
	list, err := partman.Policies(h.ctx, h.pool, "public")
	if err != nil || len(list) == 0 {
		h.t.Fatal(err)
	}
	return list[0]
}

func (h *house) register(p partman.Policy) *partman.Policy {
	h.t.Helper()
	previous, err := partman.Register(h.ctx, h.pool, "public", p)
	if err != nil {
		h.t.Fatal(err)
	}
	return previous
}

// TestShorterRetentionWaits for a person's word: until then the old one is in force, told in a finding with the command.
func TestShorterRetentionWaits(t *testing.T) {
	t.Parallel()
	h := newHouse(t, nil, live(), archive())
	h.oldDay(5, 10)
	h.oldDay(8, 10)
	h.once(partman.CreateLoop)
	shorter := live()
	shorter.Retention, shorter.Premake = 4, 3
	if previous := h.register(shorter); !previous.Equal(live()) {
		t.Errorf("before: %+v", previous)
	}
	if p := h.policy(); p.Retention != 8 || p.Premake != 3 {
		t.Errorf("in force: %+v, want the old retention and the new premake", p)
	}
	if got := kinds(h.once(partman.RetireLoop)); got != "[archive]" {
		t.Errorf("the round did %s", got)
	}
	const want = "the policy wants 4 days, then archive, which keeps less than what is in force, 8 days, then archive: " +
		"plenumctl partitions apply --confirm-retention --table telemetry"
	if found := h.find(partman.Unconfirmed); len(found) != 1 || found[0].Detail != want || found[0].Broken {
		t.Errorf("findings %v, want %s", found, want)
	}
	version := h.number("select xmin::text::bigint from partition_policy where table_name = 'telemetry'")
	if previous := h.register(shorter); !previous.Equal(shorter) {
		t.Errorf("registered again: before %+v, want no change", previous)
	}
	if again := h.number("select xmin::text::bigint from partition_policy where table_name = 'telemetry'"); again != version {
		t.Error("what waits already was written again")
	}
	longer := live()
	longer.Retention = 30
	if previous := h.register(longer); !previous.Equal(shorter) {
		t.Errorf("before the longer one: %+v", previous)
	}
	if p := h.policy(); p.Retention != 30 || len(h.find(partman.Unconfirmed)) != 0 {
		t.Errorf("in force %+v, waiting %v", p, h.find(partman.Unconfirmed))
	}
	h.register(shorter)
	before, after, err := h.m.Confirm(h.ctx, "telemetry")
	if err != nil || before.Retention != 30 || after.Retention != 4 {
		t.Errorf("confirmed %s for %s: %v", after, before, err)
	}
	if p := h.policy(); !p.Equal(shorter) {
		t.Errorf("in force after the word: %+v", p)
	}
	if r := h.once(partman.RetireLoop); len(r.Done) == 0 {
		t.Error("nothing goes after the word")
	}
	if _, _, err := h.m.Confirm(h.ctx, "telemetry"); !errors.Is(err, partman.ErrNothingPending) {
		t.Errorf("a second word: %v", err)
	}
}

// TestKeepsLess: what of a new policy waits, and what of it is in force at once.
func TestKeepsLess(t *testing.T) {
	t.Parallel()
	with := func(change func(*partman.Policy)) partman.Policy { p := live(); change(&p); return p }
	forever := with(func(p *partman.Policy) { p.Retention = 0 })
	toDrop := with(func(p *partman.Policy) { p.Expired, p.ArchiveTable, p.Retention = partman.ExpiredDrop, "", 30 })
	graced := dropping()
	graced.Grace = 48 * time.Hour
	short := dropping()
	short.Grace = time.Hour
	for name, c := range map[string]struct {
		before, after partman.Policy
		waits         bool
		inForce       string
	}{
		"the same":             {live(), live(), false, "8 days, then archive"},
		"more days":            {live(), with(func(p *partman.Policy) { p.Retention = 9 }), false, "9 days, then archive"},
		"a day less":           {live(), with(func(p *partman.Policy) { p.Retention = 7 }), true, "8 days, then archive"},
		"all":                  {live(), forever, false, "all kept"},
		"no longer all":        {forever, live(), true, "all kept"},
		"drop, and later":      {live(), toDrop, true, "30 days, then archive"},
		"archive and no drop":  {dropping(), live(), false, "8 days, then archive"},
		"longer grace":         {dropping(), graced, false, "8 days, then drop after 48h0m0s"},
		"shorter grace":        {dropping(), short, true, "8 days, then drop after 24h0m0s"},
		"grace of the default": {graced, dropping(), true, "8 days, then drop after 48h0m0s"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHouse(t, nil, c.before)
			h.register(c.after)
			if waits := h.number("select count(pending) from partition_policy") == 1; waits != c.waits {
				t.Errorf("waits: %t", waits)
			}
			p := h.policy()
			r := partman.Retention{Step: p.Step, Retention: p.Retention, Expired: p.Expired, Grace: p.Grace}
			if r.String() != c.inForce {
				t.Errorf("in force: %s, want %s", r, c.inForce)
			}
			if err := p.Validate(); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestUpgradeOfThePolicies: a table of the release before the holds is brought up to date, says that nothing waits or is
// held, and that release goes on working on it.
func TestUpgradeOfThePolicies(t *testing.T) {
	t.Parallel()
	h := newHouse(t, nil)
	h.exec("drop table partition_policy")
	h.exec(`create table partition_policy (table_schema text not null, table_name text not null, key_column text not null default '',
		step text not null default 'day', premake integer not null default 0, retention integer not null default 0,
		expired text not null default '', archive_table text not null default '', grace interval not null default '0',
		indexes jsonb not null default '[]', storage jsonb not null default '{}', updated_at timestamptz not null default now(),
		primary key (table_schema, table_name))`)
	const old = `insert into partition_policy as p (table_schema, table_name, key_column, step, premake, retention, expired, archive_table, grace, indexes, storage)
		values ('public', $1, 'last_modified', 'day', 2, 8, 'archive', 'telemetry_archive', '24h', '[]', '{}')
		on conflict (table_schema, table_name) do update set retention = excluded.retention`
	h.exec(old, "telemetry")
	for range 2 {
		if err := partman.Install(h.ctx, h.pool, "public"); err != nil {
			t.Fatal(err)
		}
	}
	h.exec(old, "telemetry")
	if n := h.number("select count(*) from partition_policy where last_run is null and pending is null and held = '[]'"); n != 1 {
		t.Error("the columns say something that went before")
	}
	h.oldDay(8, 10)
	if got := kinds(h.once(partman.RetireLoop)); got != "[archive]" {
		t.Errorf("the round did %s", got)
	}
	if n := h.number("select count(*) from partition_policy where last_run > now() - interval '1 hour'"); n != 1 {
		t.Error("the round is not written down")
	}
}
