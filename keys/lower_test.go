// SPDX-License-Identifier: Apache-2.0

package keys

import (
	"bytes"
	"context"
	"errors"
	"io"
	"iter"
	"testing"

	"github.com/imgbackup/imgbackup/internal/seal"
	"github.com/imgbackup/imgbackup/objstore"
)

// markedStore keeps versions: each of old lies below what is on top, which may be a marker.
type markedStore struct {
	objstore.Store
	old       map[string][]byte
	list, get error
}

var errOutage = errors.New("outage")

func (m *markedStore) KeepsVersions() bool { return true }

func (m *markedStore) ListVersions(ctx context.Context, prefix, _ string) iter.Seq2[objstore.ObjectVersion, error] {
	return func(yield func(objstore.ObjectVersion, error) bool) {
		top := make(map[string]bool)
		for info, err := range m.List(ctx, prefix) {
			if top[info.Key] = true; !yield(objstore.ObjectVersion{Key: info.Key, ID: "top", Size: info.Size, Latest: true}, err) {
				return
			}
		}
		for key, data := range m.old {
			if !top[key] && !yield(objstore.ObjectVersion{Key: key, ID: "marker", Marker: true, Latest: true}, nil) ||
				!yield(objstore.ObjectVersion{Key: key, ID: "old", Size: int64(len(data))}, nil) {
				return
			}
		}
		if m.list != nil {
			yield(objstore.ObjectVersion{}, m.list)
		}
	}
}

func (m *markedStore) GetOld(_ context.Context, key, _ string, _, _ int64) (io.ReadCloser, error) {
	return io.NopCloser(bytes.NewReader(m.old[key])), m.get
}

func (m *markedStore) DeleteVersion(context.Context, string, string) error { return nil }

// TestRosterBelowMarker: a revision of the roster below a marker counts, and where it can't be had that is
// a failure: an older one is not taken for the newest. Where nobody may ask for versions, what can be seen counts.
func TestRosterBelowMarker(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.add(t, "web", Host)
	key := rosterKey(2)
	data, err := objstore.ReadAll(t.Context(), w.store, key, maxRoster)
	if err == nil {
		err = w.store.Delete(t.Context(), key)
	}
	if err != nil {
		t.Fatal(err)
	}
	marked := &markedStore{Store: w.store, old: map[string][]byte{key: data}}
	w.place.Store = marked
	if k := w.open(t, w.admin.ids); k.Roster.Revision != 2 || len(k.Lowered()) != 1 {
		t.Errorf("revision %d, %v", k.Roster.Revision, k.Lowered())
	}
	for _, m := range []markedStore{{get: errOutage}, {list: errOutage}} {
		marked.list, marked.get = m.list, m.get
		if k, err := Open(t.Context(), w.place, w.admin.ids); !errors.Is(err, errOutage) {
			t.Errorf("%v: revision %d is taken", err, k.Roster.Revision)
		}
	}
	marked.list, marked.get = nil, nil
	newer, err := seal.Seal(map[string]any{"format": RosterFormat, "version": rosterVersion + 1}, key, nil)
	if err != nil {
		t.Fatal(err)
	}
	marked.old[key] = newer
	if k, err := Open(t.Context(), w.place, w.admin.ids); !errors.Is(err, errNewer) {
		t.Errorf("%v: revision %d is taken, of which a newer version made the next one", err, k.Roster.Revision)
	}
	marked.list = objstore.MarkPermanent(errors.New("forbidden"))
	if k := w.open(t, w.admin.ids); k.Roster.Revision != 1 {
		t.Errorf("revision %d", k.Roster.Revision)
	}
}

// TestRosterForked: who was an admin, and was removed, puts a roster of its own on top of one that came before
// that, and markers on what followed: what was there first counts.
func TestRosterForked(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	bob := parse(t, w.add(t, "bob", Admin))
	beside := &markedStore{Store: objstore.NewMem(), old: make(map[string][]byte)}
	for info := range w.store.List(t.Context(), "") {
		data, err := objstore.ReadAll(t.Context(), w.store, info.Key, maxRoster)
		if err != nil {
			t.Fatal(err)
		}
		put(t, beside.Store, info.Key, data)
	}
	w.add(t, "web", Host)
	if _, err := w.ring.Remove(t.Context(), "bob"); err != nil {
		t.Fatal(err)
	}
	for _, n := range []int{3, 4} {
		data, err := objstore.ReadAll(t.Context(), w.store, rosterKey(n), maxRoster)
		if err != nil {
			t.Fatal(err)
		}
		beside.old[rosterKey(n)] = data
	}
	w.place.Store = beside.Store
	thief := w.open(t, bob)
	if _, err := thief.Add(t.Context(), Joining{Name: "eve", Role: Admin}); err != nil {
		t.Fatal(err)
	}
	w.place.Store = beside
	r, err := ReadRoster(t.Context(), w.place)
	if err != nil || r.Revision != 4 || r.Member("eve") != nil || !r.Member("bob").Removed() {
		t.Errorf("%+v, %v", r, err)
	}
	// It is on top again.
	put(t, beside.Store, rosterKey(3), beside.old[rosterKey(3)])
	put(t, beside.Store, rosterKey(4), beside.old[rosterKey(4)])
	w.place.lowered = new(lowered)
	if r, err := ReadRoster(t.Context(), w.place); err != nil || r.Revision != 4 || len(w.place.lowered.all) != 0 {
		t.Errorf("%+v, %v, %v", r, err, w.place.lowered.all)
	}
}
