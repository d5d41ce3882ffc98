//go:build race

package endtoend

var buildFlags = []string{"-race"}

// windows is twice what it is without the detector, which keeps a shadow of the memory in use.
const windows = 64
