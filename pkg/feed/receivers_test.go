package feed_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"plenum/pkg/feed"
	"plenum/pkg/feed/kafka"
	"plenum/pkg/feed/webhook"
)

// A receiver is the far end of a target, under the test's control.
type receiver interface {
	target() feed.Target         // a new connection to it
	got() []int64                // the seq of each row it has taken, in order of arrival
	away(bool)                   // it answers nothing and ends connections
	hang()                       // it answers nothing, and takes nothing
	refuse(func(seq int64) bool) // it refuses a request with such a row
}

// eachReceiver runs the test against every kind of target.
func eachReceiver(t *testing.T, test func(t *testing.T, d *database, r receiver)) {
	t.Helper()
	for name, open := range map[string]func(*testing.T) receiver{"webhook": newWebhook, "kafka": newKafka} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, newDatabase(t), open(t))
		})
	}
}

// mood is what a receiver does with requests.
type mood struct {
	mu             sync.Mutex
	isAway, isHung bool
	refuses        func(int64) bool
}

func (m *mood) away(is bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.isAway = is
}

func (m *mood) hang() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.isHung = true
}

func (m *mood) refuse(f func(int64) bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.refuses = f
}

func (m *mood) now() (away, hung bool, refuses func(int64) bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.isAway, m.isHung, m.refuses
}

func seqs(t *testing.T, ndjson []byte) []int64 {
	var all []int64
	for s := bufio.NewScanner(bytes.NewReader(ndjson)); s.Scan(); {
		var row struct{ Seq int64 }
		if err := json.Unmarshal(s.Bytes(), &row); err != nil {
			t.Errorf("%s: %v", s.Bytes(), err)
		}
		all = append(all, row.Seq)
	}
	return all
}

type webhookReceiver struct {
	mood
	t      *testing.T
	server *httptest.Server
	end    chan struct{}

	taking sync.Mutex
	rows   []int64
}

func newWebhook(t *testing.T) receiver {
	r := &webhookReceiver{t: t, end: make(chan struct{})}
	r.server = httptest.NewServer(r)
	t.Cleanup(r.server.Close)
	t.Cleanup(func() { close(r.end) })
	return r
}

func (r *webhookReceiver) ServeHTTP(w http.ResponseWriter, request *http.Request) {
	body, err := io.ReadAll(request.Body)
	if err != nil {
		return
	}
	away, hung, refuses := r.now()
	rows := seqs(r.t, body)
	switch {
	case away:
		panic(http.ErrAbortHandler)
	case hung:
		select {
		case <-r.end:
		case <-request.Context().Done():
		}
	case refuses != nil && slices.ContainsFunc(rows, refuses):
		http.Error(w, "cannot digest this", http.StatusUnprocessableEntity)
	default:
		r.taking.Lock()
		defer r.taking.Unlock()
		r.rows = append(r.rows, rows...)
	}
}

func (r *webhookReceiver) target() feed.Target {
	target, err := webhook.New(webhook.Config{URL: r.server.URL, Timeout: webhook.DefaultTimeout})
	if err != nil {
		r.t.Fatal(err)
	}
	return target
}

func (r *webhookReceiver) got() []int64 {
	r.taking.Lock()
	defer r.taking.Unlock()
	return slices.Clone(r.rows)
}

type kafkaReceiver struct {
	mood
	t       *testing.T
	cluster *kfake.Cluster
	reader  *kgo.Client
	rows    []int64
}

func newKafka(t *testing.T) receiver {
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(1, "rows"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	r := &kafkaReceiver{t: t, cluster: cluster}
	cluster.Control(r.control)
	if r.reader, err = kgo.NewClient(kgo.SeedBrokers(cluster.ListenAddrs()...), kgo.ConsumeTopics("rows")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.reader.Close)
	return r
}

func (r *kafkaReceiver) control(request kmsg.Request) (kmsg.Response, error, bool) {
	r.cluster.KeepControl()
	away, hung, refuses := r.now()
	produce, isProduce := request.(*kmsg.ProduceRequest)
	switch {
	case away:
		return nil, errors.New("away"), true
	case hung && isProduce:
		return nil, nil, true
	case refuses != nil && isProduce:
		return refusal(produce, refuses)
	}
	return nil, nil, false
}

// refusal answers a request in which a row is refused. The records are not compressed.
func refusal(request *kmsg.ProduceRequest, refuses func(int64) bool) (kmsg.Response, error, bool) {
	refused := false
	response := request.ResponseKind().(*kmsg.ProduceResponse)
	for _, topic := range request.Topics {
		answer := kmsg.NewProduceResponseTopic()
		answer.Topic, answer.TopicID = topic.Topic, topic.TopicID
		for _, partition := range topic.Partitions {
			for n := range int64(100) {
				refused = refused || refuses(n) && bytes.Contains(partition.Records, []byte(`"seq":`+itoa(n)+`,`))
			}
			p := kmsg.NewProduceResponseTopicPartition()
			p.Partition, p.ErrorCode = partition.Partition, kerr.InvalidRecord.Code
			answer.Partitions = append(answer.Partitions, p)
		}
		response.Topics = append(response.Topics, answer)
	}
	return response, nil, refused
}

func (r *kafkaReceiver) target() feed.Target {
	target, err := kafka.New(kafka.Config{
		Brokers: r.cluster.ListenAddrs(), Topic: "rows", Compression: "none", MaxMessageBytes: kafka.DefaultMaxMessageBytes, Timeout: 200 * time.Millisecond,
	})
	if err != nil {
		r.t.Fatal(err)
	}
	return target
}

func (r *kafkaReceiver) got() []int64 {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	r.reader.PollFetches(ctx).EachRecord(func(record *kgo.Record) { r.rows = append(r.rows, seqs(r.t, record.Value)...) })
	return slices.Clone(r.rows)
}
