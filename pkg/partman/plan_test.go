package partman_test

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"plenum/pkg/partman"
)

var update = flag.Bool("update", false, "write the golden files anew")

// live is a policy with everything in it.
func live() partman.Policy {
	return partman.Policy{
		Schema: "public", Table: "telemetry", Key: "last_modified", Step: partman.Day,
		Premake: 2, Retention: 8, Expired: partman.ExpiredArchive, ArchiveTable: "telemetry_archive",
		Indexes: []partman.Index{{
			Name: "identity", Unique: true, NullsNotDistinct: true,
			Columns: []string{"device_id", "kind", "recorded_at", "seq"},
		}},
		Storage: map[string]string{"fillfactor": "50", "autovacuum_vacuum_scale_factor": "0.1"},
	}
}

func dropping() partman.Policy {
	p := live()
	p.Expired, p.ArchiveTable = partman.ExpiredDrop, ""
	return p
}

func at(text string) time.Time {
	t, err := time.Parse(time.RFC3339Nano, text)
	if err != nil {
		panic(err)
	}
	return t
}

func day(text string) time.Time { return at(text + "T00:00:00Z") }

var (
	idIndex = partman.CatalogIndex{
		OID: 100, Schema: "public", Name: "telemetry_id_idx", Valid: true, Method: "btree",
		Columns: []string{"id"}, Plain: true, Tail: "USING btree (id)",
	}
	brin = partman.CatalogIndex{
		OID: 101, Schema: "public", Name: "telemetry_last_modified_idx", Valid: true, Method: "brin",
		Columns: []string{"last_modified"}, Plain: true, Tail: "USING brin (last_modified)",
	}
)

// leaf is a partition without fault, named as given, with the bounds of the given time until a day later.
func leaf(name string, from time.Time) partman.Partition {
	oid := uint32(from.Unix() / 86400 * 10)
	own := func(n uint32, i partman.CatalogIndex, suffix string) partman.CatalogIndex {
		i.Parent, i.OID, i.Name = i.OID, oid+n, name+suffix
		return i
	}
	identity := partman.CatalogIndex{
		Schema: "public", Name: name + "_identity", OID: oid + 3, Valid: true, Unique: true, NullsNotDistinct: true,
		Method: "btree", Plain: true, Columns: []string{"device_id", "kind", "recorded_at", "seq"},
		Tail: "USING btree (device_id, kind, recorded_at, seq) NULLS NOT DISTINCT",
	}
	return partman.Partition{
		Schema: "public", Name: name, OID: oid, From: from, To: from.AddDate(0, 0, 1), Kind: "r", Rows: 100,
		Indexes: []partman.CatalogIndex{own(1, idIndex, "_id_idx"), own(2, brin, "_last_modified_idx"), identity},
		Options: map[string]string{"fillfactor": "50", "autovacuum_vacuum_scale_factor": "0.1"},
	}
}

// days are n partitions without fault, from the given day on.
func days(from string, n int) []partman.Partition {
	var list []partman.Partition
	for i := range n {
		d := day(from).AddDate(0, 0, i)
		list = append(list, leaf("telemetry_p"+d.Format("20060102"), d))
	}
	return list
}

// snapshot is a table without fault.
func snapshot(partitions ...partman.Partition) partman.Snapshot {
	s := partman.Snapshot{
		KeyType: partman.TimestampTZ, Owner: "owner", User: "owner", CanOwn: true, Partitions: partitions, DefaultSchema: "public",
		Indexes:  []partman.CatalogIndex{idIndex, brin},
		Archive:  &partman.Archive{KeyType: partman.TimestampTZ, Indexes: []partman.CatalogIndex{idIndex, brin}},
		Analyzed: day("2099-01-01"),
	}
	for _, p := range partitions {
		s.Taken = append(s.Taken, p.Name)
	}
	return s
}

type golden struct {
	name   string
	policy partman.Policy
	now    time.Time
	s      partman.Snapshot
}

func zone(t *testing.T, name string) *time.Location {
	t.Helper()
	loc, err := time.LoadLocation(name)
	if err != nil {
		t.Fatal(err)
	}
	return loc
}

func coverageCases(t *testing.T) []golden {
	dated := live()
	dated.Key = "day"
	dates := snapshot()
	dates.KeyType, dates.Archive = partman.Date, nil
	dated.Expired, dated.ArchiveTable = partman.ExpiredDrop, ""
	foreign := snapshot()
	foreign.Owner = `the "owner"`
	archive := partman.Policy{
		Schema: "public", Table: "telemetry_archive", Key: "last_modified", Step: partman.Day,
		Premake: partman.NoPremake, Retention: 90, Expired: partman.ExpiredDrop,
	}
	byHand := leaf("byhand", day("2026-11-23"))
	byHand.To = day("2026-11-25")
	kolkata := leaf("kolkata", at("2026-11-22T18:30:00Z"))
	open := leaf("rest", day("2026-11-23"))
	open.To, open.OpenTo = time.Time{}, true
	taken := snapshot()
	taken.Taken = []string{"telemetry_p20261122", "telemetry_p20261122_2", "telemetry_p20261123_identity"}
	taken.Strays = []string{"telemetry_p20261122"}
	fallback := snapshot(days("2026-11-22", 2)...)
	fallback.Default = "telemetry_default"
	rich := snapshot()
	rich.Owner = "keeper"
	rich.Traits = partman.Traits{
		Tablespace: "fast", RowSecurity: true, ForceRowSecurity: true, ReplicaIdentity: "i", ReplicaIndex: "telemetry_key",
		Columns: []partman.ColumnTrait{{Name: "kind", Statistics: 500, Options: []string{"n_distinct=-0.5"}}},
		Grants: []partman.Grant{
			{Role: "", Privileges: []string{"select"}},
			{Role: "Clerk", Privileges: []string{"delete", "insert"}, Grantable: true},
			{Role: "Clerk", Column: "kind", Privileges: []string{"select", "update"}},
		},
		Preset: []string{"", "reader"}, References: []string{"public.device"},
	}
	return []golden{
		{"traits", live(), at("2026-11-22T10:00:00Z"), rich},
		{"fresh", live(), at("2026-11-22T10:00:00Z"), snapshot()},
		{"complete", live(), at("2026-11-22T10:00:00Z"), snapshot(days("2026-11-15", 10)...)},
		{"session_in_kolkata", live(), at("2026-11-22T21:30:00Z").In(zone(t, "Asia/Kolkata")), snapshot()},
		{"session_in_new_york_spring", live(), time.Date(2026, 3, 8, 1, 59, 59, 0, zone(t, "America/New_York")), snapshot()},
		{"session_in_new_york_autumn", live(), time.Date(2026, 11, 1, 1, 30, 0, 0, zone(t, "America/New_York")), snapshot()},
		{"leap_day", live(), at("2028-02-28T23:59:59.999999Z"), snapshot()},
		{"no_leap_day", live(), at("2027-02-28T23:59:59.999999Z"), snapshot()},
		{"year_end", live(), at("2026-12-31T12:00:00Z"), snapshot(leaf("telemetry_p20261231", day("2026-12-31")))},
		{"date_key", dated, at("2026-11-22T10:00:00Z"), dates},
		{"other_owner", live(), at("2026-11-22T10:00:00Z"), foreign},
		{"never_premade", archive, at("2026-11-22T10:00:00Z"), snapshot()},
		{"made_by_hand", live(), at("2026-11-22T10:00:00Z"), snapshot(byHand)},
		{"odd_bounds", live(), at("2026-11-22T10:00:00Z"), snapshot(kolkata)},
		{"open_end", live(), at("2026-11-22T10:00:00Z"), snapshot(open)},
		{"names_taken", live(), at("2026-11-22T10:00:00Z"), taken},
		{"default_partition", live(), at("2026-11-22T10:00:00Z"), fallback},
	}
}

func retireCases(t *testing.T) []golden {
	lying := snapshot(append(days("2026-11-23", 2), leaf("telemetry_p20261101", day("2026-11-22")))...)
	old := snapshot(append(days("2026-11-20", 5), leaf("telemetry_p20261130", day("2026-11-02")))...)
	sharing := snapshot(days("2026-11-13", 12)...)
	sharing.Archive.Partitions = []partman.Partition{leaf("telemetry_p20261113x", day("2026-11-13"))}
	lacking := snapshot(days("2026-11-14", 11)...)
	lacking.Archive.Indexes = append(lacking.Archive.Indexes, partman.CatalogIndex{
		OID: 300, Schema: "public", Name: "a", Valid: true,
		Method: "btree", Columns: []string{"device_id"}, Plain: true, Tail: "USING btree (device_id)",
	})
	half := snapshot(days("2026-11-14", 11)...)
	half.Partitions[0].Bounded = true
	proven := snapshot(days("2026-11-14", 11)...)
	proven.Partitions[0].Bounded, proven.Partitions[0].BoundsValid = true, true
	waiting := snapshot(days("2026-11-14", 11)...)
	waiting.Detached = []partman.Detached{
		{Schema: "public", Name: "telemetry_p20261112", From: day("2026-11-12"), To: day("2026-11-13"), At: at("2026-11-21T10:00:00Z")},
		{Schema: "public", Name: "telemetry_p20261113", From: day("2026-11-13"), To: day("2026-11-14"), At: at("2026-11-21T10:00:01Z")},
	}
	pending := snapshot(days("2026-11-14", 11)...)
	pending.Partitions[0].DetachPending = true
	nested := snapshot(days("2026-11-14", 11)...)
	nested.Partitions[0].Kind = "p"
	past := leaf("old", day("2026-10-01"))
	past.OpenFrom, past.From = true, time.Time{}
	forever := live()
	forever.Retention = 0
	elsewhere := snapshot(days("2026-11-14", 11)...)
	elsewhere.Partitions[0].Schema, elsewhere.Partitions[0].Name = "Attic", "The 14th"
	left := snapshot(days("2026-11-15", 10)...)
	left.Detached = []partman.Detached{{
		Schema: "Attic", Name: "telemetry_p20261101", From: day("2026-11-01"), To: day("2026-11-02"), At: at("2026-11-21T08:00:00Z"),
	}}
	left.Strays = []string{"telemetry_p20261102", "telemetry_p20260101_2"}
	overdue := snapshot(days("2026-11-10", 15)...)
	overdue.Partitions[1].Kind = "f"
	overdue.Archive.Default = "telemetry_archive_rest"
	hours := snapshot()
	for n := range 5 {
		from := at("2026-11-01T03:00:00Z").Add(time.Duration(n) * time.Hour)
		l := leaf("telemetry_p"+from.Format("20060102_15"), from)
		l.To = from.Add(time.Hour)
		hours.Partitions, hours.Taken = append(hours.Partitions, l), append(hours.Taken, l.Name)
	}
	hours.Partitions[2].To = at("2026-11-01T05:30:00Z") // of no step
	hourly := live()
	hourly.Step, hourly.Premake, hourly.Retention = partman.Hour, 3, 3
	awayBefore := snapshot(append(days("2026-11-15", 2), days("2026-11-20", 5)...)...)
	return []golden{
		{"gap_of_30_days", live(), at("2026-12-22T10:00:00Z"), snapshot(days("2026-11-15", 12)...)},
		{"gap_of_past_days", live(), at("2026-11-22T10:00:00Z"), awayBefore},
		{"name_of_an_old_day", live(), at("2026-11-22T10:00:00Z"), lying},
		{"name_of_a_future_day", live(), at("2026-11-22T10:00:00Z"), old},
		{"boundary_first_instant", live(), at("2026-11-22T00:00:00Z"), snapshot(days("2026-11-14", 11)...)},
		{"boundary_last_instant", live(), at("2026-11-22T23:59:59.999999Z"), snapshot(days("2026-11-15", 10)...)},
		{"dropping", dropping(), at("2026-11-22T10:00:00Z"), snapshot(days("2026-11-14", 11)...)},
		{"grace", dropping(), at("2026-11-22T10:00:00Z"), waiting},
		{"other_schema", dropping(), at("2026-11-22T10:00:00Z"), elsewhere},
		{"leftovers", dropping(), at("2026-11-22T10:00:00Z"), left},
		{"cannot_go", live(), at("2026-11-22T10:00:00Z"), overdue},
		{"hours_clocks_put_back", hourly, time.Date(2026, 11, 1, 1, 59, 59, 0, zone(t, "America/New_York")), hours},
		{"kept_for_ever", forever, at("2026-11-22T10:00:00Z"), snapshot(days("2026-10-01", 55)...)},
		{"archive_has_the_day", live(), at("2026-11-22T10:00:00Z"), sharing},
		{"archive_has_an_index_more", live(), at("2026-11-22T10:00:00Z"), lacking},
		{"interrupted_before_validate", live(), at("2026-11-22T10:00:00Z"), half},
		{"interrupted_before_move", live(), at("2026-11-22T10:00:00Z"), proven},
		{"detach_pending", live(), at("2026-11-22T10:00:00Z"), pending},
		{"partitioned_again", live(), at("2026-11-22T10:00:00Z"), nested},
		{"open_start", live(), at("2026-11-22T10:00:00Z"), snapshot(append([]partman.Partition{past}, days("2026-11-15", 10)...)...)},
	}
}

func healthCases() []golden {
	change := func(do func(s *partman.Snapshot, today *partman.Partition)) partman.Snapshot {
		s := snapshot(days("2026-11-15", 10)...)
		do(&s, &s.Partitions[7])
		return s
	}
	now := at("2026-11-22T10:00:00Z")
	return []golden{
		{"index_of_parent_missing", live(), now, change(func(s *partman.Snapshot, today *partman.Partition) {
			s.Indexes[0].Valid, today.Indexes = false, today.Indexes[1:]
		})},
		{"index_not_attached", live(), now, change(func(s *partman.Snapshot, today *partman.Partition) { today.Indexes[0].Parent = 0 })},
		{"index_left_invalid", live(), now, change(func(s *partman.Snapshot, today *partman.Partition) {
			today.Indexes[0].Parent, today.Indexes[0].Valid = 0, false
		})},
		{"index_being_built", live(), now, change(func(s *partman.Snapshot, today *partman.Partition) {
			today.Indexes[0].Parent, today.Indexes[0].Valid, today.Indexes[0].Building = 0, false, true
		})},
		{"index_attached_invalid", live(), now, change(func(s *partman.Snapshot, today *partman.Partition) { today.Indexes[0].Valid = false })},
		{"index_of_policy_missing", live(), now, change(func(s *partman.Snapshot, today *partman.Partition) { today.Indexes = today.Indexes[:2] })},
		{"index_of_policy_invalid", live(), now, change(func(s *partman.Snapshot, today *partman.Partition) { today.Indexes[2].Valid = false })},
		{"index_of_parent_stayed_invalid", live(), now, change(func(s *partman.Snapshot, _ *partman.Partition) { s.Indexes[0].Valid = false })},
		{"index_left_behind", live(), now, change(func(s *partman.Snapshot, today *partman.Partition) {
			left := today.Indexes[0]
			left.OID, left.Name, left.Parent, left.Valid = 8, left.Name+"_ccnew", 0, false
			today.Indexes = append(today.Indexes, left)
		})},
		{"index_of_a_person", live(), now, change(func(s *partman.Snapshot, today *partman.Partition) {
			today.Indexes = append(today.Indexes, partman.CatalogIndex{OID: 9, Schema: "public", Name: "mine", Tail: "USING btree (payload)"})
		})},
		{"storage_differs", live(), now, change(func(s *partman.Snapshot, today *partman.Partition) {
			today.Options = map[string]string{"fillfactor": "100", "autovacuum_enabled": "false"}
		})},
		{"analyze_due", live(), now, change(func(s *partman.Snapshot, _ *partman.Partition) { s.Analyzed = now.Add(-24 * time.Hour) })},
	}
}

// TestPlans compares plan, findings and runway of each case with its golden file.
func TestPlans(t *testing.T) {
	t.Parallel()
	seen := make(map[string]bool)
	for _, c := range slices.Concat(coverageCases(t), retireCases(t), stayCases(), healthCases()) {
		if seen[c.name] {
			t.Fatalf("case %q is there twice", c.name)
		}
		seen[c.name] = true
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			plan := partman.NewPlan(c.policy, c.s, c.now)
			compare(t, c.name, plan.String()+notes(c))
			if again := partman.NewPlan(c.policy, c.s, c.now); again.String() != plan.String() {
				t.Errorf("a second plan from the same facts differs:\n%s", cmp.Diff(plan.String(), again.String()))
			}
			neverTooNew(t, c, plan)
		})
	}
}

func notes(c golden) string {
	var b strings.Builder
	fmt.Fprintf(&b, "\n-- runway: %s\n", partman.Runway(c.s, c.now))
	for _, f := range partman.Check(c.policy, c.s, c.now) {
		fmt.Fprintf(&b, "-- finding: %s %s.%s %s: %s (broken: %t)\n", f.Code, f.Schema, f.Table, f.Partition, f.Detail, f.Broken)
	}
	return b.String()
}

// neverTooNew: whatever the case, nothing inside the retention leaves.
func neverTooNew(t *testing.T, c golden, plan partman.Plan) {
	t.Helper()
	boundary, _ := partman.Boundary(c.policy, c.now)
	for _, a := range plan.Actions {
		if (a.Kind == partman.Move || a.Kind == partman.Detach || a.Kind == partman.Drop) && a.To.After(boundary) {
			t.Errorf("%s of %s would take away what ends at %s, after the boundary %s", a.Kind, a.Partition, a.To, boundary)
		}
	}
}

func compare(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name+".golden")
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s differs (-want +got):\n%s", path, diff)
	}
}

func TestLimit(t *testing.T) {
	t.Parallel()
	plan := partman.NewPlan(live(), snapshot(days("2026-11-15", 12)...), at("2026-12-22T10:00:00Z")).Limit(4)
	var moved, created int
	for _, a := range plan.Actions {
		switch a.Kind {
		case partman.Move:
			if want := day("2026-11-15").AddDate(0, 0, moved); !a.From.Equal(want) {
				t.Errorf("action %d moves the day of %s, want %s", moved, a.From, want)
			}
			moved++
		case partman.Create:
			created++
		}
	}
	if moved != 4 || created != 10 {
		t.Errorf("%d days move and %d are created, want 4, and 3 with 7 of before", moved, created)
	}
}

func TestRunway(t *testing.T) {
	t.Parallel()
	now := at("2026-11-22T10:00:00Z")
	gap := append(days("2026-11-22", 2), days("2026-11-25", 2)...)
	pending := days("2026-11-22", 2)
	pending[1].DetachPending = true
	for name, c := range map[string]struct {
		s    partman.Snapshot
		want time.Duration
	}{
		"none":                      {snapshot(), 0},
		"only yesterday":            {snapshot(days("2026-11-21", 1)...), 0},
		"only tomorrow":             {snapshot(days("2026-11-23", 1)...), 0},
		"today":                     {snapshot(days("2026-11-22", 1)...), 14 * time.Hour},
		"until the gap":             {snapshot(gap...), 38 * time.Hour},
		"until the pending detach":  {snapshot(pending...), 14 * time.Hour},
		"with the days before":      {snapshot(days("2026-11-15", 10)...), 62 * time.Hour},
		"DEFAULT takes everything":  {partman.Snapshot{Default: "d"}, 1<<63 - 1},
		"open end takes everything": {snapshot(partman.Partition{From: day("2026-11-01"), OpenTo: true}), 1<<63 - 1},
	} {
		if got := partman.Runway(c.s, now); got != c.want {
			t.Errorf("%s: runway %s, want %s", name, got, c.want)
		}
	}
}
