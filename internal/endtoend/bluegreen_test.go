package endtoend

import (
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"plenum/internal/devenv"
	"plenum/internal/devenv/devtest"
)

// TestBlueGreen moves a live table and its archive there and back again and again, while pgbench writes both, at full speed where the
// size is the full one, and in the same transactions a mirror of each. plenumctl is killed (SIGKILL) in each cycle: at a message
// that it sends, at a COMMIT that is asked for, and when PostgreSQL has committed and before it can have read that. After each
// cycle the live tables are as their mirrors; at rest both sides are the same. The writers see no error at all.
func TestBlueGreen(t *testing.T) {
	t.Parallel()
	rows, cycles := sized(20_000, 2_000_000), sized(4, 100)
	b := newBlueGreen(t, rand.Uint64(), rows)
	writers := b.startWriters(2)
	b.survive("the new tables are built", b.randomFault(40), "init", "--table", "orders", "--table", "orders_archive", "--key", "at", "--id", "id")
	b.survive("log entries left", b.randomFault(60), "sync")
	b.partitionsRun().awaitReady()
	b.mirrored()

	for n := range cycles {
		if b.random.IntN(3) == 0 {
			b.survive("log entries left", b.randomFault(60), "sync")
		}
		b.cycle(n)
		writers.alive()
		b.mirrored()
	}
	transactions := writers.stop()
	b.settled()
	if b.active() == "blue" {
		b.survive(`"active": "green"`, nil, "swap", "--output", "json")
	}
	b.survive("old tables are dropped", b.randomFault(30), "finish", "--drop")
	b.mirrored()
	slices.Sort(b.held)
	if len(b.held) == 0 || b.kills < cycles/2 {
		t.Fatalf("%d swaps told how long they held others up, %d commands were killed in %d cycles", len(b.held), b.kills, cycles)
	}
	figure(t, "blue/green: two tables, %d rows each, %d swaps and rollbacks; SIGKILL of plenumctl %d times, %d of them between the COMMIT of a swap and its answer; "+
		"%d commands gave up and were given again (%s); pgbench made %d transactions meanwhile, none failed; the live tables are as their mirrors after each",
		rows, cycles, b.kills, b.unanswered, b.refusals(), b.refusedText(), transactions)
	figure(t, "blue/green: others are held up by a swap for %.0f ms (p50), %.0f ms (p90), %.0f ms (p99), %.0f ms (max), of %d that told it; goal 50 ms (p99)",
		milliseconds(quantile(b.held, 0.5)), milliseconds(quantile(b.held, 0.9)), milliseconds(quantile(b.held, 0.99)), milliseconds(quantile(b.held, 1)), len(b.held))
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// quantile is the least of values in ascending order that so many of them are not above.
func quantile(sorted []time.Duration, q float64) time.Duration {
	return sorted[max(0, int(math.Ceil(q*float64(len(sorted))))-1)]
}

// blueGreen is a database with the tables of an application that knows nothing of Plenum, each with a mirror.
type blueGreen struct {
	*system
	random            *rand.Rand
	rows              int
	database          *proxy
	kills, unanswered int
	held              []time.Duration // by swaps that were not killed
	refused           map[string]int  // commands that gave up, by why
}

func newBlueGreen(t *testing.T, seed uint64, rows int) *blueGreen {
	t.Helper()
	s := newSystemApart(t, func(c *devenv.PostgresConfig) { // as a server is set up that has such tables
		c.Settings["shared_buffers"], c.Settings["max_wal_size"] = sized("64MB", "2GB"), sized("1GB", "8GB")
	})
	b := newBlueGreenOn(t, s, seed)
	b.rows = rows
	b.exec("create sequence orders_id_seq")
	for table, first := range map[string]int{"orders": 0, "orders_archive": -rows} { // a row is archived with its id
		b.exec(fmt.Sprintf(`create table %[1]s (id bigint primary key, at timestamptz not null, state text not null, processed boolean not null default false);
			insert into %[1]s select i, date_trunc('day', now(), 'UTC') - abs(i) %% 200 * interval '1 hour', 'new' from generate_series(%[2]d, %[3]d) i;
			create index on %[1]s (at); alter table %[1]s owner to plenum_owner;
			create table mirror_of_%[1]s (like %[1]s including all); insert into mirror_of_%[1]s select * from %[1]s;
			analyze %[1]s, mirror_of_%[1]s`, table, first, first+rows-1))
	}
	return b
}

// newBlueGreenOn has plenumctl reach the database by way of a proxy.
func newBlueGreenOn(t *testing.T, s *system, seed uint64) *blueGreen {
	t.Helper()
	t.Logf("seed %d", seed)
	b := &blueGreen{system: s, random: rand.New(rand.NewPCG(seed, 0)), refused: map[string]int{}}
	b.database = newProxy(t, b.role("owner"), func() (framer, framer) {
		return &postgresFramer{client: true, all: true, left: -1}, newPostgresFramer(false)
	})
	return b
}

// fault is where a command is killed.
type fault struct {
	since, at event
	after     int
}

// randomFault is at one of the first n messages.
func (b *blueGreen) randomFault(n int) *fault {
	return &fault{at: messageSent, after: b.random.IntN(n)}
}

// run runs a command of bluegreen, which dies at the fault if it comes there.
func (b *blueGreen) run(f *fault, args ...string) (killed bool, code int, stdout, stderr string) {
	b.t.Helper()
	cmd := exec.Command(filepath.Join(bin, "plenumctl"), append([]string{"bluegreen"}, args...)...)
	cmd.Env = []string{"PLENUM_DATABASE_OWNER_URL=" + b.database.url(b.t, b.role("owner"))}
	var out, errs strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Start(); err != nil {
		b.t.Fatal(err)
	}
	if f != nil {
		b.database.lay(&trap{since: f.since, at: f.at, after: f.after, then: func() { _ = cmd.Process.Kill() }})
	}
	_ = cmd.Wait() // the state says more
	b.database.lay(nil)
	killed = cmd.ProcessState.Sys().(syscall.WaitStatus).Signal() == syscall.SIGKILL
	return killed, cmd.ProcessState.ExitCode(), out.String(), errs.String()
}

// survive runs a command that may be killed, and then again until it is done, which its output says with want.
func (b *blueGreen) survive(want string, f *fault, args ...string) (stdout string) {
	b.t.Helper()
	if f != nil {
		killed, code, out, errs := b.run(f, args...)
		switch {
		case killed:
			b.kills++
			if f.since != 0 && f.at == commitDone {
				b.unanswered++
			}
		case code != 0:
			b.giveUp(code, out+errs, args)
		}
	}
	devtest.Eventually(b.t, func() error {
		_, code, out, errs := b.run(nil, args...)
		if code != 0 {
			b.giveUp(code, out+errs, args)
			return fmt.Errorf("bluegreen %s exits %d:\n%s%s", strings.Join(args, " "), code, out, errs)
		}
		if !strings.Contains(out, want) && !strings.Contains(out, "no blue/green migration is under way") {
			b.t.Fatalf("bluegreen %s does not say %q:\n%s%s", strings.Join(args, " "), want, out, errs)
		}
		stdout = out
		return nil
	})
	return stdout
}

// giveUp counts what may end a command beside such writers, and fails for anything else.
func (b *blueGreen) giveUp(code int, text string, args []string) {
	b.t.Helper()
	for _, why := range []string{"another process works on this migration", "gave up after", "grows as fast", "canceling statement due to lock timeout", "no partition manager"} {
		if strings.Contains(text, why) {
			if b.refused[why]++; b.refused[why] == 1 {
				b.t.Logf("bluegreen %s: %s", strings.Join(args, " "), text)
			}
			return
		}
	}
	b.t.Fatalf("bluegreen %s exits %d:\n%s", strings.Join(args, " "), code, text)
}

func (b *blueGreen) refusals() (n int) {
	for _, k := range b.refused {
		n += k
	}
	return n
}

func (b *blueGreen) refusedText() string {
	var list []string
	for why, n := range b.refused {
		list = append(list, fmt.Sprintf("%q %d", why, n))
	}
	slices.Sort(list)
	return strings.Join(list, ", ")
}

// cycle makes the other side the live one, mostly, by a command that is killed once and given again.
func (b *blueGreen) cycle(n int) {
	b.t.Helper()
	to, command := "green", "swap"
	if (b.active() == "green") != (b.random.IntN(8) == 0) { // or it is so already
		to, command = "blue", "rollback"
	}
	args := []string{command, "--output", "json"}
	if b.random.IntN(sized(2, 4)) != 0 {
		args = append(args, "--no-verify")
	}
	var f *fault
	switch n % 4 {
	case 0: // the COMMIT of the swap has happened
		f = &fault{since: alterAsked, at: commitDone}
	case 1:
		f = b.randomFault(160)
	case 2:
		f = &fault{since: alterAsked, at: messageSent, after: b.random.IntN(30)}
	default:
		f = &fault{at: []event{commitDone, commitAsked}[b.random.IntN(2)], after: b.random.IntN(8)}
	}
	b.survive(`"active": "`+to+`"`, f, args...)
	if got := b.active(); got != to {
		b.t.Fatalf("after %s the %s side is the live one", command, got)
	}
	// And back and forth once more as it is meant to be, which tells how long others were held up.
	var s struct {
		Already bool
		Held    time.Duration
	}
	other := map[string]string{"green": "rollback", "blue": "swap"}[to]
	if err := json.Unmarshal([]byte(b.survive(`"held"`, nil, other, "--output", "json", "--no-verify")), &s); err != nil {
		b.t.Fatal(err)
	}
	if !s.Already {
		b.held = append(b.held, s.Held)
	}
}

// active is the side that has the names, all of them.
func (b *blueGreen) active() string {
	b.t.Helper()
	sides := list[struct{ Side string }](b.system, `select distinct case when c.oid = p.blue then 'blue' else 'green' end from bluegreen_pair p
		join pg_class c on c.relname = p.table_name and c.oid in (p.blue, p.green)`)
	if len(sides) != 1 {
		b.t.Fatalf("the live tables are of sides %v", sides)
	}
	return sides[0].Side
}

// same finds two tables the same in one snapshot, in which a transaction of the writers is in both or in none.
func (b *blueGreen) same(one, other string) {
	b.t.Helper()
	const sum = "(select (count(*), sum(hashtextextended(t::text, 0)))::text from %s t)"
	var x, y string
	if err := b.query(fmt.Sprintf("select "+sum+", "+sum, one, other), nil, &x, &y); err != nil {
		b.t.Fatal(err)
	}
	if x == y {
		return
	}
	apart := list[struct{ Side, Row string }](b.system, fmt.Sprintf(`(select %[3]s, t::text from (table %[1]s except all table %[2]s) t limit 5)
		union all (select %[4]s, t::text from (table %[2]s except all table %[1]s) t limit 5)`, one, other, "'only in "+one+"'", "'only in "+other+"'"))
	b.t.Fatalf("%s has %s, %s has %s (count, sum of hashes): %v", one, x, other, y, apart)
}

func (b *blueGreen) mirrored() {
	b.t.Helper()
	b.same("orders", "mirror_of_orders")
	b.same("orders_archive", "mirror_of_orders_archive")
}

// settled finds both sides the same while nobody writes.
func (b *blueGreen) settled() {
	b.t.Helper()
	b.survive("log entries left", nil, "sync")
	b.mirrored()
	b.survive("both sides have the same rows", nil, "verify")
	passive := map[string]string{"blue": "_new", "green": "_old"}[b.active()]
	b.same("orders", "orders"+passive)
	b.same("orders_archive", "orders_archive"+passive)
}

// pgbench writes until it is stopped. Each client has rows of its own, those whose id leaves its number: two that write one row in
// other orders would lock each other out, and the row of a table and that of its mirror are seen by one client alone.
type pgbench struct {
	b      *blueGreen
	cmd    *exec.Cmd
	out    *os.File
	exited chan struct{}
}

const tableScript = `
\set id :client_id + :clients * random(FROM, TO)
\set hours random(0, 190)
\set kind random(1, 100)
begin;
\if :kind <= 35
select :client_id + :clients * nextval('orders_id_seq') as fresh \gset
insert into TABLE (id, at, state) values (:fresh, date_trunc('day', now(), 'UTC') - :hours * interval '1 hour', 'new');
insert into mirror_of_TABLE (id, at, state) values (:fresh, date_trunc('day', now(), 'UTC') - :hours * interval '1 hour', 'new');
\elif :kind <= 60
update TABLE set processed = not processed where id = :id;
update mirror_of_TABLE set processed = not processed where id = :id;
\elif :kind <= 75
delete from TABLE where id = :id;
delete from mirror_of_TABLE where id = :id;
\elif :kind <= 85
update TABLE set at = date_trunc('day', now(), 'UTC') - :hours * interval '1 hour', state = 'moved' where id = :id;
update mirror_of_TABLE set at = date_trunc('day', now(), 'UTC') - :hours * interval '1 hour', state = 'moved' where id = :id;
\elif :kind <= 92
select :client_id + :clients * nextval('orders_id_seq') as fresh \gset
update TABLE set id = :fresh where id = :id;
update mirror_of_TABLE set id = :fresh where id = :id;
\else
select array_agg(:client_id + :clients * (FROM + random() * (TO - (FROM)))::bigint)::text as ids from generate_series(1, 50) \gset
update TABLE set processed = true where id = any (:ids);
update mirror_of_TABLE set processed = true where id = any (:ids);
\endif
commit;
`

// moveScript is the application that archives a row.
const moveScript = `
\set id :client_id + :clients * random(FROM, TO)
begin;
with gone as (delete from orders where id = :id returning *) insert into orders_archive select * from gone;
with gone as (delete from mirror_of_orders where id = :id returning *) insert into mirror_of_orders_archive select * from gone;
commit;
`

func (b *blueGreen) startWriters(clients int) *pgbench {
	b.t.Helper()
	dir := b.t.TempDir()
	b.exec(fmt.Sprintf("select setval('orders_id_seq', %d)", b.rows/clients+1))
	args := []string{"-n", "-M", "prepared", "-c", fmt.Sprint(clients), "-T", "86400", "-D", fmt.Sprintf("clients=%d", clients)}
	args = append(args, sized([]string{"-R", "300"}, nil)...) // other tests have the machine as well
	most := b.rows / clients
	script := func(text, table string, from, to int) string {
		return strings.NewReplacer("TABLE", table, "FROM", fmt.Sprint(from), "TO", fmt.Sprint(to)).Replace(text)
	}
	for name, text := range map[string]string{
		"orders@6":         script(tableScript, "orders", 0, most*13/10),
		"orders_archive@3": script(tableScript, "orders_archive", -most, most*3/10),
		"move@1":           script(moveScript, "", 0, most*13/10),
	} {
		file, _, _ := strings.Cut(filepath.Join(dir, name), "@")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			b.t.Fatal(err)
		}
		args = append(args, "-f", filepath.Join(dir, name))
	}
	out, err := os.Create(filepath.Join(dir, "out"))
	if err != nil {
		b.t.Fatal(err)
	}
	w := &pgbench{b: b, out: out, exited: make(chan struct{}), cmd: exec.Command("pgbench", append(args, b.postgres.URL(b.system.database))...)}
	w.cmd.Stderr = out
	if err := w.cmd.Start(); err != nil {
		b.t.Fatal(err)
	}
	go func() { _ = w.cmd.Wait(); close(w.exited) }()
	b.t.Cleanup(func() { _ = w.cmd.Process.Kill(); <-w.exited; _ = out.Close() })
	return w
}

// alive fails where a client has ended: pgbench tells of an error and goes on with the others.
func (w *pgbench) alive() {
	w.b.t.Helper()
	text, err := os.ReadFile(w.out.Name())
	if err != nil || len(text) > 0 {
		w.b.t.Fatalf("the writers say (%v):\n%s", err, text)
	}
}

// stop ends the writers and returns how many transactions they have made, which each wrote a table and its mirror.
func (w *pgbench) stop() (transactions int) {
	w.b.t.Helper()
	w.alive()
	_ = w.cmd.Process.Kill()
	<-w.exited
	devtest.Eventually(w.b.t, func() error { // the server has to see that they are gone
		if n := w.b.count("pg_stat_activity where application_name = 'pgbench'"); n > 0 {
			return fmt.Errorf("%d sessions of the writers are left", n)
		}
		return nil
	})
	if err := w.b.query("select xact_commit from pg_stat_database where datname = current_database()", nil, &transactions); err != nil {
		w.b.t.Fatal(err)
	}
	return transactions
}
