// SPDX-License-Identifier: Apache-2.0

package hidden

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/imgbackup/imgbackup/objstore"
)

// group is what was listed of a folder.
type group[T any] struct {
	names  *Names
	prefix string
	key    func(*T) *string
	meet   func(folder string, all []T) error

	folder string
	all    []T
}

// end yields what the group has, with names, and begins another; false: no more is wanted.
func (g *group[T]) end(next string, yield func(T, error) bool) bool {
	if len(g.all) > 0 {
		if err := g.meet(g.folder, g.all); err != nil {
			var none T
			yield(none, err)
			return false
		}
	}
	for i := range g.all {
		k := g.key(&g.all[i])
		*k = g.names.within(g.prefix, *k)
	}
	slices.SortStableFunc(g.all, func(a, b T) int { return cmp.Compare(*g.key(&a), *g.key(&b)) })
	for _, one := range g.all {
		if strings.HasPrefix(*g.key(&one), g.prefix) && !yield(one, nil) {
			return false
		}
	}
	g.folder, g.all = next, nil
	return true
}

// unmet is an object whose name was perhaps not met, and what asks it for its key; "": it tells
// none.
type unmet struct {
	key   string
	keyOf func(ctx context.Context) (string, error)
}

// readers is how many objects are read at once for their names.
const readers = 128

// meet reads objects of a folder, as many at once as can be, until all names were met that they
// tell. Of domains, hosts and drills one object tells the name, of checkpoints each its own.
func (s *store) meet(ctx context.Context, folder string, all []unmet) error {
	all = slices.DeleteFunc(slices.Clone(all), func(u unmet) bool { return s.met(u.key) })
	if folder == indexes {
		return nil // which say nothing of that
	}
	for len(all) > 0 {
		now, later := s.choose(all)
		if err := s.readNames(ctx, now); err != nil {
			return err
		}
		all = later
	}
	return nil
}

func (s *store) met(key string) bool {
	_, known := s.names.plain(key)
	return known
}

// choose takes those that are to be read now: all checkpoints, and one other object of what
// none of these will tell the name of.
func (s *store) choose(all []unmet) (now, later []unmet) {
	told := make(map[string]bool)
	of := func(key string) string { return strings.SplitN(key, "/", 3)[1] }
	for _, u := range all {
		if isCheckpoint(strings.Split(u.key, "/")) && !s.met(u.key) {
			now, told[of(u.key)] = append(now, u), true
		}
	}
	for _, u := range all {
		switch owner := of(u.key); {
		case isCheckpoint(strings.Split(u.key, "/")), s.met(u.key):
		case told[owner]:
			later = append(later, u)
		default:
			now, told[owner] = append(now, u), true
		}
	}
	return now, later
}

// readNames reads what tells names. What is gone, or tells nothing, keeps its digest.
func (s *store) readNames(ctx context.Context, all []unmet) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(readers)
	for _, u := range all {
		g.Go(func() error {
			key, err := u.keyOf(ctx)
			if key != "" {
				s.names.Stored(key) // which may be another than where it stands: a name is a name
			}
			return err
		})
	}
	return g.Wait()
}

// maxKept bounds what is kept for who reads it next, bytes.
const maxKept = 32 << 20

// kept are objects that were read for their names, and are most likely about to be read.
type kept struct {
	mu    sync.Mutex
	bytes int
	of    map[string]keptObject
}

type keptObject struct {
	info objstore.Info
	data []byte
}

func newKept() *kept { return &kept{of: make(map[string]keptObject)} }

// put keeps an object as a listing has described it, if the store says which bytes that has.
func (k *kept) put(info objstore.Info, data []byte) {
	if info.Version == "" {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if _, is := k.of[info.Key]; !is && k.bytes+len(data) <= maxKept {
		k.of[info.Key] = keptObject{info, data}
		k.bytes += len(data)
	}
}

// take gives an object away that is as a listing describes it.
func (k *kept) take(info objstore.Info) ([]byte, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	o, is := k.of[info.Key]
	if !is {
		return nil, false
	}
	delete(k.of, info.Key)
	k.bytes -= len(o.data)
	return o.data, o.info.Version == info.Version && info.Version != ""
}
