package archiver

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"slices"
	"time"

	"pitr/archiver/replication"
	"pitr/internal/pg"
	"pitr/internal/repo"
)

// catchUp is how an archiver resumes that cannot read what it has stored, because it is encrypted: the open segment is streamed again from
// its start, checked, and compared with the fingerprints of the parts that are there. The server has it still: a slot keeps whole segments.
type catchUp struct {
	to    pg.LSN // where the repository ends
	joint repo.Joint
	sums  []partSum
}

// mayReplace reports whether a part of the open stretch may be removed once the stretch is there as one object: if its bytes were read
// back, or are going to be compared. Others stay, as witnesses.
func (c *catchUp) mayReplace(part repo.Part) bool {
	return c == nil || slices.ContainsFunc(c.sums, func(sum partSum) bool { return sum.part == part })
}

// partSum is the hash of the bytes that the server sends for a part that is stored.
type partSum struct {
	part repo.Part
	hash hash.Hash
}

// xlpFirstIsOverwriteContrecord is XLP_FIRST_IS_OVERWRITE_CONTRECORD in src/include/access/xlog_internal.h, a flag of xlp_info.
const xlpFirstIsOverwriteContrecord = 0x0008

// resumeByStreaming prepares r to begin with the open segment. Its index is incomplete when it begins with the rest of a record of which
// nobody here has the beginning.
func (s *session) resumeByStreaming(ctx context.Context, r *receiver, inv *repo.Inventory) error {
	open := s.size.Segment(r.timeline, r.at)
	again := &catchUp{to: r.at}
	r.at = open.Start(s.size)
	if open.Number > 0 && inv.Complete(open.Number-1) {
		before := pg.Segment{Timeline: open.Timeline, Number: open.Number - 1}
		joint, err := s.opt.Repo.ReadJoint(ctx, s.size, before)
		switch {
		case errors.Is(err, repo.ErrNotExist):
			r.incomplete = true
		case err != nil:
			return err
		default:
			again.joint, r.incomplete = joint, joint.Unfinished != 0
		}
	}
	for _, part := range inv.Parts[open.Number] {
		if part.End <= again.to {
			again.sums = append(again.sums, partSum{part, sha256.New()})
		}
	}
	r.again = again
	return nil
}

// before is the start of the record before the first one that begins in a segment. A record that was torn by a crash is none: the one
// that says so follows the record before it.
func (c *catchUp) before(segment []byte) pg.LSN {
	if len(segment) >= 4 && binary.LittleEndian.Uint16(segment[2:])&xlpFirstIsOverwriteContrecord != 0 {
		return c.joint.LastRecord
	}
	return c.joint.Before()
}

// catchUp receives the open segment up to where the repository ends.
func (r *receiver) catchUp(ctx context.Context, stream *replication.Stream) error {
	if r.again == nil {
		return nil
	}
	stop := context.AfterFunc(ctx, stream.Interrupt)
	defer stop()
	for r.at < r.again.to {
		event, err := stream.Receive()
		if err != nil {
			return err
		}
		if event.TimelineEnded {
			return fmt.Errorf("timeline %d ended at %s on the server, and the repository holds WAL of it up to %s", r.timeline, event.Switch, r.again.to)
		}
		r.serverEnd = event.ServerEnd
		if event.ReplyRequested {
			// Nothing of the open segment is acknowledged before it was compared.
			begin := r.size.Start(r.resume)
			if err := stream.SendStatus(replication.Status{Written: r.at, Flushed: begin, Now: time.Now()}); err != nil {
				return err
			}
		}
		if len(event.WAL) > 0 {
			if err := r.takeAgain(ctx, event); err != nil {
				return err
			}
		}
	}
	return r.again.compare(ctx, r)
}

// takeAgain checks WAL of which the repository has a part already.
func (r *receiver) takeAgain(ctx context.Context, event replication.Event) error {
	if event.Start != r.at {
		return fmt.Errorf("the server sent WAL from %s, expected %s", event.Start, r.at)
	}
	r.beginDecoding(event.WAL)
	content := event.WAL[:min(uint64(len(event.WAL)), uint64(r.again.to-r.at))]
	if _, err := r.decoder.Write(content); err != nil {
		return r.refuse(ctx, content, err)
	}
	r.keep(r.at, content)
	r.again.add(r.at, content)
	r.at += pg.LSN(len(content))
	event.Start, event.WAL = r.at, event.WAL[len(content):]
	return r.take(ctx, event)
}

// beginDecoding begins with the first bytes of the open segment.
func (r *receiver) beginDecoding(segment []byte) {
	if r.decoder == nil {
		r.decode(r.at, r.at, r.again.before(segment))
	}
}

// add hashes what belongs to each part.
func (c *catchUp) add(at pg.LSN, content []byte) {
	end := at + pg.LSN(len(content))
	for _, sum := range c.sums {
		if from, to := max(at, sum.part.Start), min(end, sum.part.End); from < to {
			sum.hash.Write(content[from-at : to-at])
		}
	}
}

// compare looks whether the server's bytes are those of the parts: a server with another history must not go on with this one.
func (c *catchUp) compare(ctx context.Context, r *receiver) error {
	for _, sum := range c.sums {
		err := r.session.opt.Repo.ComparePart(ctx, r.size, sum.part, [sha256.Size]byte(sum.hash.Sum(nil)))
		switch {
		case errors.Is(err, repo.ErrNotExist): // whoever completed the segment has removed it
		case errors.Is(err, repo.ErrIncomparable):
			r.open.parts = slices.DeleteFunc(r.open.parts, func(part repo.Part) bool { return part == sum.part })
			r.session.log.Warn("resumed without comparing the server's WAL with what is stored", "from", sum.part.Start, "to", sum.part.End, "error", err)
		case err != nil:
			return fmt.Errorf("resume at %s: %w", c.to, err)
		}
	}
	return nil
}
