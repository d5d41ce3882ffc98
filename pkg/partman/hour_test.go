package partman_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"plenum/pkg/partman"
)

func hourly() partman.Policy {
	p := dropping()
	p.Step, p.Premake, p.Retention = partman.Hour, 6, 24
	return p
}

// TestHoursOfAYear lives through a year of an hourly table, on a clock that is put forward and back: each hour one
// partition is made and one goes, with the bounds of whole UTC hours and names that are never the same.
func TestHoursOfAYear(t *testing.T) {
	t.Parallel()
	p, zone := hourly(), zone(t, "America/New_York")
	s := snapshot()
	s.Archive = nil
	named := make(map[string]bool)
	create := func(a partman.Action) {
		if !a.From.Equal(a.From.Truncate(time.Hour)) || a.To.Sub(a.From) != time.Hour {
			t.Errorf("%s has the bounds %s, %s", a.Partition, a.From, a.To)
		}
		if want := "telemetry_p" + a.From.Format("20060102_15"); a.Partition != want || named[want] {
			t.Errorf("a partition is named %s, want %s and once", a.Partition, want)
		}
		named[a.Partition] = true
		made := leaf(a.Partition, a.From)
		made.To = a.To
		s.Partitions = append(s.Partitions, made)
	}
	start := time.Date(2026, 1, 1, 0, 30, 0, 0, zone)
	for n := range 365 * 24 {
		now := start.Add(time.Duration(n) * time.Hour)
		created, gone := 0, 0
		for _, a := range partman.NewPlan(p, s, now).Actions {
			switch a.Kind {
			case partman.Create:
				create(a)
				created++
			case partman.Detach:
				if boundary := now.UTC().Truncate(time.Hour).Add(-23 * time.Hour); !a.To.Equal(boundary) {
					t.Errorf("at %s the partition that ends at %s goes, want %s", now, a.To, boundary)
				}
				s.Partitions = s.Partitions[1:]
				gone++
			default:
				t.Errorf("at %s: %s of %s", now, a.Kind, a.Partition)
			}
		}
		wantCreated, wantGone := 1, 1
		if n == 0 {
			wantCreated = p.Premake + 1
		}
		if n < p.Retention {
			wantGone = 0
		}
		if created != wantCreated || gone != wantGone {
			t.Fatalf("at %s %d are created and %d go, want %d and %d", now, created, gone, wantCreated, wantGone)
		}
		if found := partman.Check(p, s, now); len(found) > 0 {
			t.Fatalf("at %s: %+v", now, found)
		}
	}
}

// TestHoursOnDaysOfChange keeps a real table over the hours at which clocks are put forward and back, with a session in
// that zone: a row of each minute finds the partition of its UTC hour.
func TestHoursOnDaysOfChange(t *testing.T) {
	t.Parallel()
	for _, change := range []string{"2026-03-08T07:00:00Z", "2026-11-01T06:00:00Z"} {
		t.Run(change, func(t *testing.T) {
			t.Parallel()
			p := hourly()
			p.Retention = 3
			now := at(change).Add(-3 * time.Hour)
			h := newHouse(t, func(c *partman.Config) { c.Now = func(time.Time) time.Time { return now } }, p)
			h.cfg.Pool = h.connect("zoned", map[string]string{"timezone": "America/New_York"})
			h.m, h.registry = h.manager(h.cfg)
			for range 6 {
				now = now.Add(time.Hour)
				h.once(partman.CreateLoop)
				h.once(partman.RetireLoop)
			}
			h.clean()
			// The last round was three hours after: it kept that hour, the two before, and six ahead.
			h.pool = h.cfg.Pool
			h.exec("insert into telemetry (last_modified, seq) select $1::timestamptz + make_interval(mins => i), i from generate_series(60, 599) i", at(change))
			got := h.number(`select count(*) from (select tableoid::regclass::text as leaf, count(*) as n, min(last_modified) as m from telemetry group by 1) x
				where n = 60 and leaf = 'telemetry_p' || to_char(m at time zone 'UTC', 'YYYYMMDD_HH24')`)
			if got != 9 {
				t.Errorf("%d partitions hold the 60 rows of the hour of their name, want 9", got)
			}
		})
	}
}

// TestHoursInNames: the names of partitions of a table with the longest of names are whole and differ.
func TestHoursInNames(t *testing.T) {
	t.Parallel()
	p := hourly()
	p.Table = strings.Repeat("é", 31)
	now := at("2026-11-22T10:00:00Z")
	var taken []string
	for _, tail := range []string{"", "_2"} {
		var made []string
		for _, a := range partman.NewPlan(p, partman.Snapshot{KeyType: partman.TimestampTZ, Taken: taken}, now).Actions {
			if a.Kind != partman.Create {
				continue
			}
			if len(a.Partition) > 63 || !strings.HasSuffix(a.Partition, a.From.Format("_p20060102_15")+tail) {
				t.Errorf("name %q of %d bytes, want it to end in the hour of %s and %q", a.Partition, len(a.Partition), a.From, tail)
			}
			made = append(made, a.Partition)
		}
		if len(made) != 7 {
			t.Errorf("%d names, want 7", len(made))
		}
		taken = made
	}
}

// TestHoursOfADate: a date has no hours.
func TestHoursOfADate(t *testing.T) {
	t.Parallel()
	p := hourly()
	p.Table, p.Key = "ledger", "day"
	h := newHouse(t, nil, p)
	h.exec("create table ledger (day date not null) partition by range (day)")
	_, err := h.m.RunOnce(h.ctx, partman.CreateLoop)
	if want := fmt.Sprintf(`key "day" of table %q is a date`, "public.ledger"); err == nil || !contains(err.Error(), want) {
		t.Errorf("%q is missing in: %v", want, err)
	}
}
