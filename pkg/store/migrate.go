package store

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"
)

//go:embed migrations/*.sql
var migrationFiles embed.FS

//go:embed grants.sql
var grants string

const migrationTable = "plenum_migration"

// Schema is how the database's schema and this binary stand to each other.
type Schema struct {
	Database int64 // version of the database's schema; 0 before the first migration
	Binary   int64 // newest version this binary knows
	Oldest   int64 // oldest version that a binary must know to run on this schema
}

// Err returns nil if this binary can run on the schema, and else says what to do.
func (s Schema) Err() error {
	switch {
	case s.Database < s.Binary:
		return fmt.Errorf("schema is at version %d and this binary needs %d: run plenumctl migrate up", s.Database, s.Binary)
	case s.Oldest > s.Binary:
		return setupErrorf("schema is at version %d, which needs a binary that knows version %d; this one knows %d: use the newer release",
			s.Database, s.Oldest, s.Binary)
	}
	return nil
}

// Migrate brings the schema to this binary's version and grants the roles of deploy/ their rights. It needs
// the owner's rights. Several may call it at once: one migrates, the others wait for it.
func Migrate(ctx context.Context, pool *pgxpool.Pool) (Schema, error) {
	s, err := ReadSchema(ctx, pool)
	if err != nil {
		return s, err
	}
	if s.Database <= s.Binary {
		if err := migrateUp(ctx, pool); err != nil {
			return s, err
		}
	}
	if s, err = ReadSchema(ctx, pool); err != nil {
		return s, err
	}
	if s.Database > s.Binary {
		return s, s.Err()
	}
	if err := grantRights(ctx, pool); err != nil {
		return s, err
	}
	return s, s.Err()
}

// grantRights tries again where a partition was attached at the same moment: PostgreSQL says then that the table's
// row in pg_class was updated concurrently (XX000).
func grantRights(ctx context.Context, pool *pgxpool.Pool) error {
	const tries = 5
	for try := 1; ; try++ {
		_, err := pool.Exec(ctx, grants)
		if code, _ := sqlState(err); err == nil || code != "XX000" || try == tries {
			if err != nil {
				err = fmt.Errorf("grant rights: %w", err)
			}
			return err
		}
	}
}

func migrateUp(ctx context.Context, pool *pgxpool.Pool) (err error) {
	files, err := fs.Sub(migrationFiles, "migrations")
	if err != nil {
		return err
	}
	locker, err := lock.NewPostgresSessionLocker(lock.WithLockTimeout(1, 300)) // asks every second, for 5 minutes
	if err != nil {
		return err
	}
	db := stdlib.OpenDBFromPool(pool)
	defer func() { err = errors.Join(err, db.Close()) }()
	provider, err := goose.NewProvider(goose.DialectPostgres, db, files,
		goose.WithTableName(migrationTable), goose.WithSessionLocker(locker), goose.WithDisableGlobalRegistry(true))
	if err != nil {
		return fmt.Errorf("read embedded migrations: %w", err)
	}
	if _, err := provider.Up(ctx); err != nil {
		return fmt.Errorf("migrate: %w", err)
	}
	return nil
}

// ReadSchema reads both versions. A database without Plenum's tables has version 0.
func ReadSchema(ctx context.Context, pool *pgxpool.Pool) (Schema, error) {
	s := Schema{Binary: newestMigration()}
	const q = `select (select coalesce(max(version_id), 0) from plenum_migration where is_applied), (select oldest from schema_compatibility)`
	err := pool.QueryRow(ctx, q).Scan(&s.Database, &s.Oldest)
	if isUndefinedTable(err) {
		return s, nil
	}
	if code, _ := sqlState(err); code == "42501" {
		role := quoteIdent(pool.Config().ConnConfig.User)
		return s, &SetupError{Reason: "the database role may not read the schema's version; as the owner run: " +
			"grant select on plenum_migration, schema_compatibility to " + role + ";", Right: true}
	}
	if err != nil {
		return s, fmt.Errorf("read schema version: %w", asSetup(err))
	}
	return s, nil
}

func newestMigration() int64 {
	entries, err := migrationFiles.ReadDir("migrations")
	if err != nil || len(entries) == 0 {
		return 0
	}
	v, err := goose.NumericComponent(entries[len(entries)-1].Name())
	if err != nil {
		return 0
	}
	return v
}

func quoteIdent(name string) string { return pgx.Identifier{name}.Sanitize() }
