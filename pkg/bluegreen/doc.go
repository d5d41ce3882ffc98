// Package bluegreen puts a partitioned table in the place of a live one, and back, while its application goes on writing.
//
// # Model
//
// A migration has one or more tables. Of each there are two sides: blue, the table that was there, and green, the
// partitioned one that Init builds beside it. One side is active: it has the table's name, and the application works
// on it. The other is passive and called NAME_new (green, before a swap) or NAME_old (blue, after it). A swap exchanges
// the sides; a rollback is the same with the other side wanted.
//
//	application ──▶ active ──capture trigger──▶ log of places ──drain──▶ passive
//	                  └────────────copy, once───────────────────────────────┘
//
// Capture is a statement-level trigger with transition tables on both sides, all the time from Init to Finish, on the
// partitioned table and on each leaf, and a row-level one for what leaves a partition: a MERGE that moves a row fires no other. It writes the places of rows that were inserted, deleted, or changed, each an id and a key, where
// the row was and then where it is, into the table's log, in the writer's own transaction. What the drain and the copy write is not captured. A
// swap therefore changes no trigger of ours, and what somebody writes into the passive side is undone by the next drain.
//
// Copy reads the active side in order of its pages, in batches, each a transaction that also moves the cursor. The log is not
// drained before the copy is complete. A batch is an INSERT … SELECT, ON CONFLICT DO NOTHING where there is a key: a row that was changed since the
// capture began may be met twice, in its old place and its new one, and whichever version comes, the drain makes it right. A
// table that was rewritten (VACUUM FULL, TRUNCATE) has another file: the passive side is emptied and the copy begins again.
//
// Drain takes entries of the log, makes the passive side's rows of these places what the active side has, and deletes the
// entries, in one snapshot. A row that is written meanwhile has another entry, which that snapshot does not see. One row that both sides have at
// a place is updated there, or left alone if it is the same; others are deleted and inserted, also where a row is now that is at its place no more. With the key
// each look is in one partition. An id of which the
// passive side refuses a row (a unique key, a check, a foreign key) is set aside in bluegreen_stuck, tried again by each Sync,
// and stops every swap: the refusal says how to keep these rows apart.
//
// Verify compares both sides per day, in one snapshot, without the ids that are in the log or set aside: there they may differ. Each swap,
// a rollback, too, begins with it, unless it is told not to.
//
// Green is kept by partman from Init on, as blue is where blue is partman's. Nothing retires from either side until Finish or Abort; days
// are made all the while, by whoever runs a partition manager. Green's scope grows with its days.
//
// # Invariants
//
// For each id and key that are in no entry of the log and not set aside, within the table's scope, both sides have the same rows: in
// every snapshot taken after the copy is complete. The scope of green is the range [low, high) of the key that its
// partitions cover; rows of blue outside of it, with a key that is NULL or infinite or of a day that is not kept, stay
// where they are and are never deleted.
//
// A swap is one transaction: locks against vacuums of the active sides and on the passive ones, policies and the last turns of the drain, for which no reader
// or writer waits; then locks on the active ones, the rest of the logs, names, triggers of the application, sequences, publications. It
// commits or it did not happen, and says on the next call what is so. It is refused while verify finds a difference or an id is set
// aside; to green, too, while anything that was found and not accepted stands, and where no partition manager has been at work lately.
// A rollback asks for neither.
//
// No reader or writer waits longer than Config.LockTimeout for a lock that this package has asked for, and in all no longer than
// Config.Budget for one swap.
//
// Each command can be killed at any point and run again.
package bluegreen
