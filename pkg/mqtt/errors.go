package mqtt

import (
	"errors"
	"fmt"
)

// reason is why a connection, or an attempt to make one, ended: the closed label set of plenum_mqtt_reconnects_total.
type reason string

const (
	reasonDial      reason = "dial"      // no network connection, or no CONNACK
	reasonRefused   reason = "refused"   // CONNACK said no
	reasonSubscribe reason = "subscribe" // a filter was refused, or SUBACK or UNSUBACK did not come
	reasonLost      reason = "lost"      // closed by the broker, network fault, no answer to a ping
	reasonWindow    reason = "window"    // the window stayed full for half the keep-alive
	reasonProtocol  reason = "protocol"  // a packet that MQTT does not allow here, or one over the limit that is no message
	reasonSession   reason = "session"   // the filters of the session could not be read or kept
)

var reasons = []reason{reasonDial, reasonRefused, reasonSubscribe, reasonLost, reasonWindow, reasonProtocol, reasonSession}

// endError is an error with the reason that it counts as.
type endError struct {
	reason reason
	err    error
}

func (e *endError) Error() string { return e.err.Error() }
func (e *endError) Unwrap() error { return e.err }

func ended(r reason, format string, args ...any) error {
	return &endError{reason: r, err: fmt.Errorf(format, args...)}
}

// reasonOf returns the reason that err carries, else otherwise.
func reasonOf(err error, otherwise reason) reason {
	var e *endError
	if errors.As(err, &e) {
		return e.reason
	}
	return otherwise
}

// errStopped ends a connection because the client is closed or its context has ended.
var errStopped = errors.New("client stopped")

// errFinished ends a connection that has done what it was made for.
var errFinished = errors.New("finished")

// refusal says what CONNACK's return code means (MQTT table 3.1).
func refusal(code byte) error {
	meanings := [...]string{
		1: "unacceptable protocol version",
		2: "client id rejected",
		3: "server unavailable",
		4: "bad user name or password",
		5: "not authorized",
	}
	meaning := "reserved return code"
	if int(code) < len(meanings) {
		meaning = meanings[code]
	}
	return ended(reasonRefused, "connection refused by the broker: %s (CONNACK %d)", meaning, code)
}
