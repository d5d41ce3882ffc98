package partman_test

import (
	"testing"

	"pgregory.net/rapid"

	"plenum/pkg/partman"
)

func TestParseName(t *testing.T) {
	t.Parallel()
	for text, want := range map[string][2]string{
		"orders":              {"public", "orders"},
		"Shop.Orders":         {"Shop", "Orders"},
		`"Shop"."Orders"`:     {"Shop", "Orders"},
		`shop."or.ders"`:      {"shop", "or.ders"},
		`"a.b".c d`:           {"a.b", "c d"},
		`"say ""hi"""`:        {"public", `say "hi"`},
		"":                    {},
		".orders":             {},
		"shop.":               {},
		"a.b.c":               {},
		`"orders`:             {},
		`or"ders`:             {},
		`"shop"orders`:        {},
		`""`:                  {},
		`"shop".""`:           {},
		`"shop"."orders"."x"`: {},
	} {
		schema, table, err := partman.ParseName(text, "public")
		if (err == nil) != (want != [2]string{}) || [2]string{schema, table} != want {
			t.Errorf("%s is %q of %q, %v; want %q", text, table, schema, err, want)
		}
	}
}

func TestFormatNameIsReadBack(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		part := rapid.StringMatching(`[a-zA-Z." é]{1,8}`)
		schema, table := part.Draw(t, "schema"), part.Draw(t, "table")
		text := partman.FormatName(schema, table)
		if s, n, err := partman.ParseName(text, "other"); err != nil || s != schema || n != table {
			t.Fatalf("%s is read as %q of %q, %v", text, n, s, err)
		}
	})
}
