// Package httpapi serves Plenum over HTTP: liveness, readiness, metrics and the feed.
//
// What must hold:
//
//   - /livez answers 200 while the process runs its event loop; it asks nothing of the database or the broker.
//   - /readyz answers 503 only when the program cannot do its work, and then with each reason. What an operator
//     should look at soon is a warning with 200.
//   - Errors are problem details (RFC 9457) that say what was asked, what is wrong and what would be right.
//   - Without authentication only a loopback address may be listened on.
package httpapi
