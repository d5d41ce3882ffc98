package bench

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
)

// results are all repetitions.
type results struct {
	size        size
	versions    string
	repetitions []repetition
}

// versions names what was measured on.
func (h *house) versions() string {
	h.tb.Helper()
	var postgres string
	h.check(h.admin.QueryRow(h.ctx, "select split_part(version(), ' ', 2)").Scan(&postgres))
	return fmt.Sprintf("%s, %d of its processors; %s; PostgreSQL %s; at %s", processor(), runtime.NumCPU(), runtime.Version(), postgres, commit())
}

// commit names the tree that is measured.
func commit() string {
	name, err := exec.Command("git", "describe", "--tags", "--always", "--dirty").Output()
	if err != nil {
		return "an unknown commit"
	}
	return strings.TrimSpace(string(name))
}

// processor is the name in /proc/cpuinfo.
func processor() string {
	text, _ := os.ReadFile("/proc/cpuinfo") // without it the platform's name has to do
	for line := range strings.Lines(string(text)) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return runtime.GOOS + "/" + runtime.GOARCH
}

// median of a figure over the repetitions.
func (r *results) median(figure func(repetition) float64) float64 {
	all := r.sorted(figure)
	return all[len(all)/2]
}

func (r *results) sorted(figure func(repetition) float64) []float64 {
	all := make([]float64, len(r.repetitions))
	for i, rep := range r.repetitions {
		all[i] = figure(rep)
	}
	slices.Sort(all)
	return all
}

// span shows the median of a figure with its least and greatest value.
func (r *results) span(decimals int, figure func(repetition) float64) string {
	return spanOf(decimals, r.sorted(figure))
}

// spanOf is that of values in ascending order.
func spanOf(decimals int, all []float64) string {
	show := func(v float64) string { return grouped(fmt.Sprintf("%.*f", decimals, v)) }
	return fmt.Sprintf("%s (%s–%s)", show(all[len(all)/2]), show(all[0]), show(all[len(all)-1]))
}

// grouped puts commas into a number's integer part.
func grouped(number string) string {
	whole, fraction, found := strings.Cut(number, ".")
	for i := len(whole) - 3; i > 0 && whole[i-1] != '-'; i -= 3 {
		whole = whole[:i] + "," + whole[i:]
	}
	if found {
		return whole + "." + fraction
	}
	return whole
}

// line is one row of a table: a figure of Plenum, the same of what it is compared with, and their ratio.
type line struct {
	what     string
	decimals int
	figure   func(stage) float64
	goal     string
}

func (r *results) lines(b *strings.Builder, own, other func(repetition) stage, lines []line) {
	for _, l := range lines {
		ours, theirs := func(rep repetition) float64 { return l.figure(own(rep)) }, func(rep repetition) float64 { return l.figure(other(rep)) }
		compared, ratio := "–", "–"
		if r.median(theirs) > 0 {
			compared = r.span(l.decimals, theirs)
			ratio = r.span(2, func(rep repetition) float64 { return ours(rep) / theirs(rep) })
		}
		fmt.Fprintf(b, "| %s | %s | %s | %s | %s |\n", l.what, r.span(l.decimals, ours), compared, ratio, l.goal)
	}
}

func perSecond(s stage) float64 { return s.perSecond }

// markdown is the report.
func (r *results) markdown() string {
	var b strings.Builder
	s := r.size
	fmt.Fprintf(&b, `# Benchmarks

Written by `+"`make bench`"+`. %s.
Each figure is the median of %d repetitions, with the least and the greatest in brackets; ratios are taken within a repetition.

Messages are QoS 1, %d bytes of JSON, whose metrics take %d bytes as jsonb. PostgreSQL has the settings of
deploy/postgresql/plenum.conf, with fsync; Mosquitto, PostgreSQL, publisher and programs share the machine over loopback. The CPU
time of a process is that of its whole run less that of an idle one. No checkpoint and no autovacuum falls into a measurement: WAL
figures hold no full-page images.

`, r.versions, len(r.repetitions), payloadBytes, jsonbBytes)
	fmt.Fprintf(&b, `## Storing %s messages that wait in a session

The plain consumer is the straightforward one: paho, encoding/json, pgx's CopyFrom, the same batches, acknowledgement
after the commit, into the same kind of partition with the same indexes. It keeps no ledger and quarantines nothing.

| | ingest | plain paho + pgx | ratio | goal |
|---|---|---|---|---|
`, grouped(fmt.Sprint(s.rows)))
	r.lines(&b, func(rep repetition) stage { return rep.ingest }, func(rep repetition) stage { return rep.plain }, []line{
		{"process CPU, µs/row", 1, stage.cpuPerRow, "≤ 16"},
		{"of that in the kernel, µs/row", 1, stage.systemPerRow, ""},
		{"PostgreSQL's CPU, µs/row", 1, stage.serverPerRow, ""},
		{"rows/s", 0, perSecond, ""},
		{"WAL, bytes/row", 0, stage.walPerRow, ""},
	})
	fmt.Fprint(&b, `
## What storing once costs

The same session stored into partitions without the unique index on a reading's identity. Nothing else looks for repeats while readings
come on the day that they were recorded.

| | ingest | without the index | ratio | goal |
|---|---|---|---|---|
`)
	r.lines(&b, func(rep repetition) stage { return rep.ingest }, func(rep repetition) stage { return rep.bare }, []line{
		{"process CPU, µs/row", 1, stage.cpuPerRow, ""},
		{"PostgreSQL's CPU, µs/row", 1, stage.serverPerRow, ""},
		{"rows/s", 0, perSecond, ""},
		{"WAL, bytes/row", 0, stage.walPerRow, ""},
	})
	fmt.Fprintf(&b, `
## Storing %s messages a second as they come

| | ingest | plain paho + pgx | ratio | goal |
|---|---|---|---|---|
`, grouped(fmt.Sprint(s.liveRate)))
	r.lines(&b, func(rep repetition) stage { return rep.live }, func(rep repetition) stage { return rep.plainLive }, []line{
		{"process CPU, µs/row", 1, stage.cpuPerRow, ""},
		{"of that in the kernel, µs/row", 1, stage.systemPerRow, ""},
		{"PostgreSQL's CPU, µs/row", 1, stage.serverPerRow, ""},
		{"WAL, bytes/row", 0, stage.walPerRow, ""},
	})
	r.marking(&b)
	return b.String()
}

func (r *results) marking(b *strings.Builder) {
	fmt.Fprintf(b, `
## Marking %s rows as processed

The plain SQL loop is one session that updates %s consecutive ids of one day at a time, each update its own transaction; it claims
nothing, checks no count and gives no feed positions.

| | syncjob | plain SQL loop | ratio | goal |
|---|---|---|---|---|
`, grouped(fmt.Sprint(r.size.rows)), grouped(fmt.Sprint(loopBatch)))
	r.lines(b, func(rep repetition) stage { return rep.sync }, func(rep repetition) stage { return rep.loop }, []line{
		{"marked rows/s", 0, perSecond, "≥ 0.60 of the loop"},
		{"process CPU, µs/row", 2, stage.cpuPerRow, ""},
		{"PostgreSQL's CPU, µs/row", 1, stage.serverPerRow, ""},
		{"WAL, bytes/row", 0, stage.walPerRow, ""},
	})
	fmt.Fprintf(b, `
WAL over insert and mark: %s bytes/row; goal: at most 660.

Starting and stopping took %s ms of CPU time for ingest and %s ms for syncjob, which is taken off above.
`, r.span(0, func(rep repetition) float64 { return rep.ingest.walPerRow() + rep.sync.walPerRow() }),
		r.span(0, func(rep repetition) float64 { return float64(rep.idleIngest.process.sum().Milliseconds()) }),
		r.span(0, func(rep repetition) float64 { return float64(rep.idleSync.process.sum().Milliseconds()) }))
}
