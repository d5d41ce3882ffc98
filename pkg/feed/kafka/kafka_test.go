package kafka_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"plenum/internal/devenv/devtest"
	"plenum/pkg/feed"
	"plenum/pkg/feed/kafka"
	"plenum/pkg/store"
)

func cluster(t *testing.T, options ...kfake.Opt) *kfake.Cluster {
	t.Helper()
	c, err := kfake.NewCluster(append([]kfake.Opt{kfake.NumBrokers(1)}, options...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func target(t *testing.T, brokers []string, change func(*kafka.Config)) *kafka.Target {
	t.Helper()
	c := kafka.Config{
		Brokers: brokers, Topic: "rows", Compression: kafka.DefaultCompression, MaxMessageBytes: kafka.DefaultMaxMessageBytes, Timeout: kafka.DefaultTimeout,
	}
	if change != nil {
		change(&c)
	}
	target, err := kafka.New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := target.Close(); err != nil {
			t.Error(err)
		}
	})
	return target
}

// page is rows with the ids first to last, of ten devices in turn.
func page(first, last int64) feed.Delivery {
	d := feed.Delivery{Consumer: "erp", Key: fmt.Sprintf("erp:%d-%d", first-1, last), After: first - 1, Position: last}
	for id := first; id <= last; id++ {
		d.Rows = append(d.Rows, store.FeedRow{ID: id, DeviceID: fmt.Sprintf("d%d", id%10), Kind: "k", Payload: []byte(`{"x":1}`)})
	}
	return d
}

func deliver(t *testing.T, to *kafka.Target, d feed.Delivery) {
	t.Helper()
	if err := to.Deliver(t.Context(), d); err != nil {
		t.Fatal(err)
	}
}

// consumed waits until the topic has n records and returns them.
func consumed(t *testing.T, brokers []string, n int) (all []*kgo.Record) {
	t.Helper()
	reader, err := kgo.NewClient(kgo.SeedBrokers(brokers...), kgo.ConsumeTopics("rows"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(reader.Close)
	devtest.Eventually(t, func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		all = append(all, reader.PollFetches(ctx).Records()...)
		if len(all) < n {
			return fmt.Errorf("%d records, want %d", len(all), n)
		}
		return nil
	})
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond) // one too many would be here by now
	defer cancel()
	return append(all, reader.PollFetches(ctx).Records()...)
}

func header(r *kgo.Record, key string) string {
	for _, h := range r.Headers {
		if h.Key == key {
			return string(h.Value)
		}
	}
	return ""
}

// ids are the rows that records are of, in order of partition and offset.
func ids(records []*kgo.Record) (all []string) {
	for _, r := range records {
		all = append(all, header(r, "plenum-id"))
	}
	return all
}

func TestADevicesRowsStayInOrder(t *testing.T) {
	t.Parallel()
	c := cluster(t, kfake.SeedTopics(4, "rows"))
	to := target(t, c.ListenAddrs(), nil)
	for first := int64(1); first <= 1000; first += 100 {
		deliver(t, to, page(first, first+99))
	}
	partition, latest := map[string]int32{}, map[string]int{}
	records := consumed(t, c.ListenAddrs(), 1000)
	for _, r := range records {
		var id int
		if _, err := fmt.Sscan(header(r, "plenum-id"), &id); err != nil {
			t.Fatal(err)
		}
		device := string(r.Key)
		if p, known := partition[device]; known && p != r.Partition || id <= latest[device] {
			t.Fatalf("device %s: row %d in partition %d comes after row %d in partition %d", device, id, r.Partition, latest[device], p)
		}
		partition[device], latest[device] = r.Partition, id
		want := fmt.Sprintf(`{"id":%d,"device_id":"d%d","kind":"k","seq":null,"recorded_at":"0001-01-01T00:00:00Z","last_modified":"0001-01-01T00:00:00Z","payload":{"x":1}}`, id, id%10)
		if string(r.Value) != want || header(r, "plenum-consumer") != "erp" || header(r, "plenum-position") != fmt.Sprint((id+99)/100*100) {
			t.Fatalf("%s with %v, want %s", r.Value, r.Headers, want)
		}
	}
	if len(records) != 1000 || len(partition) != 10 {
		t.Errorf("%d records of %d devices", len(records), len(partition))
	}
}

// lossy is a listener whose connections lose what the broker writes while lose is above 0.
type lossy struct {
	net.Listener
	lose *atomic.Int32
}

func (l lossy) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	return lossyConn{conn, l.lose}, err
}

type lossyConn struct {
	net.Conn
	lose *atomic.Int32
}

func (c lossyConn) Write(p []byte) (int, error) {
	if c.lose.Load() > 0 {
		c.lose.Add(-1)
		_ = c.Close()
		return 0, errors.New("lost")
	}
	return c.Conn.Write(p)
}

// The broker has written the records, and its answers are lost, many times: each record is there once.
func TestLostAnswersDoubleNothing(t *testing.T) {
	t.Parallel()
	var lose atomic.Int32
	c := cluster(t, kfake.SeedTopics(2, "rows"), kfake.ListenFn(func(network, address string) (net.Listener, error) {
		l, err := net.Listen(network, address)
		return lossy{l, &lose}, err
	}))
	var produced atomic.Int32
	c.ControlKey(int16(kmsg.Produce), func(kmsg.Request) (kmsg.Response, error, bool) {
		c.KeepControl()
		if produced.Add(1) <= 8 {
			lose.Store(1)
		}
		return nil, nil, false
	})
	to := target(t, c.ListenAddrs(), func(c *kafka.Config) { c.Timeout = 50 * time.Millisecond })
	d := page(1, 50)
	errs := 0
	devtest.Eventually(t, func() error { // as the pusher does: the same page until it is delivered
		err := to.Deliver(t.Context(), d)
		if err != nil {
			errs++
		}
		return err
	})
	if records := consumed(t, c.ListenAddrs(), 50); len(records) != 50 {
		t.Errorf("%d records, want 50, after %d errors", len(records), errs)
	}
	if errs == 0 || produced.Load() < 8 {
		t.Errorf("%d errors, %d requests: nothing was lost", errs, produced.Load())
	}
}

func TestABrokerThatIsAwayIsNamed(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	to := target(t, []string{address}, func(c *kafka.Config) { c.Timeout = 300 * time.Millisecond })
	var first string
	for range 2 {
		err := to.Deliver(t.Context(), page(1, 3))
		refused := (*feed.RefusedError)(nil)
		if err == nil || errors.As(err, &refused) || !strings.Contains(err.Error(), "no acknowledgement of 3 records since ") || !strings.Contains(err.Error(), "connection refused") {
			t.Fatal(err)
		}
		since, _, _ := strings.Cut(err.Error(), ": ")
		if first == "" {
			first = since
		}
		if since != first {
			t.Errorf("%q, then %q: one wait, since one time", first, since)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := to.Deliver(ctx, page(1, 3)); !errors.Is(err, context.Canceled) {
		t.Errorf("a delivery that was broken off: %v", err)
	}
}

func TestARecordThatIsTooLarge(t *testing.T) {
	t.Parallel()
	c := cluster(t, kfake.SeedTopics(1, "rows"))
	to := target(t, c.ListenAddrs(), func(c *kafka.Config) { c.MaxMessageBytes = 2000 })
	d := page(1, 5)
	d.Rows[3].Payload = []byte(`{"x":"` + strings.Repeat("x", 2000) + `"}`)
	var refused *feed.RefusedError
	if err := to.Deliver(t.Context(), d); !errors.As(err, &refused) || !strings.Contains(err.Error(), "row 4 ") || !strings.Contains(err.Error(), "max_message_bytes is 2000") {
		t.Fatal(err)
	}
	deliver(t, to, page(6, 7))
	if got := ids(consumed(t, c.ListenAddrs(), 2)); !slices.Equal(got, []string{"6", "7"}) {
		t.Errorf("records %v: something of a refused page was produced", got)
	}
	// The largest that passes here is taken by the client too.
	fits := page(8, 8)
	for n := 1500; ; n++ {
		fits.Rows[0].Payload = []byte(`{"x":"` + strings.Repeat("x", n) + `"}`)
		if err := to.Deliver(t.Context(), fits); errors.As(err, &refused) {
			if !strings.Contains(err.Error(), "max_message_bytes is 2000") {
				t.Errorf("the client refuses what passed the check: %v", err)
			}
			return
		} else if err != nil {
			t.Fatal(err)
		}
	}
}

// What the broker refuses of a page is refused; what it has taken is not produced again when the page comes again, in parts.
func TestAPageOfWhichAPartIsRefused(t *testing.T) {
	t.Parallel()
	for _, refusal := range []*kerr.Error{kerr.MessageTooLarge, kerr.RecordListTooLarge, kerr.InvalidRecord} {
		t.Run(refusal.Message, func(t *testing.T) {
			t.Parallel()
			c := cluster(t, kfake.NumBrokers(2), kfake.SeedTopics(2, "rows"))
			for partition := range int32(2) { // a broker each, and so a request each
				if err := c.MoveTopicPartition("rows", partition, partition); err != nil {
					t.Fatal(err)
				}
			}
			var refusing atomic.Bool
			c.ControlKey(int16(kmsg.Produce), func(r kmsg.Request) (kmsg.Response, error, bool) {
				c.KeepControl()
				request := r.(*kmsg.ProduceRequest)
				if !refusing.Load() || request.Topics[0].Partitions[0].Partition != 0 {
					return nil, nil, false
				}
				part := kmsg.NewProduceResponseTopicPartition()
				part.ErrorCode = refusal.Code
				answer := request.ResponseKind().(*kmsg.ProduceResponse)
				topic := request.Topics[0]
				answer.Topics = []kmsg.ProduceResponseTopic{{Topic: topic.Topic, TopicID: topic.TopicID, Partitions: []kmsg.ProduceResponseTopicPartition{part}}}
				return answer, nil, true
			})
			to := target(t, c.ListenAddrs(), nil)
			refusing.Store(true)
			var refused *feed.RefusedError
			for range 3 {
				if err := to.Deliver(t.Context(), page(1, 20)); !errors.As(err, &refused) || !strings.Contains(err.Error(), refusal.Message) {
					t.Fatalf("%v: want a refusal", err)
				}
			}
			refusing.Store(false)
			part := page(1, 12)
			deliver(t, to, part)
			part = page(13, 20)
			deliver(t, to, part)
			once := ids(consumed(t, c.ListenAddrs(), 20))
			deliver(t, to, page(1, 20)) // a seek: it is wanted again
			twice := ids(consumed(t, c.ListenAddrs(), 40))
			if len(once) != 20 || len(twice) != 40 {
				t.Errorf("%d records, then %d; want 20, then 40", len(once), len(twice))
			}
			if slices.Sort(once); len(slices.Compact(once)) != 20 {
				t.Errorf("rows %v", once)
			}
		})
	}
}

func TestATopicThatDoesNotExist(t *testing.T) {
	t.Parallel()
	c := cluster(t)
	to := target(t, c.ListenAddrs(), nil)
	err := to.Deliver(t.Context(), page(1, 3))
	refused := (*feed.RefusedError)(nil)
	want := "kafka-topics.sh --bootstrap-server " + c.ListenAddrs()[0] + " --create --topic rows"
	if err == nil || errors.As(err, &refused) || !strings.Contains(err.Error(), want) {
		t.Fatalf("%v: want it to be waited for, and %q", err, want)
	}
	create(t, c.ListenAddrs())
	devtest.Eventually(t, func() error { return to.Deliver(t.Context(), page(1, 3)) })
	if got := ids(consumed(t, c.ListenAddrs(), 3)); !slices.Equal(got, []string{"1", "2", "3"}) {
		t.Errorf("records %v", got)
	}
}

func create(t *testing.T, brokers []string) {
	t.Helper()
	admin, err := kgo.NewClient(kgo.SeedBrokers(brokers...))
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close()
	request := kmsg.NewPtrCreateTopicsRequest()
	topic := kmsg.NewCreateTopicsRequestTopic()
	topic.Topic, topic.NumPartitions, topic.ReplicationFactor = "rows", 1, 1
	request.Topics = append(request.Topics, topic)
	if _, err := request.RequestWith(t.Context(), admin); err != nil {
		t.Fatal(err)
	}
}

func TestSASL(t *testing.T) {
	t.Parallel()
	c := cluster(t, kfake.SeedTopics(1, "rows"), kfake.EnableSASL(),
		kfake.Superuser("PLAIN", "u", "hunter2"), kfake.Superuser("SCRAM-SHA-256", "u", "hunter2"), kfake.Superuser("SCRAM-SHA-512", "u", "hunter2"))
	for _, mechanism := range []string{"plain", "scram-sha-256", "scram-sha-512"} {
		deliver(t, target(t, c.ListenAddrs(), func(c *kafka.Config) { c.SASL, c.Username, c.Password = mechanism, "u", "hunter2" }), page(1, 1))
		err := target(t, c.ListenAddrs(), func(c *kafka.Config) {
			c.SASL, c.Username, c.Password, c.Timeout = mechanism, "u", "hunter3", 500*time.Millisecond
		}).Deliver(t.Context(), page(1, 1))
		refused := (*feed.RefusedError)(nil)
		if err == nil || errors.As(err, &refused) || strings.Contains(err.Error(), "hunter") || !strings.Contains(err.Error(), "EOF") { // all that this broker says
			t.Errorf("%s with a wrong password: %v", mechanism, err)
		}
	}
}

func TestFaultsOfTheConfiguration(t *testing.T) {
	t.Parallel()
	_, err := kafka.New(kafka.Config{
		Brokers: []string{"h:1", "h", ":1"}, Topic: "a b", CAFile: "none.pem", KeyFile: "none.pem", SASL: "gssapi", Username: "u", Password: "hunter2",
		Compression: "rar", MaxMessageBytes: 1, Timeout: -time.Second,
	})
	if err == nil {
		t.Fatal("no fault")
	}
	for _, want := range []string{
		`brokers: "h" is not HOST:PORT`, `brokers: ":1"`, `topic: "a b"`, "ca_file: ", "none.pem", "cert_file, key_file: only one", `sasl: "gssapi"`,
		`compression: "rar"`, "max_message_bytes: 1 ", "timeout: -1s",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%v\ndoes not say %q", err, want)
		}
	}
	if strings.Contains(err.Error(), "hunter2") {
		t.Errorf("a secret is shown: %v", err)
	}
	for want, c := range map[string]kafka.Config{
		"brokers: is empty": {}, "sasl: is not set": {Password: "hunter2"}, "sasl: needs username": {SASL: "plain", Username: "u"},
	} {
		if err := c.Validate(); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%v: want %q", err, want)
		}
	}
}
