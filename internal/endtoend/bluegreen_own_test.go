package endtoend

import (
	"math/rand/v2"
	"testing"
)

// TestBlueGreenOwn swaps Plenum's own table while ingest and syncjob work on it, and are killed and started again beside: every
// reading that a publisher had acknowledged is in one row, and at one position of the feed, whichever side is the live one.
func TestBlueGreenOwn(t *testing.T) {
	t.Parallel()
	b := newBlueGreenOn(t, newSystem(t), rand.Uint64())
	ingest, syncjob := b.ingest().awaitReady(), b.syncjob().awaitReady()
	f, done := follow(t, syncjob)
	n, cycles := sized(4000, 60_000), sized(4, 40)
	publishers := b.fourPublishers(n, sized(200, 300))
	awaitAll(t, publishers, n/20)
	b.survive("the new tables are built", b.randomFault(40), "init", "--table", "telemetry", "--key", "last_modified", "--id", "id")
	b.survive("log entries left", b.randomFault(60), "sync")
	ingest.kill()
	ingest = b.ingest().awaitReady() // a swap waits for a round of its partition manager, which the first one makes in five minutes
	b.survive(`"active": "green"`, nil, "swap", "--output", "json")
	for i := range cycles {
		b.cycle(i)
		if i%2 == 0 {
			syncjob.kill()
			syncjob = b.syncjob().awaitReady()
			f.from.Store(syncjob)
		} else {
			ingest.kill()
			ingest = b.ingest().awaitReady()
		}
		// The feed goes on on this side: it has what comes from now on.
		seen := f.count()
		awaitAll(t, publishers, min(n, n/20+n*(i+1)/cycles))
		f.await(t, min(seen+1, n))
	}
	for _, p := range publishers {
		p.wait()
	}
	b.storedOnce(publishers...)
	f.matches(t, done, publishers...)
	if b.active() == "blue" {
		b.survive(`"active": "green"`, nil, "swap", "--output", "json")
	}
	b.survive("old tables are dropped", b.randomFault(30), "finish", "--drop")
	b.storedOnce(publishers...)
	ingest.kill()
	ingest = b.ingest().awaitReady() // declares what it keeps once more
	b.expect()(0, "nothing found", "partitions", "check")
	if n := b.count("partition_policy where table_name ~ '^telemetry(_new|_old)?$' and (table_name, retention, expired) = ('telemetry', 8, 'archive')"); n != 1 {
		t.Errorf("%d policies of telemetry keep 8 days, then archive, want 1", n)
	}
	b.unquarantined()
	b.balanced(ingest)
	figure(t, "blue/green of telemetry itself: %d cycles during %d readings of 4 publishers, SIGKILL of plenumctl %d times, %d of them between the COMMIT of a swap and its answer, "+
		"and of ingest or syncjob after each; each reading is in one row, at one position of the feed", cycles, n, b.kills, b.unanswered)
}
