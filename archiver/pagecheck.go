package archiver

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"sync"

	"pitr/internal/pg"
	"pitr/internal/repo"
)

// pageChecks verifies the checksums of pages on their way, as verify_page_checksum of src/backend/backup/basebackup.c does for a server that
// is asked to. It is asked not to: here it is known which pages they were, and what else to do with the backup.
type pageChecks struct {
	start pg.LSN                                                   // of the backup: pages that were written behind it may be torn, and WAL repairs them; zero: nothing is verified
	again func(ctx context.Context, f pageFailure) ([]byte, error) // reads a page once more; less than a page: it is gone

	mu       sync.Mutex // guards what follows
	failures []pageFailure
	more     int // beyond the limit
}

// pageFailure is a page whose checksum is wrong.
type pageFailure struct {
	path  string
	page  uint32 // in its file
	block uint32 // in its relation's fork
}

const (
	// failuresMax is how many wrong pages are remembered by name, and asked for again.
	failuresMax = 1000
	// failuresLogged is how many get a line of the log each.
	failuresLogged = 20
	// blocksPerExtent is the size of an extent in pages.
	blocksPerExtent = repo.ExtentSize / pg.PageSize
)

// checksPages reports whether the server's pages have checksums of the kind that is known here.
func checksPages(settings map[string]string) bool {
	return settings["data_checksums"] == "on" && knownLayout(settings)
}

// knownLayout reports whether the server's pages and files are of the common sizes.
func knownLayout(settings map[string]string) bool {
	return settings["block_size"] == fmt.Sprint(pg.PageSize) && settings["segment_size"] == fmt.Sprint(pg.RelationSegmentBlocks)
}

// inspect verifies the pages of an extent.
func (c *pageChecks) inspect(f *repo.File, number int, plain []byte) {
	if c.start == 0 {
		return
	}
	file, ok := parseRelationFile(f.Path)
	if !ok {
		return
	}
	for i := range len(plain) / pg.PageSize {
		if block := file.block(number) + uint32(i); c.wrong(plain[i*pg.PageSize:(i+1)*pg.PageSize], block) {
			c.note(pageFailure{f.Path, uint32(number*blocksPerExtent + i), block})
		}
	}
}

func (c *pageChecks) wrong(page []byte, block uint32) bool {
	return !pg.PageIsNew(page) && pg.PageLSN(page) < c.start && pg.PageChecksum(page, block) != pg.StoredPageChecksum(page)
}

func (c *pageChecks) note(f pageFailure) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.failures) >= failuresMax {
		c.more++
		return
	}
	c.failures = append(c.failures, f)
}

// confirm asks for each wrong page once more, since one that was being written when it was read may have come half old and half new, and returns how
// many stay wrong. What cannot be read again stays so.
func (c *pageChecks) confirm(ctx context.Context, opt BackupOptions) (count int, err error) {
	for _, f := range c.failures {
		page, err := c.again(ctx, f)
		if err != nil && !errors.Is(err, errNotTold) {
			return 0, err
		}
		if err == nil && (len(page) < pg.PageSize || !c.wrong(page, f.block)) {
			continue // mended, or gone: the WAL says so
		}
		if count++; count <= failuresLogged {
			opt.Log.Error("the checksum of a page is wrong", "file", f.path, "page", f.page, "block", f.block)
		}
	}
	return count + c.more, ctx.Err()
}

// errNotTold says that a page may not be read again.
var errNotTold = errors.New("the server does not tell its page")

// askAgain reads a page through the server. A user who may not read files of the server (pg_read_binary_file) gets no answer.
func (opt BackupOptions) askAgain(ctx context.Context, f pageFailure) (page []byte, err error) {
	conn, err := opt.connect(ctx, "", false)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, conn.Close(ctx)) }()
	name := strings.ReplaceAll(f.path, "'", "''")
	rows, err := conn.Query(ctx, fmt.Sprintf("SELECT pg_catalog.encode(pg_catalog.pg_read_binary_file('%s', %d, %d, true), 'hex')",
		name, int64(f.page)*pg.PageSize, pg.PageSize))
	if err != nil || len(rows) != 1 {
		return nil, errNotTold
	}
	return hex.DecodeString(rows[0][0])
}
