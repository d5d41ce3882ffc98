package bench

import (
	"fmt"
	"slices"
	"strings"
)

// middle is the median of values in ascending order.
func middle(all []float64) float64 { return all[len(all)/2] }

// figures are those of all, in ascending order.
func figures[T any](all []T, figure func(T) float64) []float64 {
	list := make([]float64, len(all))
	for n, one := range all {
		list[n] = figure(one)
	}
	slices.Sort(list)
	return list
}

func (r *bluegreenResults) copyRatios() []float64 {
	return figures(r.copies, func(c copying) float64 { return c.sync.perSecond() / c.statement.perSecond() })
}

// of is a figure of the rounds in one state.
func (r *bluegreenResults) of(state writerState, figure func(writing) float64) []float64 {
	return figures(r.rounds, func(round map[writerState]writing) float64 { return figure(round[state]) })
}

// ratios are of one round each, to the writers without a migration.
func (r *bluegreenResults) ratios(state writerState, figure func(writing) float64) []float64 {
	return figures(r.rounds, func(round map[writerState]writing) float64 { return figure(round[state]) / figure(round[bare]) })
}

func (r *bluegreenResults) markdown() string {
	var b strings.Builder
	s := r.size
	fmt.Fprintf(&b, `# Blue/green

Written by `+"`make bench`"+`. %s.
Figures are medians, with the least and the greatest in brackets; ratios are taken within a repetition, or a round.

`, r.versions)
	fmt.Fprintf(&b, `## Copying %s rows into partitions

A table with its primary key on id and six more indexes, two of them partial, is copied into green, %d days with the same indexes, while nobody
writes: by the copy of `+"`bluegreen sync`"+` without what follows it (ANALYZE and the log), and by one INSERT … SELECT of all rows into a table with the same
partitions and indexes but without the capture's triggers; %d times, taking turns in going first. Verify then compares blue with green.

| | sync | one statement | ratio | goal |
|---|---|---|---|---|
`, grouped(fmt.Sprint(s.days*s.copied)), s.days, s.repetitions)
	sync, statement := func(c copying) passed { return c.sync }, func(c copying) passed { return c.statement }
	r.copyLine(&b, "rows/s", sync, statement, passed.perSecond, "≥ 0.70")
	r.copyLine(&b, "WAL, bytes/row", sync, statement, passed.walPerRow, "")
	fmt.Fprintf(&b, "\nVerify: %s rows/s, counted on both sides.\n", spanOf(0, figures(r.copies, func(c copying) float64 { return c.verified.perSecond() })))
	r.writers(&b)
	return b.String()
}

func (r *bluegreenResults) copyLine(b *strings.Builder, what string, own, other func(copying) passed, figure func(passed) float64, goal string) {
	ours, theirs := func(c copying) float64 { return figure(own(c)) }, func(c copying) float64 { return figure(other(c)) }
	ratio := figures(r.copies, func(c copying) float64 { return ours(c) / theirs(c) })
	fmt.Fprintf(b, "| %s | %s | %s | %s | %s |\n", what, spanOf(0, figures(r.copies, ours)), spanOf(0, figures(r.copies, theirs)), spanOf(2, ratio), goal)
}

func (r *bluegreenResults) writers(b *strings.Builder) {
	s := r.size
	fmt.Fprintf(b, `
## What writers feel of a migration

%d sessions write as fast as they can to a table of %s such rows that is not partitioned: in turn each inserts %d rows, sets processed of %[3]d random
ids, and deletes what it inserted, a transaction each. %d rounds of %s in each state, taking turns in going first. The migrated table and the other one have
had the same rows; it is copied already. Autovacuum is on, its WAL counts, and so does that of the sync, which shares the machine.

| | transactions/s | ratio | WAL, bytes/transaction | ratio | median update, ms | ratio | ids left in the log |
|---|---|---|---|---|---|---|---|
`, s.writers, grouped(fmt.Sprint(s.days*s.written)), writerBatch, s.rounds, s.round)
	for _, state := range writerStates {
		left := "–"
		if state != bare {
			left = spanOf(0, r.of(state, func(w writing) float64 { return float64(w.left) }))
		}
		fmt.Fprintf(b, "| %s | %s | %s | %s | %s | %s | %s | %s |\n", state,
			spanOf(0, r.of(state, writing.perSecond)), spanOf(2, r.ratios(state, writing.perSecond)),
			spanOf(0, r.of(state, writing.walEach)), spanOf(2, r.ratios(state, writing.walEach)),
			spanOf(1, r.of(state, writing.eachUpdate)), spanOf(2, r.ratios(state, writing.eachUpdate)), left)
	}
	fmt.Fprintf(b, "\nDraining what a captured round left, nobody writing: %s ids/s, %s bytes of WAL an id. An id is counted each time that it was written.\n",
		spanOf(0, figures(r.drains, passed.perSecond)), spanOf(0, figures(r.drains, passed.walPerRow)))
	fmt.Fprintf(b, "\nOnce the migration is aborted, as many rounds on both tables: the one that was migrated has %s of the other one's transactions/s, which is what the ratios above owe to the tables.\n",
		spanOf(2, r.controls))
}
