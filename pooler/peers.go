package pooler

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"pitr/config"
	"pitr/internal/pgwire"
)

// Cancel keys of several poolers, as PgBouncer writes them (welcome_client in src/client.c): of the eight bytes of a short key the second and the third hold the peer_id, low byte
// first, and the last two bits (CANCELLATION_TTL_MASK in include/bouncer.h) how often the request may still be handed on. What lies behind these eight bytes in a long key is ours alone.
const (
	idMask   = 0x00ffff00 // of the process id
	hopsByte = 3          // of the secret
	hopsMask = 3
)

// peerPort is where a peer listens unless something else is said: the default of listen_port in PgBouncer's manual.
const peerPort = 6432

// warnPause is how often the log is told at most that a peer does not take requests.
const warnPause = 10 * time.Second

// peer is another pooler that clients reach under the same address.
type peer struct {
	config.Peer
	network, address         string
	slots                    chan struct{} // one token for each cancel request on its way
	waiting, active, dialing atomic.Int64
	warned                   atomic.Int64 // when the log was last told of trouble, in Unix nanoseconds
	dropped                  atomic.Int64 // requests since then
}

// newPeers returns nil where poolers do not know of each other.
func newPeers(cfg config.Pooler) map[uint16]*peer {
	if cfg.PeerID == 0 {
		return nil
	}
	peers := map[uint16]*peer{uint16(cfg.PeerID): nil}
	for name, one := range cfg.Peers {
		id, err := strconv.ParseUint(name, 10, 16)
		if err != nil {
			panic("pooler: the id of a peer has passed its check: " + err.Error())
		}
		one.Port, one.PoolSize = cmp.Or(one.Port, peerPort), cmp.Or(one.PoolSize, cfg.DefaultPoolSize)
		added := &peer{Peer: one, network: "tcp", address: net.JoinHostPort(one.Host, strconv.Itoa(one.Port)), slots: make(chan struct{}, one.PoolSize)}
		if strings.HasPrefix(one.Host, "/") || strings.HasPrefix(one.Host, "@") {
			added.network, added.address = "unix", unixPath(config.Pooler{UnixSocketDir: one.Host}, one.Port)
		}
		if int(id) != cfg.PeerID { // the list may be the same everywhere
			peers[uint16(id)] = added
		}
	}
	return peers
}

// publish returns what stands for a process id in the key that a client gets.
func (p *Pooler) publish(process uint32) uint32 {
	if len(p.peers) == 0 {
		return process
	}
	id := uint32(p.cfg.PeerID)
	return process&^idMask | id&0xff<<16 | id>>8<<8
}

// notePublished, and forgetPublished, are needed where several process ids look the same in a key. The caller has mu.
func (p *Pooler) notePublished(process uint32) {
	if len(p.peers) > 0 {
		p.alike[process&^idMask] = append(p.alike[process&^idMask], process)
	}
}

func (p *Pooler) forgetPublished(process uint32) {
	if len(p.peers) == 0 {
		return
	}
	left := slices.DeleteFunc(p.alike[process&^idMask], func(one uint32) bool { return one == process })
	if len(left) == 0 {
		delete(p.alike, process&^idMask)
		return
	}
	p.alike[process&^idMask] = left
}

// published returns the process ids that may stand behind that of a cancel request. The caller has mu.
func (p *Pooler) published(process uint32) []uint32 {
	if len(p.peers) == 0 {
		return []uint32{process}
	}
	if process != p.publish(process) {
		return nil
	}
	return p.alike[process&^idMask]
}

// withoutHops returns a secret as it was given to the client, however often it was handed on.
func (p *Pooler) withoutHops(secret []byte) []byte {
	if len(p.peers) == 0 || len(secret) <= hopsByte {
		return secret
	}
	secret = bytes.Clone(secret)
	secret[hopsByte] |= hopsMask
	return secret
}

// forward hands a cancel request on to the peer whose client it is for, and waits until that has dealt with it. It reports false if it is for nobody else.
func (p *Pooler) forward(process uint32, secret []byte) bool {
	id := uint16(process>>16&0xff | process>>8&0xff<<8)
	to := p.peers[id]
	if to == nil || len(secret) <= hopsByte {
		return false
	}
	if secret[hopsByte]&hopsMask == 0 {
		p.log.Debug("cancel request dropped, which was handed on too often", "peer_id", id)
		return true
	}
	secret = bytes.Clone(secret)
	secret[hopsByte]--
	select {
	case p.cancels <- struct{}{}:
		defer func() { <-p.cancels }()
	default:
		p.counters.cancelLimitHits.Add(1)
		return true
	}
	ctx, stop := context.WithTimeout(context.Background(), p.cancelPatience())
	defer stop()
	if err := to.cancel(ctx, process, secret); err != nil {
		to.dropped.Add(1)
		if now := time.Now(); now.Sub(time.Unix(0, to.warned.Load())) > warnPause { // anybody can ask for it, with any key
			to.warned.Store(now.UnixNano())
			p.log.Warn("cancel request not handed on to the peer", "peer_id", id, "times", to.dropped.Swap(0), "error", err)
		}
		return true
	}
	p.counters.cancelRequests.Add(1)
	return true
}

// cancel sends a cancel request and waits until the peer has closed the connection.
func (to *peer) cancel(ctx context.Context, process uint32, secret []byte) error {
	to.waiting.Add(1)
	select {
	case to.slots <- struct{}{}:
		to.waiting.Add(-1)
		defer func() { <-to.slots }()
	case <-ctx.Done():
		to.waiting.Add(-1)
		return fmt.Errorf("wait for others: %w", ctx.Err())
	}
	to.active.Add(1)
	defer to.active.Add(-1)
	to.dialing.Add(1)
	conn, err := (&net.Dialer{}).DialContext(ctx, to.network, to.address)
	to.dialing.Add(-1)
	if err != nil {
		return err
	}
	defer conn.Close()
	deadline, limited := ctx.Deadline()
	if limited {
		err = conn.SetDeadline(deadline)
	}
	if err == nil {
		_, err = conn.Write(pgwire.AppendCancel(nil, process, secret))
	}
	if err != nil {
		return err
	}
	// Whoever answers is no pooler; what he says is of no interest, and no more of it than of an error.
	_, err = io.Copy(io.Discard, io.LimitReader(conn, 1<<10))
	return err
}

func showPeers(p *Pooler) [][]any {
	return p.eachPeer(func(id uint16, one *peer) []any { return []any{int(id), one.Host, one.Port, one.PoolSize} })
}

func showPeerPools(p *Pooler) [][]any {
	return p.eachPeer(func(id uint16, one *peer) []any {
		dialing := one.dialing.Load()
		active := one.active.Load()
		return []any{int(id), int(active), int(one.waiting.Load()), int(max(active-dialing, 0)), int(dialing)}
	})
}

func (p *Pooler) eachPeer(row func(uint16, *peer) []any) (rows [][]any) {
	for id, one := range p.peers {
		if one != nil {
			rows = append(rows, row(id, one))
		}
	}
	return rows
}
