package program

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"

	"plenum/pkg/queryplan"
	"plenum/pkg/store"
)

// ownStatement names an operator's statement in the output.
const ownStatement = "the statement given"

// readVariant looks at an operator's statement without running it: one, of a kind that has a plan, and with parameters that can be
// given.
func readVariant(ctx context.Context, a *App, sql string) (store.Variant, error) {
	v := store.Variant{Name: ownStatement, SQL: sql}
	if strings.TrimSpace(sql) == "" {
		return v, Usagef("--sql: the file is empty; one statement is needed")
	}
	err := inTrial(ctx, a, func(tx pgx.Tx) error {
		d, err := tx.Conn().PgConn().Prepare(ctx, "", sql, nil)
		if err != nil {
			return trialError(err)
		}
		switch n := len(d.ParamOIDs); n {
		case 0:
			v.Bare = true
		case 1:
		case 3:
			v.Daily = true
		default:
			return Usagef("--sql: the statement has %d parameters; it may have none, $1 for the ids (bigint[]), or $1, $2 and $3: then it is run once a day, with $2 and $3 as the day's bounds (timestamptz)", n)
		}
		if err := checkParams(d.ParamOIDs); err != nil {
			return err
		}
		// A utility statement is prepared all right, and has no plan.
		var answer []byte
		args := append([]any{pgx.QueryExecModeDescribeExec}, make([]any, len(d.ParamOIDs))...) // nulls will do
		if err := tx.QueryRow(ctx, "explain (format json)\n"+sql, args...).Scan(&answer); err != nil {
			return planless(err)
		}
		if _, err := queryplan.Parse(answer); err != nil {
			return planless(err)
		}
		return nil
	})
	return v, err
}

// checkParams refuses parameters of types that ids and bounds cannot be given as.
func checkParams(types []uint32) error {
	for i, oid := range types {
		switch {
		case i == 0 && oid != pgtype.Int8ArrayOID && oid != pgtype.Int4ArrayOID:
			return Usagef("--sql: $1 is no bigint[], which the ids are; write $1::bigint[] where it is not clear")
		case i > 0 && oid != pgtype.TimestamptzOID && oid != pgtype.TimestampOID && oid != pgtype.DateOID:
			return Usagef("--sql: $%d is no timestamptz, which the day's bounds are; write $%[1]d::timestamptz where it is not clear", i+1)
		}
	}
	return nil
}

// planless words the refusal of EXPLAIN.
func planless(err error) error {
	if code := sqlCode(err); code == "42601" || code == "" { // of some utility statements the answer is a sentence
		return Usagef("--sql: this is no statement that has a plan; SELECT, INSERT, UPDATE, DELETE and MERGE have: %w", err)
	}
	return trialError(err)
}

func sqlCode(err error) string {
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		return pg.Code
	}
	return ""
}

// isTimeout says that PostgreSQL ended the statement when its time was up.
func isTimeout(err error) bool {
	return sqlCode(err) == "57014" || errors.Is(err, context.DeadlineExceeded)
}

// trialError says what to do about an error of a statement that is tried.
func trialError(err error) error {
	var pg *pgconn.PgError
	if !errors.As(err, &pg) {
		return err
	}
	switch {
	case pg.Code == "55P03":
		return fmt.Errorf("a lock was not had within %s; plenumctl doctor says who holds it, and what locks telemetry against readers cannot be tried: %w", trialLockTimeout, err)
	case pg.Code == "57014":
		return fmt.Errorf("not done after %s, and stopped: %w", trialTimeout, err)
	case pg.Code == "42601" && strings.Contains(pg.Message, "multiple commands"):
		return Usagef("more than one statement; give one: %w", err)
	case pg.Code == "42501":
		return Usagef("database.url: its role lacks a right; grant it, or use the owner's URL: %w", err)
	case pg.Code == "42P01":
		return Usagef("the search path is database.schema; name a table elsewhere with its schema: %w", err)
	case pg.Code == "25006":
		return Usagef("database.url: this server takes no writes; a statement is tried on the primary: %w", err)
	case strings.HasPrefix(pg.Code, "42"), strings.HasPrefix(pg.Code, "22"), pg.Code == "0A000":
		return Usagef("the statement: %w", err)
	}
	return err
}
