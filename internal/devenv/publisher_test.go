package devenv

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"
	"github.com/google/go-cmp/cmp"
)

// script is a broker that does what a real one cannot be told to: withhold and
// invent acknowledgements. It runs its steps on one connection each, and
// returns its URL and the channel that tells how the last one ended.
func script(t *testing.T, steps ...func(peer) error) (string, <-chan error) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	ended := make(chan error, 1)
	go func() {
		var err error
		for _, step := range steps {
			conn, acceptErr := listener.Accept()
			if acceptErr != nil {
				err = acceptErr
				break
			}
			p := peer{conn, bufio.NewReader(conn)}
			if err = p.welcome(); err == nil {
				err = step(p)
			}
			conn.Close()
		}
		ended <- err
	}()
	return "tcp://" + listener.Addr().String(), ended
}

type peer struct {
	net.Conn
	in *bufio.Reader
}

func (p peer) welcome() error {
	if _, err := packets.ReadPacket(p.in); err != nil {
		return err
	}
	return packets.NewControlPacket(packets.Connack).Write(p)
}

// receive reads publications.
func (p peer) receive(n int) ([]*packets.PublishPacket, error) {
	var received []*packets.PublishPacket
	for range n {
		packet, err := packets.ReadPacket(p.in)
		if err != nil {
			return nil, err
		}
		publication, ok := packet.(*packets.PublishPacket)
		if !ok {
			return nil, errors.New("unexpected " + packet.String())
		}
		received = append(received, publication)
	}
	return received, nil
}

func (p peer) acknowledge(id uint16) error {
	ack := packets.NewControlPacket(packets.Puback).(*packets.PubackPacket)
	ack.MessageID = id
	return ack.Write(p)
}

func TestUnacknowledgedIsRepeatedInOrder(t *testing.T) {
	t.Parallel()
	var before, after []*packets.PublishPacket
	url, ended := script(t, func(p peer) (err error) {
		if before, err = p.receive(4); err != nil {
			return err
		}
		return p.acknowledge(before[1].MessageID)
	}, func(p peer) (err error) {
		if after, err = p.receive(3); err != nil {
			return err
		}
		for _, publication := range after {
			if err := p.acknowledge(publication.MessageID); err != nil {
				return err
			}
		}
		_, err = io.Copy(io.Discard, p.in) // to the end, for the acknowledgements to arrive
		return err
	})
	var record strings.Builder
	stats, err := Simulate(t.Context(), SimulateConfig{
		Broker: url, Devices: 2, Total: 4, QoS: 1, MaxInFlight: 4, Record: &record,
	}, nil)
	if err := errors.Join(err, <-ended); err != nil {
		t.Fatal(err)
	}
	if want := (SimulateStats{Sent: 4, Acknowledged: 4, Reconnects: 1}); stats != want {
		t.Errorf("stats %+v, want %+v", stats, want)
	}
	if want := "cmp-00002 1\ncmp-00001 1\ncmp-00001 2\ncmp-00002 2\n"; record.String() != want {
		t.Errorf("record %q, want %q", &record, want)
	}
	for i, first := range []int{0, 2, 3} {
		want := *before[first]
		if want.Dup {
			t.Errorf("first sending of %d is marked as repeated", first)
		}
		want.Dup = true
		if diff := cmp.Diff(&want, after[i]); diff != "" {
			t.Errorf("repetition %d (-want +got):\n%s", i, diff)
		}
	}
}

func TestInventedAcknowledgementEndsTheConnection(t *testing.T) {
	t.Parallel()
	url, ended := script(t, func(p peer) error {
		return errors.Join(p.acknowledge(5), errorOf(io.Copy(io.Discard, p.in)))
	})
	p, err := newPublisher(t.Context(), SimulateConfig{Broker: url, QoS: 1, MaxInFlight: 5})
	if err != nil {
		t.Fatal(err)
	}
	<-p.lost()
	if err := p.link.close(); err == nil || !strings.Contains(err.Error(), "packet 5, which was not in flight") {
		t.Errorf("lost because of %v", err)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func errorOf(_ int64, err error) error { return err }

func TestDrainTellsWhatIsNotAcknowledged(t *testing.T) {
	t.Parallel()
	url, ended := script(t, func(p peer) error {
		_, err := io.Copy(io.Discard, p.in)
		return err
	})
	config := SimulateConfig{Broker: url, Devices: 1, QoS: 1, MaxInFlight: 3, Total: 2, Now: time.Now}
	p, err := newPublisher(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	s := &simulation{config: config, readings: newFleet(1, 1, 1), publisher: p}
	if err := s.publishAll(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("patience is over"))
	if err := s.drain(ctx); err == nil || !strings.Contains(err.Error(), "2 readings were not acknowledged: patience is over") {
		t.Errorf("drain: %v", err)
	}
	if err := errors.Join(p.close(), <-ended); err != nil {
		t.Error(err)
	}
}

func TestPaceKeepsTheRate(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		idle := &link{out: bufio.NewWriter(io.Discard), lost: make(chan struct{})}
		s := &simulation{config: SimulateConfig{Rate: 4}, publisher: &publisher{link: idle}}
		begin := time.Now()
		start := begin
		check := func(n int, want time.Duration) {
			t.Helper()
			if err := s.pace(t.Context(), &start, n); err != nil {
				t.Fatal(err)
			}
			if got := time.Since(begin); got != want {
				t.Errorf("reading %d is let go after %v, want %v", n, got, want)
			}
		}
		check(0, 0)
		check(1, 250*time.Millisecond)
		check(8, 2*time.Second)
		<-time.After(10 * time.Second) // the bubble's own time: the broker was away
		check(9, 12*time.Second)
		check(13, 12*time.Second) // a second's worth is made up
		check(14, 12*time.Second+250*time.Millisecond)
	})
}

func TestOutlast(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		parent, end := context.WithCancel(t.Context())
		longer, release := outlast(parent, time.Minute)
		defer release()
		begin := time.Now()
		end()
		<-longer.Done()
		if got := time.Since(begin); got != time.Minute {
			t.Errorf("ended %v after its parent, want a minute", got)
		}
	})
}

func TestBackOffIsBounded(t *testing.T) {
	t.Parallel()
	for attempt := range 100 {
		if d := backOff(attempt); d < 100*time.Millisecond || d > 5*time.Second {
			t.Errorf("attempt %d waits %v", attempt, d)
		}
	}
}
