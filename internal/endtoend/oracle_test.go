package endtoend

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"plenum/internal/devenv"
	"plenum/internal/devenv/devtest"
)

// sized is small in the suite, and full where PLENUM_PROVE is set.
func sized[T any](small, full T) T {
	if os.Getenv("PLENUM_PROVE") != "" {
		return full
	}
	return small
}

// newSystemApart is a system with a PostgreSQL of its own, in a directory that is kept when it stops.
func newSystemApart(t *testing.T, change func(*devenv.PostgresConfig)) *system {
	t.Helper()
	config := devtest.Config()
	config.Dir = t.TempDir()
	if change != nil {
		change(&config)
	}
	postgres, err := devenv.StartPostgres(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := postgres.Stop(); err != nil {
			t.Error(err)
		}
	})
	return newSystemOn(t, postgres, postgres.URL("postgres"))
}

// list returns the lines of a query made as the superuser.
func list[T any](s *system, sql string, args ...any) []T {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	conn, err := pgx.Connect(ctx, s.postgres.URL(s.database))
	if err != nil {
		s.t.Fatal(err)
	}
	defer func() { _ = conn.Close(ctx) }()
	rows, err := conn.Query(ctx, sql, args...)
	if err != nil {
		s.t.Fatalf("%s: %v", sql, err)
	}
	all, err := pgx.CollectRows(rows, pgx.RowToStructByPos[T])
	if err != nil {
		s.t.Fatalf("%s: %v", sql, err)
	}
	return all
}

// awaitRows waits until n rows are stored, as long as the number grows.
func (s *system) awaitRows(n int) {
	s.t.Helper()
	for have := -1; have < n; {
		devtest.Eventually(s.t, func() error {
			now := s.count("telemetry")
			if now <= have && now < n {
				return fmt.Errorf("%d rows are stored of %d", now, n)
			}
			have = now
			return nil
		})
	}
}

// storedOnce waits for every reading in the publishers' records, and finds each in one row and nothing else.
func (s *system) storedOnce(publishers ...*publisher) {
	s.t.Helper()
	want := acknowledged(publishers...)
	s.awaitRows(len(want))
	s.exactly(want)
}

// exactly finds each reading, "device/seq", in one row of telemetry, and nothing else.
func (s *system) exactly(want map[string]bool) {
	s.t.Helper()
	type identity struct {
		Reading string
		Rows    int
	}
	found := list[identity](s, `select device_id || '/' || coalesce(seq, -1), count(*)::int from telemetry group by device_id, seq`)
	missing := len(want)
	for _, i := range found {
		switch {
		case !want[i.Reading]:
			s.t.Fatalf("reading %s is stored and was not acknowledged to its publisher", i.Reading)
		case i.Rows != 1:
			s.t.Fatalf("reading %s is stored in %d rows", i.Reading, i.Rows)
		}
		missing--
	}
	if missing != 0 {
		s.t.Fatalf("%d of %d acknowledged readings are not stored", missing, len(want))
	}
}

// unquarantined finds nothing in quarantine.
func (s *system) unquarantined() {
	s.t.Helper()
	type reject struct{ Code, Detail string }
	if rejects := list[reject](s, "select code, detail from telemetry_quarantine"); len(rejects) > 0 {
		s.t.Errorf("%d messages are in quarantine, the first as %+v", len(rejects), rejects[0])
	}
}

// balanced stops the last ingest and finds, with no process running any more, every received row accounted for.
func (s *system) balanced(last *process) {
	s.t.Helper()
	if code := last.terminate(); code != 0 {
		s.t.Errorf("ingest exits %d", code)
	}
	var received, stored, duplicate, quarantined int
	const q = `select coalesce(sum(received), 0)::bigint, coalesce(sum(stored), 0)::bigint, coalesce(sum(duplicate), 0)::bigint,
		coalesce(sum(quarantined), 0)::bigint from ingest_account`
	if err := s.query(q, nil, &received, &stored, &duplicate, &quarantined); err != nil {
		s.t.Fatal(err)
	}
	rows, rejects := s.count("telemetry"), s.count("telemetry_quarantine")
	if received != stored+duplicate+quarantined || stored != rows || quarantined != rejects {
		s.t.Errorf("the account has %d received, %d stored, %d duplicate, %d quarantined; there are %d rows and %d rejects",
			received, stored, duplicate, quarantined, rows, rejects)
	}
	t := last.drained()
	if t.Received != t.Stored+t.Duplicate+t.Quarantined {
		s.t.Errorf("the drained ingest counts %+v", t)
	}
	if rest := list[struct{ N int }](s, "select 1 from pg_stat_activity where application_name like 'plenum-ingest@%' and datname = current_database()"); len(rest) > 0 {
		s.t.Errorf("%d sessions of ingest are left", len(rest))
	}
}

// totals is what the last line of an ingest that drained counts.
type totals struct {
	Message                                  string
	Received, Stored, Duplicate, Quarantined int64
}

func (p *process) drained() totals {
	p.t.Helper()
	for line := range strings.Lines(p.text()) {
		var t totals
		if err := json.Unmarshal([]byte(line), &t); err == nil && t.Message == "drained" {
			return t
		}
	}
	p.t.Errorf("%s does not say that it drained:\n%s", p.name, p.text())
	return totals{}
}

// await waits for what a channel tells.
func await(t *testing.T, what string, done <-chan struct{}) {
	t.Helper()
	select {
	case <-done:
	case <-time.After(3 * time.Minute):
		t.Fatalf("still no %s", what)
	}
}

// ready tells why /readyz of p is not the code with each of the words, or nil.
func (p *process) ready(code int, words ...string) error {
	got, body, _, err := get(p.url("/readyz"))
	if err != nil {
		return err
	}
	for _, w := range words {
		if !strings.Contains(body, w) {
			return fmt.Errorf("/readyz does not have %q: %s", w, body)
		}
	}
	if got != code {
		return fmt.Errorf("/readyz answers %d, not %d: %s", got, code, body)
	}
	return nil
}
