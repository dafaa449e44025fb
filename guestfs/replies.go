// SPDX-License-Identifier: Apache-2.0

package guestfs

import (
	"bytes"
	"os"
	"sync"
)

// maxReply bounds an answer, bytes.
const maxReply = 16 << 20

// reply is what came before a mark.
type reply struct {
	b       []byte
	tooLong bool // and nothing comes any more
}

// replies cuts a stream at its marks.
type replies struct {
	next chan reply // closed at the end
	done chan struct{}

	mu   sync.Mutex
	left []byte // the beginning of what came after the last mark
}

func readReplies(from *os.File, mark string) *replies {
	r := &replies{next: make(chan reply, 1), done: make(chan struct{})}
	go func() {
		defer close(r.done)
		defer close(r.next)
		defer func() { _ = from.Close() }()
		r.cut(from, []byte(mark))
	}()
	return r
}

func (r *replies) cut(from *os.File, mark []byte) {
	var held []byte
	part := make([]byte, 64<<10)
	seen := 0 // up to where held has no mark
	for {
		n, err := from.Read(part)
		held = append(held, part[:n]...)
		for {
			i := bytes.Index(held[seen:], mark)
			if i < 0 {
				break
			}
			r.next <- reply{b: bytes.Clone(held[:seen+i])}
			held, seen = held[seen+i+len(mark):], 0
		}
		seen = max(0, len(held)-len(mark))
		if len(held) > maxReply {
			r.next <- reply{tooLong: true}
			err = os.ErrInvalid
		}
		if err != nil {
			r.mu.Lock()
			r.left = bytes.Clone(held[:min(len(held), maxSaid)])
			r.mu.Unlock()
			return
		}
	}
}

// rest is the beginning of what no mark came after, once the stream has ended.
func (r *replies) rest() string {
	<-r.done
	r.mu.Lock()
	defer r.mu.Unlock()
	return string(r.left)
}

// wait lets what nobody asks for any more pass, until the stream has ended.
func (r *replies) wait() {
	for range r.next {
	}
	<-r.done
}
