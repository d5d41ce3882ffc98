package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Sessions keeps which filters each MQTT client id may be subscribed to at the broker, which MQTT 3.1.1 cannot tell.
type Sessions struct{ pool *pgxpool.Pool }

// NewSessions returns the sessions of the pool's database.
func NewSessions(pool *pgxpool.Pool) *Sessions { return &Sessions{pool} }

// A Session is what is known of a client id's session.
type Session struct {
	ClientID  string
	Filters   []string  // sorted; with the share group, as subscribed
	UpdatedAt time.Time // when the filters last changed
	Holder    string    // the process that holds the client id's name; empty: none
}

// Filters returns what Keep was last given for the client id, sorted, or nil.
func (s *Sessions) Filters(ctx context.Context, clientID string) ([]string, error) {
	const q = `select filters from mqtt_session where client_id = $1`
	var filters []string
	err := s.pool.QueryRow(ctx, q, clientID).Scan(&filters)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return nil, fmt.Errorf("read the session of %q: %w", clientID, err)
	}
	return filters, nil
}

// Keep replaces the client id's filters, and writes only where they differ. Without filters it forgets the client id,
// which needs the owner's rights.
func (s *Sessions) Keep(ctx context.Context, clientID string, filters []string) error {
	const forget = `delete from mqtt_session where client_id = $1`
	const keep = `insert into mqtt_session as s (client_id, filters) values ($1, $2)
		on conflict (client_id) do update set filters = excluded.filters, updated_at = now() where s.filters <> excluded.filters`
	if len(filters) == 0 {
		if _, err := s.pool.Exec(ctx, forget, clientID); err != nil {
			return fmt.Errorf("forget the session of %q: %w", clientID, err)
		}
		return nil
	}
	sorted := slices.Compact(slices.Sorted(slices.Values(filters)))
	if _, err := s.pool.Exec(ctx, keep, clientID, sorted); err != nil {
		return fmt.Errorf("keep the session of %q: %w", clientID, err)
	}
	return nil
}

// List returns every session known, by client id.
func (s *Sessions) List(ctx context.Context) ([]Session, error) {
	const q = `select client_id, filters, updated_at from mqtt_session order by client_id`
	rows, err := s.pool.Query(ctx, q)
	if err != nil {
		return nil, fmt.Errorf("list sessions: %w", err)
	}
	all, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (Session, error) {
		var e Session
		err := row.Scan(&e.ClientID, &e.Filters, &e.UpdatedAt)
		e.UpdatedAt = e.UpdatedAt.UTC()
		return e, err
	})
	if err != nil {
		return nil, fmt.Errorf("list sessions: %w", err)
	}
	for i := range all {
		if all[i].Holder, err = holder(ctx, s.pool, all[i].ClientID); err != nil {
			return nil, err
		}
	}
	return all, nil
}
