package bench

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// handoffSize is how much BenchmarkHandoff measures.
type handoffSize struct {
	latency latencySize
	catchUp catchUpSize
}

var fullHandoff = handoffSize{
	latency: latencySize{rate: 1000, warm: 5, seconds: 60},
	catchUp: catchUpSize{days: 5, rows: 1_000_000, lines: []int{5000, 20}, parts: 5, repetitions: 3},
}

// BenchmarkHandoff measures how soon a consumer has what was published, and how fast one that was away catches up.
func BenchmarkHandoff(b *testing.B) {
	for range b.N {
		r := measureHandoff(b, fullHandoff)
		deliver(b, r.markdown())
		b.ReportMetric(float64(r.quantile(0, 0.99).Microseconds())/1e3, "ms-p99")
	}
}

// TestHandoff says that each row comes once and in order, in each way of reading.
func TestHandoff(t *testing.T) {
	t.Parallel()
	s := handoffSize{
		latency: latencySize{rate: 500, warm: 1, seconds: 1},
		catchUp: catchUpSize{days: 2, rows: 4000, lines: []int{1000, 20}, parts: 2, repetitions: 1},
	}
	r := measureHandoff(t, s)
	if got, want := len(r.deliveries), s.latency.rate*s.latency.seconds; got != want {
		t.Errorf("%d readings were timed, want %d", got, want)
	}
	for n, d := range r.deliveries {
		if d.id == 0 || d.received.Before(d.marked) || d.marked.Before(d.stored) || d.stored.Before(d.sent) {
			t.Fatalf("reading %d: %+v", n, d)
		}
	}
	if len(r.passes) != 6 {
		t.Errorf("%d passes, want 6", len(r.passes))
	}
	for _, p := range r.passes {
		if len(p.rates) == 0 || p.text < 200 || p.wire == 0 || p.encoding != "gzip" && p.wire != p.text {
			t.Errorf("%+v", p)
		}
	}
	t.Log("\n" + r.markdown())
}

// handoffResults are all that BenchmarkHandoff measured.
type handoffResults struct {
	size       handoffSize
	versions   string
	deliveries []delivery
	passes     []catchUp
	compared   []against
}

func measureHandoff(tb testing.TB, s handoffSize) *handoffResults {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*hangLimit)
	defer cancel()
	h := newHouse(ctx, tb)
	r := &handoffResults{size: s, versions: h.versions()}
	r.deliveries = h.latency(s.latency)
	r.passes, r.compared = h.catchUps(s.catchUp)
	return r
}

// quantile of a stage's time over all deliveries.
func (r *handoffResults) quantile(stage int, q float64) time.Duration {
	return stageQuantile(r.deliveries, stage, q)
}

func stageQuantile(all []delivery, stage int, q float64) time.Duration {
	took := make([]time.Duration, len(all))
	for i, d := range all {
		took[i] = stages[stage].took(d)
	}
	return quantileOf(took, q)
}

// thirds shows a quantile of all deliveries, and the least and the greatest of each third's.
func (r *handoffResults) thirds(stage int, q float64) string {
	var parts []time.Duration
	n := len(r.deliveries)
	for i := range 3 {
		parts = append(parts, stageQuantile(r.deliveries[i*n/3:(i+1)*n/3], stage, q))
	}
	return fmt.Sprintf("%s (%s–%s)", milliseconds(r.quantile(stage, q)), milliseconds(slices.Min(parts)), milliseconds(slices.Max(parts)))
}

func (r *handoffResults) markdown() string {
	var b strings.Builder
	l := r.size.latency
	fmt.Fprintf(&b, `# Hand-off

Written by `+"`make bench`"+`. %s.

## From publish to feed at %s readings a second

A publisher sends at a steady rate for %d s, of which the first %d do not count; ingest and syncjob run with their defaults; a consumer reads with
wait=20s and commits, over HTTP. Each reading came once. Times begin when a reading is made, by its own stamp in whole milliseconds, which
adds half a one on average, and end when the consumer has its row. In brackets are the least and the greatest of the three thirds of
the time. Quantiles of parts do not add up.

| | p50, ms | p99, ms | longest, ms |
|---|---|---|---|
`, r.versions, grouped(fmt.Sprint(l.rate)), l.warm+l.seconds, l.warm)
	for n, stage := range stages {
		fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", stage.name, r.thirds(n, 0.5), r.thirds(n, 0.99), r.thirds(n, 1))
	}
	r.catchUps(&b)
	return b.String()
}

func (r *handoffResults) catchUps(b *strings.Builder) {
	c := r.size.catchUp
	fmt.Fprintf(b, `
## Catching up over %s rows

A consumer at position 0 reads and commits page after page until it is at the head, over HTTP on the same machine; it parses each row's id, and each came
once and in order. The rows are of %d days, stored and processed, and mostly in the kernel's cache; they stand in the ledger
in lines of the size given. Figures are the median of %d parts of a pass, and of %d repetitions of what it is compared with, with the least
and the greatest in brackets. MB/s are of the rows as text, before compression.

| | limit | asks for gzip | gets | rows/s | MB/s | bytes a row on the wire | to COPY |
|---|---|---|---|---|---|---|---|
`, grouped(fmt.Sprint(c.days*c.rows)), c.days, c.parts, c.repetitions)
	middle := func(rates []int64) int64 { return medianOf(rates, func(n int64) int64 { return n }) }
	rate := func(rates []int64) string {
		return fmt.Sprintf("%s (%s–%s)", grouped(fmt.Sprint(middle(rates))), grouped(fmt.Sprint(slices.Min(rates))), grouped(fmt.Sprint(slices.Max(rates))))
	}
	yes := map[bool]string{true: "yes", false: "no"}
	copied := middle(r.compared[0].rates)
	for _, p := range r.passes {
		encoding := p.encoding
		if encoding == "" {
			encoding = "plain text"
		}
		fmt.Fprintf(b, "| lines of %s rows | %s | %s | %s | %s | %.1f | %d | %.2f |\n", grouped(fmt.Sprint(p.lineRows)), grouped(fmt.Sprint(p.limit)), yes[p.gzip],
			encoding, rate(p.rates), float64(middle(p.rates)*p.text)/1e6, p.wire, float64(middle(p.rates))/float64(copied))
	}
	for _, a := range r.compared {
		speed, bytes := "–", "–"
		if a.text > 0 {
			speed, bytes = fmt.Sprintf("%.1f", float64(middle(a.rates)*a.text)/1e6), fmt.Sprint(a.text)
		}
		fmt.Fprintf(b, "| %s | – | – | – | %s | %s | %s | %.2f |\n", a.way, rate(a.rates), speed, bytes, float64(middle(a.rates))/float64(copied))
	}
}
