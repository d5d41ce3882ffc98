// Package endtoend holds the tests of the whole path: the two daemons as processes, with the three roles of
// deploy/, a private PostgreSQL and Mosquitto, foreign publishers, and a reader of the feed.
package endtoend
