package repo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"pitr/internal/pg"
	"pitr/internal/store"
)

// Gap is WAL of a timeline that is lost: the server had removed it before it was archived. docs/FORMAT.md, "Gaps". That WAL is missing is
// said by what is there; a gap says since when that is known, and why.
type Gap struct {
	Timeline pg.Timeline `json:"-"`
	From     pg.LSN      `json:"from"`
	To       pg.LSN      `json:"to"`
	Noticed  time.Time   `json:"noticed"` // by the clock of whoever has noticed it
	Reason   string      `json:"reason"`
}

// gapSizeMax bounds a gap.
const gapSizeMax = 1 << 14

func gapKey(g Gap) string { return gapsDir + g.Timeline.Hex() + "/" + g.From.Hex() + "-" + g.To.Hex() }

// PutGap notes a gap. One that is noted already stays as it is.
func (r *Repo) PutGap(ctx context.Context, g Gap) error {
	content, err := json.Marshal(g)
	if err != nil {
		return fmt.Errorf("put %s: %w", gapKey(g), err)
	}
	err = r.store.Put(ctx, r.prefix+gapKey(g), append(content, '\n'), store.PutOptions{IfAbsent: true})
	if err != nil && !errors.Is(err, store.ErrExist) {
		return fmt.Errorf("put %s: %w", gapKey(g), err)
	}
	return nil
}

// Gaps lists the gaps of a timeline that were noted, in WAL order. Some may have been filled since.
func (r *Repo) Gaps(ctx context.Context, tli pg.Timeline) ([]Gap, error) {
	var gaps []Gap
	dir := gapsDir + tli.Hex() + "/"
	err := r.keys(ctx, dir, func(object store.Object) error {
		from, to, _ := strings.Cut(object.Key[len(dir):], "-")
		g := Gap{Timeline: tli}
		var err1, err2 error
		g.From, err1 = pg.ParseLSNHex(from)
		g.To, err2 = pg.ParseLSNHex(to)
		if err1 != nil || err2 != nil || g.From >= g.To {
			return fmt.Errorf("%s is no gap: %w", object.Key, ErrDamaged)
		}
		content, err := store.ReadAll(ctx, r.store, r.prefix+object.Key, gapSizeMax)
		if err != nil {
			return fmt.Errorf("get %s: %w", object.Key, err)
		}
		read := g
		if err := json.Unmarshal(content, &read); err != nil || read != (Gap{g.Timeline, g.From, g.To, read.Noticed, read.Reason}) {
			return fmt.Errorf("get %s: %w: %q", object.Key, ErrDamaged, content)
		}
		gaps = append(gaps, read)
		return nil
	})
	return gaps, err
}

// DeleteGap forgets a gap before which nothing is kept any more.
func (r *Repo) DeleteGap(ctx context.Context, g Gap) error {
	return r.store.Delete(ctx, r.prefix+gapKey(g))
}
