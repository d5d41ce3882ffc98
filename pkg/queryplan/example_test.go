package queryplan_test

import (
	"context"
	"fmt"
	"log"

	"github.com/jackc/pgx/v5"

	"plenum/internal/devenv/devtest"
	"plenum/pkg/queryplan"
)

// What a statement costs and why, without leaving a trace of it.
func Example() {
	ctx := context.Background()
	url, drop, err := devtest.OpenDatabase()
	must(err)
	defer func() { must(drop()) }()
	conn, err := pgx.Connect(ctx, url)
	must(err)
	defer func() { must(conn.Close(ctx)) }()
	_, err = conn.Exec(ctx, "create table job (id bigint, done boolean); insert into job select i, false from generate_series(1, 20000) i; analyze job")
	must(err)

	tx, err := conn.Begin(ctx)
	must(err)
	defer func() { must(tx.Rollback(ctx)) }()
	plan, err := queryplan.Explain(ctx, tx, queryplan.Options{Analyze: true}, "update job set done = true where id = any($1)", []int64{5, 6, 7})
	must(err)
	faults, err := queryplan.Judge(ctx, tx, plan, queryplan.Need{Table: "job", Column: "id"})
	must(err)
	fmt.Println(plan.Matched(), "rows updated")
	for _, f := range faults {
		fmt.Println(f)
	}
	// Output:
	// 3 rows updated
	// sequential scan of job: no index on id (20,000 rows read to find 3)
}

func must(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
