package partman_test

import (
	"context"
	"crypto/rand"
	"errors"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/google/go-cmp/cmp"
)

func contains(text, part string) bool { return strings.Contains(text, part) }

// sized is small in the suite, and full where PLENUM_PROVE is set.
func sized[T any](small, full T) T {
	if os.Getenv("PLENUM_PROVE") != "" {
		return full
	}
	return small
}

func randomWord() string { return strings.ToLower(rand.Text()[:8]) }

func compareValue(t *testing.T, want, got any) {
	t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("differs (-want +got):\n%s", diff)
	}
}

func sqlState(err error) string {
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		return pg.Code
	}
	return ""
}

func noticer(mu *sync.Mutex, list *[]string) func(*pgconn.PgConn, *pgconn.Notice) {
	return func(_ *pgconn.PgConn, n *pgconn.Notice) {
		mu.Lock()
		defer mu.Unlock()
		*list = append(*list, n.Message)
	}
}

// background outlives the test, for its cleanup.
var background = context.Background()
