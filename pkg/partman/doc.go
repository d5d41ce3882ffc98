// Package partman keeps range-partitioned tables of PostgreSQL: partitions ready ahead of the rows, old ones archived or
// dropped, each with its indexes and storage parameters. It is a library of its own and knows nothing of what the rows are.
//
// # Model
//
// A [Policy] says how one table is to be kept; policies live in the table partition_policy, so that any running manager
// keeps every registered table. [Inspect] reads a [Snapshot] from the catalog. [NewPlan] turns policy, snapshot and an
// instant into a [Plan], a list of actions with each statement, the lock it takes, on what, and why; [Check] turns the
// same into findings. Both are pure. A [Manager] applies plans, in three loops: create, retire and health.
//
// # Invariants
//
// Bounds decide, never names. What a table is called says nothing about what it holds; a detached partition is known by the
// mark that was written in the transaction that detached it.
//
// Time is the database's, and a partition is a UTC day whatever the time zone of session or server. Literals carry their
// offset; bounds are read under settings of our own.
//
// Nothing newer than the retention boundary leaves, and the current day never does. One round takes a limited number.
//
// A day that moves to the archive is at no moment in neither table, nor in both. It leaves when the guard lets it, asked in
// the transaction that takes it away and under a lock that holds up writes to that day, but before any lock on its table.
//
// No statement makes writers of the table wait longer than Config.LockTimeout: a lock that they would queue behind is asked
// for with that lock_timeout, the table's own last of all, and tries are a second and more apart. Index builds are
// CONCURRENTLY. DETACH … CONCURRENTLY is never used: it needs two transactions, cannot be bounded by lock_timeout, and
// leaves its partition pending where it fails.
//
// Each action is complete in itself. Whatever a crash leaves of it, the next plan, made from the catalog, goes on from
// there. It is planned again from the catalog under the loop's advisory lock, held per action on the connection that runs
// the DDL: a lost connection ends both, and an operator's command is not kept out by an idle daemon.
//
// Whoever acts holds its loop's lock: each transaction looks for it in the session that answers. A transaction pooler, behind
// which that fails, is refused before the first lock.
//
// Who holds up an action is named from the first try on: in the log once, in [Manager.Status], [Manager.List] and the metric.
//
// Loops are independent: a partition that cannot be dropped for a month costs no premade day, and a table that fails costs
// the other tables nothing. What was tried in vain is tried again after all else.
//
// What was refused or failed is a finding of [Manager.Status] from its first try until it is done, with the reason and the
// partition's name. What is merely due is none until it has been due for an hour.
//
// # Locks of creating a partition
//
// A partition is made as a table of its own, LIKE its parent, and then attached, which takes SHARE UPDATE EXCLUSIVE on the
// parent; reads and writes go on. PARTITION OF would take ACCESS EXCLUSIVE. A DEFAULT partition is a finding: ATTACH locks
// and scans it.
package partman
