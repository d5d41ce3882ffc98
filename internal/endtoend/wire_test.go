package endtoend

import (
	"encoding/binary"
	"testing"
)

// What an inspector sees passing.
type event int

const (
	commitAsked    event = iota + 1 // client to PostgreSQL: the simple query "commit"
	commitDone                      // PostgreSQL to client: COMMIT has succeeded
	publishSent                     // broker to client: a PUBLISH
	publishedAgain                  // broker to client: a PUBLISH with DUP
	alterAsked                      // client to PostgreSQL: a simple query that begins with "alter t"
	messageSent                     // client to PostgreSQL: any other message, where all are asked for
)

// framer follows one direction of a connection. It calls found for each message of interest, with the bytes of the chunk
// before it and up to its end, and stops following the chunk where found returns false.
type framer interface {
	feed(chunk []byte, found func(e event, begin, end int) bool)
}

// postgresFramer follows PostgreSQL's messages: a type byte, a length that counts itself, the rest. A client's first
// message has no type byte. There is no TLS.
type postgresFramer struct {
	client bool
	all    bool   // each message of a client is an event
	typed  bool   // what comes has a type byte
	head   []byte // type and length, and the first bytes of the rest
	left   int    // bytes of the message that are still to come; below 0: its length is not known yet
}

// kept is how many bytes of a message are looked at.
const kept = 5 + len("COMMIT\x00")

func newPostgresFramer(client bool) *postgresFramer {
	return &postgresFramer{client: client, typed: !client, left: -1}
}

func (f *postgresFramer) feed(chunk []byte, found func(event, int, int) bool) {
	begin := 0
	for at := 0; at < len(chunk); {
		if f.left < 0 {
			f.head = append(f.head, chunk[at])
			at++
			if !f.typed && len(f.head) == 4 { // the start-up message
				f.head = append([]byte{0}, f.head...)
			}
			if len(f.head) == 5 && (f.typed || f.head[0] == 0) {
				f.left = int(binary.BigEndian.Uint32(f.head[1:])) - 4
			}
		} else {
			n := min(f.left, len(chunk)-at)
			f.head = append(f.head, chunk[at:at+min(n, max(0, kept-len(f.head)))]...)
			f.left -= n
			at += n
		}
		if f.left != 0 {
			continue
		}
		e := f.event()
		f.head, f.left, f.typed = f.head[:0], -1, true
		if e != 0 && !found(e, begin, at) {
			return
		}
		begin = at
	}
}

// event tells what the whole message is, of which head holds the beginning.
func (f *postgresFramer) event() event {
	switch {
	case f.client && string(f.head) == "Q\x00\x00\x00\x0bcommit\x00":
		return commitAsked
	case !f.client && string(f.head) == "C\x00\x00\x00\x0bCOMMIT\x00":
		return commitDone
	case f.client && len(f.head) > 5 && f.head[0] == 'Q' && string(f.head[5:]) == "alter t":
		return alterAsked
	case f.client && f.all:
		return messageSent
	}
	return 0
}

// mqttFramer follows MQTT's packets: a byte of type and flags, a length of one to four bytes, the rest (MQTT 3.1.1, 2.2).
type mqttFramer struct {
	first   byte
	inside  bool // a packet has begun
	counted bool // its length is known
	shift   int
	left    int
}

func (f *mqttFramer) feed(chunk []byte, found func(event, int, int) bool) {
	begin := 0
	for at := 0; at < len(chunk); {
		switch {
		case !f.inside:
			*f = mqttFramer{first: chunk[at], inside: true}
			begin = at
			at++
			continue
		case !f.counted:
			f.left |= int(chunk[at]&0x7f) << f.shift
			f.shift += 7
			f.counted = chunk[at] < 0x80
			at++
		default:
			n := min(f.left, len(chunk)-at)
			f.left -= n
			at += n
		}
		if !f.counted || f.left > 0 {
			continue
		}
		f.inside = false
		if !f.tell(found, begin, at) {
			return
		}
	}
}

// tell reports a packet that is there in full.
func (f *mqttFramer) tell(found func(event, int, int) bool, begin, end int) bool {
	const publish, dup = 3, 1 << 3
	if f.first>>4 != publish {
		return true
	}
	if f.first&dup != 0 && !found(publishedAgain, begin, end) {
		return false
	}
	return found(publishSent, begin, end)
}

// TestFramers feeds each framer a conversation in chunks of every size.
func TestFramers(t *testing.T) {
	t.Parallel()
	const (
		startup  = "\x00\x00\x00\x10\x00\x03\x00\x00user\x00x\x00\x00"
		begin    = "Q\x00\x00\x00\x0abegin\x00"
		alter    = "Q\x00\x00\x00\x14alter table t\x00\x00\x00"
		commit   = "Q\x00\x00\x00\x0bcommit\x00"
		decoy    = "Q\x00\x00\x00\x16Q\x00\x00\x00\x0bcommit\x00abcdef"
		done     = "C\x00\x00\x00\x0bCOMMIT\x00"
		rollback = "C\x00\x00\x00\x0dROLLBACK\x00"
		row      = "D\x00\x00\x00\x10C\x00\x00\x00\x0bCOMMIT\x00"
		ready    = "Z\x00\x00\x00\x05I"
		connack  = "\x20\x02\x00\x00"
		publish  = "\x32\x07\x00\x01a\x00\x01xy"
		again    = "\x3a\x07\x00\x01a\x00\x01xy"
	)
	long := "\x32\x80\x01" + string(make([]byte, 128))
	for _, c := range []struct {
		name   string
		text   string
		framer func() framer
		want   map[event]int
	}{
		{"client", startup + begin + decoy + commit + commit, func() framer { return newPostgresFramer(true) }, map[event]int{commitAsked: 2}},
		{
			"all of a client", startup + begin + alter + commit, func() framer { return &postgresFramer{client: true, all: true, left: -1} },
			map[event]int{commitAsked: 1, alterAsked: 1, messageSent: 2},
		},
		{"server", ready + row + done + rollback + done + ready, func() framer { return newPostgresFramer(false) }, map[event]int{commitDone: 2}},
		{"broker", connack + publish + long + again + connack, func() framer { return new(mqttFramer) }, map[event]int{publishSent: 3, publishedAgain: 1}},
	} {
		for size := 1; size <= len(c.text); size++ {
			got, f := map[event]int{}, c.framer()
			for rest := []byte(c.text); len(rest) > 0; rest = rest[min(size, len(rest)):] {
				f.feed(rest[:min(size, len(rest))], func(e event, _, _ int) bool { got[e]++; return true })
			}
			for e, n := range c.want {
				if got[e] != n || len(got) != len(c.want) {
					t.Fatalf("%s, chunks of %d: %v, want %v", c.name, size, got, c.want)
				}
			}
		}
	}
}
