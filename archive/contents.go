// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"context"
	"hash"
	"io"

	"github.com/imgbackup/imgbackup/objstore"
)

// Contents are objects of an encrypted repository, by the keyed digest of what they hold, or of
// stored files its SHA-256: those that are on record. The same content never has the same bytes
// twice there, and so no name by which it would be found.
type Contents map[Digest]Ref

// Add adds an object, unless the content is unknown or there is one that has it.
func (c Contents) Add(content Digest, object Ref) {
	if _, ok := c[content]; !ok && !content.IsZero() {
		c[content] = object
	}
}

// holding returns the object that holds a content, once all its bytes have been proven: what
// is damaged or gone is stored anew.
func (w *Writer) holding(ctx context.Context, content Digest, key func(Digest) string) (Ref, bool, error) {
	ref, ok := w.o.Contents[content]
	if !ok || w.keys == nil || content.IsZero() {
		return Ref{}, false, nil
	}
	_, err := statObject(ctx, w.store, key(ref.Name), ref.Length)
	if err == nil {
		err = hashBytes(ctx, objstore.Direct(w.store), key(ref.Name), ref.Name, ref.Length)
	}
	if IsDamage(err) {
		return Ref{}, false, nil
	}
	return ref, err == nil, err
}

// contentSum sums what is written to an object before it is encrypted; of a plain repository
// it does nothing.
type contentSum struct{ h hash.Hash }

func (w *Writer) contentSum() contentSum {
	if w.keys == nil {
		return contentSum{}
	}
	return contentSum{w.keys.Digests().Content()}
}

func (s contentSum) beside(to io.Writer) io.Writer {
	if s.h == nil {
		return to
	}
	return io.MultiWriter(s.h, to)
}

func (s contentSum) digest() (d Digest) {
	if s.h != nil {
		s.h.Sum(d[:0])
	}
	return d
}
