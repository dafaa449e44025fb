// SPDX-License-Identifier: Apache-2.0

package chain

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/crypt"
	"github.com/imgbackup/imgbackup/internal/seal"
	"github.com/imgbackup/imgbackup/objstore"
)

// signer signs what is stored; nil: nothing is signed here.
func (r *Repository) signer() (seal.Signer, error) {
	if r.Access == nil || r.Access.Authority == nil {
		return nil, nil
	}
	return r.Access.Authority.Signer()
}

// openSigned opens what stands under a key, proves who signed it, and that they may write
// there, and returns it as it would be unsigned. What is signed by nobody whose signature counts is damage.
func (r *Repository) openSigned(key string, stored []byte) ([]byte, error) {
	data, err := r.open(crypt.Metadata, key, stored)
	if err != nil || r.Access == nil || r.Access.Authority == nil {
		return data, err
	}
	plain, signature, err := seal.Open(data)
	if err != nil {
		return nil, archive.Damaged(key, err)
	}
	if err := r.checkSigned(key, data, signature); err != nil {
		return nil, err
	}
	body := append(plain[:len(plain)-len("\n}")], ",\n"...)
	return append(body, seal.Line(body)...), nil
}

// NotYoursError says that the key with which the repository was opened may not store a domain.
type NotYoursError struct{ Name, Domain string }

func (e *NotYoursError) Error() string {
	return fmt.Sprintf("the key of %s may not store domain %s: nothing of it would count", e.Name, e.Domain)
}

// checkMayStore sees that what was just sealed will count, before it is stored.
func (r *Repository) checkMayStore(key string, data []byte) error {
	if r.Access == nil || r.Access.Authority == nil {
		return nil
	}
	_, signature, err := seal.Open(data)
	if err != nil {
		return err
	}
	who, err := r.Access.Authority.Check(key, seal.Digest(data), signature)
	if err != nil {
		return err
	}
	if k := ParseKey(key); k.Domain != "" && !who.Covers(k.Domain) {
		return &NotYoursError{Name: who.AuthorName(), Domain: k.Domain}
	}
	return nil
}

func (r *Repository) checkSigned(key string, data []byte, signature *seal.Signature) error {
	who, err := r.Access.Authority.Check(key, seal.Digest(data), signature)
	if err != nil {
		return err
	}
	if k := ParseKey(key); k.Domain != "" && !who.Covers(k.Domain) {
		return archive.Damaged(key, fmt.Errorf("it is signed by %s, who may not store domain %s", who.AuthorName(), k.Domain))
	}
	return nil
}

// isSigned reports whether what stands under keys of this kind is signed.
func (k KeyKind) isSigned() bool {
	switch k {
	case KeyManifest, KeyIntent, KeyLease, KeyForgotten, KeySeen, KeyMark, KeyProofs:
		return true
	}
	return false
}

// Standing tells each of the signed objects that stand, by key and seal, at once from several
// goroutines but one at a time. untrusted are the errors of those that prove themselves not:
// they do not stand.
func (r *Repository) Standing(ctx context.Context, each func(key, seal string)) (untrusted []error, err error) {
	var mu sync.Mutex
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(max(objstore.Connections(r.Store), 8)) // of a folder it is 0
	for info, err := range r.Store.List(ctx, "") {
		if err != nil {
			return nil, errors.Join(err, g.Wait())
		}
		if !ParseKey(info.Key).Kind.isSigned() {
			continue
		}
		g.Go(func() error {
			digest, err := r.sealOf(gctx, info.Key)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case errors.Is(err, objstore.ErrNotFound): // removed meanwhile
			case archive.IsDamage(err):
				untrusted = append(untrusted, err)
			case err != nil:
				return err
			default:
				each(info.Key, digest)
			}
			return nil
		})
	}
	return untrusted, g.Wait()
}

// sealOf is the seal of what stands under a key, and is rightly signed.
func (r *Repository) sealOf(ctx context.Context, key string) (string, error) {
	stored, err := readSealed(ctx, r.Store, key)
	if err != nil {
		return "", err
	}
	data, err := r.open(crypt.Metadata, key, stored)
	if err != nil {
		return "", err
	}
	_, signature, err := seal.Open(data)
	if err != nil {
		return "", archive.Damaged(key, err)
	}
	return seal.Digest(data), r.checkSigned(key, data, signature)
}
