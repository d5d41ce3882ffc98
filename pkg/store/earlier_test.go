package store_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"plenum/internal/devenv/devtest"
	"plenum/pkg/store"
	"plenum/pkg/telemetry"
)

// storeOn stores readings as a writer would have n days from today, at noon.
func (h *house) storeOn(n int, rs ...telemetry.Reading) {
	h.Helper()
	for _, r := range rs {
		var seq *int64
		if r.Seq != telemetry.NoSeq {
			seq = &r.Seq
		}
		h.exec(`with t as (insert into telemetry (last_modified, recorded_at, seq, device_id, kind, payload) values ($1, $2, $3, $4, $5, $6) returning id)
			insert into telemetry_batch (first_id, last_id, row_count, day, source) select id, id, 1, $1::timestamptz at time zone 'UTC', 'test' from t`,
			h.day(n).Add(12*time.Hour), r.RecordedAt, seq, r.DeviceID, r.Kind, string(r.Metrics))
	}
}

// at is a reading of device d at a time.
func at(t time.Time, seq int64) telemetry.Reading {
	return telemetry.Reading{DeviceID: "d", Kind: "k", RecordedAt: t.Truncate(time.Microsecond), Seq: seq, Metrics: []byte(`{"n": 1}`)}
}

// Whatever of these was stored yesterday is found, alone and among others, with and without seq.
func TestRepeatsOfYesterday(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	now := time.Now().UTC()
	old := []telemetry.Reading{
		at(h.day(-1).Add(11*time.Hour), 1), at(h.day(-1).Add(11*time.Hour), telemetry.NoSeq), // in its day
		at(h.today.Add(59*time.Minute), 2),                                    // of a clock that was nearly an hour ahead
		at(now.Add(2*time.Hour), 3),                                           // of one that is more ahead
		at(h.day(-400), 4), at(h.day(-400).Add(time.Second), telemetry.NoSeq), // of one that is far behind
	}
	h.storeOn(-1, old...)
	w := h.writer()
	fresh := at(h.day(-1).Add(13*time.Hour), 5)
	for i, r := range old {
		want(h, fmt.Sprintf("reading %d again", i), h.write(w, r), telemetry.Outcome{Duplicate: 1})
	}
	want(h, "all among new ones", h.write(w, append([]telemetry.Reading{fresh}, old...)...), telemetry.Outcome{Stored: 1, Duplicate: len(old)})
	want(h, "and again", h.write(w, append([]telemetry.Reading{fresh}, old...)...), telemetry.Outcome{Duplicate: len(old) + 1})

	differs := decoded(t, old[0], `{"n": 2}`)
	want(h, "another payload", h.write(w, differs), telemetry.Outcome{Quarantined: 1, Conflicts: 1})
	want(h, "conflicts", value[int](h, "select count(*) from telemetry_quarantine where code = 'conflict'"), 1)
	want(h, "rows", value[int](h, "select count(*) from telemetry"), len(old)+1)
	h.checkLedger()
}

// A device whose clock is hours ahead, and no longer ahead of the database when the broker sends its reading again.
func TestRepeatThatTheBrokerSendsAgain(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	now := time.Now().UTC()
	r := at(now, 1)
	h.storeOn(-1, r)
	r.Redelivered = true
	want(h, "the redelivered reading", h.write(h.writer(), r), telemetry.Outcome{Duplicate: 1})
}

// What the role's or the database's settings say of isolation and encoding is not what Plenum's connections have.
func TestSettingsOfOthers(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.exec("alter database " + h.database() + " set default_transaction_isolation = 'repeatable read'")
	h.exec("alter database " + h.database() + " set client_encoding = 'LATIN1'")
	h.pool.Reset()
	want(h, "settings", value[string](h, "select current_setting('transaction_isolation') || ' ' || current_setting('client_encoding')"), "read committed UTF8")
}

// A device whose clock stands still fills a day with rows that differ in seq alone: its look-ups go by seq too.
func TestRepeatsOfAClockThatStandsStill(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	still := h.day(-1).Add(time.Hour)
	h.exec(`insert into telemetry (last_modified, recorded_at, seq, device_id, kind, payload)
		select $1, $1, n, 'd', 'k', '{}' from generate_series(1, 20000) n`, still)
	h.exec("analyze telemetry")
	p := h.withPlans(nil)
	var batch []telemetry.Reading
	for seq := range int64(50) {
		batch = append(batch, at(still, 100_000+seq))
	}
	batch[49].Seq = telemetry.NoSeq
	want(h, "outcome", h.write(store.NewWriter(p.Pool, "test", nil), batch...), telemetry.Outcome{Stored: 50})
	plans := p.take()
	n := slices.IndexFunc(plans, func(plan string) bool { return strings.Contains(plan, "join lateral") })
	wantPlan(h, plans[n], "_device_id_kind_recorded_at_seq_idx", leafOf("telemetry", h.day(-1)))
	wantParts(h, plans[n], "(seq = r.seq))", "(seq IS NULL))")
}

// A day further back is beyond the horizon, but not for a message that the broker has retained.
func TestRepeatsOfRetainedMessages(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	r := at(h.day(-2).Add(time.Hour), 1)
	h.storeOn(-2, r)
	w := h.writer()
	r.Retained = true
	want(h, "the retained message", h.write(w, r), telemetry.Outcome{Duplicate: 1})
	again := at(time.Now().UTC(), 2)
	again.Retained = true
	want(h, "one that is new, and its repeat", h.write(w, again, r, again), telemetry.Outcome{Stored: 1, Duplicate: 2})
	differs := decoded(t, r, `{"n": 2}`)
	differs.Retained = true
	want(h, "one that differs", h.write(w, differs), telemetry.Outcome{Quarantined: 1, Conflicts: 1})
	r.Retained = false
	want(h, "beyond the horizon", h.write(w, r), telemetry.Outcome{Stored: 1})
}

// A reading of now costs no look-up; one that may be of yesterday goes by the index of that day alone, a retained one by all.
func TestRepeatsAreFoundByIndex(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.exec(`insert into telemetry (last_modified, recorded_at, seq, device_id, kind, payload)
		select now() - make_interval(days => d), now() - make_interval(days => d, secs => n / 1000.0), n, 'd', 'k', '{}' from generate_series(0, 2) d, generate_series(1, 5000) n`)
	h.exec("analyze telemetry")
	p := h.withPlans(nil)
	w := store.NewWriter(p.Pool, "test", nil)
	lookUps := func(rs ...telemetry.Reading) (plans []string) {
		t.Helper()
		p.take()
		h.write(w, rs...)
		for _, plan := range p.take() {
			if strings.Contains(plan, "join lateral") {
				plans = append(plans, plan)
			}
		}
		return plans
	}
	const index = "_device_id_kind_recorded_at_seq_idx"
	current := make([]telemetry.Reading, 50)
	for i := range current {
		current[i] = at(h.today.Add(time.Hour+time.Duration(i)*time.Microsecond), int64(i))
		if now := time.Now(); current[i].RecordedAt.After(now) {
			current[i].RecordedAt = now
		}
	}
	if plans := lookUps(current...); len(plans) != 0 && time.Since(h.today) > time.Hour {
		t.Errorf("new readings are looked up:\n%s", plans)
	}
	plans := lookUps(current...)
	wantPlan(h, plans[len(plans)-1], index, leafOf("telemetry", h.today))
	for i := range current {
		current[i].RecordedAt, current[i].Seq = h.today.Add(-time.Duration(i)*time.Second), int64(100+i)
	}
	plans = lookUps(current...)
	want(h, "look-ups of new readings of yesterday", len(plans), 1)
	wantPlan(h, plans[0], index, leafOf("telemetry", h.day(-1)))
	for i := range current {
		current[i].Retained, current[i].Seq = true, int64(200+i)
	}
	plans = lookUps(current...)
	want(h, "look-ups of new retained readings", len(plans), 1)
	for n := -2; n <= -1; n++ {
		wantParts(h, plans[0], leafOf("telemetry", h.day(n))+index)
	}
	if strings.Contains(plans[0], "Seq Scan on telemetry") || strings.Contains(plans[0], leafOf("telemetry", h.today)) {
		t.Errorf("want the days before today by index:\n%s", plans[0])
	}
}

// dayLock is the key of a day's lock.
func dayLock(day time.Time) string {
	return fmt.Sprintf("%d, date '%s' - date '2000-01-01'", 0x504c0003, day.Format(time.DateOnly))
}

// A look-up in yesterday waits for a transaction of yesterday that is under way, and sees what it stored.
func TestLookUpWaitsForYesterday(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	r := at(h.day(-1).Add(time.Hour), 1)
	late, err := h.pool.Begin(h.ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = late.Rollback(h.ctx) }()
	_, err = late.Exec(h.ctx, `insert into telemetry (last_modified, recorded_at, seq, device_id, kind, payload) values ($1, $2, 1, 'd', 'k', '{"n": 1}')`,
		h.today.Add(-time.Microsecond), r.RecordedAt)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := late.Exec(h.ctx, "select pg_advisory_xact_lock_shared("+dayLock(h.day(-1))+")"); err != nil {
		t.Fatal(err)
	}
	w := h.writer()
	type result struct {
		out telemetry.Outcome
		err error
	}
	done := make(chan result, 1)
	go func() {
		out, err := w.Write(h.ctx, &telemetry.Batch{Readings: []telemetry.Reading{r}})
		done <- result{out, err}
	}()
	devtest.Eventually(t, func() error {
		if n := value[int](h, "select count(*) from pg_locks where locktype = 'advisory' and not granted and database = (select oid from pg_database where datname = current_database())"); n == 0 {
			return errors.New("the look-up does not wait")
		}
		return nil
	})
	if err := late.Commit(h.ctx); err != nil {
		t.Fatal(err)
	}
	got := <-done
	if got.err != nil || got.out != (telemetry.Outcome{Duplicate: 1}) {
		t.Fatalf("%+v, %v", got.out, got.err)
	}
	// Once a day is enough.
	if _, err := h.pool.Exec(h.ctx, "select pg_advisory_lock_shared("+dayLock(h.day(-1))+")"); err != nil {
		t.Fatal(err)
	}
	want(h, "without another wait", h.write(w, r), telemetry.Outcome{Duplicate: 1})
}

// A transaction that comes to its end only when its day has ended begins anew: whoever looks up in that day has looked.
func TestTransactionOfADayThatHasEnded(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	// The clock is a day ahead at the first look.
	h.exec(`create sequence looks; create function clock_timestamp() returns timestamptz language sql volatile as
		$$ select pg_catalog.clock_timestamp() + case when nextval('looks') = 1 then interval '1 day' else interval '0' end $$`)
	cfg := h.single().Config()
	cfg.ConnConfig.RuntimeParams["search_path"] = "public, pg_catalog"
	w := store.NewWriter(h.poolOf(cfg), "test", nil)
	want(h, "outcome", h.write(w, at(time.Now().UTC(), 1)), telemetry.Outcome{Stored: 1})
	want(h, "looks at the clock", value[int](h, "select last_value from looks"), 2)
	want(h, "rows", value[int](h, "select count(*) from telemetry"), 1)
	h.checkLedger()
}
