package kafka

import (
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// trouble keeps the latest error that the client met, which tries again by itself and returns none.
type trouble struct {
	mu   sync.Mutex
	text string
}

var (
	_ kgo.Logger            = (*trouble)(nil)
	_ kgo.HookBrokerConnect = (*trouble)(nil)
)

func (t *trouble) last() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.text
}

func (t *trouble) clear() { t.set("") }

func (t *trouble) set(text string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.text = text
}

// Level asks the client for what it would log of its retries.
func (t *trouble) Level() kgo.LogLevel { return kgo.LogLevelInfo }

// Log keeps the error that a message is about.
func (t *trouble) Log(_ kgo.LogLevel, message string, pairs ...any) {
	for i := 0; i+1 < len(pairs); i += 2 {
		if err, ok := pairs[i+1].(error); ok && err != nil {
			t.set(fmt.Sprintf("%s: %v", message, err))
		}
	}
}

// OnBrokerConnect keeps why a broker cannot be reached.
func (t *trouble) OnBrokerConnect(broker kgo.BrokerMetadata, _ time.Duration, _ net.Conn, err error) {
	if err != nil {
		t.set(fmt.Sprintf("connect to %s:%d: %v", broker.Host, broker.Port, err))
	}
}
