// SPDX-License-Identifier: Apache-2.0

package machine

import (
	"bytes"
	"fmt"
	"io"
	"regexp"
	"sync"
)

// keptHead and keptTail are how much of a console's beginning and end is kept, bytes.
const (
	keptHead = 512 << 10
	keptTail = 512 << 10
)

// maxLine is how much of one line a pattern is looked for in, bytes.
const maxLine = 16 << 10

// console is what the guest says on its serial port. It takes whatever comes, so that
// the guest never waits, and keeps a bounded part.
type console struct {
	pattern *regexp.Regexp // nil: none is waited for
	matched chan struct{}  // closed once the pattern has shown
	first   chan struct{}  // closed with the first byte

	mu    sync.Mutex
	head  []byte
	tail  []byte // a ring, once it is full
	at    int    // where the ring goes on
	total int64
	line  []byte // that has not ended yet
	found string // the line that matched
}

func newConsole(pattern *regexp.Regexp) *console {
	return &console{pattern: pattern, matched: make(chan struct{}), first: make(chan struct{})}
}

// read takes all that comes, until it ends.
func (c *console) read(r io.Reader) {
	part := make([]byte, 64<<10)
	for {
		n, err := r.Read(part)
		if n > 0 {
			c.take(part[:n])
		}
		if err != nil {
			return
		}
	}
}

func (c *console) take(p []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.total == 0 {
		close(c.first)
	}
	c.total += int64(len(p))
	c.keep(p)
	if c.pattern == nil || c.found != "" {
		return
	}
	for len(p) > 0 && c.found == "" {
		n, ends := bytes.IndexByte(p, '\n'), true
		if n < 0 {
			n, ends = len(p), false
		}
		if n > maxLine/2 {
			n, ends = maxLine/2, false
		}
		c.append(p[:n])
		if p = p[n:]; ends {
			p = p[1:]
		}
		// A prompt is a line that never ends: what is there counts.
		if c.pattern.Match(bytes.TrimRight(c.line, "\r")) {
			c.found = string(bytes.TrimRight(c.line, "\r"))
			close(c.matched)
		}
		if ends {
			c.line = c.line[:0]
		}
	}
}

// append adds to the line, of which the end is kept: there is what a guest waits with.
func (c *console) append(p []byte) {
	if over := len(c.line) + len(p) - maxLine; over > 0 {
		c.line = append(c.line[:0], c.line[over:]...)
	}
	c.line = append(c.line, p...)
}

func (c *console) keep(p []byte) {
	n := min(len(p), keptHead-len(c.head))
	c.head, p = append(c.head, p[:n]...), p[n:]
	if len(p) > keptTail {
		p = p[len(p)-keptTail:]
	}
	for len(p) > 0 {
		if len(c.tail) < keptTail {
			n := min(len(p), keptTail-len(c.tail))
			c.tail, p = append(c.tail, p[:n]...), p[n:]
			continue
		}
		n := copy(c.tail[c.at:], p)
		c.at, p = (c.at+n)%keptTail, p[n:]
	}
}

// log is what was kept.
func (c *console) log() []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := bytes.Clone(c.head)
	if left := c.total - int64(len(c.head)) - int64(len(c.tail)); left > 0 {
		out = fmt.Appendf(out, "\n[… %d bytes are left out …]\n", left)
	}
	out = append(out, c.tail[c.at:]...)
	return append(out, c.tail[:c.at]...)
}

// line that showed the pattern, and how many bytes came at all.
func (c *console) result() (found string, total int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.found, c.total
}
