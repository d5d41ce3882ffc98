package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// MinServerVersion is the oldest PostgreSQL that has unique indexes with NULLS NOT DISTINCT, as
// server_version_num.
const MinServerVersion = 150000

// Config says which database, and as whom.
type Config struct {
	URL         string // a libpq URL or keyword string
	Schema      string // the schema of every table; must exist
	Program     string // shown in pg_stat_activity as PROGRAM@HOST:PID
	Connections int    // upper bound of the pool; 0 is pgx's default
}

// Open returns a pool for c without connecting; faults are those of the URL. Its connections set
// search_path, time zone, encoding, isolation and plan_cache_mode at their start, which a transaction pooler in between must pass on.
func Open(ctx context.Context, c Config) (*pgxpool.Pool, error) {
	cfg, err := pgxpool.ParseConfig(c.URL)
	if err != nil {
		return nil, err // pgx redacts the password
	}
	if c.Connections > 0 {
		cfg.MaxConns = int32(c.Connections)
	}
	host, _ := os.Hostname()
	p := cfg.ConnConfig.RuntimeParams
	p["application_name"] = c.Program + "@" + host + ":" + strconv.Itoa(os.Getpid())
	p["search_path"] = quoteIdent(c.Schema)
	p["timezone"] = "UTC"
	p["client_encoding"] = "UTF8"
	p["default_transaction_isolation"] = "read committed" // a look-up after a wait must see what it waited for
	p["plan_cache_mode"] = "force_custom_plan"
	p["idle_in_transaction_session_timeout"] = "60s"
	p["jit"] = "off"
	// The server notices within a minute that this host has died, and releases what it held.
	p["tcp_keepalives_idle"], p["tcp_keepalives_interval"], p["tcp_keepalives_count"] = "30", "10", "3"
	if cfg.ConnConfig.ConnectTimeout == 0 {
		cfg.ConnConfig.ConnectTimeout = 10 * time.Second
	}
	return pgxpool.NewWithConfig(ctx, cfg)
}

// A SetupError is one that waiting does not mend: the configuration or the database must be changed.
type SetupError struct {
	Reason string
	Right  bool // a right is missing, which a migration under way may be about to grant
}

func (e *SetupError) Error() string { return e.Reason }

func setupErrorf(format string, args ...any) error {
	return &SetupError{Reason: fmt.Sprintf(format, args...)}
}

// CheckServer returns a SetupError if the server is too old, or the schema is missing or closed to the pool's role, and
// a plain error if the server cannot be asked now.
func CheckServer(ctx context.Context, pool *pgxpool.Pool, schema string) error {
	const q = `select current_setting('server_version_num')::int, current_setting('server_version'), current_setting('server_encoding'), current_user,
		to_regnamespace($1) is not null, coalesce(has_schema_privilege(to_regnamespace($1), 'usage'), false)`
	var num int
	var version, encoding, role string
	var exists, usable bool
	if err := pool.QueryRow(ctx, q, quoteIdent(schema)).Scan(&num, &version, &encoding, &role, &exists, &usable); err != nil {
		return asSetup(err)
	}
	if num < MinServerVersion {
		return setupErrorf("PostgreSQL %s is too old: at least 15 is needed", version)
	}
	if encoding != "UTF8" {
		return setupErrorf("the database's encoding is %s, and telemetry is UTF-8: create one with: create database NAME encoding 'UTF8' template template0", encoding)
	}
	if !exists {
		return setupErrorf("database.schema: schema %q does not exist; create it: create schema %s", schema, quoteIdent(schema))
	}
	if !usable {
		return setupErrorf("database.schema: role %q may not use schema %q; as its owner run: grant usage on schema %s to %s;",
			role, schema, quoteIdent(schema), quoteIdent(role))
	}
	return nil
}

// asSetup turns the errors of a wrong password, role or database name into a SetupError.
func asSetup(err error) error {
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		switch pg.Code {
		case "42501": // when connecting
			return setupErrorf("PostgreSQL refuses: %s (SQLSTATE %s); as its owner run: grant connect on that database to the role", pg.Message, pg.Code)
		case "28P01", "28000", "3D000":
			return setupErrorf("PostgreSQL refuses: %s (SQLSTATE %s); see database.url, and owner_url and read_url where set", pg.Message, pg.Code)
		}
	}
	return err
}

// Missing privileges and objects, as SQLSTATE class 42 gives them.
func isUndefinedTable(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && pg.Code == "42P01"
}
