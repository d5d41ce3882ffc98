package store_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"plenum/internal/devenv/devtest"
	"plenum/pkg/store"
)

func (h *house) require(name string, required bool) (store.Consumer, bool) {
	h.Helper()
	c, created, err := store.RequireConsumer(h.ctx, h.pool, name, required)
	if err != nil {
		h.Fatal(err)
	}
	return c, created
}

// A consumer that is declared before it first reads holds what it has not passed, live, archived and in the ledger, until it has
// passed it, or is required no longer. A dead letter carries its rows: what was moved past is not held.
func TestARequiredConsumerHoldsRetention(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.insertDay(h.day(-2), 2)
	h.insertDay(h.day(-2), 2)
	h.markAll(store.NewMarker(h.pool))
	guards := map[string]func(pgx.Tx) error{
		"live": func(tx pgx.Tx) error {
			return store.GuardLiveDay(h.ctx, tx, pgx.Identifier{"public", leafOf("telemetry", h.day(-2))}, h.day(-2))
		},
		"drop": func(tx pgx.Tx) error {
			if err := store.DropDay(h.ctx, tx, h.day(-2)); err != nil {
				return err
			}
			return errors.New("rolled back")
		},
	}
	all := func(what, wanted string) {
		t.Helper()
		for name, guard := range guards {
			err := pgx.BeginFunc(h.ctx, h.pool, guard)
			var r *store.Refusal
			got := ""
			if errors.As(err, &r) {
				got = r.Reason
			}
			want(h, what+", "+name, got, wanted)
		}
	}
	all("nobody is required", "")
	c, created := h.require("erp", true)
	want(h, "created", created, true)
	want(h, "position", c.Position, 0)
	all("declared, never read", "consumer")
	h.exec("select telemetry_feed_commit('erp', 1)")
	all("in mid-day", "consumer")
	_, created = h.require("erp", false)
	want(h, "created again", created, false)
	all("required no longer", "")
	c, created = h.require("erp", true)
	want(h, "created again", created, false)
	want(h, "position, which declaring does not move", c.Position, 1)
	h.exec("insert into feed_dead_letter (consumer, after_position, position, row_count, attempts, detail, body) values ('erp', 1, 2, 2, 5, 'status 400', '')")
	h.exec("select telemetry_feed_commit('erp', 2)")
	all("passed, with a dead letter that nobody has settled", "")
	if s, err := store.SeekConsumer(h.ctx, h.pool, "erp", 1); err != nil || !s.Known {
		t.Fatal(s, err)
	}
	all("sought back", "consumer")
	if ok, err := store.RemoveConsumer(h.ctx, h.pool, "erp"); err != nil || !ok {
		t.Fatal(ok, err)
	}
	all("removed", "")
}

// A day goes at the moment when a consumer is declared, or sought back into it: the one waits for the other, and the consumer
// never stands where rows are gone without being told.
func TestDeclaringWhileADayGoes(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.insertDay(h.day(-2), 2)
	h.insertDay(h.day(-1), 2)
	h.markAll(store.NewMarker(h.pool))
	h.exec("insert into feed_consumer (name, position, required) values ('back', 2, true)")
	tx, err := h.pool.Begin(h.ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(h.ctx) }()
	if err := store.DropDay(h.ctx, tx, h.day(-2)); err != nil {
		t.Fatal(err)
	}
	declared, sought := make(chan store.Consumer, 1), make(chan store.Sought, 1)
	go func() {
		c, _, err := store.RequireConsumer(h.ctx, h.pool, "new", true)
		if err != nil {
			t.Error(err)
		}
		declared <- c
	}()
	go func() {
		s, err := store.SeekConsumer(h.ctx, h.pool, "back", 0)
		if err != nil {
			t.Error(err)
		}
		sought <- s
	}()
	devtest.Eventually(t, func() error {
		if n := value[int](h, "select count(*) from pg_locks where locktype = 'advisory' and not granted and database = (select oid from pg_database where datname = current_database())"); n != 2 {
			return errors.New("they do not wait for the day")
		}
		return nil
	})
	if err := tx.Commit(h.ctx); err != nil {
		t.Fatal(err)
	}
	want(h, "where the new one begins", (<-declared).Position, 1)
	want(h, "the seek's horizon", (<-sought).Horizon, 1)
	want(h, "where the other stands still", value[int64](h, "select position from feed_consumer where name = 'back'"), 2)
}

// A consumer's own transaction holds its row: who wants to move it waits for a while, and says so.
func TestNobodyWaitsForEverForAConsumer(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.insertDay(h.day(-1), 2)
	h.markAll(store.NewMarker(h.pool))
	h.exec("insert into feed_consumer (name, position, target) values ('reads', 0, null), ('pushed', 0, 'kafka')")
	tx, err := h.pool.Begin(h.ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(h.ctx) }()
	if _, err := tx.Exec(h.ctx, "update feed_consumer set updated_at = now(); select telemetry_feed_commit('new', 1)"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(h.ctx, time.Minute)
	defer cancel()
	fence := store.Fence{Name: "pushed"}
	var waiting sync.WaitGroup
	for what, move := range map[string]func() error{
		`seek consumer "reads" to position 0`:       func() error { _, err := store.SeekConsumer(ctx, h.pool, "reads", 0); return err },
		`set required of consumer "reads"`:          func() error { _, _, err := store.RequireConsumer(ctx, h.pool, "reads", true); return err },
		`commit position 1 of consumer "reads"`:     func() error { _, err := store.AdvanceConsumer(ctx, h.pool, "reads", 1); return err },
		`remove consumer "reads"`:                   func() error { _, err := store.RemoveConsumer(ctx, h.pool, "reads"); return err },
		`create consumer "new"`:                     func() error { return store.CreateConsumer(ctx, h.pool, "new", 0) },
		`make "reads" a consumer that is pushed to`: func() error { _, err := store.AdoptPush(ctx, h.pool, "reads", "kafka", false); return err },
		`begin the delivery of consumer "pushed"`:   func() error { _, err := store.BeginDelivery(ctx, h.pool, fence, 1); return err },
		`commit the delivery of consumer "pushed"`:  func() error { _, err := store.CommitDelivery(ctx, h.pool, fence, 1); return err },
		`count a refusal of consumer "pushed"`:      func() error { _, err := store.NoteRefusal(ctx, h.pool, fence, ""); return err },
		`note the failure of consumer "pushed"`:     func() error { return store.NoteFailure(ctx, h.pool, fence, "") },
		`store a dead letter of consumer "pushed"`: func() error {
			_, _, err := store.Bury(ctx, h.pool, fence, store.DeadLetter{Position: 1})
			return err
		},
	} {
		waiting.Go(func() {
			if err := move(); err == nil {
				t.Errorf("%s: passed a transaction that holds the consumer", what)
			} else {
				wantParts(h, err.Error(), what, "55P03")
			}
		})
	}
	waiting.Wait()
}
