package devenv

import (
	"context"
	"crypto/rand"
	"fmt"
	"math"
)

// Message is what a client publishes, as it stands: nothing looks at its bytes
// on the way to the broker.
type Message struct {
	Topic   string // at most 65,535 bytes
	Payload []byte
	Retain  bool
}

// publishWindow is how many messages are under way to the broker at a time.
const publishWindow = 100

// Publish sends the messages in their order with QoS 1, over one connection,
// and returns when the broker has acknowledged each. An error leaves open which
// the broker has taken.
func Publish(ctx context.Context, brokerURL string, messages ...Message) error {
	target, err := parseBroker(brokerURL)
	if err != nil {
		return err
	}
	for i, m := range messages {
		if len(m.Topic) > math.MaxUint16 {
			return fmt.Errorf("message %d: a topic of %d bytes, at most %d", i, len(m.Topic), math.MaxUint16)
		}
	}
	acks := make(chan uint16, publishWindow)
	taken := func(id uint16) error {
		select {
		case acks <- id:
			return nil
		default:
			return fmt.Errorf("the broker acknowledged packet %d, which was not in flight", id)
		}
	}
	l, err := target.connect(ctx, "plenum-publish-"+rand.Text()[:8], taken, func() {})
	if err != nil {
		return err
	}
	defer l.goodbye()
	for sent, acknowledged := 0, 0; acknowledged < len(messages); {
		if sent < len(messages) && sent-acknowledged < publishWindow {
			l.write(appendMessage(nil, 1, uint16(sent%math.MaxUint16+1), messages[sent]))
			sent++
			continue
		}
		l.flush()
		select {
		case <-acks:
			acknowledged++
		case <-l.lost:
			return fmt.Errorf("%d of %d messages acknowledged: %w", acknowledged, len(messages), l.err)
		case <-ctx.Done():
			return fmt.Errorf("%d of %d messages acknowledged: %w", acknowledged, len(messages), context.Cause(ctx))
		}
	}
	return nil
}
