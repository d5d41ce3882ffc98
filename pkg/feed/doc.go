// Package feed gives named consumers the processed rows in position order.
//
// The model. A consumer is a row with a position: everything up to and with it has been committed by the
// consumer. Read returns whole batches behind that position and the position to commit; it changes nothing
// but creating the consumer at its first read. Commit moves the position forward.
//
// A read that finds nothing waits. A Listener wakes it when syncjob notifies; without one, or on a standby, it looks often by
// itself. What a waiting reader needs to know, the head and where its consumer stands, is asked once for all of them.
//
// What must hold:
//
//   - Rows come in position order, batches whole; a read again without a commit returns the same rows first.
//   - A consumer whose next rows have been dropped is told so (GoneError), never moved on.
//   - A batch of which rows are missing is an error, never fewer rows.
//   - A position never goes backwards by Commit, nor past the feed's head; that of a consumer that is pushed to moves by its pusher alone. Seek moves it between horizon and head.
//   - No wake is lost between a look and the wait for the next: a reader takes the wake before it looks, and a shared look that it
//     gets began after the wake.
//   - A standby that lags skips nothing and makes nothing expire: a page's lines, rows and horizon come from one server.
package feed
