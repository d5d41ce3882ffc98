package webhook

import (
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"plenum/pkg/feed"
)

// notTheRows are the 4xx statuses that say nothing of the rows: they are waited for. Every other 4xx refuses the rows.
var notTheRows = []int{
	http.StatusUnauthorized, http.StatusPaymentRequired, http.StatusForbidden, http.StatusProxyAuthRequired, // whoever operates it mends the credentials
	http.StatusNotFound, http.StatusMethodNotAllowed, http.StatusGone, http.StatusMisdirectedRequest, // … or the URL
	http.StatusNotAcceptable, http.StatusLengthRequired, http.StatusUnsupportedMediaType, http.StatusExpectationFailed, // no page would be taken there
	http.StatusUpgradeRequired, http.StatusPreconditionRequired, http.StatusRequestHeaderFieldsTooLarge,
	http.StatusConflict, http.StatusLocked, // the same key is being dealt with
	http.StatusRequestTimeout, http.StatusTooEarly, http.StatusTooManyRequests,
}

// refuses says whether the status is about the rows. 500 and 501 are: an application that chokes on what it is sent
// answers so, and would hold up the consumer for ever.
func refuses(status int) bool {
	switch {
	case status == http.StatusInternalServerError, status == http.StatusNotImplemented:
		return true
	case status >= 400 && status < 500:
		return !slices.Contains(notTheRows, status)
	}
	return false
}

// judge is nil for 2xx.
func (t *Target) judge(r *http.Response, answer string) error {
	if r.StatusCode >= 200 && r.StatusCode < 300 {
		return nil
	}
	quoted := ""
	if answer != "" {
		quoted = ": " + strconv.Quote(answer)
	}
	err := t.errorf("it answered %s%s", status(r), quoted)
	switch {
	case refuses(r.StatusCode):
		return &feed.RefusedError{Reason: err.Error()}
	case r.StatusCode >= 300 && r.StatusCode < 400:
		err = t.errorf("it answered %s, to %s: a redirect is not followed, set url to where it leads", status(r), host(r))
	}
	if after := retryAfter(r.Header.Get("Retry-After"), t.now()); after > 0 {
		return &feed.LaterError{After: after, Err: err}
	}
	return err
}

// status is without what the server makes of the reason phrase.
func status(r *http.Response) string {
	return strings.TrimSpace(fmt.Sprintf("%d %s", r.StatusCode, http.StatusText(r.StatusCode)))
}

// host is where a redirect leads; the rest of its URL may be secret.
func host(r *http.Response) string {
	location, err := r.Location()
	if err != nil {
		return "nowhere"
	}
	return (&url.URL{Scheme: location.Scheme, Host: location.Host}).String()
}

// retryAfter is what the header asks for, in seconds or as a date; 0 where it asks for nothing that can be read.
func retryAfter(value string, now time.Time) time.Duration {
	if seconds, err := strconv.ParseUint(value, 10, 31); err == nil {
		return time.Duration(seconds) * time.Second
	}
	if at, err := http.ParseTime(value); err == nil {
		return max(at.Sub(now), 0)
	}
	return 0
}
