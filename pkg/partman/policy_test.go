package partman_test

import (
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"plenum/internal/devenv/devtest"
	"plenum/pkg/partman"
)

// TestEqual changes each field in turn, so that a new one cannot be forgotten.
func TestEqual(t *testing.T) {
	t.Parallel()
	if !live().Equal(live()) {
		t.Error("a policy differs from its copy")
	}
	bare, empty := partman.Policy{}, partman.Policy{Indexes: []partman.Index{}, Storage: map[string]string{}}
	if !bare.Equal(empty) || !empty.Equal(bare) {
		t.Error("an empty list differs from none")
	}
	for n := range reflect.TypeFor[partman.Policy]().NumField() {
		other := live()
		switch f := reflect.ValueOf(&other).Elem().Field(n); f.Kind() {
		case reflect.String:
			f.SetString(f.String() + "x")
		case reflect.Int, reflect.Int64:
			f.SetInt(f.Int() + 1)
		default:
			f.SetZero()
		}
		if name := reflect.TypeFor[partman.Policy]().Field(n).Name; live().Equal(other) {
			t.Errorf("a difference in %s goes unseen", name)
		}
	}
}

// TestRegisterTellsWhatWentBefore: nil once, though two register at once; then the policy that was there. What is
// unchanged is not written.
func TestRegisterTellsWhatWentBefore(t *testing.T) {
	t.Parallel()
	h := newHouse(t, nil)
	first := live()
	first.Grace = 90*time.Minute + 400*time.Nanosecond
	tx, err := h.pool.Begin(h.ctx)
	if err != nil {
		t.Fatal(err)
	}
	if previous, err := partman.Register(h.ctx, tx, "public", first); err != nil || previous != nil {
		t.Errorf("a new table: previous %+v, %v", previous, err)
	}
	beside := make(chan bool)
	go func() {
		previous, err := partman.Register(h.ctx, h.pool, "public", first)
		if err != nil {
			t.Error(err)
		}
		beside <- previous == nil
	}()
	devtest.Eventually(t, func() error {
		if h.number("select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'") == 0 {
			return errors.New("the second does not wait for the first")
		}
		return nil
	})
	if err := tx.Commit(h.ctx); err != nil {
		t.Fatal(err)
	}
	if <-beside {
		t.Error("two found the table new")
	}
	kept := first
	kept.Grace = 90 * time.Minute
	version := h.number("select xmin::text::bigint from partition_policy")
	previous, err := partman.Register(h.ctx, h.pool, "public", first)
	if err != nil || previous == nil || !previous.Equal(kept) {
		t.Errorf("an unchanged policy: previous %+v, %v", previous, err)
	}
	if again := h.number("select xmin::text::bigint from partition_policy"); again != version {
		t.Error("an unchanged policy was written")
	}
	second := first
	second.Retention, second.Indexes, second.Storage = 30, nil, nil
	if previous, err = partman.Register(h.ctx, h.pool, "public", second); err != nil || previous == nil || !previous.Equal(kept) {
		t.Errorf("a changed policy: previous %+v, %v", previous, err)
	}
	second.Grace = kept.Grace
	if previous, err = partman.Register(h.ctx, h.pool, "public", first); err != nil || previous == nil || !previous.Equal(second) {
		t.Errorf("changed back: previous %+v, %v", previous, err)
	}
}

func TestValidate(t *testing.T) {
	t.Parallel()
	if err := live().Validate(); err != nil {
		t.Errorf("a good policy: %v", err)
	}
	bad := partman.Policy{
		Table: "t", Step: "week", Premake: -2, Retention: -1, Grace: -1, Expired: "burn",
		Indexes: []partman.Index{{Name: "A b", NullsNotDistinct: true}}, Storage: map[string]string{"fillfactor": "50); drop table x"},
	}
	err := bad.Validate()
	if err == nil {
		t.Fatal("no error for a policy that is all wrong")
	}
	for _, part := range []string{
		`schema ""`, `key ""`, `step "week"`, "premake -2", "retention -1", "grace -1ns", `expired "burn"`,
		`index "A b": a name`, "columns []", "nulls not distinct", "storage fillfactor=",
	} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%q is missing in: %v", part, err)
		}
	}
}
