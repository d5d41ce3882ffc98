package bluegreen

import (
	"slices"
	"strings"
	"testing"
)

func TestParseWorkload(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		file string
		want []string
	}{
		{"select 1", []string{"select 1"}},
		{"-- first\nselect 1; -- last ;\n\n;; select /* ; /* ; */ ; */ 2 -- end", []string{"select 1", "select /* ; /* ; */ ; */ 2"}},
		{`select 'a;''b', E'\';', ";""", U&'\0041;', n';'; select 2`, []string{`select 'a;''b', E'\';', ";""", U&'\0041;', n';'`, "select 2"}},
		{`select '\'; select 2`, []string{`select '\'`, "select 2"}},
		{"select $$;$$, $a$;$$;$a$, a$1, $é$;$é$; select 2", []string{"select $$;$$, $a$;$$;$a$, a$1, $é$;$é$", "select 2"}},
		{"select a[1:n], x::int, 1.5e3, f(a := 1); select 2", []string{"select a[1:n], x::int, 1.5e3, f(a := 1)", "select 2"}},
		{"select 1 /* */", []string{"select 1"}},
	} {
		list, err := parseWorkload([]byte(c.file))
		var got []string
		for _, s := range list {
			got = append(got, s.text)
		}
		if err != nil || !slices.Equal(got, c.want) {
			t.Errorf("%q: %q, %v, want %q", c.file, got, err, c.want)
		}
	}
}

func TestMoved(t *testing.T) {
	t.Parallel()
	pairs := []Pair{{N: 1, Schema: "public", Name: "orders"}, {N: 2, Schema: "My S", Name: "Orders"}, {N: 3, Schema: "archive", Name: "orders"}}
	for _, c := range []struct {
		sql, want string
		pairs     []int
	}{
		{"select orders.id from Orders", "select orders.id from Orders", []int{0, 0}},
		{"select PUBLIC . orders.id from public.orders", `select pg_temp."orders".id from pg_temp."orders"`, []int{0, 0}},
		{`select from "My S"."Orders", archive.orders`, `select from pg_temp."Orders", pg_temp."orders"`, []int{1, 2}},
		{`select o.orders, 'public.orders', "public.orders" from public."Orders" -- public.orders`, `select o.orders, 'public.orders', "public.orders" from public."Orders" -- public.orders`, nil},
		{"select from db.public.orders", `select from db.pg_temp."orders"`, []int{0}},
	} {
		tokens, err := lex(c.sql)
		if err != nil {
			t.Fatal(err)
		}
		s := statement{text: c.sql, tokens: tokens}
		mentions := s.mentions(pairs)
		var got []int
		for _, m := range mentions {
			got = append(got, m.pair)
		}
		if moved := s.moved(mentions, pairs); moved != c.want || !slices.Equal(got, c.pairs) {
			t.Errorf("%s: %s of pairs %v, want %s of %v", c.sql, moved, got, c.want, c.pairs)
		}
	}
}

// What was split is in the file, in its order, and is one statement when it is split again.
func FuzzParseWorkload(f *testing.F) {
	for _, seed := range []string{"select 1; select 2", `e'\'';"a;"`, "$a$;$a$ /* /* */ */ -- x\n;", "a[b:c]; $1", "'", "\\d", "1;;é;$é", "[;:1"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, file string) {
		list, err := parseWorkload([]byte(file))
		if err != nil {
			return
		}
		at := 0
		for _, s := range list {
			n := strings.Index(file[at:], s.text)
			if n < 0 || s.text == "" {
				t.Fatalf("%q is not in %q after byte %d", s.text, file, at)
			}
			at += n + len(s.text)
			again, err := parseWorkload([]byte(s.text))
			if err != nil || len(again) != 1 || again[0].text != s.text {
				t.Fatalf("%q again: %v, %v", s.text, again, err)
			}
			s.moved(s.mentions([]Pair{{Schema: "a", Name: "b"}}), []Pair{{Schema: "a", Name: "b"}})
			s.merging(s.mentions([]Pair{{Schema: "a", Name: "b"}}), []Pair{{Schema: "a", Name: "b"}}, Green)
		}
	})
}
