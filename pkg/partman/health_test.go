package partman_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"plenum/pkg/partman"
)

// kept is a house whose table has today and two premade days, analyzed.
func kept(t *testing.T) *house {
	t.Helper()
	h := newHouse(t, nil, live(), archive())
	h.once(partman.CreateLoop)
	h.exec("insert into telemetry (seq) select i from generate_series(1, 50) i")
	if got := kinds(h.once(partman.HealthLoop)); got != "[analyze]" {
		t.Fatalf("first health round did %s", got)
	}
	if got := kinds(h.once(partman.HealthLoop)); got != "[]" {
		t.Fatalf("second health round did %s", got)
	}
	return h
}

// today is the name of today's partition.
func (h *house) partition() string { return "telemetry_p" + h.today.Format("20060102") }

// TestRepair breaks one thing after the other, as a person or a crash would, and expects it to be found, counted, repaired
// by the actions named, and nothing left to do.
func TestRepair(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		harm  func(h *house)
		code  partman.Code
		drift float64
		want  string
	}{
		"policy index dropped": {
			func(h *house) { h.exec("drop index " + h.partition() + "_identity") },
			partman.IndexMissing, 1, "[index]",
		},
		"policy index invalid": {
			func(h *house) { h.invalidate(h.partition() + "_identity") },
			partman.IndexInvalid, 1, "[index]",
		},
		"attached index invalid": {
			func(h *house) { h.invalidate(h.partition() + "_id_idx") },
			partman.IndexInvalid, 1, "[index]",
		},
		"index on only the parent": {
			func(h *house) {
				h.exec("create index by_device on only telemetry (device_id, recorded_at desc) where seq > 0")
			},
			partman.IndexMissing, 4, "[index index index]",
		},
		"expression index on only the parent": {
			func(h *house) { h.exec("create index on only telemetry (lower(kind))") },
			partman.IndexMissing, 4, "[index index index]",
		},
		"index on the parent and, built before, on a leaf": {func(h *house) {
			h.exec("create index concurrently mine on " + h.partition() + " (kind)")
			h.exec("create index on only telemetry (kind)")
		}, partman.IndexMissing, 4, "[index index index]"},
		"index on the parent and, left invalid, on a leaf": {func(h *house) {
			h.exec("create index mine on " + h.partition() + " (kind)")
			h.invalidate("mine")
			h.exec("create index on only telemetry (kind)")
		}, partman.IndexMissing, 4, "[index index index]"},
		"left behind by a rebuild": {func(h *house) {
			h.exec("create index telemetry_id_idx_ccnew on " + h.partition() + " (id)")
			h.invalidate("telemetry_id_idx_ccnew")
		}, partman.IndexInvalid, 1, "[index]"},
		"storage parameters": {func(h *house) {
			h.exec("alter table " + h.partition() + " reset (fillfactor); alter table " + h.partition() + " set (autovacuum_vacuum_scale_factor = 0.5)")
		}, partman.WrongStorage, 0, "[storage]"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := kept(t)
			c.harm(h)
			if len(h.find(c.code)) == 0 {
				t.Errorf("no finding %s", c.code)
			}
			h.once(partman.CreateLoop) // looks, and has nothing to do
			if n := h.metric("plenum_partition_index_drift", "table=telemetry"); n != c.drift {
				t.Errorf("drift %v, want %v", n, c.drift)
			}
			if got := kinds(h.once(partman.HealthLoop)); got != c.want {
				t.Errorf("the repair did %s, want %s", got, c.want)
			}
			h.clean()
			if got := kinds(h.once(partman.HealthLoop)); got != "[]" {
				t.Errorf("a second repair did %s", got)
			}
			if n := h.number("select count(*) from pg_index where not indisvalid"); n != 0 {
				t.Errorf("%d invalid indexes are left", n)
			}
		})
	}
}

// invalidate marks an index as a failed concurrent build leaves it.
func (h *house) invalidate(name string) {
	h.t.Helper()
	h.exec("update pg_index set indisvalid = false where indexrelid = $1::regclass", name)
}

// TestFailedBuild: a unique index that the rows forbid is an error each round, never a pile of invalid indexes, and is
// built when the rows allow it.
func TestFailedBuild(t *testing.T) {
	t.Parallel()
	h := kept(t)
	h.exec("drop index " + h.partition() + "_identity")
	h.exec("insert into telemetry (device_id, kind, recorded_at, seq) select 'x', 'y', 'epoch', 1 from generate_series(1, 2)")
	for range 3 {
		if _, err := h.m.RunOnce(h.ctx, partman.HealthLoop); sqlState(err) != "23505" {
			t.Fatalf("the build of a unique index over two equal rows: %v", err)
		}
		if n := h.number("select count(*) from pg_index where not indisvalid"); n != 1 {
			t.Errorf("%d invalid indexes, want the one of the last try", n)
		}
	}
	h.exec("delete from telemetry where device_id = 'x'")
	if got := kinds(h.once(partman.HealthLoop)); got != "[index]" {
		t.Errorf("the repair did %s", got)
	}
	h.clean()
}

// TestBuildDeadline: a concurrent build waits for writers who began before it; past the deadline the error names them, and
// rows land all the while.
func TestBuildDeadline(t *testing.T) {
	t.Parallel()
	h := kept(t)
	h.exec("drop index " + h.partition() + "_identity")
	writer := h.begin("slow writer", "insert into telemetry (seq) values (1001)")
	cfg := h.cfg
	cfg.Deadline = 300 * time.Millisecond
	m, _ := h.manager(cfg)
	_, err := m.RunOnce(h.ctx, partman.HealthLoop)
	var lock *partman.LockError
	if !errors.As(err, &lock) || len(lock.Blockers) == 0 || lock.Blockers[0].Application != "slow writer" {
		t.Fatalf("the build beside an open transaction: %v", err)
	}
	if faults := m.Status()[0].Faults; !contains(faults[partman.HealthLoop], "slow writer") {
		t.Errorf("faults in the status: %v", faults)
	}
	h.exec("insert into telemetry (seq) values (1002)")
	h.rollback(writer)
	if got := kinds(h.once(partman.HealthLoop)); got != "[index]" {
		t.Errorf("the repair did %s", got)
	}
	h.clean()
}

// TestParentStaysInvalid: the one leaf without the index is taken away, each other has it, and the parent's index is still
// marked invalid until someone looks again.
func TestParentStaysInvalid(t *testing.T) {
	t.Parallel()
	h := newHouse(t, nil, live(), archive())
	name := h.oldDay(1, 10)
	h.exec("create index on only telemetry (kind)")
	h.once(partman.CreateLoop)
	h.exec("alter table telemetry detach partition " + name)
	if len(h.find(partman.IndexInvalid)) != 1 {
		t.Error("no finding of the parent's index")
	}
	if found := h.find(partman.Stray); len(found) != 1 {
		t.Errorf("strays %+v, want the day that a person detached", found)
	}
	h.exec("drop table " + name)
	h.once(partman.HealthLoop)
	h.clean()
}

// TestNewLeavesTakeAnUnfinishedIndex: an index that the parent has only by name is on each new leaf from the start, and
// built on the others.
func TestNewLeavesTakeAnUnfinishedIndex(t *testing.T) {
	t.Parallel()
	h := newHouse(t, nil, live(), archive())
	h.oldDay(1, 10)
	h.exec("create index on only telemetry (kind)")
	h.once(partman.CreateLoop)
	if got := kinds(h.once(partman.HealthLoop)); got != "[index analyze analyze]" && got != "[index analyze]" {
		t.Errorf("the repair did %s", got)
	}
	h.clean()
}

// TestRepairPastRetention: a day that cannot leave yet is still repaired, by the loop that would move it, since a day without
// its index on id may not become ready to leave at all.
func TestRepairPastRetention(t *testing.T) {
	t.Parallel()
	h := newHouse(t, func(c *partman.Config) {
		c.Guard = func(context.Context, pgx.Tx, partman.Retiring) error { return &partman.Blocked{Reason: "unprocessed"} }
	}, live(), archive())
	name := h.oldDay(8, 10)
	h.exec("drop index " + name + "_identity")
	if got := kinds(h.once(partman.HealthLoop)); got != "[analyze]" {
		t.Errorf("the health round did %s", got)
	}
	if r := h.once(partman.RetireLoop); kinds(r) != "[index]" || len(r.Refused) != 1 {
		t.Errorf("the retire round did %s, refused %v", kinds(r), r.Refused)
	}
	if found := h.find(partman.IndexMissing); len(found) != 0 {
		t.Errorf("findings %+v", found)
	}
}
