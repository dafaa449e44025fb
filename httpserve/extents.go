// SPDX-License-Identifier: Apache-2.0

package httpserve

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"iter"
	"net/http"
	"strings"

	"github.com/imgbackup/imgbackup/bitmapstore"
	"github.com/imgbackup/imgbackup/nbd"
)

// The contexts that extents are asked for in.
const (
	contextZero  = "zero"
	contextDirty = "dirty"
)

// dirty is the disk's context of what changed since a checkpoint, or, where since is empty,
// the first one.
func (d *Disk) dirty(since string) (nbd.Context, bool) {
	for _, c := range d.Contexts {
		if name, ok := strings.CutPrefix(c.Name, nbd.DirtyBitmapPrefix); ok && (since == "" || name == since) {
			return c, true
		}
	}
	return nbd.Context{}, false
}

func (d *Disk) allocation() nbd.Context {
	for _, c := range d.Contexts {
		if c.Name == nbd.BaseAllocation {
			return c
		}
	}
	return nbd.Allocation(func(context.Context, int64, int64) bitmapstore.Runs { return nil }) // all is data
}

// serveExtents tells where a disk is zero, and, in the context dirty, where it has changed.
func (s *Server) serveExtents(w http.ResponseWriter, r *http.Request, d *Disk) {
	contexts := []nbd.Context{d.allocation()}
	q := r.URL.Query()
	switch name := q.Get("context"); name {
	case "", contextZero:
	case contextDirty:
		c, ok := d.dirty(q.Get("since"))
		if !ok {
			http.Error(w, "nothing is known of what changed in it since then", http.StatusNotFound)
			return
		}
		contexts = append(contexts, c)
	default:
		http.Error(w, fmt.Sprintf("context=%.40q: zero and dirty are known", name), http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	if r.Method == http.MethodHead {
		return
	}
	if !s.work.TryRLock() {
		panic(http.ErrAbortHandler) // the server has ended
	}
	defer s.work.RUnlock()
	out := bufio.NewWriterSize(w, minPiece)
	sep := "["
	for e, err := range merged(r.Context(), d.Size, contexts) {
		if err != nil {
			s.cut(d, "extents", e.start, err, r)
		}
		fmt.Fprintf(out, `%s{"start": %d, "length": %d`, sep, e.start, e.end-e.start)
		if len(contexts) > 1 {
			fmt.Fprintf(out, `, "dirty": %t`, e.flags[1]&nbd.StateDirty != 0)
		}
		fmt.Fprintf(out, `, "zero": %t, "hole": %t}`, e.flags[0]&nbd.StateZero != 0, e.flags[0]&nbd.StateHole != 0)
		sep = ",\n"
	}
	if sep == "[" { // a disk of no size
		_, _ = out.WriteString(sep) // whatever fails, Flush says
	}
	_, _ = out.WriteString("]\n")
	_ = out.Flush() // a client that has gone misses nothing
}

// extent is a range of a disk with the flags that each of several contexts gives it.
type extent struct {
	start, end int64 // bytes, half open, start < end
	flags      [2]uint32
}

// merged yields all of a disk in extents whose neighbours differ, with the flags of up to two
// contexts. An error comes last, with where it was met.
func merged(ctx context.Context, size int64, contexts []nbd.Context) iter.Seq2[extent, error] {
	return func(yield func(extent, error) bool) {
		sources := make([]*source, len(contexts))
		for i, c := range contexts {
			next, stop := iter.Pull2(c.Extents(ctx, 0, size))
			defer stop()
			sources[i] = &source{next: next, size: size}
		}
		last := extent{end: -1}
		for pos := int64(0); pos < size; {
			e := extent{start: pos, end: size}
			for i, s := range sources {
				flags, end, err := s.at(pos)
				if err != nil {
					yield(extent{start: pos}, err)
					return
				}
				e.flags[i], e.end = flags, min(e.end, end)
			}
			pos = e.end
			if last.end == e.start && last.flags == e.flags {
				last.end = e.end
				continue
			}
			if last.end >= 0 && !yield(last, nil) {
				return
			}
			last = e
		}
		if last.end >= 0 {
			yield(last, nil)
		}
	}
}

// source is the extents of one context, asked for in order.
type source struct {
	next  func() (nbd.Extent, error, bool)
	size  int64
	now   nbd.Extent
	begun bool
	over  bool
}

var errExtents = errors.New("the extents are not in order")

// at returns the flags at pos, and up to where they are the same. pos never falls.
func (s *source) at(pos int64) (flags uint32, end int64, err error) {
	for !s.over && (!s.begun || s.now.End <= pos) {
		e, err, ok := s.next()
		switch {
		case !ok:
			s.over = true
		case err != nil:
			return 0, 0, err
		case e.Start >= e.End || s.begun && e.Start < s.now.End:
			return 0, 0, errExtents
		default:
			s.now, s.begun = e, true
		}
	}
	switch {
	case s.over:
		return 0, s.size, nil
	case pos < s.now.Start:
		return 0, min(s.now.Start, s.size), nil
	}
	return s.now.Flags, min(s.now.End, s.size), nil
}
