package bench

import (
	"context"
	"flag"
	"fmt"
	"os"
	"testing"
	"time"
)

var (
	out     = flag.String("out", "", "file in which each benchmark's report replaces its own part, in Markdown")
	profile = flag.String("profile", "", "file that gets the CPU profile of BenchmarkIngest, for go tool pprof")
)

func TestMain(m *testing.M) {
	if os.Getenv(plainVariable) != "" {
		if err := runPlain(context.Background(), os.Getenv(plainVariable)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	code := m.Run()
	if err := removePrograms(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// size is how much is measured.
type size struct {
	repetitions int
	rows        int // stored from a session that holds them all, then marked
	liveRows    int // stored as they come
	liveRate    int // readings/s
}

var full = size{repetitions: 3, rows: 300_000, liveRows: 50_000, liveRate: 10_000}

// What ends a benchmark that hangs: a repetition takes about a minute, and nothing in it a tenth of waitLimit unless the machine
// is busy with other things.
const (
	hangLimit = 20 * time.Minute
	waitLimit = 2 * time.Minute
)

// BenchmarkPath measures everything, prints the table, and writes it to -out.
func BenchmarkPath(b *testing.B) {
	for range b.N {
		r := measure(b, full)
		deliver(b, r.markdown())
		b.ReportMetric(r.median(func(rep repetition) float64 { return rep.ingest.cpuPerRow() }), "cpu-µs/row")
	}
}

// TestPath measures a little, so that the benchmark itself is known to work.
func TestPath(t *testing.T) {
	r := measure(t, size{repetitions: 1, rows: 10_000, liveRows: 500, liveRate: 5000})
	rep := r.repetitions[0]
	for name, s := range map[string]stage{"ingest": rep.ingest, "plain": rep.plain, "bare": rep.bare, "live": rep.live, "plain live": rep.plainLive, "sync": rep.sync, "loop": rep.loop} {
		if s.rows == 0 || s.perSecond <= 0 || s.walPerRow() <= 0 {
			t.Errorf("%s: nothing was measured: %+v", name, s)
		}
	}
	t.Log("\n" + r.markdown())
}
