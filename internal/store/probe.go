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
}

// probeDir holds the objects of probes. No repository has such keys.
const probeDir = "pitr-probe/"

// skewMax is how far the store's clock may be off before a signed request is refused: S3 allows 15 minutes.
const skewMax = 5 * time.Minute

// Probe tries on a small object of its own, which it removes, whatever a repository needs. It stops at the first thing without which
// nothing else can be tried. now is the local time.
func Probe(ctx context.Context, s Store, now func() time.Time) []Finding {
	p := probe{store: s, key: probeDir + rand.Text(), content: []byte("pitr writes this to see what the store can do, and removes it")}
	p.try(ctx, "put", "nothing can be archived", func(ctx context.Context) (string, error) {
		return "", s.Put(ctx, p.key, p.content, PutOptions{IfAbsent: true})
	})
	if p.failed() {
		return p.findings
	}
	p.try(ctx, "conditional put", "two writers could overwrite each other's WAL and backups without anybody noticing", p.conditionalPut)
	p.try(ctx, "get", "nothing can be restored", p.get)
	p.try(ctx, "ranged get", "extents of a backup cannot be read by themselves", p.rangedGet)
	p.try(ctx, "list after put", "an archiver that is restarted would not find what it has stored, and a restore might miss WAL", p.list(now))
	p.try(ctx, "get of what is absent", "a missing object cannot be told from a store that does not answer: recovery would stop instead of ending", p.absent)
	p.try(ctx, "delete", "parts that segments have replaced stay, and expiry removes nothing", p.delete)
	return p.findings
}

type probe struct {
	store    Store
	key      string
	content  []byte
	findings []Finding
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
		for object, err := range p.store.List(ctx, probeDir, "") {
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
			if skew.Abs() > skewMax {
				return "", fmt.Errorf("its clock and ours differ by %s; requests are refused from 15 minutes on", skew)
			}
			return fmt.Sprintf("clocks differ by %s", skew.Abs()), nil
		}
		return "", errors.New("what was just put is not listed")
	}
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
