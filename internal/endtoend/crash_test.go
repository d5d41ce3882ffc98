package endtoend

import (
	"fmt"
	"math/rand/v2"
	"strconv"
	"testing"

	"plenum/internal/devenv/devtest"
)

// TestCrash kills ingest and syncjob (SIGKILL) again and again while four publishers send: half of the times at a random
// message, half when PostgreSQL has committed and before ingest can have read that it did, so that no PUBACK of the batch
// is sent. Every reading that a publisher had acknowledged is in one row, and at one position of the feed.
func TestCrash(t *testing.T) {
	t.Parallel()
	s := newSystem(t)
	database, broker := s.proxies()
	env := s.through(database, broker)
	ingest, syncjob := s.ingest(env...).awaitReady(), s.syncjob().awaitReady()
	f, done := follow(t, syncjob)
	n, kills := sized(4000, 100_000), sized(4, 20)
	publishers := s.fourPublishers(n, sized(140, 700)) // slower than ingest starts

	for i := range kills {
		awaitAll(t, publishers, n*(i+1)/(kills+2))
		var fault *trap
		if i%2 == 0 {
			fault = database.arm(commitDone, 0, ingest.kill)
		} else {
			fault = broker.arm(publishSent, rand.IntN(n/(kills+2)/4), ingest.kill)
		}
		await(t, "fault "+strconv.Itoa(i), fault.sprung)
		ingest = s.ingest(env...)
		syncjob.kill()
		syncjob = s.syncjob()
		f.from.Store(syncjob)
		ingest.awaitReady()
	}
	for _, p := range publishers {
		p.wait()
	}
	s.storedOnce(publishers...)
	syncjob.awaitReady()
	f.matches(t, done, publishers...)
	again := broker.again.Load()
	if again == 0 {
		t.Fatal("the broker sent no message a second time: the crashes hit nothing")
	}
	s.unquarantined()
	s.balanced(ingest)
	figure(t, "SIGKILL: ingest %d times, half of them between COMMIT and PUBACK, and syncjob as often, during %d readings of 4 publishers; "+
		"%d messages were sent again; each reading is in one row, at one position of the feed; the reader met %d rows again, of pages that it had not committed",
		kills, n, again, f.repeated)
}

// proxies stand before the system's PostgreSQL and Mosquitto.
func (s *system) proxies() (database, broker *proxy) {
	s.t.Helper()
	return postgresProxy(s.t, s.role("ingest")), mqttProxy(s.t, s.broker.URL())
}

// through is the environment of an ingest that reaches its servers by way of the proxies; nil is straight.
func (s *system) through(database, broker *proxy) (env []string) {
	s.t.Helper()
	if database != nil {
		env = append(env, "PLENUM_DATABASE_URL="+database.url(s.t, s.role("ingest")))
	}
	if broker != nil {
		env = append(env, "PLENUM_MQTT_BROKERS="+broker.url(s.t, s.broker.URL()))
	}
	return env
}

// fourPublishers send n readings of their own devices in all, at a rate a second in all.
func (s *system) fourPublishers(n, rate int) []*publisher {
	s.t.Helper()
	publishers := make([]*publisher, 4)
	for i := range publishers {
		publishers[i] = s.simulate("--devices", "5", "--first-device", strconv.Itoa(1+5*i), "--seed", strconv.Itoa(i),
			"--total", strconv.Itoa(n/4), "--rate", strconv.Itoa(rate/4))
	}
	return publishers
}

// awaitAll waits until the publishers have had n readings acknowledged in all.
func awaitAll(t *testing.T, publishers []*publisher, n int) {
	t.Helper()
	devtest.Eventually(t, func() error {
		got := 0
		for _, p := range publishers {
			got += len(p.acknowledged())
		}
		if got < n {
			return fmt.Errorf("%d readings acknowledged of %d", got, n)
		}
		return nil
	})
}
