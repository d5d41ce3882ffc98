// Package devenv runs what the pipeline needs around it on one machine: a
// private PostgreSQL, a private Mosquitto, and simulated compressors. The demo
// and the tests use the same code; package devtest adds what only tests need.
//
// A server is a child process of this program, on 127.0.0.1 only, with these
// invariants:
//
//   - It is its own process group: a Ctrl-C at the terminal reaches this
//     program alone, which drains first and stops its servers afterwards.
//   - It never outlives this program, kill -9 included: the kernel signals it
//     when the thread that started it ends, and that thread is kept for as
//     long as the server lives.
//   - It listens when its Start returns, and is gone, with every process it
//     started, when its Stop returns. One that ends while starting is an error
//     that carries the last lines of its log.
//   - Its data directory survives Crash and Restart. A directory that the
//     caller named is kept; a temporary one is removed by Stop.
//   - A directory that the caller named has one server at a time: from Start to
//     Stop this program holds a lock on the file NAME.lock beside it.
//
// As root, PostgreSQL runs as another user, since it refuses root; Mosquitto
// stays root, so that it can read the certificates it is given.
//
// The simulator counts a reading as acknowledged when its PUBACK arrived, and
// resends what was not acknowledged when the broker was away.
//
// The package is for Linux.
package devenv
