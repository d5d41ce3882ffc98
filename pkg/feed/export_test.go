package feed

import "time"

// Poll sets how often waiting reads look by themselves, while a NOTIFY would be heard and while not.
func (f *Feed) Poll(listening, alone time.Duration) {
	f.waker.mu.Lock()
	defer f.waker.mu.Unlock()
	f.waker.listening, f.waker.alone = listening, alone
}

// Hears says whether a NOTIFY would be heard.
func (f *Feed) Hears() bool {
	f.waker.mu.Lock()
	defer f.waker.mu.Unlock()
	return f.waker.hears
}
