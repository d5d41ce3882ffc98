package partman

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"

	"github.com/jackc/pgx/v5"
)

// config is a table's line in pg_partman's part_config; releases 4 and 5 have these columns in common.
type config struct {
	schema, parent, interval string
	width                    float64 // of the interval, seconds
	premake                  int
	retention                string
	kept                     float64 // seconds; a month counts 31 days
	movesTo                  string  // retention_schema
	keeps                    bool    // detaches and does not drop
	template                 string
	automatic                bool
}

const configsSQL = `
select n.nspname from pg_class c join pg_namespace n on n.oid = c.relnamespace
 where c.relname = 'part_config' and c.relkind = 'r' and 8 = (select count(*) from pg_attribute a where a.attrelid = c.oid and a.attname in (
       'parent_table', 'partition_interval', 'premake', 'retention', 'retention_schema', 'retention_keep_table', 'template_table', 'automatic_maintenance'))
 order by 1`

const configSQL = `
select parent_table, partition_interval, extract(epoch from partition_interval::interval)::float8, premake, coalesce(retention, ''),
       coalesce(extract(epoch from r - date_trunc('month', r)) + (extract(year from r) * 12 + extract(month from r)) * 31 * 86400, 0)::float8,
       coalesce(retention_schema, ''), retention_keep_table, coalesce(template_table, ''), automatic_maintenance = 'on'
  from %s, cast(retention as interval) r
 where parent_table = $1`

// readConfig returns pg_partman's settings of the table, nil where it has none.
func readConfig(ctx context.Context, tx pgx.Tx, schema, table string) (*config, error) {
	rows, err := tx.Query(ctx, configsSQL)
	if err != nil {
		return nil, err
	}
	schemas, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, err
	}
	for _, s := range schemas {
		c := config{schema: s}
		err := tx.QueryRow(ctx, fmt.Sprintf(configSQL, ident(s, "part_config")), schema+"."+table).Scan(
			&c.parent, &c.interval, &c.width, &c.premake, &c.retention, &c.kept, &c.movesTo, &c.keeps, &c.template, &c.automatic)
		if !errors.Is(err, pgx.ErrNoRows) {
			return &c, err
		}
	}
	return nil, nil
}

// from takes pg_partman's settings over.
func (a *Adoption) from(ctx context.Context, tx pgx.Tx, c config, own []CatalogIndex) error {
	a.Source = fmt.Sprintf("part_config of pg_partman in schema %q", c.schema)
	a.Policy.Step = ""
	for _, s := range []Step{Day, Hour} {
		if c.width == s.width().Seconds() {
			a.Policy.Step = s
		}
	}
	a.Policy.Premake = min(c.premake, maxPremake)
	if c.retention != "" && !c.keeps && c.movesTo == "" && a.Policy.Step != "" {
		// It drops what ended longer ago than that, and so keeps the step of that instant and all after it.
		a.Policy.Retention = int(math.Ceil(c.kept/a.Policy.Step.width().Seconds())) + 1
		a.Policy.Expired = ExpiredDrop
	}
	return a.template(ctx, tx, c, own)
}

const templateSQL = `
select c.oid, coalesce(c.reloptions, '{}') from pg_class c join pg_namespace n on n.oid = c.relnamespace
 where n.nspname || '.' || c.relname = $1`

// template takes over what pg_partman's template table gives new partitions.
func (a *Adoption) template(ctx context.Context, tx pgx.Tx, c config, own []CatalogIndex) error {
	var oid uint32
	var options []string
	err := tx.QueryRow(ctx, templateSQL, c.template).Scan(&oid, &options)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("template table: %w", err)
	}
	indexes, err := readIndexes(ctx, tx, oid, nil)
	if err != nil {
		return fmt.Errorf("template table: %w", err)
	}
	for _, i := range indexes {
		a.index(i, own, fmt.Sprintf("pg_partman's template %s has", c.template))
	}
	for _, o := range options {
		k, v, _ := strings.Cut(o, "=")
		a.store(k, v)
	}
	return nil
}

// former says what is to be done about pg_partman itself.
func (a *Adoption) former(c config) {
	line := fmt.Sprintf("%s where parent_table = %s", ident(c.schema, "part_config"), quote(c.parent))
	if c.automatic {
		a.misfit(true, "", "pg_partman keeps it still: its background worker and run_maintenance() make and remove partitions, with locks that stop writers",
			"take it from pg_partman, which is undone by 'on': update "+strings.Replace(line, " where", " set automatic_maintenance = 'off' where", 1))
	} else {
		a.misfit(false, "", "pg_partman knows it still, and leaves it alone unless run_maintenance is called with its name",
			"once all is well: delete from "+line)
	}
	if c.retention == "" || a.Policy.Retention > 0 {
		return
	}
	does := "detaches what is older than " + c.retention + " and leaves it as a table"
	if c.movesTo != "" {
		does = "moves what is older than " + c.retention + " to schema " + ident(c.movesTo)
	}
	a.misfit(false, "", "pg_partman "+does+", which no policy can say",
		"say what shall become of it, --retention N with --expired archive --archive-table T or with --expired drop; without, everything is kept")
}
