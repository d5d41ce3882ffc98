package bench

import (
	"fmt"
	"strings"
	"time"
)

// storyResults are all that BenchmarkStory measured.
type storyResults struct {
	size     storySize
	versions string
	payload  int // bytes of a row's payload
	variants []variant
	marks    []marked
	scans    []scanned // of each variant
}

func (r *storyResults) batch(variant int, c cache, m marked) {
	m.variant, m.cache = variant, c
	r.marks = append(r.marks, m)
}

func (r *storyResults) of(variant int, c cache) (all []marked) {
	for _, m := range r.marks {
		if m.variant == variant && m.cache == c {
			all = append(all, m)
		}
	}
	return all
}

func (r *storyResults) median(variant int, c cache) time.Duration { return r.quantile(variant, c, 0.5) }

func (r *storyResults) quantile(variant int, c cache, q float64) time.Duration {
	var all []time.Duration
	for _, m := range r.of(variant, c) {
		all = append(all, m.took)
	}
	return quantileOf(all, q)
}

// ids is how many a variant was to mark, and missed how many of them it did not.
func (r *storyResults) ids(variant int) int {
	return storyBatch * (len(r.of(variant, warm)) + len(r.of(variant, cold)))
}

func (r *storyResults) missed(variant int) int {
	missed := r.ids(variant)
	for _, c := range []cache{warm, cold} {
		for _, m := range r.of(variant, c) {
			missed -= m.rows
		}
	}
	return missed
}

func (r *storyResults) markdown() string {
	var b strings.Builder
	s := r.size
	fmt.Fprintf(&b, `# The sync job's update

Written by `+"`make bench`"+`. %s.

A batch sets processed on %d rows, by id, of %d days with %s rows in each; a payload takes %d bytes as jsonb. Every %dth row is unprocessed,
and the batch is drawn from those of all days. Three tables hold the same rows: one without partitions, whose primary key is the id; one
with a partition a day; both with the six indexes of the system that Plenum replaces, two of them partial on processed; and Plenum's
own, made by its migrations, which is sent one statement for each day of the batch, with the day's bounds, as syncjob does. Where there is no index
on id it has been dropped in the batch's own transaction. Each transaction is rolled back, so that all variants find the same state;
the commit, which is the same for all, is not in the figures, and the story's are of another machine.

Warm: variants in turn, another one first in each of %d rounds, up to %d batches or %.0f s of each, the first of a round not counted. Cold: %d batches, before
each of which PostgreSQL was restarted and the data files were dropped from the kernel's cache by posix_fadvise; what the batch then
fetched from the disk is in the table, by /proc/PID/io, and with so few the 95th percentile is the longest. What the disk itself or a host beneath
caches cannot be emptied. Rows scanned and partitions touched are EXPLAIN ANALYZE's of one more batch.

| variant | the story's | warm: median, ms | p95, ms | times Plenum's | cold: median, ms | p95, ms | times Plenum's | from disk, MB | rows scanned | partitions touched | not marked, of ids |
|---|---|---|---|---|---|---|---|---|---|---|---|
`, r.versions, storyBatch, s.days, grouped(fmt.Sprint(s.rows)), r.payload, storyUnprocessed, s.rounds, s.perRound, s.budget.Seconds(), s.cold)
	own := len(r.variants) - 1
	times := func(n int, c cache) string {
		return grouped(fmt.Sprintf("%.1f", float64(r.median(n, c))/float64(r.median(own, c))))
	}
	for n, v := range r.variants {
		read := medianOf(r.of(n, cold), func(m marked) int64 { return m.read })
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s | %s | %s | %s | %s | %s | %d | %s of %s |\n", v.name, v.story,
			millis(r.median(n, warm)), millis(r.quantile(n, warm, 0.95)), times(n, warm),
			millis(r.median(n, cold)), millis(r.quantile(n, cold, 0.95)), times(n, cold), grouped(fmt.Sprintf("%.1f", float64(read)/1e6)),
			grouped(fmt.Sprint(r.scans[n].rows)), r.scans[n].partitions, grouped(fmt.Sprint(r.missed(n))), grouped(fmt.Sprint(r.ids(n))))
	}
	return b.String()
}

// millis is milliseconds with as many decimals as a fast statement needs.
func millis(d time.Duration) string {
	if d < 10*time.Millisecond {
		return fmt.Sprintf("%.2f", float64(d.Nanoseconds())/1e6)
	}
	return milliseconds(d)
}
