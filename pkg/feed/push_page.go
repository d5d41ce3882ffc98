package feed

import (
	"context"

	"plenum/pkg/store"
)

// page returns what is to be delivered now: the page that was begun, else the prefetched one, else a new one.
func (p *Pusher) page(ctx context.Context, c store.PushState) (*held, error) {
	if begun := c.Delivering > c.Position; begun && p.current != nil && p.current.after == c.Position && p.current.Position == c.Delivering {
		return p.current, nil
	}
	if p.next != nil && p.next.after == c.Position && c.Delivering == 0 {
		p.current, p.next = p.next, nil
		return p.current, nil
	}
	p.current, p.next = nil, nil
	var page Page
	var err error
	if c.Delivering > c.Position {
		// As it was read before a crash, where positions are never behind; less of it where a seek has made it longer than a page.
		page, err = readPage(ctx, p.feed.pool, c.Consumer, p.limit(c.Position), c.Delivering)
	} else {
		page, err = p.feed.page(ctx, c.Consumer, p.limit(c.Position))
	}
	if err != nil {
		return nil, err
	}
	p.current = &held{Page: page, after: c.Position}
	return p.current, nil
}

// limit is how much is read behind a position: a batch at a time where a page of several was refused.
func (p *Pusher) limit(after int64) int {
	if p.narrow.holds(after) {
		return 1
	}
	return p.cfg.Limit
}

// prefetch reads the page behind this one meanwhile. The channel is closed when it has ended.
func (p *Pusher) prefetch(ctx context.Context, page *held) <-chan struct{} {
	done := make(chan struct{})
	if p.next != nil && p.next.after == page.Position {
		close(done)
		return done
	}
	go func() {
		defer close(done)
		next, err := p.feed.page(ctx, store.Consumer{Name: p.cfg.Name, Position: page.Position}, p.limit(page.Position))
		if p.next = nil; err == nil && len(next.Rows) > 0 { // an error is met again when it is that page's turn
			p.next = &held{Page: next, after: page.Position}
		}
	}()
	return done
}
