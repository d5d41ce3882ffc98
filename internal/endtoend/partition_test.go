package endtoend

import (
	"errors"
	"strings"
	"testing"
	"time"

	"plenum/internal/devenv/devtest"
)

// TestIndexOnIDIsNamedAndRepaired: somebody drops it from telemetry and so from every day. Readiness names it by the day, and
// stays 200: marking scans, and goes on. The repair begins by itself and waits for an analyst's snapshot, who is named too;
// then the index is on every day and on the table again.
func TestIndexOnIDIsNamedAndRepaired(t *testing.T) {
	t.Parallel()
	s := newSystem(t)
	ingest := s.ingest().awaitReady()
	devtest.Eventually(t, func() error {
		if ingest.metric(`plenum_partition_runway_seconds{table="telemetry"}`) < 4*24*3600-1 {
			return errors.New("not all days are there")
		}
		return ingest.ready(200)
	})
	release := s.hold("set local application_name = 'analyst'; set transaction isolation level repeatable read; select count(*) from partition_policy")
	s.exec("drop index telemetry_id_idx")
	today := "telemetry_p" + time.Now().UTC().Format("20060102")
	devtest.Eventually(t, func() error {
		return ingest.ready(200, today+`: index \"id_idx\" of the policy is missing`, "index waits for pid", `application \"analyst\"`, "idle in transaction")
	})
	if age := ingest.metric(`plenum_partition_blocker_query_age_seconds{action="index",table="telemetry"}`); age <= 0 {
		t.Errorf("age of the query in the way: %v", age)
	}
	release()
	devtest.Eventually(t, func() error {
		_, body, _ := ingest.get("/readyz")
		if strings.Contains(body, "index") {
			return errors.New(body)
		}
		if n := s.count("pg_inherits where inhparent = to_regclass('telemetry_id_idx') and inhrelid::regclass::text like 'telemetry_p%'"); n != 5 {
			return errors.New("not each day's index is attached to the table's")
		}
		return nil
	})
}

// TestListNamesTheBlocker, though plenumctl is another program than the one that waits.
func TestListNamesTheBlocker(t *testing.T) {
	t.Parallel()
	s := newSystem(t)
	expect := s.expect()
	expect(0, "", "migrate", "up")
	expect(0, "done", "partitions", "apply")
	last := "telemetry_p" + time.Now().UTC().AddDate(0, 0, 4).Format("20060102")
	s.exec("drop table " + last)
	release := s.hold("set local application_name = 'analyst'; lock table telemetry in share update exclusive mode")
	devtest.Eventually(t, func() error { // it counts when it has lasted for a second
		_, out, _ := s.ctl("partitions", "list", "--table", "telemetry")
		for _, line := range strings.Split(out, "\n") {
			if strings.Contains(line, last) && strings.Contains(line, "missing") && strings.Contains(line, `application "analyst", idle in transaction`) {
				return nil
			}
		}
		return errors.New(out)
	})
	expect(0, "BLOCKED BY", "partitions", "list")
	expect(0, `"application_name": "analyst"`, "partitions", "list", "--output", "json")
	expect(1, `held by pid`, "partitions", "apply", "--table", "telemetry")
	release()
	expect(0, "done", "partitions", "apply")
	expect(0, "nothing found", "partitions", "check")
}

// TestTableOfOthers: that a registered table of somebody else has no partition for now is a warning of ingest, which does its work.
func TestTableOfOthers(t *testing.T) {
	t.Parallel()
	s := newSystem(t)
	expect := s.expect()
	s.exec("create schema shop authorization plenum_owner; create table shop.visits (at timestamptz not null) partition by range (at); alter table shop.visits owner to plenum_owner")
	expect(0, "version", "migrate", "up")
	expect(0, "is registered", "partitions", "register", "--table", "shop.visits", "--key", "at")
	s.exec("alter schema shop owner to postgres")
	ingest := s.ingest().awaitReady()
	devtest.Eventually(t, func() error { return ingest.ready(200, "shop.visits: no partition takes a row") })
}
