package main

import (
	"fmt"
	"io"
	"strings"
	"time"

	"plenum/pkg/bluegreen"
)

// verified is what bluegreen verify reports.
type verified struct {
	Differences []bluegreen.Difference  `json:"differences"`
	Plans       []bluegreen.PlanFinding `json:"plans"`
	// Entries are those of the log, about: their rows were not compared.
	Entries int64    `json:"entries,omitempty"`
	Blocked []string `json:"blocked,omitempty"` // rows that one side does not take, which were not compared
}

func (v verified) text(w io.Writer) {
	if len(v.Differences) == 0 {
		fmt.Fprint(w, "both sides have the same rows")
		if v.Entries > 0 {
			fmt.Fprintf(w, ", but for those of %d log entries, which sync carries over", v.Entries)
		}
		fmt.Fprintln(w)
	}
	for _, b := range v.Blocked {
		fmt.Fprintln(w, "stops a swap:", plain(b))
	}
	printDifferences(w, v.Differences)
	if len(v.Plans) == 0 {
		fmt.Fprintln(w, "the statements find their indexes on both sides")
	}
	printPlanFindings(w, v.Plans)
}

// refusal is what stands against a swap.
type refusal struct {
	to       bluegreen.Side
	Findings []bluegreen.Finding   `json:"findings"`
	Stuck    *bluegreen.StuckError `json:"stuck,omitempty"`
	verified
}

func (r refusal) text(w io.Writer) {
	fmt.Fprintln(w, "refused, and nothing is changed:")
	printFindings(w, r.Findings)
	printDifferences(w, r.Differences)
	printPlanFindings(w, r.Plans)
	if r.Stuck != nil {
		printStuck(w, r.Stuck)
	}
	if len(r.Findings) > 0 {
		fmt.Fprintln(w, "Do what is said, or give the init command again with --accept and the name.")
	}
	if len(r.Differences) > 0 && r.to == bluegreen.Blue {
		fmt.Fprintln(w, "If going back cannot wait for the reason: rollback --no-verify; what only the new table has is then missing from the live one until it is put in by hand.")
	}
}

func printStuck(w io.Writer, e *bluegreen.StuckError) {
	fmt.Fprintf(w, "%s refuses rows that %s has:\n", plain(e.Passive), plain(e.Table))
	for _, s := range e.Stuck {
		fmt.Fprintf(w, "    id %s: %s\n", plain(s.ID), brief(s.Why, 200))
	}
	fmt.Fprintln(w, "Correct these rows, or what refuses them. Or keep them apart, and put them right later:")
	for _, sql := range e.Aside {
		fmt.Fprintf(w, "    %s;\n", plain(sql))
	}
}

// leavesShown bounds the partitions that are named of one finding.
const leavesShown = 3

func printPlanFindings(w io.Writer, list []bluegreen.PlanFinding) {
	for _, f := range list {
		mark := "plans"
		if f.Fatal {
			mark = "plans, stops a swap"
		}
		if f.Table != "" {
			mark += ", " + f.Table
		}
		fmt.Fprintf(w, "%s: %s\n", plain(mark), plain(f.Missing))
		if f.Statement != "" {
			fmt.Fprintf(w, "    %s\n", brief(strings.Join(strings.Fields(f.Statement), " "), 200))
		}
		if n := len(f.Leaves); n > leavesShown {
			fmt.Fprintf(w, "    in %s and %d more\n", plain(strings.Join(f.Leaves[:leavesShown], ", ")), n-leavesShown)
		} else if n > 0 {
			fmt.Fprintf(w, "    in %s\n", plain(strings.Join(f.Leaves, ", ")))
		}
		fmt.Fprintf(w, "    %s\n", plain(f.Do))
	}
}

// differencesShown bounds the days that are listed.
const differencesShown = 20

func printDifferences(w io.Writer, list []bluegreen.Difference) {
	for n, d := range list {
		if n == differencesShown {
			fmt.Fprintf(w, "and %d more days\n", len(list)-n)
			break
		}
		fmt.Fprintf(w, "%s differs on %s: %d rows in the old table, %d in the new one\n", plain(d.Table), d.Day.Format(time.DateOnly), d.Blue, d.Green)
		for _, r := range d.Rows {
			fmt.Fprintf(w, "  only in the %s table: id %s: %s\n", sideName(r.Side), plain(r.ID), brief(r.Row, 200))
		}
	}
}

// sideName is a side's for people.
func sideName(s bluegreen.Side) string {
	if s == bluegreen.Blue {
		return "old"
	}
	return "new"
}

func printInit(w io.Writer, r bluegreen.Report) {
	if r.Resumed {
		fmt.Fprintln(w, "the migration was under way already, and is as wanted: the new tables are built, and what is written is captured")
	} else {
		fmt.Fprintln(w, "the new tables are built, and what is written is captured from now on")
	}
	printFindings(w, r.Findings)
	if open := len(bluegreen.Unaccepted(r.Findings)); open > 0 {
		fmt.Fprintf(w, "%d stand against a swap: do what is said, or give this command again with --accept and the name. ", open)
	}
	fmt.Fprintln(w, "Next: plenumctl bluegreen sync")
}

func printFindings(w io.Writer, list []bluegreen.Finding) {
	for _, f := range list {
		mark := "found"
		if f.Accepted {
			mark = "accepted"
		}
		fmt.Fprintf(w, "%s: %s\n    %s\n    %s\n", mark, plain(f.Name), plain(f.What), plain(f.Do))
	}
}

func printSwapped(w io.Writer, s bluegreen.Swapped) {
	if s.Already {
		fmt.Fprintf(w, "the %s tables are the live ones already; nothing is changed\n", sideName(s.Active))
		return
	}
	fmt.Fprintf(w, "the %s tables are the live ones\n", sideName(s.Active))
	fmt.Fprintf(w, "others were held up for %s; %d log entries were drained under the locks", milliseconds(s.Held), s.Drained)
	if s.Tries > 1 {
		fmt.Fprintf(w, "; it took %d tries, all together %s", s.Tries, milliseconds(s.HeldAll))
	}
	fmt.Fprintln(w)
	if s.Active == bluegreen.Green {
		fmt.Fprintln(w, "Back: plenumctl bluegreen rollback")
	} else {
		fmt.Fprintln(w, "Again: plenumctl bluegreen swap")
	}
}

func milliseconds(d time.Duration) string {
	return fmt.Sprintf("%.1f ms", float64(d)/float64(time.Millisecond))
}

func printStatus(w io.Writer, s bluegreen.Status, now time.Time) {
	fmt.Fprintf(w, "the %s tables are the live ones\n", sideName(s.Active))
	fmt.Fprintln(w, "TABLE\tOTHER SIDE\tDAYS\tCOPIED\tLOG\tSWAPPED")
	for _, t := range s.Tables {
		copied := "complete"
		if !t.Copied {
			copied = fmt.Sprintf("%d of ~%d rows", t.Rows, t.Total)
		}
		swapped := "never"
		if t.SwappedAt != nil {
			swapped = instant(*t.SwappedAt) + ", " + now.Sub(*t.SwappedAt).Round(time.Second).String() + " ago"
		}
		fmt.Fprintf(w, "%s\t%s\t%s…%s\t%s\t%d entries\t%s\n", plain(t.Table), plain(t.Passive),
			t.Low.Format(time.DateOnly), t.High.AddDate(0, 0, -1).Format(time.DateOnly), copied, t.Entries, swapped)
	}
	other, word := "new", "swap"
	if s.Active == bluegreen.Green {
		other, word = "old", "rollback"
	}
	if len(s.Blocked) == 0 {
		fmt.Fprintf(w, "a %s now has %d log entries to drain first, about %s, for which nobody waits; then others are held up for at most %s\n",
			word, s.Rollback.Entries, s.Rollback.Drain.Round(100*time.Millisecond), s.Rollback.Locked)
	}
	for _, b := range s.Blocked {
		fmt.Fprintf(w, "in the way of making the %s tables live: %s\n", other, plain(b))
	}
	fmt.Fprintf(w, "next: %s\n", strings.Join(s.Next, ", "))
}
