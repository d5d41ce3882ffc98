package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode/utf8"

	"plenum/internal/program"
)

// statementBytes bounds the file of --sql.
const statementBytes = 1 << 20

func setupSyncExplain(fs *flag.FlagSet) func(context.Context, *call) error {
	file := fs.String("sql", "", "a FILE with one statement to try instead, - for standard input; it may use $1, the ids (bigint[]), and, run once a day, $2 and $3, the day's bounds (timestamptz)")
	rows := fs.Int("rows", 50, "rows of the batch")
	var out output
	out.add(fs)
	return func(ctx context.Context, c *call) error {
		if err := out.check(); err != nil {
			return err
		}
		sql, err := readStatement(c, *file)
		if err != nil {
			return err
		}
		a, err := c.app(ctx)
		if err != nil {
			return err
		}
		defer a.Close()
		t, err := program.SyncExplain(ctx, a, sql, *rows)
		if err != nil {
			return err
		}
		return out.print(c.stdout, struct {
			program.Trials
			NotUndone []string `json:"not_undone"`
		}{t, notUndone(t)}, func(w io.Writer) { printTrials(w, t) })
	}
}

// readStatement returns the text of --sql, empty where it was not given.
func readStatement(c *call, name string) (string, error) {
	if name == "" {
		return "", nil
	}
	text, err := c.readInput("sql", name, statementBytes+1)
	switch {
	case err != nil:
		return "", err
	case len(text) > statementBytes:
		return "", program.Usagef("--sql: %q has more than %d bytes", name, statementBytes)
	case !utf8.Valid(text) || slices.Contains(text, 0):
		return "", program.Usagef("--sql: %q is not UTF-8 text; save it as that", name)
	}
	text = []byte(strings.TrimPrefix(string(text), "\ufeff")) // editors on Windows begin a file with it
	if strings.TrimSpace(string(text)) == "" {
		return "", program.Usagef("--sql: %q is empty; one statement is needed", name)
	}
	return string(text), nil
}

// notUndone is what the rollbacks leave behind.
func notUndone(t program.Trials) []string {
	var dead, wal int64
	for _, trial := range t.Trials {
		dead += trial.DeadRows
		wal += trial.WALBytes
	}
	return []string{
		fmt.Sprintf("%d dead versions of rows, until vacuum has come by", dead),
		fmt.Sprintf("%s of WAL", bytes(wal)),
		"what a statement, or a trigger of its table, took from sequences or did outside of this database",
	}
}

// partsShown bounds the partitions that are listed of one statement.
const partsShown = 20

func printTrials(w io.Writer, t program.Trials) {
	kind := "already processed, so that marking is not disturbed"
	if t.Pending {
		kind = "still pending, since none is processed yet; the worker passed over them meanwhile"
	}
	fmt.Fprintf(w, "%s of %s (%s), of batches %s. Each statement was rolled back.\n", program.Plural(t.Rows, "row"), program.Plural(len(t.Days), "day"), strings.Join(t.Days, " "), kind)
	for _, trial := range t.Trials {
		fmt.Fprintf(w, "\n%s\n  %s\n", trial.Name, brief(strings.Join(strings.Fields(trial.SQL), " "), 200))
		if trial.Completed && trial.Runs > 0 {
			fmt.Fprintf(w, "  %.1f ms in %s, planning %.1f ms; %s, %s read; buffers %d hit, %d read; %d of %s matched\n",
				trial.Time, program.Plural(trial.Runs, "run"), trial.Planning, program.Plural(trial.Touched(), "partition"), program.Plural(trial.RowsRead, "row"), trial.Hit, trial.Read, trial.Matched, program.Plural(trial.Expected, "row"))
		}
		if trial.LeftOut > 0 {
			fmt.Fprintf(w, "  %s left out as it began to run\n", program.Plural(trial.LeftOut, "partition"))
		}
		for i, p := range trial.Parts {
			if i == partsShown {
				fmt.Fprintf(w, "  and %d more\n", len(trial.Parts)-i)
				break
			}
			scan := strings.Join(append([]string{p.Scan}, p.Indexes...), " ")
			fmt.Fprintf(w, "  %s\t%s\t%d read, %d found\t%.1f ms\t%d hit, %d read\n", plain(p.Relation), plain(scan), p.RowsRead, p.RowsFound, p.Time, p.Hit, p.Read)
		}
		for _, v := range trial.Verdict {
			fmt.Fprintf(w, "  → %s\n", plain(v))
		}
	}
	fmt.Fprintf(w, "\nA rollback does not undo: %s.\n", strings.Join(notUndone(t), "; "))
}
