//go:build !race

package endtoend

var buildFlags []string

// windows is how many of its windows ingest may take in memory: what one holds is there as packets, batches, columns and
// protocol messages, each with the collector's head-room.
const windows = 32
