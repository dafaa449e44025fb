// SPDX-License-Identifier: Apache-2.0

package keys

import (
	"bytes"
	"context"
	"errors"
	"io"
	"testing"

	"github.com/imgbackup/imgbackup/objstore"
)

// lateStore keeps the first roster that it is given of a revision, and answers nothing.
type lateStore struct {
	objstore.Store
	key    string
	fail   int // so many requests get no answer
	stores bool
	data   []byte
}

var errNoAnswer = errors.New("no answer")

func (l *lateStore) Put(ctx context.Context, key string, body objstore.Body, o objstore.PutOptions) error {
	if key != l.key || l.fail == 0 {
		return l.Store.Put(ctx, key, body, o)
	}
	l.fail--
	if l.data == nil {
		var err error
		if l.data, err = io.ReadAll(io.NewSectionReader(body, 0, body.Size())); err != nil {
			return err
		}
	}
	if l.stores {
		if err := l.Store.Put(ctx, key, body, o); err != nil {
			return err
		}
	}
	return errNoAnswer
}

// TestRotateLate: a rotation of which no answer comes has been, or never will be, or whoever asks
// is told that nobody knows.
func TestRotateLate(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	late := &lateStore{Store: w.store, key: rosterKey(2), fail: 1}
	w.ring.store = late
	if err := w.ring.Rotate(t.Context(), nil, nil); !errors.Is(err, errNoAnswer) || errors.As(err, new(*UnsettledError)) {
		t.Fatal(err)
	}
	// Now it arrives.
	if err := w.store.Put(t.Context(), late.key, bytes.NewReader(late.data), objstore.PutOptions{}); !errors.Is(err, objstore.ErrExists) {
		t.Error(err)
	}
	if k := w.open(t, w.admin.ids); k.Keys.Generation() != 1 || w.ring.Roster.Generation() != 1 {
		t.Errorf("generation %d", k.Keys.Generation())
	}

	late.key, late.fail, late.stores, late.data = rosterKey(3), 1, true, nil
	if err := w.ring.Rotate(t.Context(), nil, nil); err != nil {
		t.Fatalf("it was stored: %v", err)
	}
	if k := w.open(t, w.admin.ids); k.Keys.Generation() != 2 || w.ring.Keys.Generation() != 2 {
		t.Errorf("generation %d, %d", k.Keys.Generation(), w.ring.Keys.Generation())
	}
	if err := w.ring.Rotate(t.Context(), nil, nil); err != nil { // it knows the roster as it stands
		t.Fatal(err)
	}

	late.key, late.fail, late.stores, late.data = rosterKey(5), 2, false, nil
	if err := w.ring.Rotate(t.Context(), nil, nil); !errors.As(err, new(*UnsettledError)) {
		t.Errorf("nobody knows: %v", err)
	}
}
