// SPDX-License-Identifier: Apache-2.0

package view

import (
	"context"
	"encoding/binary"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/chain/chaintest"
	"github.com/imgbackup/imgbackup/objstore"
)

// line is a store with 16 connections, on each of which a round trip takes 30 ms, and the frame
// of a chunk 22 ms more. In a bubble of testing/synctest that is exact.
type line struct {
	objstore.Store
	connections chan struct{}
	frame       int64 // about what one has, bytes
	read        atomic.Int64
}

const (
	lineTrip  = 30 * time.Millisecond
	lineChunk = 22 * time.Millisecond
)

func (l *line) Unwrap() objstore.Store { return l.Store }
func (l *line) Connections() int       { return cap(l.connections) }

func (l *line) Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	if !strings.HasPrefix(key, archive.PackPrefix) {
		return l.Store.Get(ctx, key, offset, length)
	}
	l.connections <- struct{}{}
	time.Sleep(lineTrip)
	r, err := l.Store.Get(ctx, key, offset, length)
	if err != nil {
		<-l.connections
		return nil, err
	}
	l.read.Add(length)
	return &lineBody{ReadCloser: r, line: l}, nil
}

type lineBody struct {
	io.ReadCloser
	line *line
}

func (b *lineBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	time.Sleep(time.Duration(int64(n) * int64(lineChunk) / b.line.frame))
	return n, err
}

func (b *lineBody) Close() error {
	<-b.line.connections
	return b.ReadCloser.Close()
}

// withHoles commits a disk half of which is runs of data, of 1 to 16 chunks.
func withHoles(t *testing.T, h *chaintest.History, size int64) (runs [][2]int64, chunks, stored int64) {
	t.Helper()
	ctx, r := t.Context(), rand.New(rand.NewPCG(1, 2))
	w, err := archive.NewWriter(ctx, h.Repo.Store, archive.WriterOptions{Workers: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	m := w.NewMap("vda", size, true)
	for off := int64(0); off < size; {
		end := min(off+int64(1+r.IntN(16))*archive.GridSize, size)
		runs = append(runs, [2]int64{off, end})
		for ; off < end; off += archive.GridSize {
			chunks++
			at := off
			err := m.Add(ctx, at, archive.GridSize, func(_ context.Context, buf []byte) ([]archive.Piece, error) {
				data := buf[:archive.GridSize]
				clear(data)
				for i := 0; i < len(data); i += step {
					binary.BigEndian.PutUint64(data[i:], uint64(at)+uint64(i)+1)
				}
				return []archive.Piece{{Offset: at, Length: archive.GridSize, Data: data}}, nil
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		off += end - runs[len(runs)-1][0]
	}
	refs, _, err := w.Finish(ctx)
	if err != nil {
		t.Fatal(err)
	}
	whole, err := archive.OpenMap(ctx, h.Repo.Store, refs[0], 0)
	if err != nil {
		t.Fatal(err)
	}
	var entries []archive.Entry
	for e, err := range whole.Entries(ctx, 0, size) {
		if err != nil {
			t.Fatal(err)
		}
		entries = append(entries, e)
		stored += int64(e.FrameLength)
	}
	h.CommitMap(size, entries...)
	return runs, chunks, stored
}

// step is how much a client asks for at once.
const step = 256 << 10

// copyInRanges reads a disk as nbdcopy does: some threads, each of which takes the next range
// when it is done with one, with some requests under way.
func copyInRanges(t *testing.T, d *Disk, runs [][2]int64, threads, atOnce int) {
	const length = 128 << 20
	var next atomic.Int64
	var all sync.WaitGroup
	for range threads {
		all.Go(func() {
			var mine sync.WaitGroup
			defer mine.Wait()
			slots := make(chan struct{}, atOnce)
			for {
				start := next.Add(length) - length
				if start >= d.Size() {
					return
				}
				for _, run := range runs {
					for off := max(run[0], start); off < min(run[1], start+length); off += step {
						slots <- struct{}{}
						mine.Go(func() {
							defer func() { <-slots }()
							p := make([]byte, step)
							if err := d.ReadAt(t.Context(), p, off); err != nil || binary.BigEndian.Uint64(p) != uint64(off)+1 {
								t.Errorf("at %d: %v", off, err)
							}
						})
					}
				}
			}
		})
	}
	all.Wait()
}

// A disk with holes that is copied in ranges, by several threads, takes little longer than
// the connections to a far store need for its bytes, and each is fetched once.
func TestCopyInRanges(t *testing.T) {
	t.Parallel()
	h := chaintest.NewHistory(t)
	runs, chunks, stored := withHoles(t, h, 640<<20)
	for _, c := range []struct{ threads, atOnce int }{{2, 8}, {4, 8}} {
		synctest.Test(t, func(t *testing.T) {
			l := &line{Store: h.Repo.Store, connections: make(chan struct{}, 16), frame: stored / chunks}
			repo := *h.Repo
			repo.Store = l
			r := NewReader(t.Context(), &repo, Options{})
			defer r.Close()
			d, err := r.Open(t.Context(), &h.Checkpoints[0].Disks[0])
			if err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			copyInRanges(t, d, runs, c.threads, c.atOnce)
			took, best := time.Since(began), time.Duration(chunks)*lineChunk/16
			if took > best*7/4 {
				t.Errorf("%d threads, %d requests each: %v, and %v would be the best", c.threads, c.atOnce, took, best)
			}
			if n := l.read.Load(); n > stored*11/10 {
				t.Errorf("%d threads: %d bytes were read of %d", c.threads, n, stored)
			}
		})
	}
}
