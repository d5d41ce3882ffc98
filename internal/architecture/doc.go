// Package architecture tests that the packages import of each other only what ARCHITECTURE.md allows, and that
// each says in its documentation what it is; and that the tests that the documents name are there.
package architecture
