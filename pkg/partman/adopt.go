package partman

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// defaultPremake is the premake of an adopted table of which nothing says another.
const defaultPremake = 4

// Adoption is how a table that pg_partman or a person has partitioned would be kept.
type Adoption struct {
	// Policy keeps things as they are, as far as can be told: steps as wide as the partitions, as many ahead, the indexes
	// and storage parameters that each partition has besides its table's. Nothing leaves that has not left so far.
	Policy Policy `json:"policy"`
	// Source says what told premake and retention.
	Source string `json:"source"`
	// Misfits do not fit a policy, or keep it from being carried out.
	Misfits []Misfit `json:"misfits"`
}

// Misfit is one thing that does not fit, with what to do about it.
type Misfit struct {
	Partition string `json:"partition,omitempty"`
	What      string `json:"what"`
	Do        string `json:"do"`
	// Blocks is set where the table cannot be kept before that is done.
	Blocks bool `json:"blocks,omitempty"`
}

// Blocked says that one of the misfits stands in the way.
func (a Adoption) Blocked() bool {
	return slices.ContainsFunc(a.Misfits, func(m Misfit) bool { return m.Blocks })
}

func (a *Adoption) misfit(blocks bool, partition, what, do string) {
	a.Misfits = append(a.Misfits, Misfit{Partition: partition, What: what, Do: do, Blocks: blocks})
}

// Adopt reads how a partitioned table is kept and proposes a policy for it; change, which may be nil, alters the proposal
// before it is examined. Adopt writes nothing: [Register] does, of Adoption.Policy. A table that no policy could keep is an error.
func Adopt(ctx context.Context, db Beginner, schema, table string, change func(*Policy)) (a Adoption, err error) {
	read := func(tx pgx.Tx) (err error) {
		a, err = adopt(ctx, tx, schema, table, change)
		return err
	}
	if err := reading(ctx, db, read); err != nil {
		return a, fmt.Errorf("adopt table %q: %w", schema+"."+table, err)
	}
	var all interface{ Unwrap() []error }
	switch err := Examine(ctx, db, a.Policy); {
	case errors.As(err, &all):
		for _, fault := range all.Unwrap() {
			a.misfit(true, "", fault.Error(), "as it says")
		}
		return a, nil
	case err != nil:
		return a, err
	}
	s, err := Inspect(ctx, db, a.Policy)
	if err != nil {
		return a, err
	}
	for _, f := range Check(a.Policy, s, s.Now) {
		if do := adoptAdvice[f.Code]; do != "" {
			a.misfit(false, f.Partition, f.Detail, do)
		}
	}
	return a, nil
}

// adoptAdvice says what to do about a finding that the table's former keeper is the cause of. Plans mend the others.
var adoptAdvice = map[Code]string{
	OddBounds:       "nothing: it stays until all of it is past retention; what is left of the step beside it gets a partition of its own",
	NotATable:       "nothing, or detach it: it is neither repaired nor retired",
	DetachUnended:   "end it: alter table … detach partition … finalize",
	Overlap:         "take the rows out of one of the two",
	ArchiveNotReady: "mend the archive; until then nothing moves",
	PastRetention:   "mend what it says; until then it stays",
}

// reading runs do in a read-only transaction of one snapshot that prints bounds and definitions by settings of our own.
func reading(ctx context.Context, db Beginner, do func(pgx.Tx) error) (err error) {
	tx, err := db.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, tx.Rollback(context.WithoutCancel(ctx))) }()
	_, err = tx.Exec(ctx, "set local timezone = 'UTC'; set local datestyle = 'ISO, YMD'; set local search_path = pg_catalog; "+
		"set local quote_all_identifiers = off; set local lock_timeout = '1s'")
	if err != nil {
		return err
	}
	return do(tx)
}

func adopt(ctx context.Context, tx pgx.Tx, schema, table string, change func(*Policy)) (a Adoption, err error) {
	f, missing, err := readFacts(ctx, tx, schema, table)
	if err := errors.Join(missing, err); err != nil {
		return a, err
	}
	p := Policy{Schema: schema, Table: table, Premake: defaultPremake}
	if len(f.key) > 0 {
		p.Key = f.key[0]
	}
	if _, faults, err := examineTable(ctx, tx, schema, table, p.Key); err != nil || f.strategy != "r" || len(f.key) != 1 {
		return a, errors.Join(append(faults, err)...)
	}
	leaves, fallback, err := readPartitions(ctx, tx, f.oid)
	if err != nil {
		return a, err
	}
	own, err := readIndexes(ctx, tx, f.oid, leaves)
	if err != nil {
		return a, err
	}
	var now time.Time
	if err := tx.QueryRow(ctx, "select clock_timestamp()").Scan(&now); err != nil {
		return a, err
	}
	a.Policy, a.Source = p, "the partitions"
	a.Policy.Step, a.Policy.Premake = stepOf(leaves, now)
	a.common(own, leaves)
	config, err := readConfig(ctx, tx, schema, table)
	if err != nil {
		return a, fmt.Errorf("read pg_partman's part_config: %w", err)
	}
	if config != nil {
		if err := a.from(ctx, tx, *config, own); err != nil {
			return a, err
		}
	}
	if change != nil {
		change(&a.Policy)
	}
	if a.Policy.Step == "" {
		a.Policy.Step = Day
		a.misfit(true, "", "its partitions are neither of days nor of hours", "say which new ones shall be, --step day or --step hour; those that there are stay as they are")
	}
	if config != nil {
		a.former(*config)
	}
	return a, a.fallback(ctx, tx, fallback.Name, now)
}

// stepOf tells the step from how wide most partitions are, a day by the clocks of any zone, and premake from how many of
// them are ahead. The step is empty where no partition is so wide.
func stepOf(leaves []Partition, now time.Time) (step Step, premake int) {
	count, ahead := make(map[Step]int), make(map[Step]int)
	for _, l := range leaves {
		width := l.To.Sub(l.From)
		switch {
		case l.OpenFrom || l.OpenTo:
			continue
		case width == time.Hour:
			step = Hour
		case width >= 23*time.Hour && width <= 25*time.Hour:
			step = Day
		default:
			continue
		}
		count[step]++
		if l.From.After(now) {
			ahead[step]++
		}
	}
	step = ""
	for _, s := range []Step{Day, Hour} {
		if count[s] > count[step] {
			step = s
		}
	}
	if premake = min(ahead[step], maxPremake); premake == 0 {
		premake = defaultPremake
	}
	return step, premake
}

// common takes over the indexes and storage parameters that each partition has and the table does not declare.
func (a *Adoption) common(own []CatalogIndex, leaves []Partition) {
	plain := slices.DeleteFunc(slices.Clone(leaves), func(l Partition) bool { return l.Kind != "r" })
	if len(plain) == 0 {
		return
	}
	newest := plain[len(plain)-1]
	for _, i := range newest.Indexes {
		everywhere := !slices.ContainsFunc(plain, func(l Partition) bool {
			return !slices.ContainsFunc(l.Indexes, func(c CatalogIndex) bool { return c.Parent == 0 && c.Unique == i.Unique && c.Tail == i.Tail })
		})
		if i.Parent == 0 && everywhere {
			a.index(i, own, "each partition has")
		}
	}
	for k, v := range newest.Options {
		everywhere := !slices.ContainsFunc(plain, func(l Partition) bool { return l.Options[k] != v })
		if everywhere {
			a.store(k, v)
		}
	}
}

func (a *Adoption) store(k, v string) {
	if a.Policy.Storage == nil {
		a.Policy.Storage = make(map[string]string)
	}
	a.Policy.Storage[k] = v
}

var noWord = regexp.MustCompile(`[^a-z0-9_]+`)

// index takes an index over into the policy, or says why that cannot be.
func (a *Adoption) index(c CatalogIndex, own []CatalogIndex, who string) {
	want := Index{Unique: c.Unique, NullsNotDistinct: c.NullsNotDistinct, Columns: c.Columns}
	if c.Method != "btree" {
		want.Method = c.Method
	}
	switch {
	case want.among(own) || slices.ContainsFunc(a.Policy.Indexes, func(i Index) bool { return i.matches(c) }):
		return
	case !c.Plain && slices.ContainsFunc(a.Misfits, func(m Misfit) bool { return strings.Contains(m.What, c.Tail) }):
		return
	case !c.Plain:
		a.misfit(false, "", fmt.Sprintf("%s the index %q, %s, which no policy can say", who, c.Name, c.Tail),
			"create it on the table itself: new partitions lack it otherwise")
		return
	case c.Constraint:
		a.misfit(false, "", fmt.Sprintf("%s %q, a constraint that the table itself does not declare", who, c.Name),
			"nothing: new partitions have a unique index on the same columns in its place")
	}
	word := clip(noWord.ReplaceAllString(strings.ToLower("i_"+strings.Join(c.Columns, "_")), "_"), 17)
	want.Name = word
	for n := 2; slices.ContainsFunc(a.Policy.Indexes, func(i Index) bool { return i.Name == want.Name }); n++ {
		want.Name = fmt.Sprintf("%s_%d", word, n)
	}
	a.Policy.Indexes = append(a.Policy.Indexes, want)
}

// fallback reports a DEFAULT partition, and whether rows in it are in the way of new partitions.
func (a *Adoption) fallback(ctx context.Context, tx pgx.Tx, name string, now time.Time) error {
	if name == "" {
		return nil
	}
	parent, key := ident(a.Policy.Schema, a.Policy.Table), ident(a.Policy.Key)
	var schema string
	const where = `select n.nspname from pg_partitioned_table t join pg_class c on c.oid = t.partdefid join pg_namespace n on n.oid = c.relnamespace
		where t.partrelid = $1::regclass`
	if err := tx.QueryRow(ctx, where, parent).Scan(&schema); err != nil {
		return err
	}
	table := ident(schema, name)
	var any, ahead bool
	// ACCESS SHARE on the DEFAULT partition, for as long as it takes to find one row that is not before this step.
	sql := fmt.Sprintf("select exists (select from %[1]s), exists (select from %[1]s where %[2]s >= $1 or %[2]s is null)", table, key)
	if err := tx.QueryRow(ctx, sql, a.Policy.Step.floor(now)).Scan(&any, &ahead); err != nil {
		return fmt.Errorf("look into the DEFAULT partition: %w", err)
	}
	switch {
	case ahead:
		a.misfit(true, name, "the DEFAULT partition holds rows of now or later, or without a key: no partition can be made for them",
			fmt.Sprintf("detach it, have partitions made, insert the rows again: alter table %s detach partition %s", parent, table))
	case any:
		a.misfit(false, name, "the DEFAULT partition holds rows: each new partition scans it under an exclusive lock, and no retention reaches them",
			fmt.Sprintf("bring its rows elsewhere and remove it: alter table %s detach partition %s", parent, table))
	default:
		a.misfit(false, name, "the DEFAULT partition, which is empty, is locked for each new partition",
			"remove it: drop table "+table)
	}
	return nil
}
