package endtoend

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// followInside starts a consumer in the database: it writes what telemetry_feed gives into a table of its own and commits, in
// one transaction, so that each row is there once whatever ends that transaction.
func (h *handoff) followInside() (*record, func() error) {
	h.t.Helper()
	role := h.database + "_inside" // roles belong to the server
	h.exec(fmt.Sprintf(`create role %[1]s login password 'secret'; grant plenum_feed to %[1]s;
		create schema inside authorization %[1]s; create table inside.got (id bigint primary key, reading text not null);
		alter table inside.got owner to %[1]s`, role))
	r := newRecord()
	url := h.postgres.URLFor(role, "secret", h.database)
	return r, inBackground(h.t, func(ctx context.Context) error {
		for ctx.Err() == nil {
			err := runInside(ctx, url, r)
			var broken *brokenError
			if errors.As(err, &broken) {
				return err
			}
			await10ms(ctx)
		}
		return nil
	})
}

// brokenError is one that no ended session explains.
type brokenError struct{ error }

func await10ms(ctx context.Context) {
	select {
	case <-ctx.Done():
	case <-time.After(10 * time.Millisecond):
	}
}

// runInside reads on one session until that ends.
func runInside(ctx context.Context, url string, r *record) error {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.Background()) }()
	for ctx.Err() == nil {
		if err := insideOnce(ctx, conn, r); err != nil {
			return err
		}
		await10ms(ctx)
	}
	return nil
}

func insideOnce(ctx context.Context, conn *pgx.Conn, r *record) error {
	const q = `with feed as materialized (select * from public.telemetry_feed($1, 300)),
			kept as (insert into inside.got select id, device_id || '/' || seq from feed)
		select position, id, device_id, seq from feed`
	tx, err := conn.Begin(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback(context.Background()) }()
	answer, err := tx.Query(ctx, q, r.position)
	if err != nil {
		return err
	}
	last := r.position
	rows, err := pgx.CollectRows(answer, func(row pgx.CollectableRow) (f feedRow, err error) {
		return f, row.Scan(&last, &f.ID, &f.DeviceID, &f.Seq)
	})
	if err != nil {
		return err
	}
	if err := r.keep(rows, last); err != nil {
		return &brokenError{err}
	}
	if _, err := tx.Exec(ctx, "select public.telemetry_feed_commit('inside', $1)", last); err != nil {
		return err
	}
	if rand.IntN(8) == 0 {
		return nil // as one that dies before its commit
	}
	if err := tx.Commit(ctx); err != nil {
		return r.afterLostCommit(ctx, conn.Config().ConnString(), last)
	}
	r.committed(last)
	return nil
}

// afterLostCommit asks a new session whether a commit without an answer was one.
func (r *record) afterLostCommit(ctx context.Context, url string, last int64) error {
	for ctx.Err() == nil {
		conn, err := pgx.Connect(ctx, url)
		if err != nil {
			await10ms(ctx)
			continue
		}
		var done bool
		r.mu.Lock()
		ids := slices.Clone(r.unfinished)
		r.mu.Unlock()
		err = conn.QueryRow(ctx, "select count(*) = cardinality($1::bigint[]) and cardinality($1::bigint[]) > 0 from inside.got where id = any($1)", ids).Scan(&done)
		_ = conn.Close(ctx)
		if err == nil {
			if done {
				r.committed(last)
			}
			return errors.New("the session ended")
		}
	}
	return ctx.Err()
}

// hook is a webhook's receiver. What it has taken it has, whether or not it could answer: only the same delivery may come again,
// under its key and with the same rows.
type hook struct {
	*record
	server *httptest.Server
	away   atomic.Bool
	key    string
	broken error
}

func newHook(t *testing.T) *hook {
	h := &hook{record: newRecord()}
	h.server = httptest.NewServer(h)
	t.Cleanup(func() {
		h.server.Close()
		if h.broken != nil {
			t.Error(h.broken)
		}
	})
	return h
}

func (h *hook) config() any {
	return map[string]any{"name": "hook", "limit": 200, "webhook": map[string]any{"url": h.server.URL, "secret": "a secret of the hook", "timeout": "2s"}}
}

func (h *hook) behave(well bool) { h.away.Store(!well) }

func (h *hook) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	mood := rand.IntN(4)
	if h.away.Load() && mood == 0 {
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	body, err := io.ReadAll(r.Body)
	if err == nil && !(h.away.Load() && mood == 1) {
		h.take(r.Header, body)
	}
	if h.away.Load() && mood < 3 {
		panic(http.ErrAbortHandler) // closes without an answer: with what was read taken, or not
	}
}

func (h *hook) take(header http.Header, body []byte) {
	rows, err := decodeRows(body)
	last, positionErr := strconv.ParseInt(header.Get("Plenum-Position"), 10, 64)
	if err = errors.Join(err, positionErr); err == nil {
		err = h.deliver(header.Get("Webhook-Id"), rows, last)
	}
	if err != nil {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.broken = errors.Join(h.broken, fmt.Errorf("delivery %s: %w", header.Get("Webhook-Id"), err))
	}
}

func (h *hook) deliver(key string, rows []feedRow, last int64) error {
	h.mu.Lock()
	again := key == h.key
	if again {
		defer h.mu.Unlock()
		h.repeated += len(rows)
		for _, row := range rows {
			if h.pages[row.ID].last != last {
				return fmt.Errorf("came again, with another row %d", row.ID)
			}
		}
		return nil
	}
	h.key = key
	h.mu.Unlock()
	if err := h.keep(rows, last); err != nil {
		return err
	}
	h.committed(last)
	return nil
}

// kafkaLog is a Kafka topic, read from its beginning.
type kafkaLog struct {
	*record
	cluster   *kfake.Cluster
	away      atomic.Bool
	at        map[int64]int64 // position, by row id
	ascending map[int32]int64 // latest position of a row that came first, by partition
}

const kafkaTopic = "telemetry"

func newKafkaLog(t *testing.T) *kafkaLog {
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(3, kafkaTopic))
	if err != nil {
		t.Fatal(err)
	}
	l := &kafkaLog{record: newRecord(), cluster: cluster, at: map[int64]int64{}, ascending: map[int32]int64{}}
	const produce = 0
	cluster.ControlKey(produce, func(kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		if l.away.Load() && rand.IntN(2) == 0 {
			return nil, errors.New("away"), true // closes the connection
		}
		return nil, nil, false
	})
	client, err := kgo.NewClient(kgo.SeedBrokers(cluster.ListenAddrs()...), kgo.ConsumeTopics(kafkaTopic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	if err != nil {
		t.Fatal(err)
	}
	done := inBackground(t, func(ctx context.Context) error { return l.run(ctx, client) })
	t.Cleanup(func() {
		if err := done(); err != nil {
			t.Error(err)
		}
		client.Close()
		cluster.Close()
	})
	return l
}

func (l *kafkaLog) config() any {
	return map[string]any{"name": "kafka", "limit": 300, "kafka": map[string]any{"brokers": l.cluster.ListenAddrs(), "topic": kafkaTopic}}
}

func (l *kafkaLog) behave(well bool) { l.away.Store(!well) }

func (l *kafkaLog) run(ctx context.Context, client *kgo.Client) error {
	for ctx.Err() == nil {
		fetches := client.PollFetches(ctx)
		var broken error
		fetches.EachRecord(func(r *kgo.Record) {
			if err := l.take(r); err != nil && broken == nil {
				broken = err
			}
		})
		if broken != nil {
			return broken
		}
	}
	return nil
}

// take keeps a record. One that comes again has its position again; one that comes first stands, in its partition, behind those
// before it.
func (l *kafkaLog) take(r *kgo.Record) error {
	rows, err := decodeRows(r.Value)
	if err != nil || len(rows) != 1 || rows[0].DeviceID != string(r.Key) {
		return fmt.Errorf("record of key %q: %d rows, %w", r.Key, len(rows), err)
	}
	var position int64
	for _, header := range r.Headers {
		if header.Key == "plenum-position" {
			position, _ = strconv.ParseInt(string(header.Value), 10, 64)
		}
	}
	id := rows[0].ID
	l.mu.Lock()
	defer l.mu.Unlock()
	if at, again := l.at[id]; again {
		l.repeated++
		if at != position {
			return fmt.Errorf("row %d stands at %d, and stood at %d", id, position, at)
		}
		return nil
	}
	if position < l.ascending[r.Partition] || position == 0 {
		return fmt.Errorf("row %d at %d came behind position %d", id, position, l.ascending[r.Partition])
	}
	l.ascending[r.Partition] = position
	l.at[id], l.pages[id], l.readings[id] = position, span{position - 1, position}, rows[0].reading()
	return nil
}
