package bluegreen_test

import (
	"testing"

	"plenum/pkg/bluegreen"
)

// setDefault is a setting of the database, for sessions that begin afterwards: of the migration's, not of the test's.
func (y *yard) setDefault(setting string) {
	y.Helper()
	y.exec("do $$ begin execute format('alter database %I set " + setting + "', current_database()); end $$")
	super := y.pool
	y.pool = y.connect("")
	y.m = y.migration(func(string) {})
	y.pool = super
}

// A row that is committed while the swap waits for its locks must not be missed by the snapshot that a role's default would have.
func TestIsolationOfTheRole(t *testing.T) {
	t.Parallel()
	for _, level := range []string{"repeatable read", "serializable"} {
		y := newYard(t, plain)
		y.init("orders")
		y.sync()
		writer := y.pool
		y.setDefault("default_transaction_isolation = ''" + level + "''")
		y.pool = y.connect("")
		y.m = y.migration(at("passive sides locked", func() {
			if _, err := writer.Exec(y.ctx, "insert into orders (id, at) values (999, now())"); err != nil {
				t.Error(err)
			}
		}))
		y.swap(bluegreen.Green)
		y.is("1", "select count(*) from orders where id = 999")
		y.sync()
		y.alike("orders", "orders_old")
	}
}

// What is set against an application's slow statements does not end a copy.
func TestStatementTimeoutOfTheRole(t *testing.T) {
	t.Parallel()
	y := newYard(t, plain+`create function slow(text) returns text immutable language plpgsql as 'begin perform pg_sleep(0.005); return $1; end';
		create index on orders (slow(state))`)
	y.setDefault("statement_timeout = ''1s''")
	y.init("orders")
	y.sync()
	y.alike("orders", "orders_new")
}

// A column may be called like what a query of verify's calls the row.
func TestVerifyLooksAtAllColumns(t *testing.T) {
	t.Parallel()
	y := newYard(t, plain+"alter table orders add t int default 1, add b int default 2, add g int default 3, add l int default 4, add s int default 5, add x int default 6, add day int, add row text, add side text")
	y.init("orders")
	y.sync()
	y.exec("begin; set local plenum_bluegreen.applying = 'on'; update orders_new set state = 'wrong' where id = 3; commit")
	if list := y.verify(); len(list) != 1 || len(list[0].Rows) != 2 || list[0].Rows[1].ID != "3" {
		t.Errorf("differences %v", list)
	}
	y.exec("update orders set state = state where id = 3")
	y.swap(bluegreen.Green)
	y.exec("update orders set t = null, b = null, g = null, l = null, s = null, x = null where id = 4")
	y.swap(bluegreen.Blue)
	y.alike("orders", "orders_new")
}
