package protocoltest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"runtime"
	"sort"
	"strings"
	"time"
)

// Target is where a script is played.
type Target struct {
	Address        string
	User, Database string
	Timeout        time.Duration // of a whole script
}

// player is one client that plays a script.
type player struct {
	target  Target
	conn    net.Conn
	random  *rand.Rand
	arrived chan Message
	seen    []Message
	process int32
	secret  []byte

	vanished bool
}

// messageMax bounds what is believed of a length on the wire.
const messageMax = 64 << 20

// Play logs in, sends the script in pieces of random size while it reads, and returns all messages that came. An error says that the
// script could not be played: a connection that the server ends is none.
func Play(target Target, script *Script, random *rand.Rand) ([]Message, error) {
	conn, err := net.Dial("tcp", target.Address)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(target.Timeout)); err != nil {
		return nil, err
	}
	p := &player{target: target, conn: conn, random: random, arrived: make(chan Message, 64)}
	failed := make(chan error, 1)
	stop := make(chan struct{})
	go func() { failed <- p.read(stop); close(failed) }()
	defer func() { conn.Close(); <-failed }()
	defer close(stop)
	p.send(startup(target, script.Login))
	if p.until("Z", 1); len(p.seen) == 0 || p.seen[len(p.seen)-1].Type != 'Z' {
		return p.seen, nil // the login was refused
	}
	if err := p.play(script.Steps); err != nil {
		return p.seen, err
	}
	p.send(message('X', ""))
	for m := range p.arrived {
		p.take(m)
	}
	if err := <-failed; !p.vanished {
		return p.seen, err
	}
	return p.seen, nil
}

func startup(target Target, login map[string]string) []byte {
	body := int32s(196608) + "user\x00" + target.User + "\x00database\x00" + target.Database + "\x00"
	if login["application_name"] == "" {
		body += "application_name\x00script\x00"
	}
	names := make([]string, 0, len(login))
	for name := range login {
		if login[name] != "none" {
			names = append(names, name)
		}
	}
	sort.Strings(names)
	for _, name := range names {
		body += name + "\x00" + login[name] + "\x00"
	}
	return message(0, body+"\x00")
}

func (p *player) play(steps []Step) error {
	var due []byte
	for _, step := range steps {
		if step.Action == Send {
			due = append(due, step.Bytes...)
			continue
		}
		p.send(due)
		due = nil
		switch step.Action {
		case Until:
			p.until(step.Types, step.Count)
		case Cancel:
			if err := p.cancel(); err != nil {
				return err
			}
		case Vanish:
			p.vanished = true
			return p.conn.Close()
		}
	}
	p.send(due)
	return nil
}

// send writes in pieces. A server that has closed the connection takes no more; what it has said before is what counts.
func (p *player) send(out []byte) {
	most := []int{8, 60, 1000, 1 << 20}[p.random.IntN(4)]
	for len(out) > 0 {
		size := most
		if len(out) > 1000*most {
			size = len(out) / 100 // a long message in very small pieces takes too long
		}
		n := 1 + p.random.IntN(min(len(out), size))
		if _, err := p.conn.Write(out[:n]); err != nil {
			return
		}
		out = out[n:]
		if p.random.IntN(4) == 0 {
			runtime.Gosched()
		}
	}
}

func (p *player) until(types string, count int) {
	for m := range p.arrived {
		p.take(m)
		if strings.IndexByte(types, m.Type) >= 0 {
			count--
		}
		if count == 0 {
			return
		}
	}
}

func (p *player) take(m Message) {
	if m.Type == 'K' && len(m.Body) >= 4 {
		p.process, p.secret = int32(binary.BigEndian.Uint32(m.Body)), m.Body[4:]
	}
	p.seen = append(p.seen, m)
}

// read takes messages off the connection until it ends.
func (p *player) read(stop chan struct{}) error {
	defer close(p.arrived)
	for {
		var head [5]byte
		if n, err := io.ReadFull(p.conn, head[:]); err != nil {
			if n > 0 {
				return fmt.Errorf("the connection ended in a message's header: %x", head[:n])
			}
			return readError(err)
		}
		length := binary.BigEndian.Uint32(head[1:])
		if length < 4 || length > messageMax {
			return fmt.Errorf("no message: %x", head)
		}
		body := make([]byte, length-4)
		if n, err := io.ReadFull(p.conn, body); err != nil {
			return fmt.Errorf("the connection ended %d bytes into a message %c of %d: %w", n, head[0], len(body), err)
		}
		select {
		case p.arrived <- Message{head[0], body}:
		case <-stop:
			return nil
		}
	}
}

// readError tells an answer that does not come from a connection that was closed.
func readError(err error) error {
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		return fmt.Errorf("no answer: %w", err)
	}
	return nil
}

func (p *player) cancel() error {
	conn, err := net.Dial("tcp", p.target.Address)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(p.target.Timeout)); err != nil {
		return err
	}
	if _, err := conn.Write(message(0, int32s(80877102)+int32s(int(p.process))+string(p.secret))); err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, conn)
	return readError(err)
}
