package store

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// A Right is a privilege that a program needs.
type Right struct {
	Privilege string // select, insert, update, delete, usage
	Object    string // table or sequence
	Column    string // update of one column; empty for the whole table
}

func (r Right) grant(schema, role string) string {
	privilege, object := r.Privilege, r.Object
	if schema != "public" {
		object = quoteIdent(schema) + "." + object
	}
	switch {
	case r.Column != "":
		privilege += " (" + r.Column + ")"
	case r.Privilege == "usage":
		object = "sequence " + object
	}
	return fmt.Sprintf("grant %s on %s to %s;", privilege, object, quoteIdent(role))
}

// IngestRights is what the ingest path needs.
func IngestRights() []Right {
	return []Right{
		{"insert", "telemetry", ""},
		{"select", "telemetry", ""},
		{"insert", "telemetry_batch", ""},
		{"insert", "telemetry_quarantine", ""},
		{"select", "mqtt_session", ""},
		{"insert", "mqtt_session", ""},
		{"update", "mqtt_session", ""},
		{"select", "ingest_account", ""},
		{"insert", "ingest_account", ""},
		{"update", "ingest_account", ""},
		{"usage", "telemetry_id_seq", ""},
		{"usage", "telemetry_batch_id_seq", ""},
		{"usage", "telemetry_quarantine_id_seq", ""},
	}
}

// SyncRights is what the sync worker and the feed need.
func SyncRights() []Right {
	return []Right{
		{"select", "telemetry", ""},
		{"update", "telemetry", "processed"},
		{"select", "telemetry_all", ""},
		{"select", "telemetry_batch", ""},
		{"insert", "telemetry_batch", ""},
		{"update", "telemetry_batch", "processed_at"},
		{"update", "telemetry_batch", "feed_position"},
		{"update", "telemetry_batch", "attempts"},
		{"update", "telemetry_batch", "set_aside_at"},
		{"update", "telemetry_batch", "detail"},
		{"select", "feed_consumer", ""},
		{"insert", "feed_consumer", ""},
		{"update", "feed_consumer", ""},
		{"delete", "feed_consumer", ""},
		{"select", "feed_horizon", ""},
		{"select", "feed_dead_letter", ""},
		{"insert", "feed_dead_letter", ""},
		{"update", "feed_dead_letter", ""},
		{"delete", "feed_dead_letter", ""},
		{"usage", "telemetry_batch_id_seq", ""},
		{"usage", "telemetry_feed_position_seq", ""},
	}
}

// CheckRights returns a SetupError naming the GRANT for each right that the pool's role lacks.
func CheckRights(ctx context.Context, pool *pgxpool.Pool, rights []Right) error {
	const q = `select current_user, current_schema(), case
			when privilege = 'usage' then has_sequence_privilege(object, 'usage')
			when col <> '' then has_column_privilege(object, col, privilege)
			else has_table_privilege(object, privilege) end
		from unnest($1::text[], $2::text[], $3::text[]) with ordinality as r(privilege, object, col, n) order by n`
	privileges, objects, columns := make([]string, len(rights)), make([]string, len(rights)), make([]string, len(rights))
	for i, r := range rights {
		privileges[i], objects[i], columns[i] = r.Privilege, r.Object, r.Column
	}
	rows, err := pool.Query(ctx, q, privileges, objects, columns)
	if err != nil {
		return fmt.Errorf("check rights: %w", err)
	}
	var missing []string
	var role, schema string
	var ok bool
	n := 0
	_, err = pgx.ForEachRow(rows, []any{&role, &schema, &ok}, func() error {
		if !ok {
			missing = append(missing, rights[n].grant(schema, role))
		}
		n++
		return nil
	})
	if err != nil {
		return fmt.Errorf("check rights: %w", err)
	}
	if len(missing) > 0 {
		return &SetupError{Reason: "the database role lacks rights; as the owner run: " + strings.Join(missing, " "), Right: true}
	}
	return nil
}

// CheckOwner returns a SetupError if the pool's role may not create in the schema, or does not own the tables there.
func CheckOwner(ctx context.Context, pool *pgxpool.Pool, schema string) error {
	const q = `select current_user, has_schema_privilege(current_user, $1, 'create'), coalesce((
		select pg_get_userbyid(relowner) from pg_class
		where oid = to_regclass('telemetry') and not pg_has_role(current_user, relowner, 'usage')), '')`
	var role, other string
	var create bool
	if err := pool.QueryRow(ctx, q, schema).Scan(&role, &create, &other); err != nil {
		return fmt.Errorf("check the owner's rights: %w", err)
	}
	switch {
	case !create:
		return setupErrorf("database.owner_url (or database.url, where that is not set): role %q may not create tables in schema %q; set it to the tables' owner; if this role is to own them, as a superuser run: grant create on schema %s to %s;",
			role, schema, quoteIdent(schema), quoteIdent(role))
	case other != "":
		return setupErrorf("database.owner_url: role %q does not own table telemetry, which %q does; use that role, or run: grant %s to %s;",
			role, other, quoteIdent(other), quoteIdent(role))
	}
	return nil
}
