package archiver

import (
	"context"
	"fmt"
)

// refusedMax bounds how often a process keeps what it has refused. A server that sends the same again is refused again, and one copy is enough.
const refusedMax = 100

// refuse keeps aside what the server has sent as WAL and what is none. It is not archived, and never acknowledged (law 2).
func (r *receiver) refuse(ctx context.Context, content []byte, cause error) error {
	s := r.session
	err := fmt.Errorf("WAL that the server sent is damaged and was not archived: %w", cause)
	if s.archiver.counts.corrupt.Add(1) > refusedMax {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, loginTimeout)
	defer cancel()
	key, putErr := s.opt.Repo.PutRefused(ctx, r.timeline, r.at, content)
	if putErr != nil {
		s.log.Warn("what was refused could not be kept", "error", putErr)
		return err
	}
	s.log.Error("the server sent bytes that are no WAL; they are kept aside and not acknowledged", "timeline", r.timeline, "at", r.at, "bytes", len(content), "kept_as", key, "error", cause)
	return err
}
