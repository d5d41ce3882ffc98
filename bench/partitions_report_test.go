package bench

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// partitionResults are all that BenchmarkPartitions measured.
type partitionResults struct {
	size     partitionSize
	versions string
	stalls   []stall
	retired  []retirement
}

// of are the repetitions of one operation by one keeper.
func (r *partitionResults) of(keeper string, o operation) (all []stall) {
	for _, s := range r.stalls {
		if s.keeper == keeper && s.operation == o {
			all = append(all, s)
		}
	}
	return all
}

// worst is the longest that any insert took beside an operation, in all repetitions.
func (r *partitionResults) worst(keeper string, o operation) (longest time.Duration) {
	for _, s := range r.of(keeper, o) {
		longest = max(longest, quantile(s.samples, 1))
	}
	return longest
}

func medianOf[T any, V time.Duration | int64 | int](all []T, figure func(T) V) V {
	values := make([]V, len(all))
	for i, a := range all {
		values[i] = figure(a)
	}
	slices.Sort(values)
	return values[len(values)/2]
}

func milliseconds(d time.Duration) string {
	ms := float64(d.Nanoseconds()) / 1e6
	if ms < 100 {
		return fmt.Sprintf("%.1f", ms)
	}
	return grouped(fmt.Sprintf("%.0f", ms))
}

// stalled counts the batches that took longer than one of partman's tries may hold them up, with as much again for a busy machine.
func stalled(s stall) (n int) {
	for _, sample := range s.samples {
		if sample.latency > 100*time.Millisecond {
			n++
		}
	}
	return n
}

func (r *partitionResults) markdown() string {
	var b strings.Builder
	s := r.size
	fmt.Fprintf(&b, `# Benchmarks of partitions

Written by `+"`make bench`"+`. %s.

## What those who insert feel of it

%s batches a second of %d rows each, by COPY over %d connections, into a table of %d days with %s rows in each past one. PostgreSQL
has the settings of deploy/postgresql/plenum.conf, with fsync. A batch's latency counts from the instant at which it was due, so that
a stall counts for every batch that waited behind it. Just before the operation an analytic query over the whole table has begun, which
takes %.0f s. Measured is from then on until both have ended, %.0f s at the least. Figures are medians of %d repetitions; in brackets is the
longest of all.

Plain SQL is CREATE TABLE … PARTITION OF, DETACH and ATTACH in one transaction, DROP TABLE, and CREATE INDEX on the table. pg_partman is
Debian's, run by run_maintenance_proc; it moves an expired day to another schema where the others archive it, and repairs no index.
partman has its default settings: tries of 50 ms, a second and more apart. What cannot be had beside the query is done some time after it.

| operation | by | p50, ms | p99, ms | longest, ms | over 100 ms | done after, s |
|---|---|---|---|---|---|---|
`, r.versions, grouped(fmt.Sprint(int(time.Second/s.load.every))), s.load.rows, s.load.writers, daysBefore+1+daysAfter, grouped(fmt.Sprint(s.rows)),
		s.query.Seconds(), s.window.Seconds(), s.repetitions)
	for _, o := range append([]operation{idle}, operations...) {
		for _, k := range []string{ours(0).name, plain.name, extension.name} {
			if all := r.of(k, o); len(all) > 0 {
				r.line(&b, k, o, all)
			}
		}
	}
	r.retirements(&b)
	return b.String()
}

func (r *partitionResults) line(b *strings.Builder, keeper string, o operation, all []stall) {
	took := fmt.Sprintf("%.1f", medianOf(all, func(s stall) time.Duration { return s.took }).Seconds())
	if o == idle {
		keeper, took = "–", "–"
	}
	fmt.Fprintf(b, "| %s | %s | %s | %s | %s | %d | %s |\n", o, keeper,
		milliseconds(medianOf(all, func(s stall) time.Duration { return quantile(s.samples, 0.5) })),
		milliseconds(medianOf(all, func(s stall) time.Duration { return quantile(s.samples, 0.99) })),
		fmt.Sprintf("%s (%s)", milliseconds(medianOf(all, func(s stall) time.Duration { return quantile(s.samples, 1) })), milliseconds(r.worst(all[0].keeper, o))),
		medianOf(all, stalled), took)
}

func (r *partitionResults) retirements(b *strings.Builder) {
	fmt.Fprintf(b, `
## Retiring a day of %s rows

The same rows with the same indexes, in a partition and in a table without partitions that holds as many rows of another day; nothing else
goes on. The day is old: whatever DELETE changes is changed for the first time since a checkpoint, so that its WAL holds the pages whole,
as it does in operation. Medians of %d.

| | took, s | WAL, MB | disk given back, MB |
|---|---|---|---|
`, grouped(fmt.Sprint(r.size.retire)), r.size.repetitions)
	megabytes := func(bytes int64) string { return fmt.Sprintf("%.1f", float64(bytes)/1e6) }
	for _, way := range []string{toArchive, toNothing, deleted, vacuumed} {
		var all []retirement
		for _, a := range r.retired {
			if a.way == way {
				all = append(all, a)
			}
		}
		fmt.Fprintf(b, "| %s | %.2f | %s | %s |\n", way, medianOf(all, func(a retirement) time.Duration { return a.took }).Seconds(),
			megabytes(medianOf(all, func(a retirement) int64 { return a.wal })), megabytes(max(0, medianOf(all, func(a retirement) int64 { return a.back }))))
	}
}
