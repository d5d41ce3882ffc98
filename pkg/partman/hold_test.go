package partman_test

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"plenum/internal/devenv/devtest"
	"plenum/pkg/partman"
)

// dayHold is a hold on the day n days ago.
func (h *house) dayHold(n int) partman.Hold {
	from := h.today.AddDate(0, 0, -n)
	return partman.Hold{From: from, To: from.AddDate(0, 0, 1), By: "anna", Reason: "case 17"}
}

func (h *house) hold(table string, hold partman.Hold) {
	h.t.Helper()
	if err := h.m.Hold(h.ctx, table, hold); err != nil {
		h.t.Fatal(err)
	}
}

func (h *house) release(table string, n, want int) {
	h.t.Helper()
	hold := h.dayHold(n)
	if released, err := h.m.Release(h.ctx, table, hold.From, hold.To); err != nil || released != want {
		h.t.Fatalf("released %d, want %d: %v", released, want, err)
	}
}

// TestHold: a held day is not archived, its copy in the archive not detached, a detached one not dropped; each is told, and
// goes once it is released.
func TestHold(t *testing.T) {
	t.Parallel()
	var later atomic.Int64
	h := newHouse(t, func(c *partman.Config) {
		c.Now = func(now time.Time) time.Time { return now.Add(time.Duration(later.Load())) }
	}, live(), archive())
	name := h.oldDay(8, 10)
	h.oldDay(9, 10)
	goes := func(table string, code partman.Code, want string) {
		t.Helper()
		if got := kinds(h.once(partman.RetireLoop)); got != "[]" {
			t.Fatalf("a round beside the hold did %s", got)
		}
		told := false
		for _, f := range h.find(code) {
			told = told || f.Table == table && f.Partition == name && contains(f.Detail, "; cannot go: held by anna since 20") && contains(f.Detail, "case 17")
		}
		if !told {
			t.Errorf("no finding %s of %s names the hold: %v", code, table, h.find(code))
		}
		if n := h.metric("plenum_partition_retire_blocked", "reason=held", "table="+table); n != 1 {
			t.Errorf("%v held in the metric of %s, want 1", n, table)
		}
		h.release("", 8, 2)
		if got := kinds(h.once(partman.RetireLoop)); got != want {
			t.Fatalf("after the release the round did %s, want %s", got, want)
		}
		if n := h.metric("plenum_partition_retire_blocked", "reason=held", "table="+table); n != -1 {
			t.Errorf("%v held in the metric of %s after the release", n, table)
		}
	}
	h.hold("", h.dayHold(8))
	if got := kinds(h.once(partman.RetireLoop)); got != "[archive]" {
		t.Errorf("the other day: the round did %s", got)
	}
	list, err := h.m.List(h.ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range list {
		if held := l.Held != nil; held != (l.Partition == name) {
			t.Errorf("%s is listed as held: %t", l.Partition, held)
		}
	}
	goes("telemetry", partman.PastRetention, "[archive]")

	h.exec("drop table telemetry_p" + h.today.AddDate(0, 0, -9).Format("20060102"))
	later.Store(int64(100 * 24 * time.Hour))
	h.acceptClock()
	noon := h.dayHold(8).From.Add(12 * time.Hour) // any part of the day holds it
	h.hold("telemetry_archive", partman.Hold{From: noon, To: noon.Add(time.Hour), By: "anna", Reason: "case 17"})
	h.hold("telemetry", h.dayHold(8))
	goes("telemetry_archive", partman.PastRetention, "[detach]")

	later.Add(int64(25 * time.Hour))
	h.hold("", h.dayHold(8))
	goes("telemetry_archive", partman.Leftover, "[drop]")
}

// TestHoldIsReplacedAndNamesItsRole: a second hold of the same person on a range takes the place of the first, other ranges and
// other people's stay, and who does not say who he is is the database's role.
func TestHoldIsReplacedAndNamesItsRole(t *testing.T) {
	t.Parallel()
	h := newHouse(t, nil, live())
	first := h.dayHold(8)
	h.hold("telemetry", first)
	h.hold("public.telemetry", h.dayHold(9))
	first.By, first.Reason = "", "one"
	h.hold("", first)
	first.Reason = "another"
	h.hold("", first)
	if n := h.number("select jsonb_array_length(held) from partition_policy"); n != 3 {
		t.Errorf("%d holds, want 3", n)
	}
	role := h.pool.Config().ConnConfig.User
	if n := h.number("select count(*) from partition_policy where held->2->>'by' = $1 and held->2->>'reason' = 'another'", role); n != 1 {
		t.Error("the second hold is not there")
	}
	h.release("telemetry", 7, 0)
	if err := h.m.Hold(h.ctx, "nowhere", first); !errors.Is(err, partman.ErrUnknownTable) {
		t.Errorf("a hold on a table without a policy: %v", err)
	}
	first.To = first.From
	if err := h.m.Hold(h.ctx, "", first); err == nil {
		t.Error("a hold on nothing was set")
	}
}

// TestHoldWinsUnderTheLock: a hold, or a longer retention, that comes after the plan, even while the guard looks, keeps the day.
func TestHoldWinsUnderTheLock(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		policy partman.Policy
		reason string
	}{"archive": {live(), "held"}, "detach": {dropping(), "held"}, "archive, policy": {live(), "policy"}, "detach, policy": {dropping(), "policy"}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var h *house
			h = newHouse(t, func(cfg *partman.Config) {
				cfg.Guard = func(ctx context.Context, _ pgx.Tx, _ partman.Retiring) error {
					if c.reason == "held" {
						return h.m.Hold(ctx, "", h.dayHold(8))
					}
					longer := c.policy
					longer.Retention = 30
					_, err := partman.Register(ctx, h.pool, "public", longer)
					return err
				}
			}, c.policy, archive())
			h.oldDay(8, 10)
			r := h.once(partman.RetireLoop)
			if len(r.Done) != 0 || len(r.Refused) != 1 || r.Refused[0].Blocked.Reason != c.reason {
				t.Errorf("the round did %s, refused %+v", kinds(r), r.Refused)
			}
			if n := h.metric("plenum_partition_retire_blocked", "reason="+c.reason, "table=telemetry"); n != 1 {
				t.Errorf("%v blocked in the metric, want 1", n)
			}
			if n := h.number("select count(*) from telemetry"); n != 10 {
				t.Errorf("%d rows in the table, want 10", n)
			}
			if n := h.number("select count(*) from partition_policy where held::text like '%counted%'"); n != 0 {
				t.Error("the count of a move that did not happen is left")
			}
		})
	}
}

// TestHoldOfADetachedDay that comes after the plan of its drop: the drop asks again.
func TestHoldOfADetachedDay(t *testing.T) {
	t.Parallel()
	var h *house
	h = newHouse(t, func(c *partman.Config) {
		c.Step = func(_ context.Context, p partman.Point) {
			if p.Action.Kind == partman.Drop && p.Statement == 1 {
				h.hold("", h.dayHold(8))
			}
		}
	}, dropping())
	h.dropDue()
	r := h.once(partman.RetireLoop)
	if len(r.Done) != 0 || len(r.Refused) != 1 || r.Refused[0].Blocked.Reason != "held" {
		t.Errorf("the round did %s, refused %+v", kinds(r), r.Refused)
	}
}

// TestHoldWaitsForTheCommit of what has looked already: once the hold is set it is true of where the day is.
func TestHoldWaitsForTheCommit(t *testing.T) {
	t.Parallel()
	for name, policy := range map[string]partman.Policy{"[archive]": live(), "[detach]": dropping()} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var h *house
			held := make(chan error, 1)
			h = newHouse(t, func(c *partman.Config) {
				c.Step = func(ctx context.Context, p partman.Point) {
					taken := slices.ContainsFunc(p.Action.Statements[:p.Statement], func(s partman.Statement) bool { return s.Hook == partman.HookWanted })
					if p.Moment != partman.BeforeCommit || !taken {
						return
					}
					go func() { held <- h.m.Hold(ctx, "", h.dayHold(8)) }()
					devtest.Eventually(t, func() error {
						if h.number("select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'") == 0 {
							return errors.New("the hold does not wait for the commit")
						}
						return nil
					})
				}
			}, policy, archive())
			h.oldDay(8, 10)
			if got := kinds(h.once(partman.RetireLoop)); got != name {
				t.Errorf("the round did %s", got)
			}
			if err := <-held; err != nil {
				t.Error(err)
			}
			if n := h.number("select count(*) from partition_policy where jsonb_array_length(held) = 1"); n != 2 {
				t.Errorf("%d tables have the hold and nothing else, want 2", n)
			}
		})
	}
}
