package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"time"
)

const (
	copyClients   = 2
	copyLimit     = 10 * time.Minute // for one run
	copyRows      = 500_000          // of about 210 bytes: small enough to stay in shared_buffers
	copyReadSize  = 256 << 10
	copyDataSize  = 8 << 10  // a CopyData message, as libpq makes them
	copyWriteSize = 64 << 10 // bytes per write
)

// copyTables makes what the copy workloads read, once.
var copyTables = []string{
	"create table if not exists copy_rows (id int, payload text)",
	"alter table copy_rows alter payload set storage plain",
	fmt.Sprintf("insert into copy_rows select n, repeat(md5(n::text), 6) from generate_series(1, %d) n where not exists (select from copy_rows)", copyRows),
	"vacuum copy_rows",
}

// copyRun carries its share of --copy-gb and measures how fast, and what each GB costs.
func (r *race) copyRun(ctx context.Context, s *service, k kind) (map[metric]float64, error) {
	if err := r.prepare(ctx, copyTables...); err != nil {
		return nil, err
	}
	share := int64(r.options.copyGB * 1e9 / 3 / float64(r.options.rounds) / copyClients)
	var conns []*conn
	defer func() {
		for _, c := range conns {
			c.close()
		}
	}()
	for range copyClients {
		c, err := dial(ctx, s.at, copyReadSize)
		if err != nil {
			return nil, err
		}
		conns = append(conns, c)
		if _, err := c.ask(); err != nil {
			return nil, err
		}
		if err := c.limit(copyLimit); err != nil {
			return nil, err
		}
	}
	stop := watch(s.pids())
	begin := time.Now()
	total, err := inParallel(ctx, conns, func(c *conn) (int64, error) { return c.carry(k, share) })
	end := time.Now()
	seen := stop()
	if err != nil {
		return nil, err
	}
	values := map[metric]float64{mbPerSec: float64(total) / 1e6 / end.Sub(begin).Seconds()}
	if s.process == nil {
		return values, nil
	}
	cpu, err := seen.cpuBetween(seen[0].at, end)
	if err != nil {
		return nil, err
	}
	values[cpuPerGB] = cpu.Seconds() * 1000 / (float64(total) / 1e9)
	values[rss] = float64(seen.rssPeak()) / (1 << 20)
	return values, nil
}

// inParallel does the same on each connection and sums up. When ctx ends, so do they.
func inParallel(ctx context.Context, conns []*conn, do func(*conn) (int64, error)) (total int64, err error) {
	type part struct {
		bytes int64
		err   error
	}
	parts := make(chan part)
	for _, c := range conns {
		go func() {
			interrupted := context.AfterFunc(ctx, func() { _ = c.net.SetDeadline(time.Unix(1, 0)) })
			defer interrupted()
			n, err := do(c)
			parts <- part{n, err}
		}()
	}
	for range conns {
		p := <-parts
		total += p.bytes
		if err == nil {
			err = p.err
		}
	}
	return total, err
}

// carry repeats the statement until at least the share has passed; it says how much has.
func (c *conn) carry(k kind, share int64) (total int64, err error) {
	for total < share && err == nil {
		var n int64
		switch k {
		case kindCopyOut:
			n, err = c.exec("copy copy_rows to stdout")
		case kindCopySelect:
			n, err = c.exec("select * from copy_rows")
		case kindCopyIn:
			n, err = c.copyIn(share - total)
		default:
			panic("bench: not a copy workload")
		}
		total += n
	}
	return total, err
}

// copyIn sends rows that the server reads and then drops by a WHERE, so that its heap and its WAL are not what is measured.
func (c *conn) copyIn(size int64) (int64, error) {
	if err := c.send('Q', []byte("copy copy_rows from stdin where id < 0\x00")); err != nil {
		return 0, err
	}
	for {
		kind, _, err := c.read()
		if err != nil {
			return 0, err
		}
		if kind == 'G' {
			break
		}
	}
	block := copyBlock()
	var total int64
	for total < size {
		n, err := c.net.Write(block)
		total += int64(n)
		if err != nil {
			return total, err
		}
	}
	if err := c.send('c', nil); err != nil {
		return total, err
	}
	_, err := c.drain()
	return total, err
}

// copyBlock is one write of CopyData messages, each of whole rows.
func copyBlock() []byte {
	row := append([]byte("1234567\t"), bytes.Repeat([]byte("c4ca4238a0b923820dcc509a6f75849b"), 6)...)
	row = append(row, '\n')
	data := bytes.Repeat(row, copyDataSize/len(row))
	message := append(binary.BigEndian.AppendUint32([]byte{'d'}, uint32(len(data)+4)), data...)
	return bytes.Repeat(message, copyWriteSize/len(message))
}
