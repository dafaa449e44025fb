// SPDX-License-Identifier: Apache-2.0

package cache

import (
	"bufio"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/imgbackup/imgbackup/objstore"
)

// A far store lists a thousand keys at once, and tells with them where the next page begins: so a
// long listing is as many round trips in a row. What is remembered of one are some of its keys, as
// borders between which the next is asked for side by side. All that it has is the store's answer:
// borders that fit no more cost some requests.

const (
	// borderEvery is how many keys lie between two borders: fewer than a page has, so that
	// there is room for some more, and that the page itself shows where the next border is.
	borderEvery = 900
	// maxBorders bounds them, and so the requests at once. What comes behind the last is listed
	// in a row.
	maxBorders = 64
	// listedAhead is how many keys of each piece wait to be used.
	listedAhead = 1024
)

// List implements objstore.Store.
func (s *store) List(ctx context.Context, prefix string) iter.Seq2[objstore.Info, error] {
	from, ok := objstore.As[objstore.ListerAfter](s.next)
	if !ok {
		return s.next.List(ctx, prefix)
	}
	return func(yield func(objstore.Info, error) bool) {
		begun := s.takeAhead(prefix)
		if begun == nil {
			begun = &Ahead{borders: bordersIn(s.folder, prefix)}
		}
		if len(begun.borders) > 0 && begun.pieces == nil {
			begun.pieces = begin(ctx, from, prefix, begun.borders)
		}
		defer begun.Drop()
		var all iter.Seq2[objstore.Info, error]
		if begun.pieces != nil {
			all = begun.pieces.each(ctx)
		} else {
			all = s.next.List(ctx, prefix)
		}
		var now []string
		n := 0
		for info, err := range all {
			if n++; n%borderEvery == 0 && len(now) < maxBorders {
				now = append(now, info.Key)
			}
			if !yield(info, err) || err != nil {
				return
			}
		}
		if !slices.Equal(now, begun.borders) {
			s.keepBorders(prefix, now)
		}
	}
}

// piece is a part of a listing.
type piece struct {
	after, last string // it has the keys behind the one, up to the other; "" is no bound
	found       chan listed
}

type listed struct {
	info objstore.Info
	err  error
}

// pieces are those of a listing, which are asked for at once.
type pieces struct {
	all   []*piece
	ctx   context.Context // in which they are
	stop  context.CancelFunc
	ended sync.WaitGroup
}

// begin lists what lies between borders.
func begin(ctx context.Context, from objstore.ListerAfter, prefix string, borders []string) *pieces {
	p := &pieces{}
	p.ctx, p.stop = context.WithCancel(ctx)
	after := ""
	for _, last := range append(slices.Clip(borders), "") {
		one := &piece{after: after, last: last, found: make(chan listed, listedAhead)}
		p.ended.Go(func() { one.list(p.ctx, from, prefix) })
		p.all = append(p.all, one)
		after = last
	}
	return p
}

// drop ends them; it may be called again.
func (p *pieces) drop() {
	p.stop()
	p.ended.Wait()
}

// each yields what they have, in order.
func (p *pieces) each(ctx context.Context) iter.Seq2[objstore.Info, error] {
	return func(yield func(objstore.Info, error) bool) {
		for _, one := range p.all {
			for more := true; more; {
				var l listed
				select {
				case l, more = <-one.found:
				case <-ctx.Done():
				}
				err := cmp.Or(context.Cause(ctx), context.Cause(p.ctx)) // for which it may have ended too early
				switch {
				case err != nil:
					yield(objstore.Info{}, err)
					return
				case more && (!yield(l.info, l.err) || l.err != nil):
					return
				}
			}
		}
	}
}

// list lists a piece. An error is its last.
func (p *piece) list(ctx context.Context, from objstore.ListerAfter, prefix string) {
	defer close(p.found)
	for info, err := range from.ListAfter(ctx, prefix, p.after) {
		if err == nil && p.last != "" && info.Key > p.last {
			return
		}
		select {
		case p.found <- listed{info, err}:
		case <-ctx.Done():
			return
		}
	}
}

// bordersName is the file with the borders of listings under a prefix.
func bordersName(prefix string) string {
	sum := sha256.Sum256([]byte(prefix))
	return hex.EncodeToString(sum[:])
}

// bordersIn are those that are remembered in a repository's folder, one in each line; none if
// anything is wrong with them.
func bordersIn(repository, prefix string) []string {
	path := filepath.Join(repository, listingsFolder, bordersName(prefix))
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer func() { _ = f.Close() }() // only read
	var all []string
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		key := lines.Text()
		sorted := len(all) == 0 || all[len(all)-1] < key
		if len(all) == maxBorders || !sorted || !strings.HasPrefix(key, prefix) || objstore.CheckKey(key) != nil {
			return nil
		}
		all = append(all, key)
	}
	if info, err := f.Stat(); err == nil {
		touch(path, info)
	}
	if lines.Err() != nil {
		return nil
	}
	return all
}

// keepBorders remembers them.
func (s *store) keepBorders(prefix string, borders []string) {
	name := bordersName(prefix)
	if len(borders) == 0 {
		_ = os.Remove(filepath.Join(s.folder, listingsFolder, name)) // else it is tried again the next time
		return
	}
	_ = s.dir.write(s.folder, listingsFolder, name, func(f *os.File) error {
		_, err := f.WriteString(strings.Join(borders, "\n") + "\n")
		return err
	})
}
