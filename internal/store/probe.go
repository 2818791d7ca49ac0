package store

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"time"
)

// Finding is one thing that a repository needs of its store, and whether the store does it.
type Finding struct {
	What        string
	Detail      string // more about what works
	Err         error  // nil: it works
	Consequence string // what follows if it does not
	Bearable    bool   // a repository lives without it, and some want it so
}

// Dated is a store that says how far its clock is ahead of ours.
type Dated interface {
	// Skew is by how much, to the second, as of the last answer; known is false before the first.
	Skew() (skew time.Duration, known bool)
}

// skewMax is how far the store's clock may be off before a signed request is refused: S3 allows 15 minutes.
const skewMax = 5 * time.Minute

// Probe tries on a small object of its own, which it removes, whatever a repository needs. It stops at the first thing without which
// nothing else can be tried. now is the local time.
func Probe(ctx context.Context, s Store, now func() time.Time) []Finding {
	p := probe{store: s, key: ProbePrefix + rand.Text(), content: []byte("pitr writes this to see what the store can do, and removes it")}
	p.try(ctx, "put", "nothing can be archived", func(ctx context.Context) (string, error) {
		return "", s.Put(ctx, p.key, p.content, PutOptions{IfAbsent: true})
	})
	if p.failed() {
		p.clock(ctx) // a clock that is wrong may be why
		return p.findings
	}
	p.try(ctx, "conditional put", "two writers could overwrite each other's WAL and backups without anybody noticing", p.conditionalPut)
	p.try(ctx, "get", "nothing can be restored", p.get)
	p.try(ctx, "ranged get", "extents of a backup cannot be read by themselves", p.rangedGet)
	p.try(ctx, "list after put", "an archiver that is restarted would not find what it has stored, and a restore might miss WAL", p.list(now))
	p.clock(ctx)
	p.try(ctx, "get of what is absent", "a missing object cannot be told from a store that does not answer: recovery would stop instead of ending", p.absent)
	p.try(ctx, "delete", "what is not needed any more stays until `pitr expire` is run with credentials that may delete", p.delete)
	last := &p.findings[len(p.findings)-1]
	last.Bearable = errors.Is(last.Err, ErrDenied)
	return p.findings
}

type probe struct {
	store    Store
	key      string
	content  []byte
	findings []Finding
	skew     *time.Duration // of the store's clock, by the time of the object; nil: not seen
}

func (p *probe) try(ctx context.Context, what, consequence string, run func(context.Context) (string, error)) {
	detail, err := run(ctx)
	p.findings = append(p.findings, Finding{What: what, Detail: detail, Err: err, Consequence: consequence})
}

func (p *probe) failed() bool { return p.findings[len(p.findings)-1].Err != nil }

func (p *probe) conditionalPut(ctx context.Context) (string, error) {
	err := p.store.Put(ctx, p.key, []byte("other content"), PutOptions{IfAbsent: true})
	switch {
	case errors.Is(err, ErrExist):
		return "", p.sameContent(ctx)
	case err == nil:
		p.content = []byte("other content")
		return "", errors.New("an object that was there was replaced")
	}
	return "", err
}

func (p *probe) sameContent(ctx context.Context) error {
	got, err := ReadAll(ctx, p.store, p.key, 1<<10)
	if err == nil && !bytes.Equal(got, p.content) {
		err = fmt.Errorf("%d bytes were read that were not written", len(got))
	}
	return err
}

func (p *probe) get(ctx context.Context) (string, error) { return "", p.sameContent(ctx) }

func (p *probe) rangedGet(ctx context.Context) (string, error) {
	got, err := ReadRange(ctx, p.store, p.key, 2, 5)
	if err == nil && !bytes.Equal(got, p.content[2:7]) {
		err = errors.New("other bytes were read than those of the range")
	}
	if err != nil {
		return "", err
	}
	body, err := p.store.Get(ctx, p.key, int64(len(p.content))+10, 5)
	if err == nil {
		return "", errors.Join(errors.New("a range behind the end of the object was answered"), body.Close())
	}
	if !errors.Is(err, ErrRange) {
		return "", err
	}
	return "", nil
}

func (p *probe) list(now func() time.Time) func(context.Context) (string, error) {
	return func(ctx context.Context) (string, error) {
		for object, err := range p.store.List(ctx, ProbePrefix, "") {
			if err != nil {
				return "", err
			}
			if object.Key != p.key {
				continue
			}
			if object.Size != int64(len(p.content)) {
				return "", fmt.Errorf("it lists %d bytes, %d were written", object.Size, len(p.content))
			}
			skew := object.Modified.Sub(now()).Round(time.Second)
			p.skew = &skew
			return "", nil
		}
		return "", errors.New("what was just put is not listed")
	}
}

// clock compares clocks: by what the store says of its own, or else by the time that it has given the object.
func (p *probe) clock(ctx context.Context) {
	if dated, ok := p.store.(Dated); ok {
		if skew, known := dated.Skew(); known {
			p.skew = &skew
		}
	}
	if p.skew == nil {
		return
	}
	p.try(ctx, "clock", "requests are refused from 15 minutes on, and nothing is archived; parts are swept, and retention ends, at other times than they should",
		func(context.Context) (string, error) {
			if p.skew.Abs() > skewMax {
				return "", fmt.Errorf("the store's clock is %s ours by %s", map[bool]string{true: "ahead of", false: "behind"}[*p.skew > 0], p.skew.Abs())
			}
			return fmt.Sprintf("differs by %s", p.skew.Abs()), nil
		})
}

func (p *probe) absent(ctx context.Context) (string, error) {
	body, err := p.store.Get(ctx, p.key+"-absent", 0, -1)
	if err == nil {
		return "", errors.Join(errors.New("an object that was never put was read"), body.Close())
	}
	if !errors.Is(err, ErrNotExist) {
		return "", err
	}
	return "", nil
}

func (p *probe) delete(ctx context.Context) (string, error) {
	if err := p.store.Delete(ctx, p.key); err != nil {
		return "", err
	}
	body, err := p.store.Get(ctx, p.key, 0, -1)
	if err == nil {
		return "", errors.Join(errors.New("what was deleted can still be read"), body.Close())
	}
	if !errors.Is(err, ErrNotExist) {
		return "", err
	}
	return "", nil
}
