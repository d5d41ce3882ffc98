package partman_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"plenum/internal/devenv/devtest"
	"plenum/pkg/partman"
)

// TestMonthOfFailures has every drop refused for a month, and more of them than one round may take: not one premade day
// is missing at any moment, days go to the archive and leave it, the findings name each partition and the reason, and
// the log says so once. When the obstacle is gone the backlog goes, some in each round.
func TestMonthOfFailures(t *testing.T) {
	t.Parallel()
	now := time.Now().UTC().Truncate(24 * time.Hour).Add(time.Hour)
	live, archive := live(), archive()
	live.Retention, archive.Retention = 2, 4
	core, logs := observer.New(zapcore.InfoLevel)
	h := newHouse(t, func(c *partman.Config) {
		c.MaxRetire, c.Tries = 3, 50
		c.Now = func(time.Time) time.Time { return now }
		c.Log = zap.New(core)
	}, live, archive)
	const obstacle = `
create function refuse() returns event_trigger language plpgsql as
	$$ begin if tg_tag = 'DROP TABLE' then raise exception 'nothing is dropped this month'; end if; end $$;
create event trigger refuse on ddl_command_start when tag in ('DROP TABLE') execute function refuse()`
	h.exec(obstacle)
	round := func() {
		for _, loop := range []partman.Loop{partman.CreateLoop, partman.RetireLoop, partman.HealthLoop} {
			if _, err := h.m.RunOnce(h.ctx, loop); err != nil && !contains(err.Error(), "nothing is dropped this month") {
				t.Errorf("%s: %v", now, err)
			}
			premade := h.number("select count(*) from generate_series($1::date, $1::date + 2, '1 day') d join pg_inherits on inhrelid = to_regclass('telemetry_p' || to_char(d, 'YYYYMMDD'))", now)
			if premade != 3 {
				t.Errorf("%s, after the %s round: %d partitions are ready, want today's and 2", now, loop, premade)
			}
		}
	}
	days := sized(16, 31)
	for n := range days {
		for range 2 {
			round()
			now = now.Add(12 * time.Hour)
		}
		if got := h.number("select count(*) from pg_inherits where inhparent = 'telemetry'::regclass"); n > 2 && got > 5 {
			t.Fatalf("day %d: %d partitions in the table: the archive takes none", n, got)
		}
		if got := h.number("select count(*) from pg_inherits where inhparent = 'telemetry_archive'::regclass"); got > 3 {
			t.Fatalf("day %d: %d partitions in the archive: none leaves it", n, got)
		}
	}
	detached := h.number("select count(*) from pg_class where relkind = 'r' and obj_description(oid) like 'partman detached%'")
	named := 0
	for _, f := range h.find(partman.Leftover) {
		if contains(f.Partition, "telemetry_p") && contains(f.Detail, "nothing is dropped this month") {
			named++
		}
	}
	due := int(detached) - 1 // the last one's grace is not over
	if days > 10 && (due < 2*h.cfg.MaxRetire || named < due) {
		t.Errorf("%d of %d findings name the partition and why", named, due)
	}
	h.logged(logs, int(detached))
	h.exec("drop event trigger refuse")
	for left, idle := int64(due), 0; left > 0; {
		r := h.once(partman.RetireLoop)
		if len(r.Done) == 0 {
			idle++ // autovacuum may hold the table for longer than a round tries
		}
		if len(r.Done) > 2*h.cfg.MaxRetire || idle > 10 {
			t.Fatalf("with %d to go, the round did %s", left, kinds(r))
		}
		left = h.number("select count(*) from pg_class where relkind = 'r' and obj_description(oid) like 'partman detached%'") - 1
	}
	if found := h.find(partman.Leftover); len(found) != 0 {
		t.Errorf("what was dropped is still found: %v", found)
	}
}

// logged has the loops run as a program's would, hundreds of rounds within a day, and expects a line for each partition that fails.
func (h *house) logged(logs *observer.ObservedLogs, failing int) {
	h.t.Helper()
	cfg := h.cfg
	cfg.CreateEvery, cfg.RetireEvery, cfg.HealthEvery = time.Hour, time.Millisecond, time.Hour
	m, registry := h.manager(cfg)
	counted := &house{t: h.t, registry: registry}
	ctx, cancel := context.WithCancel(h.ctx)
	ended := make(chan error)
	go func() { ended <- m.Run(ctx) }()
	devtest.Eventually(h.t, func() error {
		if n := counted.metric("plenum_partition_actions_total", "action=drop", "result=failed", "table=telemetry_archive"); n < 60 {
			return fmt.Errorf("%v drops have failed", n)
		}
		return nil
	})
	cancel()
	if err := <-ended; err != nil && !errors.Is(err, context.Canceled) {
		h.t.Error(err)
	}
	var lines []string
	for _, e := range logs.All() {
		lines = append(lines, fmt.Sprint(e.Message, " ", e.ContextMap()["error"]))
	}
	if n := logs.FilterMessage("partition round failed").Len(); n == 0 || n > failing {
		h.t.Errorf("%d lines of failed rounds, want at most one for each of %d partitions:\n%s", n, failing, strings.Join(lines, "\n"))
	}
}
