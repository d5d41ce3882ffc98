// Package httpapi serves Plenum over HTTP: liveness, readiness, metrics and the feed.
//
// What must hold:
//
//   - /livez answers 200 while the process runs its event loop; it asks nothing of the database or the broker.
//   - /readyz answers 503 only when the program cannot do its work, and then with each reason. What an operator
//     should look at soon is a warning with 200.
//   - Errors are problem details (RFC 9457) that say what was asked, what is wrong and what would be right.
//   - There is no authentication: an address that others can reach is said in the log. A page of another origin can
//     change nothing through its reader's browser.
//   - A client that stops reading is cut off; one that is being answered when the server stops gets its answer.
package httpapi
