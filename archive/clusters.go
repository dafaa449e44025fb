// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"iter"

	"golang.org/x/sync/errgroup"

	"github.com/imgbackup/imgbackup/clustermap"
	"github.com/imgbackup/imgbackup/crypt"
	"github.com/imgbackup/imgbackup/internal/spool"
	"github.com/imgbackup/imgbackup/objstore"
)

// ClustersPrefix begins the keys of fingerprints of cluster maps.
const ClustersPrefix = "clusters/"

// MaxClusters bounds what is stored of one, bytes.
const MaxClusters = 1 << 32

// ClustersKey returns the key of a part of a fingerprint.
func ClustersKey(d Digest) string { return objectKey(ClustersPrefix, d) }

// Clusters is a part of a cluster map's fingerprint that is about to be stored.
type Clusters struct {
	Ref Ref
	// Content is, in an encrypted repository, the keyed digest of what is not encrypted yet:
	// what has the same is the same.
	Content Digest

	body *spool.Spool
}

// EncodeClusters makes the object of a part of a fingerprint, which must be closed. tempDir is
// for one that is too large for memory, keys are the repository's, if it is encrypted.
func EncodeClusters(h clustermap.Header, runs iter.Seq2[clustermap.Run, error], tempDir string, keys *crypt.Keys) (*Clusters, error) {
	c := &Clusters{}
	var err error
	c.body, err = encryptedTo(tempDir, keys, crypt.Metadata, func(to io.Writer) error {
		if keys == nil {
			return clustermap.Encode(to, h, runs)
		}
		sum := keys.Digests().Content()
		err := clustermap.Encode(io.MultiWriter(sum, to), h, runs)
		c.Content = Digest(sum.Sum(nil))
		return err
	})
	if err != nil {
		return nil, err
	}
	if c.body.Size() > MaxClusters {
		err = fmt.Errorf("it has more than %d bytes", int64(MaxClusters))
	}
	if err == nil {
		c.body.Rest()
		c.Ref.Name, err = hashBody(c.body)
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	c.Ref.Length = c.body.Size()
	return c, nil
}

// Close gives back memory and file; it may be called again.
func (c *Clusters) Close() { c.body.Close() }

// PutAllClusters is [Writer.PutClusters] for parts of a fingerprint, those for which there
// says so being thought to be there: as many at once as the store is worth.
func (w *Writer) PutAllClusters(ctx context.Context, parts []*Clusters, there func(Ref) bool) error {
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(max(objstore.Connections(w.store), 1))
	for _, p := range parts {
		if gctx.Err() != nil {
			break
		}
		g.Go(func() error { return w.PutClusters(gctx, p, there(p.Ref)) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return context.Cause(ctx)
}

// PutClusters stores a part of a fingerprint. One that is thought to be there is only looked
// for; in an encrypted repository it is by its content, and c.Ref is that object then.
func (w *Writer) PutClusters(ctx context.Context, c *Clusters, there bool) error {
	if err := w.err(); err != nil {
		return err
	}
	if ref, ok := w.o.Contents[c.Content]; ok && w.keys != nil && !c.Content.IsZero() {
		_, err := statObject(ctx, w.store, ClustersKey(ref.Name), ref.Length)
		if err == nil {
			c.Ref = ref
		}
		if !IsDamage(err) {
			return err
		}
	}
	key := ClustersKey(c.Ref.Name)
	if there {
		_, err := statObject(ctx, w.store, key, c.Ref.Length)
		if !IsDamage(err) {
			return err
		}
	}
	return w.put(ctx, key, c.Ref.Name, c.body)
}

// ReadClusters yields the runs of a stored part of a fingerprint, all its bytes being proven
// first. One that is missing or not what ref and want say is a [DamageError].
func ReadClusters(
	ctx context.Context, store objstore.Store, ref Ref, want clustermap.Header, tempDir string,
) iter.Seq2[clustermap.Run, error] {
	return func(yield func(clustermap.Run, error) bool) {
		key := ClustersKey(ref.Name)
		s := &spool.Spool{Dir: tempDir}
		defer s.Close()
		if err := copyObject(ctx, store, key, ref, s); err != nil {
			yield(clustermap.Run{}, err)
			return
		}
		plain, err := decrypting(store, key, crypt.Metadata, io.NewSectionReader(s, 0, s.Size()))
		if err != nil {
			yield(clustermap.Run{}, err)
			return
		}
		for run, err := range clustermap.Decode(plain, want) {
			var bad *clustermap.DamageError
			if errors.As(err, &bad) {
				err = Damaged(key, err)
			}
			if !yield(run, err) {
				return
			}
		}
	}
}

// VerifyClusters proves a stored part of a fingerprint, and that no more is stored than that.
func VerifyClusters(ctx context.Context, store objstore.Store, ref Ref, want clustermap.Header) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		_, err := statObject(ctx, objstore.Direct(store), ClustersKey(ref.Name), ref.Length)
		return err
	})
	g.Go(func() error {
		for _, err := range ReadClusters(ctx, store, ref, want, "") {
			if err != nil {
				return err
			}
		}
		return nil
	})
	return g.Wait()
}

// copyObject copies a whole object, whose bytes count only when the error is nil.
func copyObject(ctx context.Context, store objstore.Store, key string, ref Ref, to io.Writer) error {
	r, err := getObject(ctx, store, key, 0, ref.Length)
	if err != nil {
		return err
	}
	h := sha256.New()
	n, err := io.CopyBuffer(onlyWriter{io.MultiWriter(h, to)}, struct{ io.Reader }{io.LimitReader(r, ref.Length)}, make([]byte, copyBuffer(ref.Length)))
	if cerr := r.Close(); err == nil {
		err = cerr
	}
	if err == nil && n < ref.Length {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return shortRead(ctx, store, key, ref.Length, ref.Length, err)
	}
	return checkName(key, ref.Name, Digest(h.Sum(nil)))
}
