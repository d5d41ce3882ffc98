//go:build race

package bench

// The programs are built as the tests that already run in this mode have them.
var buildFlags = []string{"-race"}
