// Package feed gives named consumers the processed rows in position order.
//
// The model. A consumer is a row with a position: everything up to and with it has been committed by the
// consumer. Read returns whole batches behind that position and the position to commit; it changes nothing
// but creating the consumer at its first read. Commit moves the position forward.
//
// What must hold:
//
//   - Rows come in position order, batches whole; a read again without a commit returns the same rows first.
//   - A consumer whose next rows have been dropped is told so (GoneError), never moved on.
//   - A batch of which rows are missing is an error, never fewer rows.
//   - A position never goes backwards by Commit, nor past the feed's head.
package feed
