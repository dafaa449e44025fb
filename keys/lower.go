// SPDX-License-Identifier: Apache-2.0

package keys

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/objstore"
	"github.com/imgbackup/imgbackup/objstore/below"
)

// What lies under keys/ is written once. Where a store keeps versions, and what is on top does not
// prove itself, the oldest version counts that does.

// Lowered is a version that was read, since what is on top of it is not what it should be.
type Lowered struct{ Key, ID string }

// lowered collects them; nil: nobody asks.
type lowered struct {
	mu  sync.Mutex
	all []Lowered
}

func (l *lowered) add(key, id string) {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = append(l.all, Lowered{key, id})
}

// sorted are all, by key.
func (l *lowered) sorted() []Lowered {
	if l == nil {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	all := slices.Clone(l.all)
	slices.SortFunc(all, func(a, b Lowered) int {
		if a.Key < b.Key {
			return -1
		}
		return 1
	})
	return all
}

// find looks for the oldest version of an object that proves itself; wrong is why what is on top
// does not, and is returned where there is none.
func (l *lowered) find(ctx context.Context, store objstore.Store, key string, limit int64, wrong error, prove func(data []byte) error) error {
	versions, ok := objstore.As[objstore.Versions](store)
	if !ok || ctx.Err() != nil || !errors.Is(wrong, errOther) && !archive.IsDamage(wrong) {
		return wrong
	}
	all, err := below.List(ctx, versions, key)
	switch {
	case err != nil && objstore.Permanent(err):
		return wrong // that nobody tells of others is no other fault
	case err != nil:
		return err
	}
	for _, v := range slices.Backward(all) {
		if v.Marker || v.Latest || v.Size > limit {
			continue
		}
		data, err := readVersion(ctx, versions, &v)
		if err != nil && !errors.Is(err, objstore.ErrNotFound) {
			return fmt.Errorf("read version %s of %s: %w", v.ID, key, err)
		}
		if err == nil {
			err = prove(data)
		}
		switch {
		case errors.Is(err, errNewer):
			return err
		case err == nil:
			l.add(key, v.ID)
			return nil
		}
	}
	return wrong
}

func readVersion(ctx context.Context, s objstore.Versions, v *objstore.ObjectVersion) ([]byte, error) {
	r, err := s.GetOld(ctx, v.Key, v.ID, 0, -1)
	if err != nil {
		return nil, err
	}
	data, err := io.ReadAll(io.LimitReader(r, v.Size+1))
	return data, errors.Join(err, r.Close())
}

// versionedRoster is what is known of versions of the roster's revisions.
type versionedRoster struct {
	last    int          // the newest revision of which there is one, also below a marker; 0: none is known of
	several map[int]bool // the revisions of which there is more than one
}

// versionsOfRoster lists them. Where the store keeps no versions, or tells nobody of them, it knows of none:
// then what can be seen counts.
func versionsOfRoster(ctx context.Context, store objstore.Store) (v versionedRoster, err error) {
	versions, ok := objstore.As[objstore.Versions](store)
	if !ok || !objstore.KeepsVersions(store) {
		return v, nil
	}
	seen := make(map[int]bool)
	v.several = make(map[int]bool)
	for o, err := range versions.ListVersions(ctx, rosterPrefix, "") {
		switch {
		case err != nil && objstore.Permanent(err):
			return versionedRoster{}, nil
		case err != nil:
			return v, err
		}
		if k := ParseKey(o.Key); k.Kind == RosterObject && !o.Marker {
			v.several[k.Number] = seen[k.Number]
			seen[k.Number] = true
			v.last = max(v.last, k.Number)
		}
	}
	return v, nil
}

// addRevision adds the next revision of a roster to a chain, of which top is what is on top; why says why there
// is none. Where there are several versions the oldest counts that proves itself: who was an admin once can
// still sign one that follows those of then.
func (p Place) addRevision(ctx context.Context, c *rosterChain, top []byte, why error, several bool) error {
	key := rosterKey(len(c.digests) + 1)
	if several {
		var below lowered
		same := false
		err := below.find(ctx, p.Store, key, maxRoster, archive.Damaged(key, errors.New("no older version of it proves itself")), func(data []byte) error {
			same = bytes.Equal(data, top)
			return c.add(data)
		})
		if err == nil && !same {
			for _, l := range below.all {
				p.lowered.add(l.Key, l.ID)
			}
		}
		if !archive.IsDamage(err) {
			return err
		}
	}
	if why == nil {
		why = c.add(top)
	}
	if why == nil {
		return nil
	}
	return p.lowered.find(ctx, p.Store, key, maxRoster, why, c.add)
}
