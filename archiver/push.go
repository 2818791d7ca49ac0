package archiver

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"time"

	"pitr/internal/pg"
	"pitr/internal/repo"
	"pitr/internal/wal"
)

// Pusher stores the files that Postgres hands to its archive_command. It may be used from many goroutines.
type Pusher struct {
	repo *repo.Repo
	log  *slog.Logger

	mu    sync.Mutex    // guards bound
	bound *repo.Cluster // what the repository is bound to, once that is known
}

// NewPusher asks the store nothing yet.
func NewPusher(r *repo.Repo, log *slog.Logger) *Pusher { return &Pusher{repo: r, log: log} }

// PushFile is a file of pg_wal.
type PushFile struct {
	Name     string
	Size     int64
	Content  io.Reader // Size bytes
	Before   io.Reader // the segment before, if it is at hand: a record may begin there that goes on into this one. May be nil; read behind the first page
	SystemID pg.SystemID
	Segments pg.SegmentSize // SystemID and Segments: what the segment, or one beside the file, says of the cluster; zero: not known

	// Sum is the hash of the file, if asking for it is cheaper than reading Content; else nil.
	Sum func() ([sha256.Size]byte, error)
}

const (
	partialSuffix       = ".partial"
	backupHistorySuffix = ".backup"
	// pushPiece is how much of a file is in memory at a time; pushPartMax is the size of the parts into which a .partial file is cut.
	pushPiece   = 1 << 20
	pushPartMax = 8 << 20
	// historyFileMax bounds a history file.
	historyFileMax = 1 << 20
)

// Push stores a file, durably, unless it is there already with the same content. What it returns is worth saying when nothing was stored.
func (p *Pusher) Push(ctx context.Context, f PushFile) (remark string, err error) {
	name, isPartial := strings.CutSuffix(f.Name, partialSuffix)
	known := false
	if pg.IsSegmentName(f.Name) && f.Sum != nil && f.SystemID != 0 && f.Size == int64(f.Segments) {
		known, err = p.known(ctx, f)
	}
	switch {
	case known || err != nil:
	case pg.IsSegmentName(name):
		remark, err = p.pushSegment(ctx, f, name, isPartial)
	case strings.HasSuffix(f.Name, ".history"):
		err = p.pushHistory(ctx, f)
	case strings.HasSuffix(f.Name, backupHistorySuffix) && len(f.Name) > 24 && pg.IsSegmentName(f.Name[:24]):
		// It tells when somebody else's base backup began and ended; recovery reads it from backup_label, and ours from manifests.
		remark = "it is about a base backup that was not taken by pitr; nothing needs it, and it is not stored"
	default:
		err = errors.New("it is no segment, .partial, .history or .backup file")
	}
	if err != nil {
		return "", fmt.Errorf("push %s: %w", f.Name, err)
	}
	return remark, nil
}

// bind makes sure that the repository is the cluster's, and that of nobody else.
func (p *Pusher) bind(ctx context.Context, id pg.SystemID, size pg.SegmentSize) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.bound != nil && p.bound.SystemID == id && p.bound.SegmentSize == size {
		return nil
	}
	have, err := p.repo.Cluster(ctx)
	if err == nil && have.SystemID == id && have.SegmentSize == size {
		p.bound = &have
		return nil
	}
	if err != nil && !errors.Is(err, repo.ErrNotExist) {
		return err
	}
	want := repo.Cluster{SystemID: id, SegmentSize: size, Created: time.Now().UTC().Truncate(time.Second)}
	if err := p.repo.Bind(ctx, want); err != nil {
		return err
	}
	p.bound = &want
	return nil
}

// known reports whether the segment and its index are there already: then nothing of it has to be read or checked again.
func (p *Pusher) known(ctx context.Context, f PushFile) (bool, error) {
	segment, err := pg.ParseSegmentName(f.Name, f.Segments)
	if err != nil {
		return false, err
	}
	if err := p.bind(ctx, f.SystemID, f.Segments); err != nil {
		return false, err
	}
	if exists, err := p.repo.HasSegment(ctx, f.Segments, segment); err != nil || !exists {
		return false, err
	}
	sum, err := f.Sum()
	if err != nil {
		return false, err
	}
	if err := p.repo.CompareSegment(ctx, f.Segments, segment, sum); err != nil {
		return false, err
	}
	_, err = p.repo.ReadJoint(ctx, f.Segments, segment)
	if errors.Is(err, repo.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

func (p *Pusher) pushHistory(ctx context.Context, f PushFile) error {
	tli, err := pg.ParseHistoryName(f.Name)
	if err != nil {
		return err
	}
	if f.SystemID == 0 {
		return errors.New("there is no segment beside it that says to which cluster it belongs")
	}
	content, err := io.ReadAll(io.LimitReader(f.Content, historyFileMax+1))
	if err != nil {
		return err
	}
	if len(content) > historyFileMax || int64(len(content)) != f.Size {
		return fmt.Errorf("it has %d bytes, and %d were read", f.Size, len(content))
	}
	if err := p.bind(ctx, f.SystemID, f.Segments); err != nil {
		return err
	}
	return p.repo.PutHistory(ctx, tli, content)
}

// pushed is a segment on its way.
type pushed struct {
	*Pusher
	segment pg.Segment
	size    pg.SegmentSize
	first   []byte // with which it begins
	file    PushFile

	decoder *wal.Decoder
	index   repo.IndexBuilder
	whole   bool // the first record is whole, so that the index is complete
}

func (p *Pusher) pushSegment(ctx context.Context, f PushFile, name string, isPartial bool) (remark string, err error) {
	s := &pushed{Pusher: p, file: f, first: make([]byte, min(f.Size, wal.PageSize))}
	if _, err := io.ReadFull(f.Content, s.first); err != nil {
		return "", err
	}
	header, err := wal.ParseSegmentHeader(s.first)
	if err != nil {
		return "", err
	}
	s.size = header.SegmentSize
	if !s.size.Valid() || f.Size != int64(s.size) {
		return "", fmt.Errorf("it has %d bytes, and a segment of its cluster has %d: was it cut off?", f.Size, s.size)
	}
	if s.segment, err = pg.ParseSegmentName(name, s.size); err != nil {
		return "", err
	}
	if header.Address != s.segment.Start(s.size) || header.Timeline > s.segment.Timeline {
		return "", fmt.Errorf("its content is that of the segment at %s on timeline %d", header.Address, header.Timeline)
	}
	if err := p.bind(ctx, header.SystemID, s.size); err != nil {
		return "", err
	}
	if err := s.prepare(ctx, header.SystemID); err != nil {
		return "", err
	}
	exists, err := p.repo.HasSegment(ctx, s.size, s.segment)
	switch {
	case err != nil:
		return "", err
	case isPartial && exists:
		return "the segment is in the repository as a whole", nil
	case isPartial:
		return s.pushPartial(ctx)
	case exists:
		return "", s.compare(ctx)
	default:
		return "", s.store(ctx)
	}
}

// prepare makes the decoder, and feeds it with the segment before where that is at hand.
func (s *pushed) prepare(ctx context.Context, id pg.SystemID) error {
	start := s.segment.Start(s.size)
	emit := func(r *wal.Record) error {
		if r.End <= start {
			return nil
		}
		return s.index.Add(r)
	}
	opt := wal.Options{Start: start, SegmentSize: s.size, SystemID: id, Timeline: s.segment.Timeline}
	if s.file.Before != nil && s.segment.Number > 0 {
		opt.Start -= pg.LSN(s.size)
		s.decoder = wal.NewDecoder(opt, emit)
		_, err := io.CopyBuffer(onlyWriter{s.decoder}, io.LimitReader(s.file.Before, int64(s.size)), make([]byte, pushPiece))
		if err == nil && s.decoder.Position() == start {
			s.whole = !s.decoder.InForeignRecord()
			return nil
		}
		// Over a socket the rest of the file comes behind it.
		if _, err := io.Copy(io.Discard, s.file.Before); err != nil {
			return err
		}
		s.log.Debug("the segment before is not readable", "segment", s.file.Name, "error", err)
		s.index, opt.Start = repo.IndexBuilder{}, start
	}
	if s.segment.Number > 0 {
		before := pg.Segment{Timeline: s.segment.Timeline, Number: s.segment.Number - 1}
		joint, err := s.repo.ReadJoint(ctx, s.size, before)
		switch {
		case err == nil:
			again := catchUp{joint: joint}
			opt.LastRecord = again.before(s.first)
		case !errors.Is(err, repo.ErrNotExist) && !errors.Is(err, repo.ErrNoIdentity):
			return err
		}
	}
	s.decoder = wal.NewDecoder(opt, emit)
	return nil
}

// onlyWriter hides what else a decoder can do from io.Copy.
type onlyWriter struct{ io.Writer }

// each checks the segment piece by piece and passes what was checked.
func (s *pushed) each(use func(piece []byte) error) error {
	content := io.MultiReader(bytes.NewReader(s.first), io.LimitReader(s.file.Content, int64(s.size)-int64(len(s.first))))
	buf := make([]byte, min(uint64(pushPiece), uint64(s.size)))
	for at := uint64(0); at < uint64(s.size); at += uint64(len(buf)) {
		if _, err := io.ReadFull(content, buf); err != nil {
			return fmt.Errorf("read it: %w", err)
		}
		if _, err := s.decoder.Write(buf); err != nil {
			return fmt.Errorf("it is damaged, and was not stored: %w", err)
		}
		if at == 0 && !s.whole {
			s.whole = s.beginsWithARecord()
		}
		if err := use(buf); err != nil {
			return err
		}
	}
	return nil
}

// beginsWithARecord reports whether no record goes on into the segment: xlp_rem_len of its first page header, XLogPageHeaderData in
// src/include/access/xlog_internal.h, is zero.
func (s *pushed) beginsWithARecord() bool { return bytes.Equal(s.first[16:20], make([]byte, 4)) }

// compare looks whether the segment that is there is this one.
func (s *pushed) compare(ctx context.Context) error {
	sum := sha256.New()
	err := s.each(func(piece []byte) error {
		sum.Write(piece)
		return nil
	})
	if err != nil {
		return err
	}
	if err := s.repo.CompareSegment(ctx, s.size, s.segment, [sha256.Size]byte(sum.Sum(nil))); err != nil {
		return err
	}
	if _, err := s.repo.ReadJoint(ctx, s.size, s.segment); !errors.Is(err, repo.ErrNotExist) {
		return err
	}
	return s.putIndex(ctx)
}

func (s *pushed) store(ctx context.Context) error {
	var b repo.StretchBuilder
	at := s.segment.Start(s.size)
	length := repo.Stretch(s.size)
	err := s.each(func(piece []byte) error {
		for len(piece) > 0 {
			n := min(len(piece), int(length)-int(b.Length()))
			b.Add(piece[:n], s.repo.Compress(piece[:n]))
			piece = piece[n:]
			if pg.LSN(b.Length()) < length {
				continue
			}
			part := repo.Part{Timeline: s.segment.Timeline, Start: at, End: at + length}
			if err := s.repo.PutStretch(ctx, s.size, part, time.Time{}, &b); err != nil {
				return err
			}
			b, at = repo.StretchBuilder{}, part.End
		}
		return nil
	})
	if err != nil {
		return err
	}
	return s.putIndex(ctx)
}

// putIndex stores the index. The segment is safe already, and without an index it is complete all the same; but a push that is repeated
// because of it costs little, and a missing index costs each restore.
func (s *pushed) putIndex(ctx context.Context) error {
	index := s.index.Finish(s.segment, s.size, s.decoder.UnfinishedRecord())
	index.Incomplete = !s.whole
	return s.repo.PutIndex(ctx, s.size, s.segment, index)
}

// errLeftUnknown asks Postgres to come again: it archives history files before segments.
var errLeftUnknown = errors.New("no history file in the repository says where its timeline was left, so that nobody knows how much of it there should be; push that of the next timeline first")

// leftAt is where a timeline that follows has left this one, in this segment: without it the end of the log could not be told from damage.
func (s *pushed) leftAt(ctx context.Context) (pg.LSN, error) {
	timelines, err := s.repo.Timelines(ctx)
	if err != nil {
		return 0, err
	}
	for _, tli := range timelines {
		history, err := s.repo.History(ctx, tli)
		if err != nil {
			return 0, err
		}
		for _, ancestor := range history {
			if ancestor.Timeline == s.segment.Timeline && s.size.Segment(ancestor.Timeline, ancestor.Switch).Number == s.segment.Number {
				return ancestor.Switch, nil
			}
		}
	}
	return 0, errLeftUnknown
}

// pushPartial stores what a .partial file holds of a segment in which a timeline was left: its whole records, as parts. What lies behind
// them was never written by this timeline.
func (s *pushed) pushPartial(ctx context.Context) (remark string, err error) {
	at := s.segment.Start(s.size)
	var held []byte // from at on
	put := func(limit int) error {
		for end := min(s.decoder.RecordsEnd(), at+pg.LSN(len(held))); err == nil && int(end-at) > limit; {
			part := repo.Part{Timeline: s.segment.Timeline, Start: at, End: min(end, at+pushPartMax)}
			n := int(part.End - part.Start)
			err = s.repo.PutPart(ctx, s.size, part, time.Time{}, s.repo.Pack(held[:n]))
			held, at = held[n:], part.End
		}
		return err
	}
	buf := make([]byte, min(uint64(pushPiece), uint64(s.size)))
	content := io.MultiReader(bytes.NewReader(s.first), io.LimitReader(s.file.Content, int64(s.size)-int64(len(s.first))))
	for ended := false; !ended; {
		n, err := io.ReadFull(content, buf)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return "", fmt.Errorf("read it: %w", err)
		}
		_, err = s.decoder.Write(buf[:n])
		ended = err != nil // the log ends here: what follows is what the file held before it was used for this segment
		held = append(held, buf[:n]...)
		if err := put(pushPartMax); err != nil {
			return "", err
		}
	}
	if err := put(0); err != nil {
		return "", err
	}
	if left, err := s.leftAt(ctx); err != nil {
		return "", err
	} else if at < left {
		return "", fmt.Errorf("its log ends at %s, and the timeline was left at %s: it is damaged there, or was cut off", at, left)
	}
	if at == s.segment.Start(s.size) {
		return "no whole record lies in it: nothing of it can be used, and nothing is stored", nil
	}
	return fmt.Sprintf("stored up to %s, where its log ends", at), nil
}
