// Package bench measures the whole path: the programs as they are built, a private PostgreSQL with the settings of deploy/, a
// private Mosquitto, real messages. make bench prints the table and writes it to docs/benchmarks.md.
//
// The model. Each repetition has fresh databases. Three persistent sessions, one of a plain paho and pgx consumer and two of ingest, of
// which one stores without the identity index, are given the same readings while no consumer runs; then each drains its session alone. Then syncjob
// marks the rows of the one, and a plain SQL loop those of the other. At last ingest gets readings at a steady rate.
//
// BenchmarkPartitions is about those who insert while partitions are kept: a load whose batches are due at fixed instants, an analytic
// query that holds its snapshot, and an operation by pkg/partman, by plain SQL or by pg_partman, each on a copy of its keeper's fixture.
//
// BenchmarkStory, BenchmarkGrowth and BenchmarkMarking are about the update that sets processed: on the tables of the system that Plenum
// replaces, with each remedy that was tried there, against the number of partitions, and sustained. Their updates are the statements
// that the programs send, each in a transaction that is rolled back where all variants have to find the same state. BenchmarkLedger is
// what the ledger adds to a row at several rates. BenchmarkHandoff is about the consumer: how soon it has a row, and how fast it catches
// up; it knows no more of the feed than its HTTP.
//
// BenchmarkBlueGreen is about moving such a table to partitions while it is in use: the copy beside one statement that does the same, what
// writers feel of the capture and of a sync that follows, on two tables of the same rows, and the rates of verify and drain.
//
// The rows of these are made by the server, with the shape of an air compressor's signals: see days and makePayloads. Only
// BenchmarkMarking, BenchmarkLedger and the writers of BenchmarkBlueGreen have autovacuum, since what is measured there would look
// better, or worse, without.
//
// What must hold, for the figures to mean what they say:
//
//   - Everything measured is the product's binary, or code that has no other work in its process; what a process spends on
//     starting and stopping is measured by an idle run and taken off.
//   - Both sides of a comparison see the same messages, store into the same kind of partition with the same indexes and
//     settings, and take turns in going first. Ratios are of one repetition.
//   - All rows are counted at the end: a repetition that lost or doubled one is no measurement but an error.
//   - PostgreSQL runs with fsync, and no checkpoint falls into a measurement, nor between the writing of rows and a measured change of
//     them, so that no WAL figure depends on when one began. CREATE and DROP DATABASE are checkpoints.
package bench
