package feed_test

import (
	"errors"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"plenum/internal/devenv/devtest"
	"plenum/pkg/feed"
)

// A transaction pooler takes the LISTEN and passes on no NOTIFY: the listener does not count as listening, and reads look by
// themselves, often.
func TestAListenerBehindAPooler(t *testing.T) {
	t.Parallel()
	d := newDatabase(t)
	pooled := open(t, devtest.PgBouncer(t, "transaction", "ignore_startup_parameters = extra_float_digits,search_path,plan_cache_mode,"+
		"idle_in_transaction_session_timeout,jit,default_transaction_isolation,tcp_keepalives_idle,tcp_keepalives_interval,tcp_keepalives_count").
		URL(d.pool.Config().ConnConfig.Database)+"&default_query_exec_mode=exec")
	d.feed = feed.New(pooled, pooled)
	d.feed.Poll(time.Hour, 10*time.Millisecond)
	core, logs := observer.New(zap.InfoLevel)
	d.listen(zap.New(core))
	page := d.later("a")
	head := d.add(2)
	if p := <-page; len(p.Rows) != 2 || p.Position != head {
		t.Errorf("%d rows up to %d", len(p.Rows), p.Position)
	}
	devtest.Eventually(t, func() error {
		if logs.Len() == 0 {
			return errors.New("nothing is logged")
		}
		return nil
	})
	if d.feed.Hears() {
		t.Error("it counts as listening")
	}
	t.Log(logs.All()[0].ContextMap())
}
