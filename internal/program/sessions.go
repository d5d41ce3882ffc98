package program

import (
	"context"
	"slices"

	"plenum/pkg/store"
)

// What a session at the broker is to this configuration.
const (
	SessionInUse      = "in use"     // a process holds its client id
	SessionConfigured = "configured" // ingest takes it up when it starts
	SessionOrphaned   = "orphaned"   // nobody comes back to it
)

// SessionUse returns one of the Session constants.
func SessionUse(s Settings, e store.Session) string {
	switch {
	case e.Holder != "":
		return SessionInUse
	case Configured(s, e.ClientID):
		return SessionConfigured
	}
	return SessionOrphaned
}

// Configured says whether ingest uses the client id with these settings.
func Configured(s Settings, clientID string) bool { return slices.Contains(clientIDs(s), clientID) }

// Sessions lists the sessions that ingests have had.
func Sessions(ctx context.Context, a *App) ([]store.Session, error) {
	if err := checkTool(ctx, a, false); err != nil {
		return nil, err
	}
	return store.NewSessions(a.owner).List(ctx)
}
