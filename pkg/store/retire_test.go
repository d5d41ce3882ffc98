package store_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"plenum/pkg/store"
)

// refusal runs a guard in a transaction that is kept if it agrees.
func (h *house) refusal(guard func(pgx.Tx) error) string {
	h.Helper()
	err := pgx.BeginFunc(h.ctx, h.pool, guard)
	var r *store.Refusal
	if errors.As(err, &r) {
		if !strings.Contains(r.Error(), h.day(-2).Format(time.DateOnly)) {
			h.Errorf("%q does not name the day", r)
		}
		return r.Reason
	}
	if err != nil {
		h.Fatal(err)
	}
	return ""
}

func TestGuardLiveDay(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	elsewhere := time.FixedZone("elsewhere", -5*3600)
	guard := func() string {
		t.Helper()
		return h.refusal(func(tx pgx.Tx) error {
			return store.GuardLiveDay(h.ctx, tx, pgx.Identifier{"public", leafOf("telemetry", h.day(-2))}, h.day(-2).In(elsewhere))
		})
	}
	m := store.NewMarker(h.pool)
	want(h, "an empty day", guard(), "")
	h.insertDay(h.day(-1), 5)
	want(h, "another day's rows", guard(), "")
	h.insertDay(h.day(-2), 5)
	want(h, "pending rows", guard(), "unprocessed")
	h.markAll(m)
	want(h, "processed rows", guard(), "")
	h.exec("insert into feed_consumer (name, position) values ('idle', 0)")
	want(h, "a consumer behind that is not required", guard(), "")
	h.exec("insert into feed_consumer (name, position, required) values ('late', 0, true)")
	want(h, "a required consumer behind", guard(), "consumer")
	h.exec("update feed_consumer set position = (select max(feed_position) from telemetry_batch where day = $1)", h.day(-2))
	want(h, "a required consumer past it", guard(), "")

	h.insertRows(h.day(-2), 1, 1)
	want(h, "a row without a line, unprocessed", guard(), "unprocessed")
	h.exec("update telemetry set processed = true where id = 1")
	want(h, "a row without a line, processed by hand", guard(), "no_ledger_line")
	h.exec("delete from telemetry where id = 1")
	want(h, "the row gone", guard(), "")
	h.exec("delete from telemetry where id = (select max(id) from telemetry where last_modified < $1)", h.day(-1))
	want(h, "a row deleted behind the ledger", guard(), "no_ledger_line")
	h.exec("insert into telemetry_batch (first_id, last_id, row_count, day, source) values (1, 1, 1, $1, 'x')", h.day(-2))
	want(h, "a pending line without a row", guard(), "unprocessed")
	h.exec("update telemetry_batch set set_aside_at = now() where first_id = 1")
	want(h, "a line that is set aside", guard(), "unprocessed")
}

func TestDropDayRecordsTheHorizon(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.insertDay(h.day(-2), 1)
	h.insertDay(h.day(-1), 1)
	h.insertDay(h.day(-2), 1)
	h.markAll(store.NewMarker(h.pool))
	drop := func(day time.Time) string {
		t.Helper()
		return h.refusal(func(tx pgx.Tx) error { return store.DropDay(h.ctx, tx, day.In(time.FixedZone("elsewhere", -5*3600))) })
	}
	horizon := func() int64 {
		t.Helper()
		p, err := store.FeedHorizon(h.ctx, h.pool)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	h.exec("insert into feed_consumer (name, position, required) values ('late', 2, true)")
	want(h, "a required consumer in mid-day", drop(h.day(-2)), "consumer")
	want(h, "horizon", horizon(), 0)
	h.exec("update feed_consumer set position = 3")
	want(h, "a required consumer past it", drop(h.day(-2)), "")
	want(h, "horizon", horizon(), 3)
	want(h, "the day after, whose positions are lower", drop(h.day(-1)), "")
	want(h, "an empty day", drop(h.today), "")
	want(h, "horizon, which never goes back", horizon(), 3)
}

func TestGuardLedgerDay(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	guard := func() string {
		t.Helper()
		return h.refusal(func(tx pgx.Tx) error { return store.GuardLedgerDay(h.ctx, tx, h.day(-2)) })
	}
	h.insertDay(h.day(-2), 2)
	want(h, "pending lines", guard(), "unprocessed")
	h.markAll(store.NewMarker(h.pool))
	want(h, "rows in the live table", guard(), "rows_present")
	h.archive(h.day(-2))
	want(h, "rows in the archive", guard(), "rows_present")
	h.exec("drop table " + leafOf("telemetry", h.day(-2)))
	h.exec("insert into feed_consumer (name, position, required) values ('late', 0, true)")
	want(h, "a required consumer behind", guard(), "consumer")
	h.exec("delete from feed_consumer")
	want(h, "nothing left", guard(), "")
	horizon, _, err := store.FeedBounds(h.ctx, h.pool)
	if err != nil {
		t.Fatal(err)
	}
	want(h, "horizon", horizon, 1)
}
