// Package syncjob hands stored rows downstream: it marks pending ledger lines' rows processed and gives
// the lines their feed positions.
//
// The model. Several workers, in any number of processes, repeat store.Marker.Mark: each claims lines that no
// other holds. Three more loops run beside them: notify wakes the feed's readers after commits, reconcile writes the
// ledger lines that rows inserted by hand lack, and observe keeps the gauges.
//
// What must hold:
//
//   - A worker delivers nothing itself, so its transaction stays short whatever consumers do.
//   - NOTIFY is sent on another connection than marking's, for all commits meanwhile at once; that it fails fails nothing else.
//   - A line whose rows differ from its count is set aside after three tries; no other line waits for it.
//   - A worker that cannot mark goes on trying, with full jitter, and says so once.
//   - When Run's context ends, the transaction under way is finished, and no other is begun.
package syncjob
