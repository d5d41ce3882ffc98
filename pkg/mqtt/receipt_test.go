package mqtt

import (
	"testing"
	"time"

	"pgregory.net/rapid"
)

// acknowledged keeps what would be written.
type acknowledged struct{ packets []byte }

func (a *acknowledged) acknowledge(packets []byte) bool {
	first := len(a.packets) == 0
	a.packets = append(a.packets, packets...)
	return first
}

// Messages come, are done in any order and more than once, and the epoch ends somewhere: at each moment exactly the done prefix
// is acknowledged, in order, and the window holds what is not acknowledged, or, after the end, not done.
func TestAckQueueAcknowledgesTheDonePrefix(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWindow(1<<20, 1<<30)
		out := new(acknowledged)
		q := newAckQueue(w, out, func(time.Duration) {})
		var receipts []*Receipt
		var qos []byte
		done := make(map[int]bool)
		ended := false
		steps := rapid.IntRange(1, 1500).Draw(t, "steps")
		for range steps {
			switch action := rapid.IntRange(0, 20).Draw(t, "action"); {
			case action == 20 && rapid.IntRange(0, 20).Draw(t, "end") == 0:
				q.end()
				ended = true
			case action < 10 && !ended:
				w.reserve(10)
				q.expect(10, 0)
				level := rapid.SampledFrom([]byte{0, 1, 1, 1, 2}).Draw(t, "qos")
				r, _ := q.push(uint16(len(receipts)+1), level, "", 10, time.Now())
				receipts = append(receipts, r)
				qos = append(qos, level)
			case len(receipts) > 0:
				i := rapid.IntRange(max(0, len(receipts)-40), len(receipts)-1).Draw(t, "done")
				receipts[i].Done()
				done[i] = true
			}
			if !ended {
				checkPrefix(t, w, out, qos, done)
			}
		}
		if ended && w.used() != len(receipts)-len(done) {
			t.Fatalf("window holds %d after the end, %d are not done", w.used(), len(receipts)-len(done))
		}
	})
}

func checkPrefix(t *rapid.T, w *window, out *acknowledged, qos []byte, done map[int]bool) {
	var want []byte
	prefix := 0
	for ; done[prefix]; prefix++ {
		id := prefix + 1
		switch qos[prefix] {
		case 1:
			want = append(want, packetPuback, 2, byte(id>>8), byte(id))
		case 2:
			want = append(want, packetPubrec, 2, byte(id>>8), byte(id))
		}
	}
	if string(out.packets) != string(want) {
		t.Fatalf("acknowledged %x, want %x", out.packets, want)
	}
	if w.used() != len(qos)-prefix || w.bytes != 10*(len(qos)-prefix) {
		t.Fatalf("window holds %d messages, %d bytes; %d are not acknowledged", w.used(), w.bytes, len(qos)-prefix)
	}
}

// What the reader admitted and paho did not bring before the end gives its room back.
func TestAckQueueEndReleasesWhatWillNotCome(t *testing.T) {
	w := newWindow(10, 1000)
	q := newAckQueue(w, new(acknowledged), func(time.Duration) {})
	for range 3 {
		w.reserve(7)
		q.expect(7, 0)
	}
	r, _ := q.push(1, 1, "", 7, time.Now())
	q.end()
	q.end()
	if late, _ := q.push(2, 1, "", 7, time.Now()); late != nil {
		t.Error("took a message after the end")
	}
	if w.used() != 1 || w.bytes != 7 {
		t.Errorf("window holds %d messages, %d bytes, want 1 and 7", w.used(), w.bytes)
	}
	r.Done()
	r.Done()
	if w.used() != 0 || w.bytes != 0 {
		t.Errorf("window holds %d messages, %d bytes, want none", w.used(), w.bytes)
	}
}

func FuzzParseHeader(f *testing.F) {
	f.Add([]byte{0x30, 0x00})
	f.Add([]byte{0x32, 0xff, 0xff, 0xff, 0x7f, 1})
	f.Add([]byte{0x32, 0xff, 0xff, 0xff, 0xff})
	f.Add([]byte{0x32, 0x80})
	f.Fuzz(func(t *testing.T, in []byte) {
		h, complete, err := parseHeader(in)
		if err != nil && len(in) < longestHeader {
			t.Errorf("%x: fault before all bytes of a header were there: %v", in, err)
		}
		if !complete {
			return
		}
		if h.bytes < 2 || h.bytes > min(longestHeader, len(in)) || h.remainingLength < 0 || h.remainingLength > maxPacket {
			t.Errorf("%x: %+v", in, h)
		}
	})
}
