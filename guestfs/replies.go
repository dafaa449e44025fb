// SPDX-License-Identifier: Apache-2.0

package guestfs

import (
	"bytes"
	"io"
	"os"
	"sync"
)

// maxReply bounds an answer, bytes.
const maxReply = 16 << 20

// reply is what came before a mark.
type reply struct {
	b       []byte
	tooLong bool  // and nothing comes any more
	unsent  error // why it could not be passed on; likewise
}

// replies cuts a stream at its marks.
type replies struct {
	next chan reply // closed at the end
	done chan struct{}

	mu   sync.Mutex
	left []byte    // the beginning of what came after the last mark
	to   io.Writer // where the next reply goes as it comes; nil: it is kept until it is whole
}

// pass lets the next reply go somewhere as it comes; nil: it is kept.
func (r *replies) pass(to io.Writer) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.to = to
}

func (r *replies) passedTo() io.Writer {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.to
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
			whole := r.end(held[:seen+i])
			r.next <- whole
			if whole.unsent != nil {
				return
			}
			held, seen = held[seen+i+len(mark):], 0
		}
		seen = max(0, len(held)-len(mark))
		if to := r.passedTo(); to != nil && seen > 0 {
			if _, werr := to.Write(held[:seen]); werr != nil {
				r.next <- reply{unsent: werr}
				return
			}
			held, seen = append(held[:0], held[seen:]...), 0
		}
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

// end is the reply that ends so.
func (r *replies) end(b []byte) reply {
	to := r.passedTo()
	if to == nil {
		return reply{b: bytes.Clone(b)}
	}
	_, err := to.Write(b)
	return reply{unsent: err}
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
