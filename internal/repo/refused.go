package repo

import (
	"context"
	"errors"
	"fmt"
	"time"

	"pitr/internal/pg"
	"pitr/internal/store"
)

// refusedSizeMax bounds what is kept of WAL that was refused: a message of a walsender is shorter.
const refusedSizeMax = 1 << 20

func refusedKey(tli pg.Timeline, at pg.LSN) string { return refusedDir + tli.Hex() + "/" + at.Hex() }

// PutRefused keeps bytes that a server has sent as WAL from a position on and that are none, for those who look into it. What was kept for the
// position before stays. It returns the key.
func (r *Repo) PutRefused(ctx context.Context, tli pg.Timeline, at pg.LSN, content []byte) (string, error) {
	key := refusedKey(tli, at)
	content = content[:min(len(content), refusedSizeMax)]
	err := r.putOnce(ctx, key, newDraft(KindRefused, time.Time{}, content, r.compressor.Append(nil, content), CodecZstd))
	if err != nil && !errors.Is(err, store.ErrExist) {
		return key, fmt.Errorf("put %s: %w", key, err)
	}
	return key, nil
}

// Refused lists the positions of a timeline from which on something was refused and kept.
func (r *Repo) Refused(ctx context.Context, tli pg.Timeline) ([]pg.LSN, error) {
	var list []pg.LSN
	dir := refusedDir + tli.Hex() + "/"
	err := r.keys(ctx, dir, func(object store.Object) error {
		at, err := pg.ParseLSNHex(object.Key[len(dir):])
		if err != nil {
			return fmt.Errorf("%s is nothing that was refused: %w", object.Key, ErrDamaged)
		}
		list = append(list, at)
		return nil
	})
	return list, err
}

// ReadRefused returns what was refused.
func (r *Repo) ReadRefused(ctx context.Context, tli pg.Timeline, at pg.LSN) ([]byte, error) {
	content, _, err := r.get(ctx, refusedKey(tli, at), KindRefused, refusedSizeMax)
	return content, err
}

// DeleteRefused forgets what was refused.
func (r *Repo) DeleteRefused(ctx context.Context, tli pg.Timeline, at pg.LSN) error {
	return r.store.Delete(ctx, r.prefix+refusedKey(tli, at))
}
