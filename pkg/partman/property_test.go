package partman_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"plenum/pkg/partman"
)

// drawn is a policy and a table in any state, at any time.
func drawn(t *rapid.T) (partman.Policy, partman.Snapshot, time.Time) {
	p := live()
	p.Step = rapid.SampledFrom([]partman.Step{partman.Day, partman.Hour}).Draw(t, "step")
	p.Premake, p.Retention = rapid.IntRange(-1, 5).Draw(t, "premake"), rapid.IntRange(0, 10).Draw(t, "retention")
	if rapid.Bool().Draw(t, "dropping") {
		p.Expired, p.ArchiveTable = partman.ExpiredDrop, ""
	}
	now := at("2026-03-08T00:00:00Z").Add(time.Duration(rapid.Int64Range(0, int64(48*time.Hour)).Draw(t, "now")))
	s := snapshot()
	// Ends in a row, each partition between two of them, some of them left out: no two overlap, as in PostgreSQL.
	from := now.Add(-time.Duration(rapid.Int64Range(0, int64(15*24*time.Hour)).Draw(t, "first"))).Truncate(30 * time.Minute)
	for n := range rapid.IntRange(0, 20).Draw(t, "partitions") {
		to := from.Add(time.Duration(rapid.SampledFrom([]int64{1, 2, 2, 2, 47, 48, 48, 48, 50, 96}).Draw(t, "width")) * 30 * time.Minute)
		if rapid.IntRange(0, 4).Draw(t, "missing") > 0 {
			l := leaf(fmt.Sprintf("telemetry_p%d", n), from)
			l.OID, l.To = uint32(1000+10*n), to
			l.Kind = rapid.SampledFrom([]string{"r", "r", "r", "r", "p"}).Draw(t, "kind")
			l.DetachPending = rapid.IntRange(0, 9).Draw(t, "pending") == 0
			l.Bounded = rapid.Bool().Draw(t, "bounded")
			s.Partitions = append(s.Partitions, l)
		}
		from = to
	}
	if last := len(s.Partitions) - 1; last >= 0 && rapid.IntRange(0, 3).Draw(t, "open") == 0 {
		s.Partitions[last].OpenTo, s.Partitions[last].To = true, time.Time{}
	}
	for n := range rapid.IntRange(0, 2).Draw(t, "detached") {
		day := day("2026-02-01").AddDate(0, 0, n)
		s.Detached = append(s.Detached, partman.Detached{Schema: "public", Name: fmt.Sprintf("gone_%d", n), From: day, To: day.AddDate(0, 0, 1), At: now.Add(-25 * time.Hour)})
	}
	return p, s, now
}

// leaving lists the bounds of what the plan takes away, and checks that none is too new.
func leaving(t *rapid.T, p partman.Policy, s partman.Snapshot, now time.Time) (bounds []partman.Range) {
	boundary, limited := partman.Boundary(p, now)
	for _, a := range partman.NewPlan(p, s, now).Actions {
		if a.Kind != partman.Move && a.Kind != partman.Detach {
			continue
		}
		bounds = append(bounds, partman.Range{From: a.From, To: a.To})
		if !limited || a.To.After(boundary) || a.To.IsZero() || a.To.After(now) {
			t.Fatalf("%s of %s, which ends at %s, after the boundary %s", a.Kind, a.Partition, a.To, boundary)
		}
	}
	return bounds
}

// TestNothingTooNewLeaves: whatever the table's state, nothing goes that is not wholly before the boundary, and what is
// goes whatever it is called.
func TestNothingTooNewLeaves(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		p, s, now := drawn(t)
		want := leaving(t, p, s, now)
		var names []string
		for _, l := range s.Partitions {
			names = append(names, l.Name)
		}
		names = rapid.Permutation(append(names, "telemetry_p20000101", "telemetry_p29991231")).Draw(t, "names")
		s.Partitions = slices.Clone(s.Partitions)
		for n := range s.Partitions {
			s.Partitions[n].Name = names[n]
		}
		if got := leaving(t, p, s, now); !slices.Equal(got, want) {
			t.Fatalf("with other names %v go, not %v", got, want)
		}
	})
}

// TestRowsLand: whatever the table's state, after the plan each instant from now to the end of the premade steps has a
// partition, and only one.
func TestRowsLand(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		p, s, now := drawn(t)
		all := slices.Clone(s.Partitions)
		for _, a := range partman.NewPlan(p, s, now).Actions {
			if a.Kind == partman.Create {
				all = append(all, partman.Partition{From: a.From, To: a.To})
			}
		}
		ranges := partman.Expected(p, now)
		if p.Premake < 0 {
			if len(all) != len(s.Partitions) {
				t.Fatal("partitions are made of a table whose policy wants none")
			}
			return
		}
		for instant := ranges[0].From; instant.Before(ranges[len(ranges)-1].To); instant = instant.Add(30 * time.Minute) {
			n := 0
			for _, l := range all {
				if !l.From.After(instant) && (l.OpenTo || l.To.After(instant)) {
					n++
				}
			}
			if n != 1 {
				t.Fatalf("%d partitions take a row of %s", n, instant)
			}
		}
	})
}
