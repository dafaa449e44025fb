// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/imgbackup/imgbackup/bitmapstore"
	"github.com/imgbackup/imgbackup/crypt"
	"github.com/imgbackup/imgbackup/internal/spool"
	"github.com/imgbackup/imgbackup/objstore"
)

// PutBitmap stores a bitmap, unless it is on record. It returns its object and, in an
// encrypted repository, the digest of its content.
func (w *Writer) PutBitmap(ctx context.Context, h bitmapstore.Header, r bitmapstore.Runs) (Ref, Digest, error) {
	if err := w.err(); err != nil {
		return Ref{}, Digest{}, err
	}
	sum := w.contentSum()
	s, err := encryptedTo(w.o.TempDir, w.keys, crypt.Metadata, func(to io.Writer) error {
		_, _, err := bitmapstore.Encode(sum.beside(to), h, r)
		return err
	})
	if err != nil {
		return Ref{}, Digest{}, fmt.Errorf("bitmap %q: %w", h.Name, err)
	}
	defer s.Close()
	if ref, ok, err := w.holding(ctx, sum.digest(), BitmapKey); ok || err != nil {
		return ref, sum.digest(), err
	}
	name, err := hashBody(s)
	if err != nil {
		return Ref{}, Digest{}, fmt.Errorf("bitmap %q: %w", h.Name, err)
	}
	if err := w.put(ctx, BitmapKey(name), name, s); err != nil {
		return Ref{}, Digest{}, fmt.Errorf("store bitmap %q: %w", h.Name, err)
	}
	return Ref{Name: name, Length: s.Size()}, sum.digest(), nil
}

// OpenBitmap proves a stored bitmap, all its bytes and that its header is want,
// and returns its runs, which are read and proven anew for each iteration. One
// that is missing or not what ref and want say is a [DamageError], from here or
// from the runs.
func OpenBitmap(
	ctx context.Context, store objstore.Store, ref Ref, want bitmapstore.Header,
) (bitmapstore.Runs, error) {
	key := BitmapKey(ref.Name)
	if err := hashObject(ctx, store, key, ref.Name, ref.Length); err != nil {
		return nil, err
	}
	h, runs, err := bitmapstore.Decode(func() (io.ReadCloser, error) { return openSpooled(ctx, store, key, ref) })
	switch {
	case err != nil:
		return nil, bitmapDamage(key, err)
	case h != want:
		return nil, damagef(key, 0, 0,
			"it is bitmap %q (granularity %d, disk of %d bytes, %d dirty), which is not what the manifest says",
			h.Name, h.Granularity, h.Size, h.DirtyBytes)
	}
	return func(yield func(bitmapstore.Run, error) bool) {
		for run, err := range runs {
			if !yield(run, bitmapDamage(key, err)) {
				return
			}
		}
	}, nil
}

// openSpooled is a whole object that was fetched before it is read: who goes over it may ask
// the store for other things meanwhile, and must not wait for a request while it holds one.
func openSpooled(ctx context.Context, store objstore.Store, key string, ref Ref) (io.ReadCloser, error) {
	s := &spool.Spool{}
	if err := copyObject(ctx, store, key, ref, s); err != nil {
		s.Close()
		return nil, err
	}
	s.Rest() // beside those of many other checkpoints
	r, err := decrypting(store, key, crypt.Metadata, io.NewSectionReader(s, 0, s.Size()))
	if err != nil {
		s.Close()
		return nil, err
	}
	return &spooled{Reader: r, spool: s}, nil
}

type spooled struct {
	io.Reader
	spool *spool.Spool
}

func (s *spooled) Close() error {
	s.spool.Close()
	return nil
}

// bitmapDamage says which object the bytes are of that bitmapstore calls damaged.
func bitmapDamage(key string, err error) error {
	var bad *bitmapstore.DamageError
	if errors.As(err, &bad) {
		return Damaged(key, err)
	}
	return err
}
