package partman_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"plenum/internal/devenv"
	"plenum/internal/devenv/devtest"
	"plenum/pkg/partman"
)

const boundsSQL = `
select c.relname || ' ' || pg_get_expr(c.relpartbound, c.oid) from pg_inherits i join pg_class c on c.oid = i.inhrelid
 where i.inhparent = 'telemetry'::regclass order by 1`

// TestZoneOfServer changes the server's time zone and date style, not only the session's, on the days on which clocks are put
// forward and back there: plan and bounds are the same to the letter in each.
func TestZoneOfServer(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), hang)
	defer cancel()
	server, err := devenv.StartPostgres(ctx, devtest.Config())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Stop(); err != nil {
			t.Error(err)
		}
	})
	changes := []string{
		"2026-03-08T06:59:59.999999Z", "2026-11-01T05:30:00Z", // New York
		"2026-10-25T00:30:00Z", "2026-03-28T23:30:00Z", // Berlin
		"2028-02-29T11:00:00Z", // a day ahead on Kiritimati
	}
	want := make(map[string]string)
	for n, zone := range []string{"UTC", "America/New_York", "Europe/Berlin", "Asia/Kolkata", "Pacific/Kiritimati"} {
		admin, err := pgxpool.New(ctx, server.URL("postgres"))
		if err != nil {
			t.Fatal(err)
		}
		name := fmt.Sprintf("zone_%d", n)
		for _, sql := range []string{
			"alter system set timezone = '" + zone + "'", "alter system set datestyle = 'German, DMY'", "select pg_reload_conf()", "create database " + name,
		} {
			if _, err := admin.Exec(ctx, sql); err != nil {
				t.Fatalf("%s: %v", sql, err)
			}
		}
		admin.Close()
		for _, now := range changes {
			got := planIn(ctx, t, server.URL(name), zone, at(now))
			if want[now] == "" {
				want[now] = got
			}
			if got != want[now] {
				t.Errorf("with the server in %s at %s:\n%s\nand in UTC:\n%s", zone, now, got, want[now])
			}
		}
	}
	for now, text := range want {
		if today := at(now).Truncate(24 * time.Hour); !strings.Contains(text, "telemetry_p"+today.Format("20060102")+
			today.Format(" FOR VALUES FROM ('2006-01-02 00:00:00+00')")) {
			t.Errorf("at %s today is not the day in UTC:\n%s", now, text)
		}
	}
}

// planIn returns the plan of a fresh table, and the bounds that came of it.
func planIn(ctx context.Context, t *testing.T, url, zone string, now time.Time) string {
	t.Helper()
	cfg, err := pgxpool.ParseConfig(url)
	if err != nil {
		t.Fatal(err)
	}
	pool, err := pgxpool.NewWithConfig(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	exec := func(sql string) {
		if _, err := pool.Exec(ctx, sql); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
	devtest.Eventually(t, func() error {
		var have string
		if err := pool.QueryRow(ctx, "show timezone").Scan(&have); err != nil || have != zone {
			pool.Reset()
			return fmt.Errorf("the server is in %q, want %q: %w", have, zone, err)
		}
		return nil
	})
	exec("drop table if exists telemetry; create table telemetry (last_modified timestamptz) partition by range (last_modified)")
	p := partman.Policy{Schema: "public", Table: "telemetry", Key: "last_modified", Step: partman.Day, Premake: 2, Retention: 1, Expired: partman.ExpiredDrop}
	if err := partman.Install(ctx, pool, "public"); err != nil {
		t.Fatal(err)
	}
	if _, err := partman.Register(ctx, pool, "public", p); err != nil {
		t.Fatal(err)
	}
	m, err := partman.New(partman.Config{Pool: pool, Schema: "public", Now: func(time.Time) time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	plan, err := m.Plan(ctx, "telemetry")
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range plan.Actions {
		for _, s := range a.Statements { // as a person would who reads the plan, in the server's zone
			if s.SQL != "" {
				exec(s.SQL)
			}
		}
	}
	s, err := partman.Inspect(ctx, pool, p)
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range s.Partitions { // as the manager reads them
		if l.From != l.From.Truncate(24*time.Hour) || l.To != l.From.AddDate(0, 0, 1) {
			t.Errorf("with the server in %s: %s is of %s, %s", zone, l.Name, l.From, l.To)
		}
	}
	cfg.ConnConfig.RuntimeParams["timezone"], cfg.ConnConfig.RuntimeParams["datestyle"] = "UTC", "ISO"
	plain, err := pgxpool.NewWithConfig(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	var bounds string
	if err := plain.QueryRow(ctx, "select string_agg(line, E'\\n') from ("+boundsSQL+") x (line)").Scan(&bounds); err != nil {
		t.Fatal(err)
	}
	return plan.String() + bounds
}
