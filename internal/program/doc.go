// Package program is what the three commands have in common: the keys that operators set, and how the parts are
// wired into the ingest daemon and the sync daemon.
//
// It is a package because plenumctl's demo runs both daemons in one process, and a main cannot be imported.
//
// What must hold:
//
//   - keys in settings.go is the only list of keys: flags, environment variables, the file's keys, defaults and
//     help are made from it.
//   - Every fault of the configuration is reported at once, each naming its key and value; a secret's value never.
//   - A daemon that cannot reach the database or the broker waits and says so; one that is set up wrongly exits
//     with code 2; one whose name is taken, with code 4.
//   - Shutdown goes: stop intake, store what is queued, acknowledge, disconnect, partitions, HTTP, pool; all
//     under one deadline.
package program
