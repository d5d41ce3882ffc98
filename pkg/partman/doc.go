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
// # Use
//
// A service that keeps its own tables calls, at its start, [Install] for the table of policies and [Register] for each of
// its tables, then [New] and, in a goroutine of its own, [Manager.Run] until its context ends. Several instances may: one acts at
// a time per loop. Whoever inserts calls [Manager.EnsureNow] where a row found no partition (SQLSTATE 23514 without a constraint's
// name), and tries again. Readiness takes [Manager.Status]: a finding with Broken is a reason to be not ready. A
// tool for people shows [Manager.List], [Manager.Check], and [Manager.Plan] before [Manager.Apply].
//
// Config.Guard is where the service says whether a partition may go. It is asked in the transaction that takes the partition
// away, when nobody can write to it any more; what it writes there is committed with the move or the detach. It returns *[Blocked] to
// refuse. Config.Prepare comes before, outside of any lock, for what takes long.
//
// A table of somebody else is looked at by [Examine] first, which names each fault and each missing right, or by [Adopt],
// which reads how pg_partman or a person kept it so far and proposes a policy.
//
// # Rights
//
// The role of Config.Pool must be the tables' owner or a member of it, may create in their schemas and in that of
// partition_policy, and in their tablespace if they have one; the owner, too, may create in its schema. It may read and
// update partition_policy. Where row security is forced and a hook reads rows, it needs BYPASSRLS: the hook fails otherwise.
// With pg_read_all_stats it sees what the sessions of others do that stand in its way. The pool must not go through a
// transaction pooler: locks are held by session.
//
// # Names and steps
//
// A partition is a UTC day or a UTC hour, [Day] or [Hour]. It is named after its table and its start, telemetry_p20261122
// or telemetry_p20261122_10, and with a number behind that where the name is taken. Tables are named schema.table, a part with a dot
// or a double quote in it in double quotes; see [ParseName]. Keys are of type timestamptz, or date for days.
//
// # Metrics
//
// On Config.Registerer, with the label table: plenum_partition_runway_seconds, plenum_partitions, plenum_partition_index_drift,
// plenum_partition_retire_blocked (and reason), plenum_partition_actions_total (and action, result),
// plenum_partition_blocker_query_age_seconds (and action).
//
// # Invariants
//
// Bounds decide, never names. What a table is called says nothing about what it holds; a detached partition is known by the
// mark that was written in the transaction that detached it.
//
// Time is the database's, and a partition is a UTC day or hour whatever the time zone of session or server. Literals carry their
// offset; bounds are read under settings of our own.
//
// Nothing newer than the retention boundary leaves, and the current day never does. One round takes a limited number, and
// as many bytes as Config.MaxRetireBytes allows.
//
// Nothing leaves by a clock in doubt: one that went back since the last round, or is days after it, or differs from the
// host's. Nothing leaves by a retention that was just shortened: the old one stays in force until [Manager.Confirm]. Nothing
// that is held leaves, and nothing of a table that is paused ([Pause]). A pause, a hold, and a policy that keeps more, is asked
// for again in the transaction that takes a partition away, with the policy's row locked: it wins whenever it was set before
// the commit. Creating goes on in any case.
//
// A day that moves to the archive is at no moment in neither table, nor in both. It leaves when the guard lets it, asked in
// the transaction that takes it away and under a lock that holds up writes to that day, but before any lock on its table.
// Its rows are counted under the guard's lock, and again after the commit, under none; a day whose counts differ is held, and
// a finding, until a person releases it.
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
// and scans it. A table that foreign keys of the parent refer to is locked SHARE ROW EXCLUSIVE until the commit.
//
// What LIKE and ATTACH leave out is given to the new table before it is attached: owner, grants, row security, replica
// identity, tablespace, statistics targets; see [Traits].
package partman
