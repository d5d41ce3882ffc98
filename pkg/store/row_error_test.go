package store_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"plenum/pkg/store"
	"plenum/pkg/telemetry"
)

// refuseSome makes PostgreSQL refuse readings whose seq is a multiple of n.
func (h *house) refuseSome(n int) {
	h.Helper()
	h.exec(fmt.Sprintf("alter table %s add constraint no_poison check (seq %% %d <> 0)", leafOf("telemetry", h.today), n))
}

// Exactly the refused rows are quarantined, wherever they stand in the batch, and all others are stored.
func TestRefusedRowsAreQuarantinedAlone(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.refuseSome(1000)
	w := h.writer()
	reject := telemetry.Reject{Code: telemetry.BadTime, Topic: "t", Raw: []byte("r")}
	batch := telemetry.Batch{Readings: readings("d", 0, 5000), Rejects: []telemetry.Reject{reject}}
	for i := range batch.Readings {
		batch.Readings[i] = decoded(t, batch.Readings[i], `{"n": 1}`)
	}
	rand.New(rand.NewPCG(1, 2)).Shuffle(5000, func(i, j int) {
		batch.Readings[i], batch.Readings[j] = batch.Readings[j], batch.Readings[i]
	})
	whole := batch
	out, err := w.Write(h.ctx, &batch)
	if err != nil {
		t.Fatal(err)
	}
	want(h, "outcome", out, telemetry.Outcome{Stored: 4995, Quarantined: 6, RejectedByDatabase: 5})
	want(h, "rows that should not be there", value[int](h, "select count(*) from telemetry where seq % 1000 = 0"), 0)
	want(h, "rejects", value[int](h, "select count(*) from telemetry_quarantine where code = 'bad_time'"), 1)
	got := values[string](h, `select (convert_from(payload, 'UTF8')::jsonb ->> 'seq') || ' ' || topic from telemetry_quarantine where code = 'rejected_by_database' order by 1`)
	want(h, "quarantined", fmt.Sprint(got), "[0 telemetry/d/performance 1000 telemetry/d/performance 2000 telemetry/d/performance 3000 telemetry/d/performance 4000 telemetry/d/performance]")
	wantParts(h, value[string](h, "select detail from telemetry_quarantine where code = 'rejected_by_database' limit 1"), "no_poison", "23514")
	h.checkLedger()
	h.checkAccount("test", store.Account{Received: 5001, Stored: 4995, Quarantined: 6})

	h.exec(fmt.Sprintf("alter table %s drop constraint no_poison", leafOf("telemetry", h.today)))
	want(h, "once the constraint is gone", h.write(w, whole.Readings...), telemetry.Outcome{Stored: 5, Duplicate: 4995})
}

// Each SQLSTATE that a row can cause, and those beside them that it cannot, brought about while readings are inserted.
func TestRowErrorsAndWeather(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		code  string
		extra string // further options of RAISE
		row   bool
	}{
		{"22003", "", true},
		{"22P02", "", true},
		{"22021", "", true},
		{"2200N", "", true},
		{"23502", "", true},
		{"54000", "", true},
		{"54001", "", true},
		{"23514", ", constraint = 'c'", true},
		{"53100", "", false},
		{"53200", "", false},
		{"53300", "", false},
		{"57014", "", false},
		{"57P01", "", false},
		{"42501", "", false},
		{"40001", "", false},
		{"40P01", "", false},
		{"55P03", "", false},
		{"25006", "", false},
		{"XX000", "", false},
		{"P0001", "", false},
		{"23503", "", false},
		{"58030", "", false},
		{"54023", "", false},
	} {
		t.Run(c.code, func(t *testing.T) {
			t.Parallel()
			h := newHouse(t)
			h.exec(fmt.Sprintf(`create function refuse() returns trigger language plpgsql as $$ begin
				if new.seq = 7 then raise exception 'refused by the test' using errcode = '%s'%s; end if; return new; end $$`, c.code, c.extra))
			h.exec(fmt.Sprintf("create trigger refuse before insert on %s for each row execute function refuse()", leafOf("telemetry", h.today)))
			batch := telemetry.Batch{Readings: readings("d", 0, 20)}
			out, err := h.writer().Write(h.ctx, &batch)
			if c.row {
				if err != nil || out != (telemetry.Outcome{Stored: 19, Quarantined: 1, RejectedByDatabase: 1}) {
					t.Fatalf("%+v, %v", out, err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), c.code) || out != (telemetry.Outcome{}) || len(batch.Readings) != 20 {
				t.Fatalf("%+v, %v, %d readings are left", out, err, len(batch.Readings))
			}
			want(h, "rows and quarantined ones", value[int](h, "select (select count(*) from telemetry) + (select count(*) from telemetry_quarantine)"), 0)
		})
	}
}

// Where every row is refused the work of one Write is bounded, and what is left goes on with the next.
func TestSplitsAreBounded(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.refuseSome(1)
	batch := telemetry.Batch{Readings: readings("d", 0, 500)}
	w := h.writer()
	var total telemetry.Outcome
	tries := 0
	for {
		before := len(batch.Readings)
		out, err := w.Write(h.ctx, &batch)
		total.Add(out)
		tries++
		if err == nil {
			break
		}
		if !strings.Contains(err.Error(), "256 times") || len(batch.Readings) >= before {
			t.Fatalf("%v, %d of %d are left", err, len(batch.Readings), before)
		}
	}
	want(h, "outcome", total, telemetry.Outcome{Quarantined: 500, RejectedByDatabase: 500})
	if tries < 2 {
		t.Errorf("%d tries", tries)
	}
	h.checkAccount("test", store.Account{Received: 500, Quarantined: 500})
}

// Weather in the middle of a split: what is committed is counted and gone from the batch, and nothing is stored or quarantined twice.
func TestWeatherDuringASplit(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.refuseSome(100)
	ctx, cancel := context.WithCancel(h.ctx)
	h.exec(`create function stop() returns trigger language plpgsql as $$ begin
		if new.seq = 777 and current_setting('plenum.weather', true) is distinct from 'good' then raise exception 'weather' using errcode = '53100'; end if; return new; end $$`)
	h.exec(fmt.Sprintf("create trigger stop before insert on %s for each row execute function stop()", leafOf("telemetry", h.today)))
	batch := telemetry.Batch{Readings: readings("d", 0, 1000), Rejects: []telemetry.Reject{{Code: telemetry.BadTime}}}
	w := h.writer()
	done, err := w.Write(ctx, &batch)
	cancel()
	if err == nil || !strings.Contains(err.Error(), "53100") || len(batch.Rejects) != 0 || done.Stored == 0 {
		t.Fatalf("%+v, %v", done, err)
	}
	want(h, "done and left", done.Stored+done.Quarantined+len(batch.Readings), 1001)
	h.exec(fmt.Sprintf("drop trigger stop on %s", leafOf("telemetry", h.today)))
	out, err := w.Write(h.ctx, &batch)
	if err != nil {
		t.Fatal(err)
	}
	done.Add(out)
	want(h, "outcome", done, telemetry.Outcome{Stored: 990, Quarantined: 11, RejectedByDatabase: 10})
	want(h, "quarantined", value[int](h, "select count(*) from telemetry_quarantine"), 11)
	h.checkLedger()
	h.checkAccount("test", store.Account{Received: 1001, Stored: 990, Quarantined: 11})
}

// A unique index that a person adds makes no loop: what meets it, and is no repeat, is quarantined.
func TestUniqueIndexOfAPerson(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.exec(fmt.Sprintf("create unique index by_hand on %s (device_id, recorded_at)", leafOf("telemetry", h.today)))
	batch := readings("d", 0, 20)
	batch[5].RecordedAt, batch[6].RecordedAt = batch[4].RecordedAt, batch[4].RecordedAt
	want(h, "outcome", h.write(h.writer(), batch...), telemetry.Outcome{Stored: 18, Quarantined: 2, RejectedByDatabase: 2})
	wantParts(h, value[string](h, "select min(detail) from telemetry_quarantine"), "unique index")
	h.checkLedger()
}

func (h *house) checkAccount(source string, expected store.Account) {
	h.Helper()
	got, err := store.ReadAccount(h.ctx, h.pool, source)
	if err != nil {
		h.Fatal(err)
	}
	if got.Since.IsZero() {
		h.Error("the account has no beginning")
	}
	expected.Since = got.Since
	want(h, "account of "+source, got, expected)
}

func TestReplay(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	quarantine := func() int64 {
		return value[int64](h, "insert into telemetry_quarantine (code, detail, topic, payload) values ('bad_time', 'd', 't', 'x') returning id")
	}
	w := h.writer()
	replay := func(id int64, rs ...telemetry.Reading) (telemetry.Outcome, error) {
		return w.Replay(h.ctx, id, &telemetry.Batch{Readings: rs})
	}
	replayed := func(id int64) bool {
		return value[bool](h, "select replayed_at is not null from telemetry_quarantine where id = $1", id)
	}
	first := quarantine()
	r := readings("d", 0, 2)
	if out, err := replay(first, r[0]); err != nil || out != (telemetry.Outcome{Stored: 1}) || !replayed(first) {
		t.Fatalf("%+v, %v", out, err)
	}
	if _, err := replay(first, r[1]); !errors.Is(err, store.ErrReplayed) {
		t.Fatalf("replayed again: %v", err)
	}
	if _, err := replay(4711, r[1]); !errors.Is(err, store.ErrReplayed) {
		t.Fatalf("a line that is not there: %v", err)
	}
	second := quarantine()
	if out, err := replay(second, r[0]); err != nil || out != (telemetry.Outcome{Duplicate: 1}) || !replayed(second) {
		t.Fatalf("%+v, %v", out, err)
	}
	third := quarantine()
	out, err := replay(third, decoded(t, r[0], `{"n": "other"}`))
	if !errors.Is(err, store.ErrNothingStored) || out != (telemetry.Outcome{Quarantined: 1, Conflicts: 1}) || replayed(third) {
		t.Fatalf("a conflict: %+v, %v", out, err)
	}
	h.exec(fmt.Sprintf("alter table %s add constraint no_poison check (seq <> 1)", leafOf("telemetry", h.today)))
	out, err = replay(third, r[1])
	if !errors.Is(err, store.ErrNothingStored) || !strings.Contains(err.Error(), "no_poison") || out.RejectedByDatabase != 1 || replayed(third) {
		t.Fatalf("a refused one: %+v, %v", out, err)
	}
	if _, err := replay(third, r[1], readings("d", 5, 1)[0]); !errors.Is(err, store.ErrNothingStored) || replayed(third) {
		t.Fatalf("a refused one among others: %v", err)
	}
	want(h, "rows", value[int](h, "select count(*) from telemetry"), 1)
	want(h, "lines of the quarantine", value[int](h, "select count(*) from telemetry_quarantine"), 3)
	h.checkLedger()
	h.checkAccount("test", store.Account{Received: 2, Stored: 1, Duplicate: 1})
}
