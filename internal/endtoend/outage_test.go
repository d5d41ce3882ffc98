package endtoend

import (
	"math/rand/v2"
	"strconv"
	"testing"
	"time"

	"plenum/internal/devenv"
	"plenum/internal/devenv/devtest"
)

// TestDatabaseCrash stops PostgreSQL in immediate mode again and again while readings come.
func TestDatabaseCrash(t *testing.T) {
	t.Parallel()
	s := newSystemApart(t, nil)
	ingest, syncjob := s.ingest().awaitReady(), s.syncjob().awaitReady()
	f, done := follow(t, syncjob)
	n, crashes := sized(4000, 50_000), sized(2, 5)
	publishers := s.fourPublishers(n, sized(1000, 2000))
	for i := range crashes {
		awaitAll(t, publishers, n*(i+1)/(crashes+2))
		if err := s.postgres.Crash(); err != nil {
			t.Fatal(err)
		}
		devtest.Eventually(t, func() error { return ingest.ready(503) })
		if err := s.postgres.Restart(t.Context()); err != nil {
			t.Fatal(err)
		}
		ingest.awaitReady()
	}
	for _, p := range publishers {
		p.wait()
	}
	s.storedOnce(publishers...)
	f.matches(t, done, publishers...)
	s.unquarantined()
	s.balanced(ingest)
	figure(t, "PostgreSQL stopped in immediate mode %d times during %d readings: each is in one row, at one position of the feed", crashes, n)
}

// TestBrokerRestart restarts Mosquitto cleanly again and again while readings come.
func TestBrokerRestart(t *testing.T) {
	t.Parallel()
	s := newSystem(t)
	ingest, syncjob := s.ingest().awaitReady(), s.syncjob().awaitReady()
	f, done := follow(t, syncjob)
	n, restarts := sized(4000, 50_000), sized(2, 5)
	publishers := s.fourPublishers(n, sized(1000, 2000))
	for i := range restarts {
		awaitAll(t, publishers, n*(i+1)/(restarts+2))
		if err := s.broker.Restart(t.Context()); err != nil {
			t.Fatal(err)
		}
		ingest.awaitReady()
	}
	for _, p := range publishers {
		p.wait()
	}
	s.storedOnce(publishers...)
	f.matches(t, done, publishers...)
	s.unquarantined()
	s.balanced(ingest)
	figure(t, "Mosquitto restarted %d times during %d readings: each is in one row, at one position of the feed", restarts, n)
}

// netFault is something that happens to the connections of one side, and what ends it.
type netFault struct {
	name string
	do   func(*proxy)
}

var netFaults = []netFault{
	{"cut", (*proxy).cut},
	{"delayed", func(p *proxy) { p.set(flow{delay: 20 * time.Millisecond}, flow{delay: 5 * time.Millisecond}) }},
	{"half-open", func(p *proxy) { p.set(flow{hole: true}, flow{hole: true}) }},
	{"half-open to the server", func(p *proxy) { p.set(flow{hole: true}, flow{}) }},
	{"half-open to the client", func(p *proxy) { p.set(flow{}, flow{hole: true}) }},
}

// TestNetwork cuts, delays and half-opens the connections of ingest to PostgreSQL and to Mosquitto, in random order,
// while readings come. A half-open one to the broker is held until ingest has given it up.
func TestNetwork(t *testing.T) {
	t.Parallel()
	s := newSystem(t)
	database, broker := s.proxies()
	ingest := s.ingest(append(s.through(database, broker), "PLENUM_MQTT_KEEPALIVE=2s")...).awaitReady()
	rounds := sized(1, 5)
	n := sized(5000, 50_000)
	publishers := s.fourPublishers(n, sized(500, 1000))
	faults, total := 0, 2*len(netFaults)*rounds
	for range rounds {
		for _, i := range rand.Perm(2 * len(netFaults)) {
			p, side, fault := database, "PostgreSQL", netFaults[i/2]
			if i%2 == 1 {
				p, side = broker, "Mosquitto"
			}
			t.Logf("fault %d: %s is %s", faults, side, fault.name)
			faults++
			awaitAll(t, publishers, n*(2*faults-1)/(2*total+2))
			was := p.accepted.Load()
			fault.do(p)
			if side == "Mosquitto" && fault.name != "delayed" {
				awaitMore(t, "connection to the broker", &p.accepted, was)
			}
			awaitAll(t, publishers, n*2*faults/(2*total+2))
			p.set(flow{}, flow{})
			ingest.awaitReady()
		}
	}
	for _, p := range publishers {
		p.wait()
	}
	s.storedOnce(publishers...)
	s.unquarantined()
	s.balanced(ingest)
	figure(t, "network: connections to PostgreSQL and Mosquitto cut, delayed and half-open, %d times during %d readings; %d messages were sent again; each reading is in one row",
		faults, n, broker.again.Load())
}

// TestRightRevoked takes the right to insert from ingest while readings come, and gives it back.
func TestRightRevoked(t *testing.T) {
	t.Parallel()
	s := newSystem(t)
	ingest := s.ingest().awaitReady()
	n := size(1000)
	p := s.simulate("--devices", "5", "--total", strconv.Itoa(n), "--rate", strconv.Itoa(n/4))
	p.await(n / 4)
	s.exec("revoke insert on telemetry from plenum_ingest")
	before := s.count("telemetry")
	p.await(n / 2)
	devtest.Eventually(t, func() error { return ingest.ready(503, "permission denied for table telemetry") })
	if now := s.count("telemetry"); now > before {
		t.Errorf("%d rows were stored without the right to", now-before)
	}
	s.unquarantined()
	s.exec("grant insert on telemetry to plenum_ingest")
	p.wait()
	s.storedOnce(p)
	ingest.awaitReady()
	s.unquarantined()
	s.balanced(ingest)
	figure(t, "the right to insert revoked and given back during %d readings: readiness named it, each reading is in one row, none in quarantine", n)
}

// TestMemberDies kills one of two members of a share group after it has sent COMMIT and before the answer, while the devices,
// which got no answer either, send the same readings again, to the other member too; then the first starts again.
func TestMemberDies(t *testing.T) {
	t.Parallel()
	s := newSystem(t)
	kills := sized(1, 10)
	n := 400
	member := func(name string) (*proxy, *proxy, func() *process) {
		database, broker := s.proxies()
		env := append(s.through(database, broker), "PLENUM_MQTT_SHARE_GROUP=plenum", "PLENUM_MQTT_CLIENT_ID="+name)
		return database, broker, func() *process { return s.ingest(env...).awaitReady() }
	}
	database, broker, start := member("a")
	_, others, startOther := member("b")
	first, other := start(), startOther()
	want := map[string]bool{}
	for round := range kills {
		messages := make([]devenv.Message, n)
		for i := range messages {
			device, seq := "cmp-"+strconv.Itoa(i%7), 10_000*round+i
			payload := `{"ts":` + strconv.FormatInt(time.Now().UnixMilli(), 10) + `,"seq":` + strconv.Itoa(seq) + `,"metrics":{"p":7.5}}`
			messages[i] = devenv.Message{Topic: "telemetry/" + device, Payload: []byte(payload)}
			want[device+"/"+strconv.Itoa(seq)] = true
		}
		again, sent := broker.again.Load(), others.publishes.Load()
		fault := database.arm(commitAsked, 0, first.kill)
		for range 4 {
			if err := devenv.Publish(t.Context(), s.broker.URL(), messages...); err != nil {
				t.Fatal(err)
			}
			await(t, "COMMIT of the first member", fault.sprung)
		}
		awaitMore(t, "message to the other member", &others.publishes, sent)
		first = start()
		awaitMore(t, "message to the first member a second time", &broker.again, again)
		s.awaitRows(len(want))
	}
	if code := other.terminate(); code != 0 {
		t.Errorf("the other member exits %d", code)
	}
	s.exactly(want)
	s.unquarantined()
	s.balanced(first)
	figure(t, "a member of a share group killed %d times after it sent COMMIT and before the answer, the other given the same %d readings: each is in one row",
		kills, len(want))
}
