package bluegreen

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// target is what Init is to make of one table.
type target struct {
	Schema, Name string
	Key, ID      string
	Retention    int // days, the current one included; 0 keeps all
	Premake      int
	Low, High    time.Time // zero before they are chosen
}

func (t target) quoted() string { return pgx.Identifier{t.Schema, t.Name}.Sanitize() }

// shape is blue as the catalog has it, and what its keys span.
type shape struct {
	target
	OID               uint32
	Kind, Persistence string // as in pg_class
	Owner             string
	Owned             bool // the role may act as the owner
	Heir, Parent      bool // another table inherits from it; it inherits from another
	Published         bool
	Subscribed        bool   // a subscription writes it
	Foreign           bool   // a partition of it is a foreign table
	NoInherit         bool   // it has a check that is marked so, which LIKE cannot carry to a partitioned table
	Tablespace        string // "" is the default
	Identity          string // of the replica, pg_class.relreplident
	Storage           []string
	KeyType, IDType   string // "" where there is no such column
	IDFuzzy           bool   // ids that are not the same to the byte may be equal, or how they are compared is an extension's
	IDNotNull         bool
	KeyGenerated      bool

	Now      time.Time // of the database, in UTC
	Rows     int64
	NullKeys int64
	Endless  int64 // rows of which the key is infinite
	First    *time.Time
	Before   int64 // finite keys before low
	After    int64 // finite keys from high on

	Indexes   []index
	Sequences []sequence
	Triggers  []trigger
}

// index is one of blue.
type index struct {
	OID        uint32
	Name       string
	Unique     bool
	Exclusion  bool
	Constraint string // the clause of the primary key or unique constraint that it is of, but for when it is checked
	Deferred   string // that, empty for at once
	Options    string // of its storage, as WITH takes them
	Tablespace string // "" is the default
	Comment    string // of the constraint, or else of the index
	Targets    bool   // an expression of it has a statistics target
	Tail       string // of its definition: what follows the table's name
	HasKey     bool   // the key column is one of its columns
	LeadsByID  bool   // a b-tree of all rows, the id column first
	OnlyID     bool   // and no column besides
}

// carries says that green's index can be what blue's is, and not only serve the same statements.
func (i index) carries() bool { return !i.Unique || i.HasKey }

func (i index) with() string {
	if i.Options == "" {
		return ""
	}
	return " with (" + i.Options + ")"
}

// sequence is that of an identity column.
type sequence struct {
	OID          uint32
	Name, Column string
}

// trigger is one that the application has made.
type trigger struct {
	Name, Definition, On string // On is the part of the definition that names the table
	Enabled              string
	Fits                 bool // a partitioned table can have it
	NamesTable           bool // it runs for each row and asks for the table's name, which is then the partition's
	SetsKey              bool // it runs before a row is written and sets the key, by which the row's partition is chosen before
}

const shapeSQL = `
select c.oid, c.relkind::text, c.relpersistence::text, pg_get_userbyid(c.relowner), pg_has_role(c.relowner, 'usage'),
       exists (select from pg_inherits i where i.inhparent = c.oid and c.relkind = 'r'),
       exists (select from pg_inherits i where i.inhrelid = c.oid),
       exists (select from pg_publication_tables p where (p.schemaname, p.tablename) = (n.nspname, c.relname)),
       exists (select from pg_subscription_rel r where r.srrelid = c.oid or r.srrelid in (select t.relid from pg_partition_tree(c.oid) t)),
       exists (select from pg_partition_tree(c.oid) t join pg_class f on f.oid = t.relid where f.relkind = 'f'),
       exists (select from pg_constraint k where k.conrelid = c.oid and k.contype = 'c' and k.connoinherit),
       coalesce(t.spcname, ''), c.relreplident::text,
       coalesce((select l.reloptions from pg_class l where l.oid = case when c.relkind = 'r' then c.oid else
         (select max(r.relid::oid) from pg_partition_tree(c.oid) r where r.isleaf) end), '{}'),
       coalesce(format_type(k.atttypid, null), ''), coalesce(case when it.oid is null then '' when it.typnamespace = 'pg_catalog'::regnamespace then format_type(i.atttypid, -1)
         else format('%s.%I', it.typnamespace::regnamespace, it.typname) end, ''),
       coalesce(not ic.collisdeterministic, false) or coalesce(coalesce(bt.typcategory, it.typcategory) = 'A' or coalesce(bt.typtype, it.typtype) <> 'e'
         and coalesce(bt.typnamespace, it.typnamespace) <> 'pg_catalog'::regnamespace, false),
       coalesce(i.attnotnull, false), coalesce(k.attgenerated <> '', false), now()
  from pg_class c join pg_namespace n on n.oid = c.relnamespace
  left join pg_tablespace t on t.oid = c.reltablespace
  left join pg_attribute k on k.attrelid = c.oid and k.attname = $3 and k.attnum > 0 and not k.attisdropped
  left join pg_attribute i on i.attrelid = c.oid and i.attname = $4 and i.attnum > 0 and not i.attisdropped
  left join pg_type it on it.oid = i.atttypid
  left join pg_type bt on bt.oid = it.typbasetype
  left join pg_collation ic on ic.oid = i.attcollation
 where n.nspname = $1 and c.relname = $2`

// spanMark tells spanSQL in pg_stat_statements from the application's.
const spanMark = "/* plenum bluegreen */"

// spanSQL is one pass over the table. A key is compared as timestamptz in UTC, whether it is that or a date.
const spanSQL = `
select ` + spanMark + ` count(*), count(*) filter (where %[1]s is null), count(*) filter (where not isfinite(%[1]s)),
       min(%[1]s::timestamptz) filter (where isfinite(%[1]s) and ($1::timestamptz is null or %[1]s >= $1) and %[1]s < $2::timestamptz),
       count(*) filter (where isfinite(%[1]s) and %[1]s < $1::timestamptz), count(*) filter (where isfinite(%[1]s) and %[1]s >= $2::timestamptz)
  from %[2]s`

const indexesSQL = `
select x.indexrelid, ic.relname, x.indisunique, x.indisexclusion,
       coalesce(regexp_replace(pg_get_constraintdef(k.oid), '( DEFERRABLE)?( INITIALLY DEFERRED)?$', ''), ''),
       concat(case when k.condeferrable then ' deferrable' end, case when k.condeferred then ' initially deferred' end),
       (select coalesce(string_agg(split_part(o, '=', 1) || ' = ' || quote_literal(substr(o, 2 + length(split_part(o, '=', 1)))), ', '), '') from unnest(ic.reloptions) o),
       coalesce(s.spcname, ''), coalesce(obj_description(k.oid, 'pg_constraint'), obj_description(ic.oid, 'pg_class'), ''),
       exists (select from pg_attribute a where a.attrelid = ic.oid and coalesce(a.attstattarget, -1) >= 0),
       substr(pg_get_indexdef(x.indexrelid), 1 + length(format('CREATE %sINDEX %I ON %s%I.%I ',
         case when x.indisunique then 'UNIQUE ' else '' end, ic.relname,
         case when ic.relkind = 'I' then 'ONLY ' else '' end, n.nspname, c.relname))),
       exists (select from pg_attribute a where a.attrelid = c.oid and a.attname = $2 and a.attnum = any (x.indkey[0:x.indnkeyatts-1])),
       x.indpred is null and am.amname = 'btree' and coalesce((select a.attname = $3 from pg_attribute a where a.attrelid = c.oid and a.attnum = x.indkey[0]), false),
       x.indnkeyatts = 1 and coalesce((select a.attname = $3 from pg_attribute a where a.attrelid = c.oid and a.attnum = x.indkey[0]), false)
  from pg_index x
  join pg_class ic on ic.oid = x.indexrelid
  join pg_am am on am.oid = ic.relam
  left join pg_tablespace s on s.oid = ic.reltablespace
  join pg_class c on c.oid = x.indrelid
  join pg_namespace n on n.oid = c.relnamespace
  left join pg_constraint k on k.conindid = x.indexrelid and k.conrelid = c.oid and k.contype in ('p', 'u')
 where x.indrelid = $1 and x.indisvalid and x.indislive
 order by ic.relname`

const sequencesSQL = `
select s.oid, s.relname, a.attname
  from pg_depend d
  join pg_class s on s.oid = d.objid and s.relkind = 'S'
  join pg_attribute a on a.attrelid = d.refobjid and a.attnum = d.refobjsubid
 where d.classid = 'pg_class'::regclass and d.refclassid = 'pg_class'::regclass and d.refobjid = $1 and d.deptype = 'i'
 order by a.attnum`

const triggersSQL = `
select g.tgname, pg_get_triggerdef(g.oid), format(' ON %I.%I ', n.nspname, c.relname), g.tgenabled::text,
       g.tgtype & 1 = 0 or (g.tgoldtable is null and g.tgnewtable is null),
       g.tgtype & 1 = 1 and f.prosrc ~* '\mtg_(table_name|relname|relid)\M',
       g.tgtype & 3 = 3 and strpos(lower(regexp_replace(f.prosrc, '[[:space:]":]', '', 'g')), lower('new.' || $3::text || '=')) > 0
  from pg_trigger g join pg_proc f on f.oid = g.tgfoid join pg_class c on c.oid = g.tgrelid join pg_namespace n on n.oid = c.relnamespace
 where g.tgrelid = $1 and not g.tgisinternal and not starts_with(g.tgname, $2)
 order by g.tgname`

// readShape reads blue from the catalog, and its keys from its rows: one scan of the table. The caller's transaction holds ACCESS
// SHARE on it, so that nobody alters it meanwhile.
func readShape(ctx context.Context, tx pgx.Tx, t target) (s shape, err error) {
	s.target = t
	err = tx.QueryRow(ctx, shapeSQL, t.Schema, t.Name, t.Key, t.ID).Scan(&s.OID, &s.Kind, &s.Persistence, &s.Owner, &s.Owned,
		&s.Heir, &s.Parent, &s.Published, &s.Subscribed, &s.Foreign, &s.NoInherit, &s.Tablespace, &s.Identity, &s.Storage, &s.KeyType, &s.IDType, &s.IDFuzzy,
		&s.IDNotNull, &s.KeyGenerated, &s.Now)
	if errors.Is(err, pgx.ErrNoRows) {
		return s, fmt.Errorf("there is no table %s", t.quoted())
	}
	if err != nil {
		return s, fmt.Errorf("look at table %s: %w", t.quoted(), err)
	}
	s.Now = s.Now.UTC()
	if err := s.impossible(); err != nil {
		return s, err
	}
	if err := s.readSpan(ctx, tx); err != nil {
		return s, fmt.Errorf("read the keys of %s: %w", t.quoted(), err)
	}
	if err := s.readParts(ctx, tx); err != nil {
		return s, fmt.Errorf("look at what belongs to table %s: %w", t.quoted(), err)
	}
	return s, nil
}

// readSpan chooses the days that green has: from the oldest row that the retention keeps to the last premade day. Where they are
// chosen already it only counts.
func (s *shape) readSpan(ctx context.Context, tx pgx.Tx) error {
	key := pgx.Identifier{s.Key}.Sanitize()
	if !s.Low.IsZero() {
		return s.count(ctx, tx, key, &s.Low)
	}
	today := s.Now.Truncate(24 * time.Hour)
	s.High = today.AddDate(0, 0, s.Premake+1)
	var from *time.Time
	if s.Retention > 0 {
		boundary := today.AddDate(0, 0, 1-s.Retention)
		from = &boundary
	}
	if err := s.count(ctx, tx, key, from); err != nil {
		return err
	}
	s.Low = today
	if s.First != nil && s.First.Before(today) {
		s.Low = s.First.UTC().Truncate(24 * time.Hour)
	}
	return nil
}

func (s *shape) count(ctx context.Context, tx pgx.Tx, key string, from *time.Time) error {
	return tx.QueryRow(ctx, fmt.Sprintf(spanSQL, key, s.quoted()), from, s.High).
		Scan(&s.Rows, &s.NullKeys, &s.Endless, &s.First, &s.Before, &s.After)
}

func (s *shape) readParts(ctx context.Context, tx pgx.Tx) error {
	rows, err := tx.Query(ctx, indexesSQL, s.OID, s.Key, s.ID)
	if err != nil {
		return err
	}
	if s.Indexes, err = pgx.CollectRows(rows, pgx.RowToStructByPos[index]); err != nil {
		return err
	}
	if rows, err = tx.Query(ctx, sequencesSQL, s.OID); err != nil {
		return err
	}
	if s.Sequences, err = pgx.CollectRows(rows, pgx.RowToStructByPos[sequence]); err != nil {
		return err
	}
	if rows, err = tx.Query(ctx, triggersSQL, s.OID, triggerPrefix, s.Key); err != nil {
		return err
	}
	s.Triggers, err = pgx.CollectRows(rows, pgx.RowToStructByPos[trigger])
	return err
}

// impossible says why no green can be made of this table; each reason with what to do.
func (s *shape) impossible() error {
	var faults []error
	bad := func(format string, args ...any) { faults = append(faults, fmt.Errorf(format, args...)) }
	table := s.quoted()
	switch {
	case s.Kind != "r" && s.Kind != "p":
		bad("%s is no table (relkind %q)", table, s.Kind)
	case s.Persistence != "p":
		bad("%s is temporary or unlogged, which a partitioned table cannot be: alter table %s set logged", table, table)
	case s.Parent:
		bad("%s inherits from another table or is its partition: name that one, or detach it", table)
	case s.Heir:
		bad("other tables inherit from %s: their rows seem to be in it and cannot be captured; alter each with no inherit %s first", table, table)
	}
	if s.Subscribed {
		bad("a subscription writes %s, and fires no trigger for each statement, so that nothing tells what it writes: migrate the table that it is published from, or drop the subscription", table)
	}
	if s.Foreign {
		bad("a partition of %s is a foreign table, whose rows are not on this server: detach it", table)
	}
	if !s.Owned {
		bad("the role is not the owner of %s: connect as %q, or have it made a member: grant %s to this role", table, s.Owner, pgx.Identifier{s.Owner}.Sanitize())
	}
	switch {
	case s.KeyType == "":
		bad("%s has no column %q to be partitioned by", table, s.Key)
	case s.KeyType == "timestamp without time zone":
		bad("key %q of %s is a timestamp without time zone, of which nobody can tell the instant: alter table %s alter column %s type timestamptz using %s at time zone 'UTC', with the zone that the application means",
			s.Key, table, table, pgx.Identifier{s.Key}.Sanitize(), pgx.Identifier{s.Key}.Sanitize())
	case s.KeyType != "timestamp with time zone" && s.KeyType != "date":
		bad("key %q of %s is %s: timestamptz or date is needed", s.Key, table, s.KeyType)
	case s.KeyGenerated:
		bad("key %q of %s is a generated column, by which no table can be partitioned: name the column that it is made from", s.Key, table)
	}
	switch {
	case s.IDType == "":
		bad("%s has no column %q to tell its rows apart", table, s.ID)
	case s.IDFuzzy:
		bad("id %q of %s is of a type whose values may be equal and yet not the same, as citext or with a collation that is not deterministic, or of an array or an extension's: name another column", s.ID, table)
	case !s.IDNotNull:
		bad("id %q of %s may be null, and such rows cannot be followed: alter table %s alter column %s set not null", s.ID, table, table, pgx.Identifier{s.ID}.Sanitize())
	}
	return errors.Join(faults...)
}
