package ingest

import (
	"sync"
	"time"
)

// Failure is why a batch cannot be stored at the moment.
type Failure struct {
	Since time.Time // of its first try that failed
	Err   error     // of its last
}

// failing holds the batches that wait for another try: one that succeeds says nothing about the others.
type failing struct {
	mu      sync.Mutex
	batches map[*batch]Failure
}

// set notes a failed try, and tells whether nothing failed before it.
func (f *failing) set(b *batch, err error) (first bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.batches == nil {
		f.batches = map[*batch]Failure{}
	}
	old, again := f.batches[b]
	if !again {
		old.Since = time.Now()
	}
	f.batches[b] = Failure{old.Since, err}
	return len(f.batches) == 1 && !again
}

// clear notes that b is stored, and tells since when it had failed and whether it was the last that did.
func (f *failing) clear(b *batch) (since time.Time, last bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	old, failed := f.batches[b]
	delete(f.batches, b)
	return old.Since, failed && len(f.batches) == 0
}

// Failing returns why batches cannot be stored now, of the one that has failed longest, or nil.
func (p *Pipeline) Failing() *Failure {
	p.failing.mu.Lock()
	defer p.failing.mu.Unlock()
	var oldest *Failure
	for _, f := range p.failing.batches {
		if oldest == nil || f.Since.Before(oldest.Since) {
			oldest = &f
		}
	}
	return oldest
}
