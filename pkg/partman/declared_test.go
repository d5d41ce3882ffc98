package partman_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"plenum/internal/devenv/devtest"
	"plenum/pkg/partman"
)

// strength orders the lock modes, as a plan and as pg_locks spell them.
var strength = map[string]int{}

func init() {
	for n, mode := range []string{
		"ACCESS SHARE", "ROW SHARE", "ROW EXCLUSIVE", "SHARE UPDATE EXCLUSIVE", "SHARE", "SHARE ROW EXCLUSIVE", "EXCLUSIVE", "ACCESS EXCLUSIVE",
	} {
		strength[mode] = n + 1
		strength[strings.ReplaceAll(pascal(mode), " ", "")+"Lock"] = n + 1
	}
}

func pascal(mode string) string {
	words := strings.Fields(mode)
	for n, w := range words {
		words[n] = w[:1] + strings.ToLower(w[1:])
	}
	return strings.Join(words, " ")
}

// heldSQL lists the locks that a session holds or awaits on tables, views and indexes, but those of the system's catalogs, with the table of an
// index beside it.
const heldSQL = `
select n.nspname || '.' || c.relname, coalesce((select tn.nspname || '.' || t.relname from pg_index x join pg_class t on t.oid = x.indrelid
         join pg_namespace tn on tn.oid = t.relnamespace where x.indexrelid = c.oid), ''), l.mode
  from pg_locks l join pg_class c on c.oid = l.relation join pg_namespace n on n.oid = c.relnamespace
 where l.pid = $1 and l.locktype = 'relation' and n.nspname not in ('pg_catalog', 'pg_toast')`

type held struct {
	relation, table, mode string
}

func locksOf(ctx context.Context, db interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}, pid uint32,
) ([]held, error) {
	rows, err := db.Query(ctx, heldSQL, pid)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (l held, err error) {
		err = row.Scan(&l.relation, &l.table, &l.mode)
		return l, err
	})
}

// declared holds, by relation, the strongest lock that the statements so far have declared.
type declared map[string]int

func (d declared) add(s partman.Statement) {
	for _, on := range s.On {
		d[on] = max(d[on], strength[s.Lock])
	}
}

// excess describes the locks that are stronger than what is declared. An index may be locked as its table is, and what is only
// read need not be named.
func (d declared) excess(all []held, known map[string]bool) (list []string) {
	for _, l := range all {
		if !known[l.relation] {
			continue // made in this transaction, nobody else sees it
		}
		allowed := max(d[l.relation], d[l.table], strength["ACCESS SHARE"])
		if strength[l.mode] > allowed {
			list = append(list, fmt.Sprintf("%s on %s", l.mode, l.relation))
		}
	}
	return list
}

// TestDeclaredLocks carries out every kind of action, statement by statement, and compares the locks that PostgreSQL says are
// held with those that the plan declares. None is stronger, and what a statement declares is true of one relation at least.
func TestDeclaredLocks(t *testing.T) {
	t.Parallel()
	soon := dropping()
	soon.Grace = time.Microsecond
	withID := live()
	withID.Indexes = append(withID.Indexes, partman.Index{Name: "id_idx", Columns: []string{"id"}, OnParent: true, Required: true})
	for name, c := range map[string]struct {
		policies []partman.Policy
		prepare  func(h *house)
		want     []partman.Kind
	}{
		"create": {[]partman.Policy{live(), archive()}, func(*house) {}, []partman.Kind{partman.Create}},
		"archive": {
			[]partman.Policy{live(), archive()},
			func(h *house) { h.oldDay(8, 10) },
			[]partman.Kind{partman.Create, partman.Move},
		},
		"archive that declares more": {
			[]partman.Policy{live(), archive()},
			func(h *house) { h.oldDay(8, 10); h.exec("create index on telemetry_archive (device_id)") },
			[]partman.Kind{partman.Move},
		},
		"detach and drop": {[]partman.Policy{soon}, func(h *house) { h.oldDay(8, 10) }, []partman.Kind{partman.Detach, partman.Drop}},
		"indexes": {[]partman.Policy{live(), archive()}, func(h *house) {
			h.once(partman.CreateLoop)
			h.exec("drop index " + h.partition() + "_identity")
			h.invalidate(h.partition() + "_id_idx")
			h.exec("create index on only telemetry (kind)")
			h.exec("create index mine on " + h.partition() + " (last_modified)")
			h.exec("create index telemetry_id_idx_ccnew on " + h.partition() + " (id)")
			h.invalidate("telemetry_id_idx_ccnew")
			tomorrow := "telemetry_p" + h.today.AddDate(0, 0, 1).Format("20060102")
			h.invalidate(tomorrow + "_identity")
		}, []partman.Kind{partman.Reindex, partman.Analyze}},
		"index of the parent": {[]partman.Policy{withID, archive()}, func(h *house) {
			h.once(partman.CreateLoop)
			h.exec("drop index telemetry_id_idx")
		}, []partman.Kind{partman.Reindex}},
		"parent's index stays invalid": {[]partman.Policy{live(), archive()}, func(h *house) {
			name := h.oldDay(1, 10)
			h.exec("create index on only telemetry (kind)")
			h.once(partman.CreateLoop)
			h.exec("drop table " + name)
			h.exec("update pg_index set indisvalid = false where indexrelid = 'telemetry_kind_idx'::regclass")
		}, []partman.Kind{partman.Reindex}},
		"storage": {[]partman.Policy{live(), archive()}, func(h *house) {
			h.once(partman.CreateLoop)
			h.exec("alter table " + h.partition() + " reset (fillfactor)")
		}, []partman.Kind{partman.Storage, partman.Analyze}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHouse(t, nil, c.policies...)
			c.prepare(h)
			seen := make(map[partman.Kind]bool)
			for range 30 {
				plan, err := h.m.Plan(h.ctx, "telemetry")
				if err != nil {
					t.Fatal(err)
				}
				if len(plan.Actions) == 0 {
					break
				}
				h.compareLocks(plan.Actions[0])
				seen[plan.Actions[0].Kind] = true
			}
			for _, kind := range c.want {
				if !seen[kind] {
					t.Errorf("nothing of kind %q was planned, but %v", kind, seen)
				}
			}
		})
	}
}

// compareLocks carries out an action and compares the locks of each statement.
func (h *house) compareLocks(a partman.Action) {
	h.t.Helper()
	conn, err := h.pool.Acquire(h.ctx)
	if err != nil {
		h.t.Fatal(err)
	}
	defer conn.Release()
	for list := a.Statements; len(list) > 0; {
		if list[0].Tx == 0 {
			if list[0].SQL != "" {
				h.compareOutside(conn, list[0])
			}
			list = list[1:]
			continue
		}
		n := slices.IndexFunc(list, func(s partman.Statement) bool { return s.Tx != list[0].Tx })
		if n < 0 {
			n = len(list)
		}
		h.compareInside(conn, list[:n])
		list = list[n:]
	}
}

func (h *house) compareInside(conn *pgxpool.Conn, list []partman.Statement) {
	h.t.Helper()
	known := h.relations()
	so := make(declared)
	err := pgx.BeginFunc(h.ctx, conn, func(tx pgx.Tx) error {
		for _, s := range list {
			so.add(s)
			if s.SQL == "" {
				continue
			}
			if _, err := tx.Exec(h.ctx, s.SQL); err != nil {
				return fmt.Errorf("%s: %w", s.SQL, err)
			}
			all, err := locksOf(h.ctx, tx, conn.Conn().PgConn().PID())
			if err != nil {
				return err
			}
			h.judge(s, so, all, known)
		}
		return nil
	})
	if err != nil {
		h.t.Fatal(err)
	}
}

func (h *house) judge(s partman.Statement, so declared, all []held, known map[string]bool) {
	h.t.Helper()
	if list := so.excess(all, known); len(list) > 0 {
		h.t.Errorf("%s\nholds %s\ndeclares %s on %v", s.SQL, strings.Join(list, ", "), s.Lock, s.On)
	}
	taken := slices.ContainsFunc(all, func(l held) bool { return slices.Contains(s.On, l.relation) && strength[l.mode] >= strength[s.Lock] })
	if !taken && len(s.On) > 0 && known[s.On[0]] && !contains(s.SQL, "drop table") {
		h.t.Errorf("%s\ndeclares %s on %v, which it has not: %v", s.SQL, s.Lock, s.On, all)
	}
}

// compareOutside holds up the statement by an open transaction, and looks at its locks while it waits: a build for one that has
// written to the table, a sampling for one that has taken its lock on a leaf.
func (h *house) compareOutside(conn *pgxpool.Conn, s partman.Statement) {
	h.t.Helper()
	known := h.relations()
	so := make(declared)
	so.add(s)
	hold := "lock table " + s.On[0] + " in row exclusive mode; select pg_current_xact_id()"
	if contains(s.SQL, "analyze") {
		hold = "lock table " + h.partition() + " in share update exclusive mode"
	}
	writer := h.begin("writer", hold)
	pid := conn.Conn().PgConn().PID()
	done := make(chan error, 1)
	go func() {
		_, err := conn.Exec(h.ctx, s.SQL)
		done <- err
	}()
	devtest.Eventually(h.t, func() error {
		if h.number("select count(*) from pg_locks where pid = $1 and not granted", pid) == 0 {
			return errors.New("the statement does not wait")
		}
		all, err := locksOf(h.ctx, h.pool, pid)
		if err != nil {
			return err
		}
		h.judge(s, so, all, known)
		return nil
	})
	h.rollback(writer)
	if err := <-done; err != nil {
		h.t.Fatalf("%s: %v", s.SQL, err)
	}
}

// relations are the names of those that are there.
func (h *house) relations() map[string]bool {
	h.t.Helper()
	rows, err := h.pool.Query(h.ctx, "select n.nspname || '.' || c.relname from pg_class c join pg_namespace n on n.oid = c.relnamespace where nspname = 'public'")
	if err != nil {
		h.t.Fatal(err)
	}
	list, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		h.t.Fatal(err)
	}
	known := make(map[string]bool)
	for _, name := range list {
		known[name] = true
	}
	return known
}
