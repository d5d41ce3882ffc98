package store_test

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"plenum/pkg/store"
)

func TestSessions(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	s := store.NewSessions(h.pool)
	keep := func(id string, filters ...string) {
		t.Helper()
		if err := s.Keep(h.ctx, id, filters); err != nil {
			t.Fatal(err)
		}
	}
	filters := func(id string, want ...string) {
		t.Helper()
		got, err := s.Filters(h.ctx, id)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%s: %s", id, d)
		}
	}
	filters("plenum-0")
	keep("plenum-0", "b/#", "$share/g/a/+", "b/#")
	keep("plenum-1", "it's \"one\", {two}")
	filters("plenum-0", "$share/g/a/+", "b/#")
	filters("plenum-1", "it's \"one\", {two}")

	// Only a change is written.
	const version = `select xmin::text from mqtt_session where client_id = 'plenum-0'`
	before := value[string](h, version)
	keep("plenum-0", "b/#", "$share/g/a/+")
	want(h, "version of the row", value[string](h, version), before)
	h.exec(`update mqtt_session set updated_at = 'epoch'`)
	keep("plenum-0", "c")
	filters("plenum-0", "c")
	if age := time.Since(value[time.Time](h, `select updated_at from mqtt_session where client_id = 'plenum-0'`)); age > hang {
		t.Errorf("changed %s ago", age)
	}

	lock, err := store.LockNames(h.ctx, h.pool, []string{"plenum-1", "of another database's session"})
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Unlock(h.ctx)
	all, err := s.List(h.ctx)
	if err != nil || len(all) != 2 {
		t.Fatalf("%v, %v", all, err)
	}
	if all[0].ClientID != "plenum-0" || all[0].Holder != "" || !strings.HasPrefix(all[1].Holder, "store-test@") || !all[1].UpdatedAt.Equal(time.Unix(0, 0)) {
		t.Errorf("%+v", all)
	}
	keep("plenum-1")
	filters("plenum-1")
	keep("never there")
	want(h, "sessions left", value[int](h, `select count(*) from mqtt_session`), 1)
}
