package bluegreen

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"plenum/pkg/partman"
)

// pauser is by whom partman's pauses of a migration are, and pauseReason why.
const (
	pauser      = "plenumctl bluegreen"
	pauseReason = "a swap could not be reversed without the days that left; finish or abort resumes"
)

const storageSQL = `
select coalesce(l.reloptions, '{}') from pg_class l where l.oid = coalesce(
       (select max(r.relid::oid) from pg_partition_tree($1::oid) r where r.isleaf and r.relid <> $1::oid), $1::oid)`

// manage registers green with partman, and pauses the retiring of both sides: what is in one of them is in the other, as long as a swap can be
// reversed. Days are made all the while. Where blue is partman's already, green is kept as blue is.
func (m *Migration) manage(ctx context.Context, conn *pgx.Conn, pairs []Pair, p Pair) (policy partman.Policy, err error) {
	err = m.locking(ctx, conn, func(tx pgx.Tx) error {
		policy, err = m.policy(ctx, tx, pairs, p)
		if err != nil {
			return err
		}
		if _, err := partman.Register(ctx, tx, m.cfg.Schema, policy); err != nil {
			return err
		}
		for _, side := range []Side{Blue, Green} {
			err := partman.Pause(ctx, tx, m.cfg.Schema, p.Schema, p.name(side), pauser, pauseReason)
			if err != nil && !errors.Is(err, partman.ErrUnknownTable) {
				return err
			}
		}
		return nil
	})
	return policy, err
}

// policy is green's.
func (m *Migration) policy(ctx context.Context, tx pgx.Tx, pairs []Pair, p Pair) (policy partman.Policy, err error) {
	list, err := partman.Registered(ctx, tx, m.cfg.Schema)
	if err != nil {
		return policy, err
	}
	if n := slices.IndexFunc(list, func(q partman.Policy) bool { return q.Schema == p.Schema && q.Table == p.name(Blue) }); n >= 0 {
		policy = list[n]
		if policy.Step == partman.Hour {
			policy.Retention = (policy.Retention + 23) / 24
		}
	}
	for _, other := range pairs {
		if other.Schema == p.Schema && other.Name == policy.ArchiveTable {
			policy.ArchiveTable = other.name(Green)
		}
	}
	var days int
	var options []string
	if err := tx.QueryRow(ctx, fmt.Sprintf("select premake, retention from %s where n = $1", m.own("bluegreen_pair")), p.N).Scan(&policy.Premake, &days); err != nil {
		return policy, err
	}
	if err := tx.QueryRow(ctx, storageSQL, p.Blue).Scan(&options); err != nil {
		return policy, fmt.Errorf("read the storage parameters of %s: %w", p.table(Blue), err)
	}
	policy.Schema, policy.Table, policy.Key, policy.Step = p.Schema, p.name(Green), p.Key, partman.Day
	if days > 0 {
		policy.Retention = days
		if policy.Expired == "" {
			policy.Expired = partman.ExpiredDrop
		}
	}
	policy.Storage = map[string]string{}
	for _, o := range options {
		k, v, _ := strings.Cut(o, "=")
		policy.Storage[k] = v
	}
	return policy, nil
}

// movePolicies has partman's policies follow the names; the name is free before it is taken.
func (m *Migration) movePolicies(ctx context.Context, tx pgx.Tx, p Pair, to Side) error {
	after := p.renamed(to)
	for _, side := range []Side{p.Active, to} {
		err := partman.Rename(ctx, tx, m.cfg.Schema, [2]string{p.Schema, p.name(side)}, [2]string{p.Schema, after.name(side)})
		if err != nil && !errors.Is(err, partman.ErrUnknownTable) {
			return err
		}
	}
	return nil
}

// release resumes the retiring of the side that stays, and has partman forget the other one: it would go on moving its days to where
// those of the first one go.
func (m *Migration) release(ctx context.Context, tx pgx.Tx, p Pair, stays Side) error {
	for _, side := range []Side{stays, stays.other()} {
		err := partman.Resume(ctx, tx, m.cfg.Schema, p.Schema, p.name(side), pauser)
		if err != nil && !errors.Is(err, partman.ErrUnknownTable) && !errors.Is(err, partman.ErrPaused) {
			return err
		}
	}
	_, err := partman.Unregister(ctx, tx, m.cfg.Schema, p.Schema, p.name(stays.other()))
	return err
}

// silence is after which a partition manager is taken for dead: four of its rounds.
const silence = 20 * time.Minute

const keptSQL = `select captured_at, now() from %s where n = $1`

// kept says what would let green run out of partitions: nobody who makes them. Init has made the first ones itself, so that a round
// before its end says nothing.
func (m *Migration) kept(ctx context.Context, db partman.DB, p Pair) (fault string, err error) {
	last, err := partman.LastRun(ctx, db, m.cfg.Schema, p.Schema, p.name(Green))
	if errors.Is(err, partman.ErrUnknownTable) {
		return fmt.Sprintf("table %s has no partition policy any more: register it with plenumctl partitions register, paused", p.table(Green)), nil
	}
	if err != nil {
		return "", err
	}
	rows, err := db.Query(ctx, fmt.Sprintf(keptSQL, m.own("bluegreen_pair")), p.N)
	if err != nil {
		return "", err
	}
	var captured *time.Time
	var now time.Time
	if _, err := pgx.ForEachRow(rows, []any{&captured, &now}, func() error { return nil }); err != nil {
		return "", fmt.Errorf("look when table %s was built: %w", p.table(Green), err)
	}
	switch {
	case captured == nil || !last.After(*captured):
		fault = "no partition manager has looked after table %s since it was built"
	case now.Sub(last) > silence:
		fault = "no partition manager has looked after table %s since " + last.UTC().Format(time.RFC3339)
	case p.High.Sub(now) < 24*time.Hour:
		return fmt.Sprintf("table %s has partitions until %s only: plenumctl partitions check tells why none is made", p.table(Green), p.High.Format(time.RFC3339)), nil
	default:
		return "", nil
	}
	return fmt.Sprintf(fault+", and its last partition ends at %s: start one, as ingest and syncjob or plenumctl partitions run are for schema %q, and wait for its first round, 5 minutes at most",
		p.table(Green), p.High.Format(time.RFC3339), m.cfg.Schema), nil
}
