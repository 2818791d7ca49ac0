package pooler

import (
	"context"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

// memoryPause is how often it is looked whether memory can go back to the system.
const memoryPause = 2 * time.Second

// unusedMax is how much memory may lie idle, or wait for the garbage collector, once a wave of logins has passed.
const unusedMax = 4 << 20

// trimMemory gives memory back after a wave of logins, which are the only thing here that leaves much garbage behind: what moves data
// allocates next to nothing, so that the garbage collector would not come by for hours.
func (p *Pooler) trimMemory(ctx context.Context) {
	ticker := time.NewTicker(memoryPause)
	defer ticker.Stop()
	sample := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}, {Name: "/memory/classes/heap/free:bytes"}, {Name: "/memory/classes/heap/unused:bytes"}}
	var seen, trimmed uint64 // logins
	var left uint64          // bytes in use after the last time
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		logins := p.counters.logins.Load() + p.counters.loginFailures.Load()
		calm := logins == seen
		seen = logins
		if !calm || logins == trimmed {
			continue
		}
		metrics.Read(sample)
		used := sample[0].Value.Uint64() + sample[1].Value.Uint64() + sample[2].Value.Uint64()
		trimmed = logins
		if used > left+unusedMax {
			debug.FreeOSMemory()
			metrics.Read(sample)
			left = sample[0].Value.Uint64()
		}
	}
}
