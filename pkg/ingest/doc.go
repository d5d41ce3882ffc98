// Package ingest turns received messages into committed batches and then acknowledges them.
//
// The model. Receive decodes a message into the open batch. A batch is sealed when it holds enough rows or
// bytes, or is taken as it is when its oldest message has waited for the linger. Several writers take batches
// and store each in one transaction; after the commit the receipts of its messages are done, in any order
// between batches: who gave the receipts puts them in order.
//
// What must hold:
//
//   - A receipt is done only after the transaction with all its message's readings and rejects has committed.
//   - Receive never blocks. It bounds nothing itself: who calls it bounds what it has received and not
//     yet seen done, in messages and bytes, which bounds the queue.
//   - All rows of a message are in one batch, so in one transaction, unless the store divides the batch because of a row.
//   - A batch that cannot be stored, or what is left of it, is tried again, with full jitter, until it is stored or the run is given up;
//     what is given up stays unacknowledged. A try is cut off after a minute, so that a database which has stopped
//     answering is a failure that readiness shows.
//   - Failing is set while any batch waits for another try, whatever the other writers do.
//   - A message that comes after Drain is neither stored nor acknowledged nor counted as received: the broker keeps it.
//   - received = stored + duplicate + quarantined, once everything received is done, and never less before.
package ingest
