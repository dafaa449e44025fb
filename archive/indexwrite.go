// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"sync"
	"time"

	"github.com/imgbackup/imgbackup/crypt"
	"github.com/imgbackup/imgbackup/internal/spool"
)

const (
	indexFrame  = 256 << 10 // bytes of text after which a frame ends
	indexChunks = 1 << 16   // chunks after which an index ends
	// What is listed in no index yet is lost to the next session when this one is
	// killed: so an index ends when its packs have so many bytes, or so large a part
	// of all that were stored before, and some time after its first one.
	indexEvery = 64 << 20
	indexShare = 64
	indexTime  = 5 * time.Minute
)

// indexBuilder lists the packs of a session that are stored, in indexes that become
// due while the session goes on. It is safe for concurrent use.
type indexBuilder struct {
	tempDir string
	every   int64 // as indexEvery
	enc     *encoder
	keys    *crypt.Keys // nil: none
	now     func() time.Time

	indexing Indexing

	mu     sync.Mutex
	part   *spool.Spool // what is not due yet; nil: nothing is
	into   io.Writer    // it, or what encrypts into it
	sum    hash.Hash    // of what is written there, where it is signed; nil: it is not
	begun  time.Time    // its first pack came
	chunks int          // in it
	bytes  int64        // of its packs
	before int64        // bytes of the packs in earlier parts
	text   []byte
	stored []byte
}

// add lists a pack. due are indexes to be stored, and closed.
func (b *indexBuilder) add(pack Ref, chunks []PackChunk) (due []*spool.Spool, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.part != nil && b.chunks+len(chunks) > indexChunks {
		full, err := b.take()
		if err != nil {
			return nil, err
		}
		due = append(due, full)
	}
	if err := b.list(pack, chunks); err != nil {
		return due, err
	}
	if b.bytes >= max(b.every, b.before/indexShare) || b.now().Sub(b.begun) >= indexTime {
		full, err := b.take()
		if err != nil {
			return due, err
		}
		due = append(due, full)
	}
	return due, nil
}

// rest returns the index of what has not become due; nil: there is nothing.
func (b *indexBuilder) rest() (*spool.Spool, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.part == nil {
		return nil, nil
	}
	return b.take()
}

// take ends the part.
func (b *indexBuilder) take() (*spool.Spool, error) {
	if err := b.cut(); err != nil {
		return nil, err
	}
	if b.sum != nil {
		if err := b.indexing.signIndex(b.into, Digest(b.sum.Sum(nil))); err != nil {
			return nil, err
		}
	}
	if c, ok := b.into.(io.Closer); ok && b.keys != nil {
		if err := c.Close(); err != nil {
			return nil, err
		}
	}
	part := b.part
	b.before += b.bytes
	b.part, b.chunks, b.bytes = nil, 0, 0
	return part, nil
}

func (b *indexBuilder) list(pack Ref, chunks []PackChunk) error {
	if b.part == nil {
		if err := b.begin(); err != nil {
			return err
		}
	}
	b.chunks += len(chunks)
	b.bytes += pack.Length
	n := len(b.text)
	if b.keys != nil {
		return b.listKeyed(pack, chunks)
	}
	b.text = append(b.text, make([]byte, indexPackLen+len(chunks)*indexChunkLen)...)
	l := lineWriter{line: b.text[n:][:indexPackLen]}
	l.word("p")
	l.dec(10, pack.Length)
	l.hex(&pack.Name)
	ok := l.end()
	for i := range chunks {
		line := b.text[n+indexPackLen+i*indexChunkLen:][:indexChunkLen]
		line[0], line[1] = 'c', ' '
		ok = chunks[i].put(line[2:]) && ok
	}
	if !ok {
		return fmt.Errorf("index: pack %s does not fit its lines", pack.Name)
	}
	if len(b.text) >= indexFrame {
		return b.cut()
	}
	return nil
}

// listKeyed lists a pack of an encrypted repository.
func (b *indexBuilder) listKeyed(pack Ref, chunks []PackChunk) error {
	n := len(b.text)
	b.text = append(b.text, make([]byte, indexPackLen)...)
	l := lineWriter{line: b.text[n:]}
	l.word("p")
	l.dec(10, pack.Length)
	l.hex(&pack.Name)
	ok := l.end()
	for len(chunks) > 0 {
		some := chunks[:min(len(chunks), maxGroupFrames)]
		for len(some) < len(chunks) && chunks[len(some)].FrameOffset == some[len(some)-1].FrameOffset {
			some = chunks[:len(some)+1]
		}
		chunks = chunks[len(some):]
		var fits bool
		if b.text, fits = appendGroupLines(b.text, some); !fits {
			ok = false
		}
		if len(b.text) >= indexFrame {
			if err := b.cut(); err != nil {
				return err
			}
		}
	}
	if !ok {
		return fmt.Errorf("index: pack %s does not fit its lines", pack.Name)
	}
	return nil
}

// begin begins a part. Its first line has its own frame, so that the newest of many
// indexes are found by their first bytes.
func (b *indexBuilder) begin() error {
	b.part, b.begun = &spool.Spool{Dir: b.tempDir}, b.now()
	if b.into = b.part; b.keys != nil {
		var err error
		if b.into, err = b.keys.Writer(crypt.Metadata, b.part); err != nil {
			return err
		}
		if b.indexing.Seals != nil {
			b.sum = sha256.New()
		}
	}
	line := make([]byte, indexHeadLen)
	l := lineWriter{line: line}
	l.word(indexMagic)
	l.dec(19, b.begun.Unix())
	if !l.end() {
		return errors.New("index: the clock is wrong")
	}
	b.text = append(b.text[:0], line...)
	return b.cut()
}

// cut ends the frame; no line goes on in the next.
func (b *indexBuilder) cut() (err error) {
	if len(b.text) == 0 {
		return nil
	}
	if b.stored, err = b.enc.frame(b.stored[:0], b.text); err != nil {
		return err
	}
	b.text = b.text[:0]
	if b.sum != nil {
		_, _ = b.sum.Write(b.stored) // a hash never fails
	}
	_, err = b.into.Write(b.stored)
	return err
}

// close gives up what was not taken.
func (b *indexBuilder) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.part != nil {
		b.part.Close()
		b.part = nil
	}
}
