package syncjob

import (
	"errors"
	"testing"

	"github.com/jackc/pgx/v5"

	"plenum/internal/devenv/devtest"
)

// Commits while nothing is sent share one NOTIFY.
func TestNotificationsAreCoalesced(t *testing.T) {
	t.Parallel()
	j := &Job{given: make(chan struct{}, 1)}
	for range 100 {
		j.signal() // never waits for the sender
	}
	if len(j.given) != 1 {
		t.Errorf("%d signals wait, want 1", len(j.given))
	}
}

// A listener hears of what was marked after it was committed, from a session that marks nothing.
func TestMarkingNotifies(t *testing.T) {
	t.Parallel()
	h := newHouse(t, devtest.Database(t))
	conn, err := pgx.Connect(h.ctx, h.url)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(h.ctx) }()
	if _, err := conn.Exec(h.ctx, "listen plenum_feed"); err != nil {
		t.Fatal(err)
	}
	r := h.start(Config{BatchRows: 50, Workers: 2})
	for round := range 3 {
		h.exec("insert into telemetry_batch (first_id, last_id, row_count, day, source) values ($1, $1, 1, (now() at time zone 'UTC')::date, 'x')", 1000+round)
		h.exec("insert into telemetry (id, recorded_at, device_id, kind, payload) values ($1, now(), 'd' || $2::int, 'k', '{}')", 1000+round, round)
		for marked := 0; marked <= round; { // of a try before the row was there nobody is told
			n, err := conn.WaitForNotification(h.ctx)
			if err != nil {
				t.Fatal(err)
			}
			if n.Payload != "public" {
				t.Fatalf("payload %q", n.Payload)
			}
			marked = h.count("select count(*) from telemetry where processed")
		}
	}
	r.atLeast("plenum_sync_notifications_total", 1)
}

// A NOTIFY that cannot be sent is said once, and nothing of marking.
func TestANotifyThatFails(t *testing.T) {
	t.Parallel()
	h := newHouse(t, devtest.Database(t))
	// Whoever calls pg_notify gets this one, by search_path.
	h.exec("create function public.pg_notify(text, text) returns void language plpgsql as $$ begin raise exception 'no NOTIFY today'; end $$")
	cfg := h.pool.Config()
	cfg.ConnConfig.RuntimeParams["search_path"] = "public, pg_catalog"
	r := h.startOn(cfg, Config{BatchRows: 1, Workers: 1})
	h.exec("insert into telemetry (recorded_at, device_id, kind, payload) select now(), 'hand' || n, 'k', '{}' from generate_series(1, 3) n")
	h.exec(`insert into telemetry_batch (first_id, last_id, row_count, day, source)
		select id, id, 1, (now() at time zone 'UTC')::date, 'x' from telemetry`)
	h.allMarked()
	devtest.Eventually(t, func() error {
		if r.logs.FilterMessage("cannot notify the feed's readers, they look by themselves").Len() == 0 {
			return errors.New("nothing is logged")
		}
		return nil
	})
	r.end()
	if n := r.logs.FilterMessage("cannot notify the feed's readers, they look by themselves").Len(); n != 1 || r.Failing() != nil {
		t.Errorf("%d log lines, marking fails with %v", n, r.Failing())
	}
}
