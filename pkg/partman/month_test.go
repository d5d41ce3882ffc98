package partman_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"plenum/internal/devenv/devtest"
	"plenum/pkg/partman"
)

// TestMonthOfFailures: for a month each drop is refused by the server. Every day finds its partition ready, and the premade ones
// soon after midnight; days go on to be archived and detached; readiness names each table that cannot be dropped and why;
// and the log grows with the days and not with the rounds. When drops are let through, all go.
func TestMonthOfFailures(t *testing.T) {
	t.Parallel()
	core, logs := observer.New(zap.InfoLevel)
	var passed atomic.Int64
	kept, gone := live(), archive()
	kept.Retention, gone.Retention, gone.Grace = 3, 5, time.Hour
	h := newHouse(t, func(c *partman.Config) {
		c.CreateEvery, c.RetireEvery, c.HealthEvery, c.LookEvery = time.Millisecond, time.Millisecond, time.Hour, time.Millisecond
		c.Log = zap.New(core)
		c.Now = func(now time.Time) time.Time { return now.AddDate(0, 0, int(passed.Load())) }
	}, kept, gone)
	h.once(partman.CreateLoop)
	h.exec(`create function refuse() returns event_trigger language plpgsql as $$ begin raise 'drops are refused'; end $$;
		create event trigger refuse_drops on ddl_command_start when tag in ('DROP TABLE') execute function refuse()`)
	ctx, cancel := context.WithCancel(h.ctx)
	ended := make(chan error)
	go func() { ended <- h.m.Run(ctx) }()
	left := func() (drops, others int) {
		for _, table := range []string{"telemetry", "telemetry_archive"} {
			plan, err := h.m.Plan(h.ctx, table)
			if err != nil {
				t.Fatal(err)
			}
			for _, a := range plan.Actions {
				switch a.Kind {
				case partman.Drop:
					drops++
				case partman.Analyze:
				default:
					others++
				}
			}
		}
		return drops, others
	}
	const days = 30
	for day := 1; day <= days; day++ {
		passed.Add(1)
		h.exec("insert into telemetry (last_modified) values (now() + make_interval(days => $1))", day)
		devtest.Eventually(t, func() error {
			if _, others := left(); others != 0 {
				return fmt.Errorf("day %d: %d actions but drops are left to do", day, others)
			}
			return h.ranOn(day)
		})
	}
	// As many as days have left the archive, and one day of grace less: each has been tried, and is told.
	var failing int64
	devtest.Eventually(t, func() error {
		failing = h.number("select count(*) from pg_description where description like 'partman detached%'") - 1
		told := 0
		for _, st := range h.m.Status() {
			for _, f := range st.Findings {
				if f.Code == partman.Leftover && contains(f.Detail, "drops are refused") && strings.HasPrefix(f.Partition, "telemetry_p") {
					told++
				}
			}
		}
		if int64(told) != failing {
			return fmt.Errorf("%d of %d tables are told", told, failing)
		}
		return nil
	})
	if failing < days-8 {
		t.Errorf("%d tables cannot be dropped", failing)
	}
	refused := func() float64 {
		return h.metric("plenum_partition_actions_total", "action=drop", "result=failed", "table=telemetry_archive")
	}
	until := refused() + 60
	devtest.Eventually(t, func() error {
		if refused() < until {
			return errors.New("few have been tried again")
		}
		return nil
	})
	if n := logs.FilterMessage("partition round failed").Len(); int64(n) != failing {
		t.Errorf("%d lines of failures in the log after %v of %d tables", n, refused(), failing)
	}
	if done, all := logs.FilterMessage("partition action done").Len(), logs.Len(); all > done+int(failing)+days {
		t.Errorf("%d lines in the log, of which %d of actions done", all, done)
	}
	h.exec("drop event trigger refuse_drops")
	devtest.Eventually(t, func() error {
		if drops, _ := left(); drops != 0 {
			return errors.New("not all are dropped")
		}
		return nil
	})
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
