package store_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"plenum/pkg/store"
)

// The statements listed are the ones that run: each is found, word by word, among those that a day's work sends.
func TestStatementsAreThoseThatRun(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	p := h.withPlans(nil)
	w := store.NewWriter(p.Pool, "test", nil)
	h.write(w, readings("d", 0, 5)...)
	h.write(w, readings("d", 0, 5)...) // repeats
	h.write(w, readings("d", 5, 600)...)
	h.markAll(store.NewMarker(p.Pool))
	lines, err := store.FeedLines(h.ctx, p.Pool, 0, 1000)
	if err != nil {
		t.Fatal(err)
	}
	if rows, err := store.FeedRows(h.ctx, p.Pool, lines); err != nil || len(rows) < 500 {
		t.Fatal(len(rows), err)
	}
	var sent []string
	for _, plan := range p.take() {
		sent = append(sent, words(plan))
	}
	found := map[string]bool{}
	for _, s := range store.Statements([]time.Time{h.today}) {
		if !slices.ContainsFunc(sent, func(text string) bool { return strings.Contains(text, words(s.SQL)) }) {
			t.Errorf("%s is listed and does not run:\n%s", s.Name, s.SQL)
		}
		found[s.Name] = true
	}
	for _, name := range store.StatementNames {
		if !found[name] {
			t.Errorf("%s is a name without a statement", name)
		}
	}
	want(h, "statements", len(found), len(store.StatementNames))
}

// words is text with each run of white space as one space.
func words(text string) string { return strings.Join(strings.Fields(text), " ") }

func TestLiveDays(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.archive(h.day(-2))
	var days []time.Time
	err := pgx.BeginFunc(h.ctx, h.pool, func(tx pgx.Tx) (err error) {
		days, err = store.LiveDays(h.ctx, tx)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(days, []time.Time{h.day(-1), h.today, h.day(1)}) {
		t.Errorf("live days %v", days)
	}
	if n := len(store.Statements(days)); n != 3+4*3 {
		t.Errorf("%d statements of three days", n)
	}
}
