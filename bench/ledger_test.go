package bench

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"plenum/internal/devenv"
)

// ledgerSize is how much BenchmarkLedger measures.
type ledgerSize struct {
	repetitions int
	rates       []int // readings/s
	seconds     int   // of each repetition
}

var fullLedger = ledgerSize{repetitions: 3, rates: []int{50, 500, 5000}, seconds: 25}

// BenchmarkLedger measures what the ledger adds to a row at several rates, with all programs running.
func BenchmarkLedger(b *testing.B) {
	for range b.N {
		r := measureLedger(b, fullLedger)
		deliver(b, r.markdown())
		b.ReportMetric(r.median(fullLedger.rates[0], func(l ledgerRun) float64 { return l.perRow(l.ledgerBytes()) }), "ledger-bytes/row")
	}
}

// TestLedger says that the ledger counts each row once, and that each statement's WAL is found.
func TestLedger(t *testing.T) {
	t.Parallel()
	r := measureLedger(t, ledgerSize{repetitions: 1, rates: []int{100, 2000}, seconds: 1})
	for _, l := range r.runs {
		for _, s := range []string{statementLines, statementPositions, statementRows, statementMarks} {
			if l.wal[s] == 0 {
				t.Errorf("at %d rows/s no WAL of %q was found: %v", l.rate, s, l.wal)
			}
		}
		if l.lines == 0 || l.lines > l.rows || l.ledgerBytes() == 0 || l.walRest() <= 0 {
			t.Errorf("at %d rows/s: %+v", l.rate, l)
		}
	}
	t.Log("\n" + r.markdown())
}

// The statements whose WAL is told apart, in the order of the report.
const (
	statementLines     = "lines, with the account"
	statementClaims    = "claims"
	statementPositions = "positions"
	statementRows      = "rows"
	statementMarks     = "marks"
	statementOthers    = "other statements"
)

var ledgerStatements = []string{statementLines, statementClaims, statementPositions}

const walByStatementSQL = `select case
		when query like '%insert into telemetry_batch%' then '` + statementLines + `'
		when query like '%update telemetry_batch%' then '` + statementPositions + `'
		when query like '%from telemetry_batch%for update%' then '` + statementClaims + `'
		when query like 'copy telemetry %' then '` + statementRows + `'
		when query like 'update telemetry set processed%' then '` + statementMarks + `'
		else '` + statementOthers + `' end, sum(wal_bytes)::bigint
	from pg_stat_statements where dbid = (select oid from pg_database where datname = $1) group by 1`

// ledgerRun is one repetition at one rate.
type ledgerRun struct {
	rate, rows, lines int
	heap, indexes     int64 // bytes by which the ledger has grown
	table             int64 // bytes by which telemetry has grown, with indexes
	wal               map[string]int64
	walAll            int64
}

func (l ledgerRun) ledgerBytes() int64         { return l.heap + l.indexes }
func (l ledgerRun) perRow(bytes int64) float64 { return float64(bytes) / float64(l.rows) }
func (l ledgerRun) rowsPerLine() float64       { return float64(l.rows) / float64(l.lines) }
func (l ledgerRun) walOf(names ...string) (n int64) {
	for _, name := range names {
		n += l.wal[name]
	}
	return n
}

// walRest is what no statement wrote: commit records, vacuum, checkpoints.
func (l ledgerRun) walRest() int64 {
	rest := l.walAll
	for _, n := range l.wal {
		rest -= n
	}
	return rest
}

type ledgerResults struct {
	size     ledgerSize
	versions string
	runs     []ledgerRun
}

// measureLedger makes all repetitions, each with a database of its own, the rates taking turns in going first.
func measureLedger(tb testing.TB, s ledgerSize) *ledgerResults {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), hangLimit)
	defer cancel()
	h := newHouse(ctx, tb, setting{"shared_preload_libraries", "pg_stat_statements"}, setting{"autovacuum", "on"})
	_, err := h.admin.Exec(ctx, "create extension pg_stat_statements")
	h.check(err)
	r := &ledgerResults{size: s, versions: h.versions()}
	for n := range s.repetitions {
		for i := range s.rates {
			r.runs = append(r.runs, h.ledger(s.rates[(i+n)%len(s.rates)], s.seconds))
		}
	}
	return r
}

// ledger has simulated devices publish at the rate while ingest and syncjob run.
func (h *house) ledger(rate, seconds int) ledgerRun {
	h.tb.Helper()
	d := h.database("ledger")
	defer d.drop()
	h.idle("ingest", d, ingestEnv(h, d, "ledger", loadPrefix)...) // makes the tables
	syncjob := h.start("syncjob", "PLENUM_DATABASE_URL="+d.url)
	ingest := h.start("ingest", ingestEnv(h, d, "ledger", loadPrefix)...)
	h.await(100*time.Millisecond, d.daysAhead)
	l := ledgerRun{rate: rate, rows: rate * seconds, wal: map[string]int64{}}
	_, err := h.admin.Exec(h.ctx, "select pg_stat_statements_reset()")
	h.check(err)
	ledger, rows, wal := d.sizes("telemetry_batch_p"), d.sizes("telemetry_p"), d.wal()
	_, err = devenv.Simulate(h.ctx, devenv.SimulateConfig{Broker: h.broker.URL(), Devices: devices, Rate: float64(rate), Total: l.rows, QoS: 1, Seed: 1}, nil)
	h.check(err)
	h.await(100*time.Millisecond, func() error {
		if n := d.number(ledgerRows + " where processed_at is not null"); n != l.rows {
			return fmt.Errorf("%d of %d rows are processed", n, l.rows)
		}
		return nil
	})
	l.walAll = d.wal() - wal
	after, afterRows := d.sizes("telemetry_batch_p"), d.sizes("telemetry_p")
	l.heap, l.indexes = after.tables-ledger.tables, after.indexes-ledger.indexes
	l.table = afterRows.tables + afterRows.indexes - rows.tables - rows.indexes
	h.walByStatement(d, l.wal)
	d.expect("select count(*) from telemetry where processed", l.rows)
	l.lines = d.number("select count(*) from telemetry_batch")
	h.stop(ingest)
	h.stop(syncjob)
	return l
}

// daysAhead is nil once the partitions of all days ahead are there: making one writes more than a second's rows, and is done once a day.
func (d *database) daysAhead() error {
	const want = 5 // today's and partition.premake_days' default
	for _, table := range []string{"telemetry", "telemetry_batch", "telemetry_quarantine"} {
		if n := len(d.leaves(table)); n < want {
			return fmt.Errorf("%s has %d partitions, not yet %d", table, n, want)
		}
	}
	return nil
}

func (h *house) walByStatement(d *database, to map[string]int64) {
	h.tb.Helper()
	rows, err := h.admin.Query(h.ctx, walByStatementSQL, d.name)
	h.check(err)
	defer rows.Close()
	for rows.Next() {
		var name string
		var bytes int64
		h.check(rows.Scan(&name, &bytes))
		to[name] = bytes
	}
	h.check(rows.Err())
}

func (r *ledgerResults) sorted(rate int, figure func(ledgerRun) float64) (all []float64) {
	for _, l := range r.runs {
		if l.rate == rate {
			all = append(all, figure(l))
		}
	}
	slices.Sort(all)
	return all
}

func (r *ledgerResults) median(rate int, figure func(ledgerRun) float64) float64 {
	all := r.sorted(rate, figure)
	return all[len(all)/2]
}

func (r *ledgerResults) markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, `# What the ledger costs

Written by `+"`make bench`"+`. %s.

Simulated compressors publish at a steady rate while ingest and syncjob run with their defaults; the ledger gets a line for each contiguous
run of ids of a transaction, so that its cost a row depends on how many rows come within ingest's linger. Figures are medians of %d
repetitions of %d s, each with a fresh database, with the least and the greatest in brackets. WAL by statement is pg_stat_statements'; what no
statement wrote are commit records, autovacuum and checkpoints, and whoever idles in between. The statement that writes lines also adds to the account.

| per row, but for the lines |`, r.versions, r.size.repetitions, r.size.seconds)
	for _, rate := range r.size.rates {
		fmt.Fprintf(&b, " %s rows/s |", grouped(fmt.Sprint(rate)))
	}
	b.WriteString("\n|---|" + strings.Repeat("---|", len(r.size.rates)) + "\n")
	line := func(what string, decimals int, figure func(ledgerRun) float64) {
		fmt.Fprintf(&b, "| %s |", what)
		for _, rate := range r.size.rates {
			fmt.Fprintf(&b, " %s |", spanOf(decimals, r.sorted(rate, figure)))
		}
		b.WriteString("\n")
	}
	line("rows", 0, func(l ledgerRun) float64 { return float64(l.rows) })
	line("lines", 0, func(l ledgerRun) float64 { return float64(l.lines) })
	line("rows a line", 1, ledgerRun.rowsPerLine)
	line("ledger's table, bytes", 1, func(l ledgerRun) float64 { return l.perRow(l.heap) })
	line("ledger's indexes, bytes", 1, func(l ledgerRun) float64 { return l.perRow(l.indexes) })
	line("telemetry with its indexes, bytes", 0, func(l ledgerRun) float64 { return l.perRow(l.table) })
	for _, name := range []string{statementLines, statementClaims, statementPositions, statementRows, statementMarks, statementOthers} {
		line("WAL of "+name+", bytes", 1, func(l ledgerRun) float64 { return l.perRow(l.wal[name]) })
	}
	line("WAL that no statement wrote, bytes", 1, func(l ledgerRun) float64 { return l.perRow(l.walRest()) })
	line("WAL in all, bytes", 0, func(l ledgerRun) float64 { return l.perRow(l.walAll) })
	line("the ledger's statements to all WAL", 2, func(l ledgerRun) float64 { return float64(l.walOf(ledgerStatements...)) / float64(l.walAll) })
	line("the ledger's bytes to telemetry's", 3, func(l ledgerRun) float64 { return float64(l.ledgerBytes()) / float64(l.table) })
	return b.String()
}
