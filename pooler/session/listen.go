package session

import (
	"encoding/binary"
	"maps"
	"slices"

	"pitr/internal/pgwire"
)

// listening is what a client has subscribed to. It exists only for those that have ever done so.
type listening struct {
	channels map[string]bool
	changed  bool
	due      []byte // notifications that wait for the end of the message that the client is just getting
}

// channelsMax bounds the channels of a client. One more is the server's to listen to, as if nobody else could.
const channelsMax = 1000

// notificationsMax bounds what waits for a client that is getting a long message, in bytes.
const notificationsMax = 1 << 20

// Listens returns the channels that the client listens to, sorted, and whether they have changed since the last call. It is of use
// with Options.Listen: the driver then has these channels listened to, and brings what comes by Notify.
func (s *Session) Listens() (channels []string, changed bool) {
	if s.listening == nil {
		return nil, false
	}
	changed, s.listening.changed = s.listening.changed, false
	return slices.Sorted(maps.Keys(s.listening.channels)), changed
}

// Notify makes a notification due to the client, between two messages: among those of TakeReplies, or when the server's message that
// the client is getting has ended. It is dropped, and false returned, when too many wait already.
func (s *Session) Notify(process uint32, channel, payload string) bool {
	if len(s.own) > notificationsMax || s.listening != nil && len(s.listening.due) > notificationsMax {
		return false
	}
	if !s.InReply() {
		s.own = appendNotification(s.own, process, channel, payload)
		return true
	}
	l := s.listener()
	l.due = appendNotification(l.due, process, channel, payload)
	return true
}

func appendNotification(out []byte, process uint32, channel, payload string) []byte {
	out = pgwire.AppendHeader(out, pgwire.NotificationResponse, 4+len(channel)+1+len(payload)+1)
	out = binary.BigEndian.AppendUint32(out, process)
	out = append(append(out, channel...), 0)
	return append(append(out, payload...), 0)
}

func (s *Session) listener() *listening {
	if s.listening == nil {
		s.listening = &listening{channels: map[string]bool{}}
	}
	return s.listening
}

// listens takes note of LISTEN and UNLISTEN that have come to last.
func (s *Session) listens(c *command) {
	l := s.listener()
	l.changed = true
	switch c.kind {
	case commandListen:
		l.channels[c.name] = true
	case commandUnlisten:
		delete(l.channels, c.name)
	case commandUnlistenAll:
		clear(l.channels)
	}
}

// listenable reports whether a LISTEN is ours to keep.
func (s *Session) listenable(c *command) bool {
	return s.options.Listen && (c.kind != commandListen || s.listening == nil || len(s.listening.channels) < channelsMax)
}

// listenCarriedOut takes note of LISTEN or UNLISTEN by a server, which is cleaned afterwards.
func (s *Session) listenCarriedOut(c *command, kind commandKind) {
	switch {
	case kind != commandListen && kind != commandUnlisten && kind != commandUnlistenAll:
		s.lost()
	case s.listenable(c):
		s.note(change{listen: c})
	}
}

// giveNotifications makes due what has waited for the end of a message.
func (s *Session) giveNotifications(out *Output) {
	if s.listening == nil || len(s.listening.due) == 0 {
		return
	}
	out.buf = append(out.open(), s.listening.due...)
	s.listening.due = nil
}
