package endtoend

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"plenum/internal/devenv/devtest"
)

// TestHandoff is the property of the whole hand-off: whatever is killed and whenever, while days pass and are archived and
// dropped, each consumer's record holds every acknowledged reading in one row at one position, and met again only what it had not
// committed. Consumers over HTTP, in the database, behind a webhook and in Kafka read beside each other.
func TestHandoff(t *testing.T) {
	t.Parallel()
	begin := time.Now()
	total := &handoffTotals{}
	for round := 1; round == 1 || time.Since(begin) < sized(0, time.Hour); round++ {
		if !t.Run(strconv.Itoa(round), func(t *testing.T) { handoffRound(t, rand.Uint64(), total) }) {
			return
		}
	}
	figure(t, "hand-off, %d rounds in %s: %d readings; SIGKILL of ingest %d times, of syncjob %d times, sessions ended %d times, webhook and Kafka away %d times, "+
		"%d days passed, %d archived, horizons %d; consumers over HTTP (2), in the database, by webhook, in Kafka: each has each reading in one row at one position; "+
		"met again, uncommitted: HTTP %d rows, webhook %d, Kafka %d",
		total.rounds, time.Since(begin).Round(time.Second), total.readings, total.ingestKills, total.syncKills, total.cuts, total.away,
		total.days, total.archived, total.dropped, total.httpAgain, total.hookAgain, total.kafkaAgain)
}

type handoffTotals struct {
	rounds, readings, ingestKills, syncKills, cuts, away, days, archived, dropped int
	httpAgain, hookAgain, kafkaAgain                                              int
}

// handoff is one round: a system, its processes and its consumers.
type handoff struct {
	*system
	t          *testing.T
	random     *rand.Rand
	first      time.Time // the first day that there are rows of
	total      *handoffTotals
	ingests    [2]*process
	syncjobs   [2]*process
	publishers []*publisher
	hook       *hook
	log        *kafkaLog
}

const handoffDays = 4 // that pass in a round

func handoffRound(t *testing.T, seed uint64, total *handoffTotals) {
	t.Logf("seed %d", seed)
	h := newHandoff(t, seed, total)
	http1, http1Done := follow(t, h.syncjobs[0])
	slow := h.lateReader("slow")
	if _, _, err := slow.call(t.Context(), http.MethodPut, "", []byte(`{"required":true}`)); err != nil {
		t.Fatal(err)
	}
	asleep := h.lateReader("asleep")
	inside, insideDone := h.followInside()

	n, steps := sized(3000, 30_000), sized(2, 6)
	h.publishers = h.fourPublishers(n, sized(300, 500))
	for done := range handoffDays * steps {
		h.disturb()
		http1.from.Store(h.syncjobs[h.random.IntN(2)])
		awaitAll(t, h.publishers, n*(done+1)/(handoffDays*steps+1))
		if done%steps == steps-1 {
			h.nextDay()
		}
	}
	for _, p := range h.publishers {
		p.wait()
	}
	want := acknowledged(h.publishers...)
	http1.await(t, len(want))

	// Whoever is required holds every day it has not passed.
	h.hook.behave(true)
	h.retire()
	if live := h.count("telemetry"); live != len(want) {
		t.Fatalf("%d rows are live of %d, while a required consumer had committed %d", live, len(want), slow.count())
	}
	slow.from.Store(h.syncjobs[0])
	slowDone := slow.start(t)
	slow.await(t, len(want))
	inside.await(t, len(want))
	h.hook.await(t, len(want))
	h.log.await(t, len(want))
	h.retire() // archives what is past its retention,
	h.retire() // and drops what of it is past that of the archive
	asleep.from.Store(h.syncjobs[1])
	h.retired(asleep)

	for name, end := range map[string]func() error{"http": http1Done, "slow": slowDone, "inside": insideDone} {
		if err := end(); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
	for _, r := range []*record{http1.record, slow.record, inside, h.hook.record, h.log.record} {
		r.holds(t, want)
	}
	h.sameSpans(http1.record, slow.record, inside, h.hook.record)
	h.unquarantined()
	total.rounds++
	total.readings += len(want)
	total.httpAgain += http1.repeated + slow.repeated
	total.hookAgain += h.hook.repeated
	total.kafkaAgain += h.log.repeated
}

func newHandoff(t *testing.T, seed uint64, total *handoffTotals) *handoff {
	h := &handoff{system: newSystem(t), t: t, random: rand.New(rand.NewPCG(seed, 0)), first: time.Now().UTC(), total: total}
	h.hook, h.log = newHook(t), newKafkaLog(t)
	for i := range 2 {
		h.ingests[i] = h.startIngest(i).awaitReady()
		h.syncjobs[i] = h.startSyncjob(i).awaitReady()
	}
	return h
}

func (h *handoff) startIngest(i int) *process {
	return h.ingest("PLENUM_MQTT_CLIENT_ID="+[]string{"a", "b"}[i], "PLENUM_MQTT_SHARE_GROUP=plenum", "PLENUM_INGEST_BATCH_ROWS=100",
		"PLENUM_PARTITION_RETENTION_DAYS=2", "PLENUM_PARTITION_ARCHIVE_DAYS=3", "PLENUM_PARTITION_PREMAKE_DAYS=5")
}

func (h *handoff) startSyncjob(i int) *process {
	push, err := json.Marshal([]any{h.hook.config(), h.log.config()})
	if err != nil {
		h.t.Fatal(err)
	}
	return h.syncjob("PLENUM_SYNC_WORKERS=2", "PLENUM_SYNC_BATCH_ROWS="+[]string{"50", "400"}[i], "PLENUM_PUSH="+string(push))
}

// disturb does one of the things that happen at night, and sees that what it ended runs again.
func (h *handoff) disturb() {
	h.t.Helper()
	i := h.random.IntN(2)
	switch h.random.IntN(5) {
	case 0:
		h.total.ingestKills++
		h.ingests[i].kill()
		h.ingests[i] = h.startIngest(i).awaitReady()
	case 1:
		h.total.syncKills++
		h.syncjobs[i].kill()
		h.syncjobs[i] = h.startSyncjob(i).awaitReady()
	case 2:
		h.total.syncKills += 2
		for i, p := range h.syncjobs {
			p.kill()
			h.syncjobs[i] = h.startSyncjob(i)
		}
		h.syncjobs[0].awaitReady()
		h.syncjobs[1].awaitReady()
	case 3:
		h.total.cuts++
		h.exec(`select pg_terminate_backend(pid) from pg_stat_activity
			where datname = current_database() and application_name not like 'plenum-ingest@%' and pid <> pg_backend_pid()`)
	case 4:
		h.total.away++
		away := h.random.IntN(2) == 0
		h.hook.behave(!away)
		h.log.behave(!away)
	}
}

// nextDay makes all that is stored a day older, rows and ledger in one transaction, while consumers read and syncjobs mark. The
// ingests are stopped for it: what they are about to be sent again must not be older than a repeat is known for.
func (h *handoff) nextDay() {
	h.t.Helper()
	for _, p := range h.ingests {
		if code := p.terminate(); code != 0 {
			h.t.Fatalf("ingest exits %d", code)
		}
	}
	h.total.days++
	h.first = h.first.AddDate(0, 0, -1) // by the day on which the round began: it may go on past midnight
	first := h.first.Format(time.DateOnly)
	h.exec(fmt.Sprintf(`begin;
		set local role plenum_owner;
		lock table telemetry_batch, telemetry; -- in the order of syncjob
		create table telemetry_p%[2]s partition of telemetry for values from ('%[1]s 00:00+00') to ('%[1]s 24:00+00');
		create table telemetry_batch_p%[2]s partition of telemetry_batch for values from ('%[1]s') to ('%[1]s'::date + 1);
		update telemetry set last_modified = last_modified - interval '1 day';
		update telemetry_batch set day = day - 1;
		commit`, first, strings.ReplaceAll(first, "-", "")))
	h.retire()
	for i := range h.ingests {
		h.ingests[i] = h.startIngest(i).awaitReady()
	}
}

// retire archives and drops what may go, once no ingest is at it.
func (h *handoff) retire() {
	h.t.Helper()
	devtest.Eventually(h.t, func() error {
		code, out, errs := h.ctl("partitions", "apply")
		if code != 0 && code != 4 {
			h.t.Fatalf("partitions apply exits %d:\n%s%s", code, out, errs)
		}
		if code != 0 {
			return errors.New(errs)
		}
		return nil
	})
}

// retired finds days archived and dropped, and that a consumer which slept through it is told: where reading is possible again
// is where it goes on, and from there it gets all that is left.
func (h *handoff) retired(asleep *follower) {
	h.t.Helper()
	archived := h.count(`pg_inherits where inhparent = 'telemetry_archive'::regclass`)
	var horizon int64
	if err := h.query("select position from feed_horizon", nil, &horizon); err != nil {
		h.t.Fatal(err)
	}
	if archived == 0 || horizon == 0 {
		h.t.Fatalf("%d days are archived, rows up to position %d dropped", archived, horizon)
	}
	h.total.archived += archived
	h.total.dropped++
	_, _, err := asleep.page(h.t.Context())
	if err == nil || !strings.Contains(err.Error(), "410") || !strings.Contains(err.Error(), fmt.Sprintf(`"oldest_position":%d`, horizon)) {
		h.t.Fatalf("a consumer at %d reads with the horizon at %d: %v", asleep.position, horizon, err)
	}
	if _, _, err := asleep.call(h.t.Context(), http.MethodPost, "/seek", fmt.Appendf(nil, `{"position":%d}`, horizon)); err != nil {
		h.t.Fatal(err)
	}
	asleep.skip(horizon)
	left := list[struct{ ID int64 }](h.system, `select t.id from telemetry_all t join telemetry_batch b
		on t.id between b.first_id and b.last_id and b.day = (t.last_modified at time zone 'UTC')::date where b.feed_position > $1`, horizon)
	before := asleep.count()
	done := asleep.start(h.t)
	asleep.await(h.t, before+len(left))
	if err := done(); err != nil {
		h.t.Fatal(err)
	}
	for _, row := range left {
		if asleep.pages[row.ID].last <= horizon {
			h.t.Fatalf("row %d is left, and did not come to the consumer that slept", row.ID)
		}
	}
}

// sameSpans finds each row at one position: the pages in which the consumers had it have one in common.
func (h *handoff) sameSpans(records ...*record) {
	h.t.Helper()
	for id, common := range records[0].pages {
		for _, r := range records[1:] {
			common.after, common.last = max(common.after, r.pages[id].after), min(common.last, r.pages[id].last)
		}
		if common.after >= common.last {
			h.t.Fatalf("row %d stands at no position that all consumers had it at", id)
		}
	}
}

// lateReader has read and committed one page, and goes on when it is started.
func (h *handoff) lateReader(name string) *follower {
	h.t.Helper()
	f := newFollower(name, h.syncjobs[0])
	if _, _, err := f.page(h.t.Context()); err != nil { // creates it
		h.t.Fatal(err)
	}
	return f
}
