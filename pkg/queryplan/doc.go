// Package queryplan asks PostgreSQL how it runs a statement, and says in words what is wrong with that. It is a library of its
// own, for statements on any table.
//
// # Model
//
// [Explain] explains a statement in the caller's transaction and parses the answer into a tree of [Node]. [Plan.Scans] is the
// tree's summary: how each relation, of a partitioned table each partition, is read. [Judge] compares it with what the caller
// needs: a [Need] names a table and the column that an index has to find its rows by. What is not served that way is a [Fault],
// and the catalog says why: no index leads with the column, one does and is invalid, or one does and was not chosen.
//
// # Invariants
//
// A relation is served by a column when each scan of it goes through an index that leads with the column, finds rows by an index
// condition on it, and is no BRIN index, which only tells large ranges of pages apart. An index that a scan only walks along does not
// serve, but where [Need].Walked says that the index holds nothing else than what is looked for.
//
// The statement goes to the server in the extended protocol, whatever the pool's default is: one that is two is refused there.
// Explain sends nothing else, and never ends the transaction. With Analyze the statement is run: the caller rolls back.
//
// A small relation is rightly scanned. Who asks whether an index is there, not what is best today, calls [Indexed] in the
// transaction first: from then on only plans without an index path contain a scan, whatever the statistics say.
//
// PostgreSQL before 18 rounds the rows of a loop to whole ones, so that their sum is off by up to half a row a loop.
package queryplan
