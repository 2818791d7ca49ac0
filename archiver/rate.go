package archiver

import (
	"context"
	"io"
	"sync"
	"time"
)

// rate keeps a flow of bytes below a limit. It saves nothing up: whoever was slow may not be faster later.
type rate struct {
	limit int64 // bytes per second; zero: none

	mu   sync.Mutex // guards next; not held while somebody waits
	next time.Time  // when what has passed so far may be followed by more
}

// pass waits until n bytes more may have passed.
func (r *rate) pass(ctx context.Context, n int) error {
	if r.limit <= 0 || n <= 0 {
		return ctx.Err()
	}
	r.mu.Lock()
	now := time.Now()
	if r.next.Before(now) {
		r.next = now
	}
	r.next = r.next.Add(time.Duration(float64(n) / float64(r.limit) * float64(time.Second)))
	wait := r.next.Sub(now)
	r.mu.Unlock()
	if !sleep(ctx, wait) {
		return context.Cause(ctx)
	}
	return nil
}

// rateBite bounds what is read before the rate is looked at: at small rates it passes in short stretches.
const rateBite = 64 << 10

// rated is a reader whose bytes come no faster than a rate.
type rated struct {
	ctx    context.Context
	source io.Reader
	rate   *rate
}

// Read implements io.Reader.
func (r *rated) Read(p []byte) (int, error) {
	if r.rate.limit <= 0 {
		return r.source.Read(p)
	}
	n, err := r.source.Read(p[:min(len(p), rateBite)])
	if waitErr := r.rate.pass(r.ctx, n); waitErr != nil && err == nil {
		err = waitErr
	}
	return n, err
}
