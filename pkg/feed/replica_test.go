package feed_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"go.uber.org/zap"

	"plenum/internal/devenv"
	"plenum/internal/devenv/devtest"
	"plenum/pkg/feed"
)

// replicated is a database whose feed is read from a standby, which stands still between pause and resume.
type replicated struct {
	*database
	standby *pgxpool.Pool
}

// TestStandby is several tests of one standby, one after the other: only one can have it stand still.
func TestStandby(t *testing.T) {
	t.Parallel()
	standby := devtest.Standby(t)
	for name, test := range map[string]func(*replicated){"lags": aStandbyThatLags, "long poll": aLongPollOnAStandby, "lag": lagIsThePrimarys} {
		t.Run(name, func(t *testing.T) { test(newReplicated(t, standby)) })
	}
}

func newReplicated(t *testing.T, standby *devenv.Postgres) *replicated {
	t.Helper()
	d := newDatabase(t)
	name := d.pool.Config().ConnConfig.Database
	devtest.Eventually(t, func() error { // the standby has the database
		conn, err := pgx.Connect(t.Context(), standby.URL(name))
		if err == nil {
			err = conn.Close(t.Context())
		}
		return err
	})
	r := &replicated{d, open(t, standby.URL(name))}
	d.feed = feed.New(d.pool, r.standby)
	return r
}

func (r *replicated) pause() {
	r.t.Helper()
	r.caughtUp()
	r.onStandby("select pg_wal_replay_pause()")
	devtest.Eventually(r.t, func() error {
		var state string
		err := r.standby.QueryRow(r.t.Context(), "select pg_get_wal_replay_pause_state()").Scan(&state)
		if err == nil && state != "paused" {
			err = errors.New(state)
		}
		return err
	})
}

func (r *replicated) resume() {
	r.t.Helper()
	r.onStandby("select pg_wal_replay_resume()")
}

func (r *replicated) onStandby(sql string) {
	r.t.Helper()
	if _, err := r.standby.Exec(r.t.Context(), sql); err != nil {
		r.t.Fatalf("%s: %v", sql, err)
	}
}

// caughtUp waits until the standby shows what the primary has.
func (r *replicated) caughtUp() {
	r.t.Helper()
	var lsn string
	if err := r.pool.QueryRow(r.t.Context(), "select pg_current_wal_lsn()").Scan(&lsn); err != nil {
		r.t.Fatal(err)
	}
	devtest.Eventually(r.t, func() error {
		var there bool
		err := r.standby.QueryRow(r.t.Context(), "select pg_last_wal_replay_lsn() >= $1::text::pg_lsn", lsn).Scan(&there)
		if err == nil && !there {
			err = fmt.Errorf("the standby has not replayed %s", lsn)
		}
		return err
	})
}

// A standby that stands still shows less and skips nothing; what it shows can be committed; what was dropped on the primary it
// still has, and gives.
func aStandbyThatLags(r *replicated) {
	t := r.t
	first := r.add(2)
	r.await(2)
	r.read(feed.Request{Name: "begun"}, 0, 2)
	r.pause()
	second := r.add(3)

	page := r.read(feed.Request{Name: "begun"}, 0, 2)
	if page.Position != first {
		t.Errorf("position %d, want %d", page.Position, first)
	}
	r.commit("begun", page.Position)
	if page = r.read(feed.Request{Name: "begun"}, 2, 0); page.Position != first {
		t.Errorf("an empty page up to %d, want %d", page.Position, first)
	}
	r.commit("begun", page.Position)
	r.read(feed.Request{Name: "latest", From: "latest"}, 5, 0) // it stands past what the standby shows
	if err := r.feed.Seek(t.Context(), "begun", second); err != nil {
		t.Fatal(err)
	}
	if page = r.read(feed.Request{Name: "begun"}, 5, 0); page.Position != second {
		t.Errorf("sought past the standby's head: an empty page up to %d, want %d", page.Position, second)
	}

	// The primary drops the first batch; the standby has it still.
	r.read(feed.Request{Name: "late"}, 0, 2)
	r.exec("update feed_horizon set position = $1", first)
	r.exec("delete from telemetry where seq <= 2")
	r.exec("delete from telemetry_batch where feed_position = $1", first)
	r.commit("late", r.read(feed.Request{Name: "late"}, 0, 2).Position)
	r.read(feed.Request{Name: "born-now"}, 2, 0) // at the primary's horizon, which is past what the standby shows
	r.exec("insert into feed_consumer (name, position) values ('away', 0)")
	r.read(feed.Request{Name: "away"}, 0, 2)

	r.resume()
	r.caughtUp()
	for _, name := range []string{"late", "born-now"} {
		r.read(feed.Request{Name: name}, 2, 3)
	}
	var gone *feed.GoneError
	if _, err := r.feed.Read(t.Context(), feed.Request{Name: "away", Limit: 1}); !errors.As(err, &gone) || gone.Oldest != first {
		t.Errorf("rows that are gone everywhere: %v", err)
	}
}

// await reads from the standby until it shows n rows, as a consumer that is then removed.
func (r *replicated) await(n int) (rows []int64) {
	r.t.Helper()
	devtest.Eventually(r.t, func() error {
		page, err := r.feed.Read(r.t.Context(), feed.Request{Name: "await", Limit: 1000})
		if err != nil {
			return err
		}
		rows = rows[:0]
		for _, row := range page.Rows {
			rows = append(rows, row.ID)
		}
		if len(rows) < n {
			return fmt.Errorf("%d rows", len(rows))
		}
		return nil
	})
	return rows
}

// A NOTIFY comes from the primary before the standby shows the rows: the reader goes on looking until it does.
func aLongPollOnAStandby(r *replicated) {
	t := r.t
	r.feed.Poll(time.Hour, 10*time.Millisecond)
	r.listen(zap.NewNop())
	r.awaitHearing()
	r.pause()
	page := r.later("a")
	head := r.add(2)
	r.exec("select pg_notify('plenum_feed', 'public')")
	r.exec("select pg_notify('plenum_feed', 'public')")
	select {
	case p := <-page:
		t.Fatalf("a page of %d rows from a standby that stands still", len(p.Rows))
	default:
	}
	r.resume()
	if p := <-page; len(p.Rows) != 2 || p.Position != head {
		t.Errorf("%d rows up to %d", len(p.Rows), p.Position)
	}
}

// A lag that the standby would show is the lag of when it stopped: it is asked of the primary.
func lagIsThePrimarys(r *replicated) {
	t := r.t
	head := r.add(1)
	r.await(1)
	r.commit("await", head)
	r.pause()
	r.add(1, 1)
	o, err := r.feed.Overview(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if o.Head != head+2 || len(o.Consumers) != 1 || o.Consumers[0].Batches != 2 || o.Consumers[0].Oldest <= 0 {
		t.Errorf("%+v", o)
	}
	r.resume()
}
