package mqtt

import (
	"context"
	"sync"
)

// window bounds what one connection holds: PUBLISH packets whose header was read and that are not acknowledged yet.
// It outlives epochs, for what an ended one delivered is in memory until it is stored.
// One goroutine at a time waits on it: the reader of the epoch or, between epochs, the connection's loop.
type window struct {
	maxMessages, maxBytes int
	room                  chan struct{} // holds a token after a release that someone waits for

	mu              sync.Mutex
	messages, bytes int
	waiting         bool
}

func newWindow(maxMessages, maxBytes int) *window {
	return &window{maxMessages: maxMessages, maxBytes: maxBytes, room: make(chan struct{}, 1)}
}

// reserve takes room for one message of size bytes, or returns false; then room is signalled after a release.
// A single message always fits, however large: there is nothing to wait for.
func (w *window) reserve(size int) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	fits := w.messages < w.maxMessages && w.bytes+size <= w.maxBytes
	w.waiting = !fits && w.messages > 0
	if w.waiting {
		return false
	}
	w.messages++
	w.bytes += size
	return true
}

// release gives back the room of a number of messages of bytes in sum.
func (w *window) release(messages, bytes int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.messages -= messages
	w.bytes -= bytes
	if w.waiting {
		select {
		case w.room <- struct{}{}:
		default:
		}
	}
}

// halfEmpty waits until at most half the window is used, so that a new epoch does not fill it at once.
func (w *window) halfEmpty(ctx context.Context) error {
	for {
		w.mu.Lock()
		w.waiting = 2*w.messages > w.maxMessages || w.messages > 0 && 2*w.bytes > w.maxBytes
		waiting := w.waiting
		w.mu.Unlock()
		if !waiting {
			return nil
		}
		select {
		case <-w.room:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (w *window) used() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.messages
}

// awaited says whether someone waits for room.
func (w *window) awaited() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.waiting
}
