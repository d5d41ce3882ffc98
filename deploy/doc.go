// Package deploy is the folder of what runs Plenum in production, with one
// function for the test that holds it to the programs.
//
// The invariant: whatever a rule or a dashboard names, a daemon exposes. A
// metric that is renamed leaves an alert that never fires and a panel that is
// empty, and nobody notices either before the night it was made for.
package deploy
