// Package store is what Plenum asks of PostgreSQL: its schema, the transaction that stores a batch, the
// transaction that marks batches processed, and the reads behind the feed.
//
// The model. telemetry holds rows, a partition a UTC day of last_modified, the database's transaction
// time. Every transaction that inserts rows also inserts, for each contiguous run of their ids, a line into
// the ledger telemetry_batch. A line is pending until the transaction that sets processed on its rows also
// gives it a feed position. Consumers follow the positions.
//
// What must hold:
//
//   - Rows and their ledger lines commit together, or neither does.
//   - An id belongs to the connection that drew its block from telemetry_id_seq, and dies with it. Ids of a
//     failed transaction are not used again, since a COMMIT without an answer may have succeeded.
//   - A reading's identity (device_id, kind, recorded_at, seq) is stored once within a UTC day and the next, a retained message's
//     within all live days. In one day the unique index of its partition decides, never a look-up before the insert. Across
//     midnight a look-up decides, which waits for the transactions of the day before: each holds a lock of its day from before it
//     last reads the clock, which must still show that day, until its rows are visible.
//   - Only what a row can cause quarantines it, and only when it is alone in its transaction; all else is the caller's to repeat.
//   - Each transaction adds what it stored, found as duplicates and quarantined to ingest_account.
//   - The number of rows that a mark updates equals its lines' row_count, or the mark is rolled back.
//   - Positions commit in ascending order: they are drawn under a lock that is held until the commit is
//     visible. A reader that has seen position n will never see a new one below n.
//   - Statements name the bounds of one UTC day where they touch telemetry, as constants at plan time, so
//     that one partition is left of them (see [PostgreSQL partition pruning]).
//
// Every connection has the schema as its only search_path, UTC as its time zone, and custom plans: a generic
// plan would lock every partition.
//
// [PostgreSQL partition pruning]: https://www.postgresql.org/docs/15/ddl-partitioning.html#DDL-PARTITION-PRUNING
package store
