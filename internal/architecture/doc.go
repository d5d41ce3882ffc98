// Package architecture tests that the packages import of each other only what ARCHITECTURE.md allows, and that
// each says in its documentation what it is.
package architecture
