package program

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"go.uber.org/zap"

	"plenum/pkg/partman"
	"plenum/pkg/store"
)

// identity is invariant 2's index: a parent cannot declare it, because it lacks the partition key.
var identity = partman.Index{Name: "identity_idx", Unique: true, NullsNotDistinct: true, Columns: []string{"device_id", "kind", "recorded_at", "seq"}, Required: true}

// byID is what marks and reads of the feed find their rows by. The migrations declare it; here it comes back if it is lost.
var byID = partman.Index{Name: "id_idx", Columns: []string{"id"}, OnParent: true, Required: true}

// policies are those of Plenum's own tables.
func policies(s Settings) []partman.Policy {
	schema, p := s.Database.Schema, s.Partition
	keep := p.ArchiveDays
	live := partman.Policy{
		Schema: schema, Table: "telemetry", Key: "last_modified", Step: partman.Day,
		Premake: p.PremakeDays, Retention: p.RetentionDays, Expired: p.Expired,
		Indexes: []partman.Index{identity, byID},
		// Half of each page is left for the marked versions of its rows: the update stays HOT.
		Storage: map[string]string{"fillfactor": "50", "autovacuum_analyze_scale_factor": "0.02"},
	}
	archive := live
	archive.Table, archive.Premake, archive.Retention, archive.Expired = "telemetry_archive", partman.NoPremake, keep, partman.ExpiredDrop
	if p.Expired == partman.ExpiredArchive {
		live.ArchiveTable = archive.Table
	} else {
		keep = p.RetentionDays
	}
	return []partman.Policy{
		live, archive,
		// A day longer than the rows, so that a line never goes before them.
		{Schema: schema, Table: "telemetry_batch", Key: "day", Step: partman.Day, Premake: p.PremakeDays, Retention: keep + 1, Expired: partman.ExpiredDrop},
		{
			Schema: schema, Table: "telemetry_quarantine", Key: "received_at", Step: partman.Day, Premake: p.PremakeDays,
			Retention: s.Quarantine.RetentionDays, Expired: partman.ExpiredDrop,
		},
	}
}

// registerPolicies puts Plenum's tables under management by the settings, with the rights of their owner, and logs
// each policy that this changes. A shorter retention waits for an operator's word: readiness names it from then on.
func registerPolicies(ctx context.Context, a *App) error {
	schema := a.Settings.Database.Schema
	if err := partman.Install(ctx, a.owner, schema); err != nil {
		return err
	}
	var changed []partman.Policy
	for _, p := range policies(a.Settings) {
		before, err := partman.Register(ctx, a.owner, schema, p)
		if err != nil {
			return err
		}
		if before != nil && !before.Equal(p) {
			a.Log.Warn("partition policy changed", zap.String("table", p.String()),
				zap.String("from", describe(*before)), zap.String("to", describe(p)))
			changed = append(changed, p)
		}
	}
	inForce, err := partman.Policies(ctx, a.owner, schema)
	if err != nil {
		return err
	}
	for _, p := range changed {
		n := slices.IndexFunc(inForce, func(q partman.Policy) bool { return q.String() == p.String() })
		if n >= 0 && !inForce[n].Equal(p) {
			a.Log.Warn("shorter retention waits for confirmation", zap.String("table", p.String()), zap.String("in_force", describe(inForce[n])),
				zap.String("confirm", "plenumctl partitions apply --confirm-retention --table "+p.Table))
		}
	}
	return nil
}

// describe is what of a policy an operator sets.
func describe(p partman.Policy) string {
	return fmt.Sprintf("premake %d, retention %d, expired %q, archive %q, storage %v, %d own indexes",
		p.Premake, p.Retention, p.Expired, p.ArchiveTable, p.Storage, len(p.Indexes))
}

// registerNew registers only tables that have no policy: whoever migrates by hand need not have the daemon's settings.
func registerNew(ctx context.Context, a *App) error {
	schema := a.Settings.Database.Schema
	if err := partman.Install(ctx, a.owner, schema); err != nil {
		return err
	}
	there, err := partman.Policies(ctx, a.owner, schema)
	if err != nil {
		return err
	}
	for _, p := range policies(a.Settings) {
		if slices.ContainsFunc(there, func(q partman.Policy) bool { return q.String() == p.String() }) {
			continue
		}
		if _, err := partman.Register(ctx, a.owner, schema, p); err != nil {
			return err
		}
	}
	return nil
}

// checkOwner refuses an owner_url that lacks a right, or that leads through a transaction pooler.
func checkOwner(ctx context.Context, a *App) error {
	if err := partman.CheckSession(ctx, a.owner); err != nil {
		return fmt.Errorf("database.owner_url (or database.url, where that is not set): %w", err)
	}
	return store.CheckOwner(ctx, a.owner, a.Settings.Database.Schema)
}

// newManager returns the partition manager with Plenum's guards.
func newManager(a *App) (*partman.Manager, error) {
	return newManagerWith(a, nil)
}

// newManagerWith is newManager, with what is called after each action.
func newManagerWith(a *App, acted func(partman.Action)) (*partman.Manager, error) {
	g := guards{owner: a.owner, schema: a.Settings.Database.Schema}
	return partman.New(partman.Config{
		Pool: a.owner, Schema: a.Settings.Database.Schema, Prepare: g.prepare, Guard: g.guard, Acted: acted,
		MaxRetireBytes: a.Settings.Partition.MaxRetireBytes,
		Log:            a.Log.With(zap.String("part", "partitions")), Registerer: a.Registry,
	})
}

type guards struct {
	owner  *pgxpool.Pool
	schema string
}

// prepare gives the day's rows that were inserted by hand their ledger lines, so that they are processed
// before the day goes.
func (g guards) prepare(ctx context.Context, r partman.Retiring) error {
	if r.Schema != g.schema || r.Table != "telemetry" {
		return nil
	}
	_, err := store.Reconcile(ctx, g.owner, r.From, r.To)
	return err
}

func (g guards) guard(ctx context.Context, tx pgx.Tx, r partman.Retiring) error {
	if r.Schema != g.schema {
		return nil
	}
	var err error
	switch r.Table {
	case "telemetry":
		err = store.GuardLiveDay(ctx, tx, pgx.Identifier{r.PartitionSchema, r.Partition}, r.From)
		if err == nil && r.Kind == partman.Detach {
			err = store.DropDay(ctx, tx, r.From)
		}
	case "telemetry_archive":
		err = store.DropDay(ctx, tx, r.From)
	case "telemetry_batch":
		err = store.GuardLedgerDay(ctx, tx, r.From)
	}
	var refusal *store.Refusal
	if errors.As(err, &refusal) {
		return &partman.Blocked{Reason: refusal.Reason, Detail: refusal.Detail}
	}
	return err
}
