package bluegreen

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"plenum/pkg/partman"
)

// InitOptions says what a migration is of.
type InitOptions struct {
	// Tables are named as partman's: schema.table, or without a schema for Config.Schema.
	Tables []string
	// Key is the column of all of them to partition by, ID the one that tells rows apart: neither need be unique, but an id is never null.
	Key, ID string
	// Accept are names of findings.
	Accept []string
	// Retention is the number of days that green keeps, the current one included; 0 keeps all.
	Retention int
	// Premake is the number of days kept ready; 0 is 7.
	Premake int
}

const defaultPremake = 7

// Init builds green for each table, gives it the days of the data, and begins to capture changes. Called again, it goes on where
// it was killed, and accepts more; it refuses other tables, another key, id, retention or premake. What it finds and nobody has accepted yet is in the report, and
// does not stop it.
func (m *Migration) Init(ctx context.Context, o InitOptions) (report Report, err error) {
	targets, err := o.targets(m.cfg.Schema)
	if err != nil {
		return report, err
	}
	err = m.exclusive(ctx, func(conn *pgx.Conn) error {
		pairs, err := readPairs(ctx, conn, m.cfg.Schema)
		switch {
		case errors.Is(err, ErrNone):
			err = m.locking(ctx, conn, func(tx pgx.Tx) error { return m.plant(ctx, tx, targets, o.Accept) })
		case err == nil:
			report.Resumed = true
			err = m.resume(ctx, conn, targets, pairs, o.Accept)
		}
		if err != nil {
			return err
		}
		m.cfg.Step("green built")
		return m.complete(ctx, conn)
	})
	if err == nil {
		report.Findings, err = m.Findings(ctx)
	}
	return report, err
}

func (o InitOptions) targets(schema string) (list []target, err error) {
	if len(o.Tables) == 0 || o.Key == "" || o.ID == "" {
		return nil, fmt.Errorf("tables %q, key %q, id %q: at least one table, the column to partition by and the one that tells rows apart are needed", o.Tables, o.Key, o.ID)
	}
	if o.Retention < 0 || o.Premake < 0 {
		return nil, fmt.Errorf("retention %d, premake %d: neither can be negative", o.Retention, o.Premake)
	}
	for _, name := range o.Tables {
		inSchema, table, err := partman.ParseName(name, schema)
		if err != nil {
			return nil, err
		}
		t := target{Schema: inSchema, Name: table, Key: o.Key, ID: o.ID, Retention: o.Retention, Premake: o.premake()}
		if slices.Contains(list, t) {
			return nil, fmt.Errorf("table %s is named twice", t.quoted())
		}
		list = append(list, t)
	}
	return list, nil
}

func (o InitOptions) premake() int {
	if o.Premake == 0 {
		return defaultPremake
	}
	return o.Premake
}

// withPolicies, as the comment on bluegreen_pair, says that partition_policy was made by Init, for Abort to remove.
const withPolicies = "partition_policy came with it"

// plant makes the migration's tables, and green of each table, or nothing at all.
func (m *Migration) plant(ctx context.Context, tx pgx.Tx, targets []target, accept []string) error {
	var policies bool
	if err := tx.QueryRow(ctx, "select to_regclass($1) is not null", m.own("partition_policy")).Scan(&policies); err != nil {
		return err
	}
	if err := partman.Install(ctx, tx, m.cfg.Schema); err != nil {
		return err
	}
	if _, err := tx.Exec(ctx, fmt.Sprintf(stateSQL, pgx.Identifier{m.cfg.Schema}.Sanitize())); err != nil {
		return fmt.Errorf("make the migration's tables in schema %q: %w", m.cfg.Schema, err)
	}
	if !policies {
		if _, err := tx.Exec(ctx, fmt.Sprintf("comment on table %s is '%s'", m.own("bluegreen_pair"), withPolicies)); err != nil {
			return err
		}
	}
	var shapes []shape
	var found []Finding
	for _, t := range targets {
		s, list, err := m.look(ctx, tx, t, accept)
		if err != nil {
			return err
		}
		shapes, found = append(shapes, s), append(found, list...)
	}
	if err := refuseUnknown(accept, found); err != nil {
		return err
	}
	if err := refuseHarmful(found); err != nil {
		return err
	}
	if err := refuseWithin(ctx, tx, shapes); err != nil {
		return err
	}
	for n, s := range shapes {
		if err := m.build(ctx, tx, n+1, s, accept); err != nil {
			return err
		}
	}
	return nil
}

// withinSQL is a foreign key from one of these tables to one of them.
const withinSQL = `
select quote_ident(conname), conrelid::regclass::text from pg_constraint
 where contype = 'f' and conparentid = 0 and conrelid = any ($1::oid[]) and confrelid = any ($1::oid[]) order by conname limit 1`

// refuseWithin: rows come to a passive table as they are in the log, and not in the order that such a key asks for.
func refuseWithin(ctx context.Context, tx pgx.Tx, shapes []shape) error {
	var tables []uint32
	for _, s := range shapes {
		tables = append(tables, s.OID)
	}
	var key, table string
	err := tx.QueryRow(ctx, withinSQL, tables).Scan(&key, &table)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look for foreign keys: %w", err)
	}
	return fmt.Errorf("foreign key %[1]s of %[2]s refers to a table of this migration: the new tables cannot have it, and on the old ones it would refuse what the way back writes: alter table %[2]s drop constraint %[1]s", key, table)
}

// lookSQL: a table with our triggers is of another schema's migration.
const lookSQL = `
select c.oid is not null, coalesce(has_table_privilege(c.oid, 'select'), false), to_regclass($2) is not null or to_regclass($3) is not null,
       coalesce((select min(n.nspname) from pg_trigger g join pg_proc f on f.oid = g.tgfoid join pg_namespace n on n.oid = f.pronamespace
         where g.tgrelid = c.oid and starts_with(g.tgname, $4)), '')
  from to_regclass($1) c (oid)`

// look reads one table under ACCESS SHARE, and refuses it where no green can be made.
func (m *Migration) look(ctx context.Context, tx pgx.Tx, t target, accept []string) (s shape, found []Finding, err error) {
	var there, readable, taken bool
	var of string
	err = tx.QueryRow(ctx, lookSQL, t.quoted(), pgx.Identifier{t.Schema, passiveName(t.Name, Green)}.Sanitize(), pgx.Identifier{t.Schema, passiveName(t.Name, Blue)}.Sanitize(), triggerPrefix).
		Scan(&there, &readable, &taken, &of)
	switch {
	case err != nil:
		return s, nil, fmt.Errorf("look for table %s: %w", t.quoted(), err)
	case !there:
		return s, nil, fmt.Errorf("there is no table %s", t.quoted())
	case of != "":
		return s, nil, fmt.Errorf("%s is of a migration that is under way in schema %q: finish or abort that one first, with database.schema set to it", t.quoted(), of)
	case taken:
		return s, nil, fmt.Errorf("%q or %q is there already in schema %q, and the other side of %s needs the names: rename it, or drop it",
			passiveName(t.Name, Green), passiveName(t.Name, Blue), t.Schema, t.quoted())
	}
	if readable { // else readShape says why not, before it reads a row
		if _, err := tx.Exec(ctx, fmt.Sprintf("lock table %s in access share mode", t.quoted())); err != nil {
			return s, nil, fmt.Errorf("lock table %s: %w", t.quoted(), err)
		}
	}
	if s, err = readShape(ctx, tx, t); err != nil {
		return s, nil, err
	}
	if !slices.ContainsFunc(s.Indexes, func(i index) bool { return i.LeadsByID }) {
		return s, nil, fmt.Errorf("%s has no index on its id: each changed row would be searched in all of it; create index concurrently on %s (%s)",
			t.quoted(), t.quoted(), pgx.Identifier{t.ID}.Sanitize())
	}
	if err := s.namesFree(ctx, tx); err != nil {
		return s, nil, err
	}
	found, err = s.findings(ctx, tx, accept)
	return s, found, err
}

const takenSQL = `select coalesce(min(c.relname), '') from pg_class c join pg_namespace n on n.oid = c.relnamespace where n.nspname = $1 and c.relname = any ($2)`

// namesFree refuses where an index or a sequence has no name for its other side, or would find it taken at the swap.
func (s shape) namesFree(ctx context.Context, tx pgx.Tx) error {
	var names []string
	for _, i := range s.Indexes {
		names = append(names, i.Name)
	}
	for _, q := range s.Sequences {
		names = append(names, q.Name)
	}
	whose := map[string]string{}
	for _, name := range names {
		for _, side := range []Side{Blue, Green} {
			other := passiveName(name, side)
			if of, twice := whose[other]; twice {
				return fmt.Errorf("%q and %q of %s would both be called %q on the other side, where names end at %d bytes: rename one", of, name, s.quoted(), other, maxName)
			}
			whose[other] = name
		}
	}
	var taken string
	if err := tx.QueryRow(ctx, takenSQL, s.Schema, slices.Collect(maps.Keys(whose))).Scan(&taken); err != nil {
		return fmt.Errorf("look for the names of the other side of %s: %w", s.quoted(), err)
	}
	if taken != "" {
		return fmt.Errorf("%q is there already in schema %q, and the other side of %q of %s needs the name: rename one of them", taken, s.Schema, whose[taken], s.quoted())
	}
	return nil
}

const resumeSQL = `select n, retention, premake, accepted from %s order by n`

// resume refuses what differs from the migration that is under way, and accepts what it did not before.
func (m *Migration) resume(ctx context.Context, conn *pgx.Conn, targets []target, pairs []Pair, accept []string) error {
	var have, want []string
	kept := make(map[int]target)
	rows, err := conn.Query(ctx, fmt.Sprintf(resumeSQL, m.own("bluegreen_pair")))
	if err != nil {
		return err
	}
	var n int
	var t target
	var accepted []string
	if _, err := pgx.ForEachRow(rows, []any{&n, &t.Retention, &t.Premake, &accepted}, func() error { kept[n] = t; return nil }); err != nil {
		return err
	}
	for _, p := range pairs {
		t := kept[p.N]
		t.Schema, t.Name, t.Key, t.ID = p.Schema, p.Name, p.Key, p.ID
		have = append(have, t.String())
	}
	for _, t := range targets {
		want = append(want, t.String())
	}
	if !slices.Equal(have, want) {
		return fmt.Errorf("a migration of %s is under way, and this is one of %s: finish or abort that one first", strings.Join(have, "; "), strings.Join(want, "; "))
	}
	var found []Finding
	for _, p := range pairs {
		if err := m.placed(ctx, conn, p); err != nil {
			return err
		}
		err := m.reading(ctx, func(tx pgx.Tx) error {
			list, err := m.pairFindings(ctx, tx, p)
			found = append(found, list...)
			return err
		})
		if err != nil {
			return err
		}
	}
	unknown := slices.DeleteFunc(slices.Clone(accept), func(name string) bool { return slices.Contains(accepted, name) })
	if err := refuseUnknown(unknown, found); err != nil {
		return err
	}
	_, err = conn.Exec(ctx, fmt.Sprintf("update %s set accepted = array (select distinct unnest(accepted || coalesce($1::text[], array[]::text[])) order by 1)", m.own("bluegreen_pair")), accept)
	return err
}

func (t target) String() string {
	return fmt.Sprintf("%s by %s with id %s, retention %d and premake %d", t.quoted(), t.Key, t.ID, t.Retention, t.Premake)
}

// complete does what is left after green was built: each step is nothing where it was done.
func (m *Migration) complete(ctx context.Context, conn *pgx.Conn) error {
	pairs, err := readPairs(ctx, conn, m.cfg.Schema)
	if err != nil {
		return err
	}
	for _, p := range pairs {
		var captured bool
		if err := conn.QueryRow(ctx, fmt.Sprintf("select captured_at is not null from %s where n = $1", m.own("bluegreen_pair")), p.N).Scan(&captured); err != nil {
			return err
		}
		if captured {
			continue
		}
		policy, err := m.manage(ctx, conn, pairs, p)
		if err != nil {
			return err
		}
		m.cfg.Step("policy registered")
		if err := m.makeDays(ctx, p, policy); err != nil {
			return fmt.Errorf("make the partitions of %s: %w", p.table(Green), err)
		}
		m.cfg.Step("partitions made")
		if err := m.locking(ctx, conn, func(tx pgx.Tx) error { return m.createCapture(ctx, tx, p) }); err != nil {
			return err
		}
		// Green first: nobody else writes there, and the log must be there before blue's triggers.
		for _, side := range []Side{Green, Blue} {
			if err := m.capture(ctx, conn, p, side, false); err != nil {
				return err
			}
			m.cfg.Step("captured " + string(side))
		}
		if _, err := conn.Exec(ctx, fmt.Sprintf("update %s set captured_at = clock_timestamp() where n = $1", m.own("bluegreen_pair")), p.N); err != nil {
			return err
		}
	}
	return nil
}

// makeDays has partman create the days from Low on, which no policy that keeps all asks for by itself. Another instance may be
// at work in the same tables.
func (m *Migration) makeDays(ctx context.Context, p Pair, policy partman.Policy) error {
	manager, err := partman.New(partman.Config{Pool: m.cfg.Pool, Schema: m.cfg.Schema, Log: m.cfg.Log, LockTimeout: m.cfg.LockTimeout})
	if err != nil {
		return err
	}
	var now time.Time
	if err := m.cfg.Pool.QueryRow(ctx, "select now()").Scan(&now); err != nil {
		return err
	}
	today := now.UTC().Truncate(24 * time.Hour)
	for day := p.Low; ; day = day.AddDate(0, 0, policy.Premake+1) { // a plan has the premade days, too
		if day.After(today) {
			day = today // no plan may be of the future
		}
		if err := m.makeDay(ctx, manager, policy, day); err != nil || day.Equal(today) {
			return err
		}
	}
}

func (m *Migration) makeDay(ctx context.Context, manager *partman.Manager, policy partman.Policy, day time.Time) error {
	for try := 1; ; try++ {
		s, err := partman.Inspect(ctx, m.cfg.Pool, policy)
		if err != nil {
			return err
		}
		plan := partman.NewPlan(policy, s, day)
		plan.Actions = slices.DeleteFunc(plan.Actions, func(a partman.Action) bool { return a.Kind != partman.Create })
		_, err = manager.Apply(ctx, plan)
		if err == nil || try == lockTries || !errors.Is(err, partman.ErrBusy) && !errors.Is(err, partman.ErrChanged) {
			return err
		}
		if err := pause(ctx, 500*time.Millisecond); err != nil {
			return err
		}
	}
}
