package partman_test

import (
	"context"
	"fmt"
	"log"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"plenum/internal/devenv/devtest"
	"plenum/pkg/partman"
)

// database opens an empty database for an example.
func database() (ctx context.Context, pool *pgxpool.Pool, done func()) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	url, drop, err := devtest.OpenDatabase()
	if err != nil {
		log.Fatal(err)
	}
	if pool, err = pgxpool.New(ctx, url); err != nil {
		log.Fatal(err)
	}
	return ctx, pool, func() {
		pool.Close()
		if err := drop(); err != nil {
			log.Print(err)
		}
		cancel()
	}
}

func must(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

// A service that keeps a table of its own: eight days, and four ahead.
func Example() {
	ctx, pool, done := database()
	defer done()
	_, err := pool.Exec(ctx, "create table reading (at timestamptz not null default now(), value float8) partition by range (at)")
	must(err)

	must(partman.Install(ctx, pool, "public"))
	_, err = partman.Register(ctx, pool, "public", partman.Policy{
		Schema: "public", Table: "reading", Key: "at", Step: partman.Day, Premake: 4, Retention: 8, Expired: partman.ExpiredDrop,
	})
	must(err)
	manager, err := partman.New(partman.Config{Pool: pool, Schema: "public"})
	must(err)

	running, stop := context.WithCancel(ctx)
	stopped := make(chan error)
	go func() { stopped <- manager.Run(running) }()

	must(manager.EnsureNow(ctx, "reading")) // as for a row that found no partition
	tag, err := pool.Exec(ctx, "insert into reading (value) values (1.5), (2.5)")
	must(err)
	fmt.Println(tag)
	stop()
	must(<-stopped)
	// Output: INSERT 0 2
}

// A plan is read before it is applied. The clock is fixed here, so that the plan is the same each time.
func ExampleManager_Plan() {
	ctx, pool, done := database()
	defer done()
	_, err := pool.Exec(ctx, "create table reading (at timestamptz not null, value float8) partition by range (at)")
	must(err)
	must(partman.Install(ctx, pool, "public"))
	_, err = partman.Register(ctx, pool, "public", partman.Policy{Schema: "public", Table: "reading", Key: "at", Step: partman.Hour})
	must(err)
	manager, err := partman.New(partman.Config{
		Pool: pool, Schema: "public",
		Now: func(time.Time) time.Time { return time.Date(2026, 11, 22, 10, 30, 0, 0, time.UTC) },
	})
	must(err)

	plan, err := manager.Plan(ctx, "reading")
	must(err)
	plan.Actions = plan.Actions[:1] // without the statistics of the table, which come last
	fmt.Print(plan)
	result, err := manager.Apply(ctx, plan)
	must(err)
	fmt.Println(len(result.Done), "done")
	// Output:
	// -- public.reading at 2026-11-22T10:30:00Z: 1 actions
	//
	// -- create public.reading partition reading_p20261122_10 [2026-11-22T10:00:00Z, 2026-11-22T11:00:00Z)
	// begin;
	//   -- ACCESS SHARE on public.reading: the leaf, with everything that LIKE carries
	//   create table "public"."reading_p20261122_10" (like "public"."reading" including all excluding identity);
	//   -- SHARE UPDATE EXCLUSIVE on public.reading: from here on rows land in it
	//   alter table "public"."reading" attach partition "public"."reading_p20261122_10" for values from ('2026-11-22 10:00:00+00') to ('2026-11-22 11:00:00+00');
	//   -- each index of the parent is attached, none is doubled
	//   -- (indexes)
	// commit;
	// 1 done
}

// Register says what went before, so that a change can be told.
func ExampleRegister() {
	ctx, pool, done := database()
	defer done()
	must(partman.Install(ctx, pool, "public"))
	policy := partman.Policy{Schema: "public", Table: "reading", Key: "at", Step: partman.Day, Premake: 4}
	for _, policy.Premake = range []int{4, 7} {
		before, err := partman.Register(ctx, pool, "public", policy)
		must(err)
		if before == nil {
			fmt.Println("new:", policy.Describe())
			continue
		}
		fmt.Println("changed:", policy.Differences(*before))
	}
	// Output:
	// new: [key: at step: day premake: 4 retention: 0 grace: 24h0m0s]
	// changed: [premake: 7, was 4]
}

// A guard keeps a partition for as long as a row of it is needed.
func ExampleConfig_guard() {
	ctx, pool, done := database()
	defer done()
	_, err := pool.Exec(ctx, `create table reading (at timestamptz not null, billed boolean) partition by range (at);
		create table reading_old partition of reading for values from ('2026-01-01 00:00+00') to ('2026-01-02 00:00+00');
		insert into reading values ('2026-01-01 12:00+00', false)`)
	must(err)
	must(partman.Install(ctx, pool, "public"))
	_, err = partman.Register(ctx, pool, "public", partman.Policy{
		Schema: "public", Table: "reading", Key: "at", Step: partman.Day, Premake: partman.NoPremake, Retention: 8, Expired: partman.ExpiredDrop,
	})
	must(err)
	manager, err := partman.New(partman.Config{
		Pool: pool, Schema: "public",
		Guard: func(ctx context.Context, tx pgx.Tx, r partman.Retiring) error {
			var open int
			sql := "select count(*) from " + pgx.Identifier{r.PartitionSchema, r.Partition}.Sanitize() + " where not billed"
			if err := tx.QueryRow(ctx, sql).Scan(&open); err != nil || open == 0 {
				return err
			}
			return &partman.Blocked{Reason: "unbilled", Detail: fmt.Sprintf("%d readings", open)}
		},
	})
	must(err)

	result, err := manager.RunOnce(ctx, partman.RetireLoop)
	must(err)
	fmt.Println(len(result.Done), "gone; stays:", result.Refused[0].Action.Partition, result.Refused[0].Blocked)
	_, err = pool.Exec(ctx, "update reading set billed = true")
	must(err)
	result, err = manager.RunOnce(ctx, partman.RetireLoop)
	must(err)
	fmt.Println(len(result.Done), "gone,", len(result.Refused), "stay")
	// Output:
	// 0 gone; stays: reading_old unbilled: 1 readings
	// 1 gone, 0 stay
}

// Examine says what keeps a table from being kept, all of it at once.
func ExampleExamine() {
	ctx, pool, done := database()
	defer done()
	_, err := pool.Exec(ctx, "create table visit (at timestamp not null, page text) partition by list (page)")
	must(err)
	fmt.Println(partman.Examine(ctx, pool, partman.Policy{Schema: "public", Table: "visit", Key: "at", Step: partman.Day, Premake: 4}))
	err = partman.Examine(ctx, pool, partman.Policy{Schema: "public", Table: "Visit", Key: "at", Step: partman.Day})
	fmt.Println(err)
	// Output:
	// table "public.visit" is partitioned by list: by range is needed; make one that is, and bring the rows over
	// table "public.visit" is partitioned by column "page", not by "at"
	// table "public.visit" has a key "page" of type "text": "timestamp with time zone" or "date" is needed
	// table "public.Visit" is not there; there is public.visit
}
