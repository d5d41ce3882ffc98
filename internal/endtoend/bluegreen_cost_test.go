package endtoend

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestBlueGreenCost measures what a migration costs: the writers' transactions on a table that is captured and on its twin that is
// not, in turns, and the copy beside one INSERT … SELECT into the same table, in turns. What it measures is told, not asserted.
func TestBlueGreenCost(t *testing.T) {
	t.Parallel()
	b := newBlueGreen(t, 1, sized(20_000, 2_000_000))
	b.exec("alter table mirror_of_orders owner to plenum_owner")
	b.copyCost(sized(1, 3))
	initOrders := []string{"init", "--table", "orders", "--key", "at", "--id", "id"}
	b.survive("the new tables are built", nil, initOrders...)
	b.exec(fmt.Sprintf("select setval('orders_id_seq', %d)", b.rows+1))
	for _, kind := range []struct{ name, script string }{
		{"inserts of one row", "insert into TABLE (id, at, state) values (nextval('orders_id_seq'), now(), 'new');"},
		{"updates of one row", "\\set id random(0, " + fmt.Sprint(b.rows-1) + ")\nupdate TABLE set processed = not processed where id = :id;"},
		// Neighbours, as a job marks what it has read: clients that write the same rows in other orders would lock each other out.
		{"updates of 50 rows", "\\set id random(0, " + fmt.Sprint(b.rows/50-1) + ")\nupdate TABLE set processed = not processed where id between :id * 50 and :id * 50 + 49;"},
	} {
		var ratios, rates []float64
		for range sized(1, 5) {
			captured := b.burst(strings.ReplaceAll(kind.script, "TABLE", "orders"))
			free := b.burst(strings.ReplaceAll(kind.script, "TABLE", "mirror_of_orders"))
			ratios, rates = append(ratios, captured/free), append(rates, captured)
		}
		slices.Sort(ratios)
		slices.Sort(rates)
		figure(t, "blue/green: %s: with the capture %.2f of the rate without (%.2f to %.2f, %d pairs of runs in turns), %.0f transactions/s with it", kind.name,
			ratios[len(ratios)/2], ratios[0], ratios[len(ratios)-1], len(ratios), rates[len(rates)/2])
	}
	begin, entries := time.Now(), b.count("bluegreen_log_1")
	b.survive("log entries left", nil, "sync")
	figure(t, "blue/green: copy and %d log entries afterwards in %.1f s", entries, time.Since(begin).Seconds())
	b.survive("both sides have the same rows", nil, "verify")
}

// copyCost copies, and fills the same table by one statement.
func (b *blueGreen) copyCost(rounds int) {
	b.t.Helper()
	var ratios []float64
	var rate float64
	for range rounds {
		b.survive("the new tables are built", nil, "init", "--table", "orders", "--key", "at", "--id", "id")
		begin := time.Now()
		b.survive("log entries left", nil, "sync")
		copied := time.Since(begin)
		b.exec("truncate orders_new")
		begin = time.Now()
		b.exec(`begin; set local plenum_bluegreen.applying = 'on'; insert into orders_new (id, at, state, processed) select id, at, state, processed from orders; commit`)
		ratios = append(ratios, float64(time.Since(begin))/float64(copied))
		rate = float64(b.rows) / copied.Seconds()
		b.survive("aborted", nil, "abort")
	}
	slices.Sort(ratios)
	figure(b.t, "blue/green: copy of %d rows with analyze at %.0f rows/s, %.2f of the speed of one INSERT … SELECT into the same table (%.2f to %.2f, %d pairs in turns); goal 0.7",
		b.rows, rate, ratios[len(ratios)/2], ratios[0], ratios[len(ratios)-1], rounds)
}

var tpsPattern = regexp.MustCompile(`tps = ([0-9.]+)`)

// burst has two clients run a script for a while, and returns transactions per second.
func (b *blueGreen) burst(script string) float64 {
	b.t.Helper()
	file := filepath.Join(b.t.TempDir(), "script")
	if err := os.WriteFile(file, []byte(script), 0o600); err != nil {
		b.t.Fatal(err)
	}
	out, err := exec.Command("pgbench", "-n", "-M", "prepared", "-c", "2", "--max-tries", "10", "-T", strconv.Itoa(sized(1, 5)), "-f", file, b.postgres.URL(b.system.database)).CombinedOutput()
	m := tpsPattern.FindSubmatch(out)
	if err != nil || m == nil {
		b.t.Fatalf("pgbench: %v\n%s", err, out)
	}
	tps, err := strconv.ParseFloat(string(m[1]), 64)
	if err != nil {
		b.t.Fatal(err)
	}
	return tps
}
