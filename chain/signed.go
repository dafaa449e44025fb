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
	if r.authority() == nil {
		return nil, nil
	}
	return r.authority().Signer()
}

// authority knows whose signatures count; nil: nothing is signed here.
func (r *Repository) authority() Authority {
	if r.Access == nil {
		return nil
	}
	return r.Access.Authority
}

// openSigned opens what stands under a key, proves who signed it, and that they may write
// there, and returns it as it would be unsigned. What is signed by nobody whose signature
// counts is damage. Where nothing is signed who is nil.
func (r *Repository) openSigned(key string, stored []byte) (data []byte, who Author, err error) {
	data, err = r.open(crypt.Metadata, key, stored)
	if err != nil || r.authority() == nil {
		return data, nil, err
	}
	plain, signature, err := seal.Open(data)
	if err != nil {
		return nil, nil, archive.Damaged(key, err)
	}
	if who, err = r.checkSigned(key, data, signature); err != nil {
		return nil, nil, err
	}
	body := append(plain[:len(plain)-len("\n}")], ",\n"...)
	return append(body, seal.Line(body)...), who, nil
}

// NotYoursError says that the key with which the repository was opened may not store a domain.
type NotYoursError struct{ Name, Domain string }

func (e *NotYoursError) Error() string {
	return fmt.Sprintf("the key of %s may not store domain %s: nothing of it would count", e.Name, e.Domain)
}

// checkMayStore sees that what was just sealed, of v, will count, before it is stored.
func (r *Repository) checkMayStore(key string, v any, data []byte) error {
	if r.authority() == nil {
		return nil
	}
	_, signature, err := seal.Open(data)
	if err != nil {
		return err
	}
	who, err := r.authority().Check(key, seal.Digest(data), signature)
	if err != nil {
		return err
	}
	if err := checkRole(ParseKey(key), who); err != nil {
		return err
	}
	return checkSlotRole(v, who)
}

// checkSigned proves a signature, and that it counts under the key.
func (r *Repository) checkSigned(key string, data []byte, signature *seal.Signature) (Author, error) {
	who, err := r.authority().Check(key, seal.Digest(data), signature)
	if err != nil {
		return nil, err
	}
	var other *NotYoursError
	switch err := checkRole(ParseKey(key), who); {
	case errors.As(err, &other):
		return nil, archive.Damaged(key, fmt.Errorf("it is signed by %s, who may not store domain %s", other.Name, other.Domain))
	case err != nil:
		return nil, archive.Damaged(key, fmt.Errorf("it does not count: %w", err))
	}
	return who, nil
}

// signerOf is who has signed what stands under a key; "": nobody whose signature counts.
func (r *Repository) signerOf(key string, stored []byte) string {
	if r.Access == nil || r.Access.Authority == nil {
		return ""
	}
	data, err := r.open(crypt.Metadata, key, stored)
	if err != nil {
		return ""
	}
	_, signature, err := seal.Open(data)
	if err != nil {
		return ""
	}
	who, err := r.Access.Authority.Check(key, seal.Digest(data), signature)
	if err != nil {
		return ""
	}
	return who.AuthorName()
}

// isSigned reports whether what stands under keys of this kind is signed, and goes on to count
// when keys are rotated: no lease does, since nobody is at work then.
func (k KeyKind) isSigned() bool {
	switch k {
	case KeyManifest, KeyIntent, KeyForgotten, KeySeen, KeyMark, KeyProofs, KeyLocked, KeyStrike, KeyDrill:
		return true
	}
	return false
}

// Standing tells each of the signed objects that stand, by key and seal, at once from several
// goroutines but one at a time. untrusted are the errors of those that prove themselves not:
// they do not stand. What it leaves out counts never again. So listings are not believed alone: of
// the manifests, both that a census asks for, and what others descend from; and where the store
// keeps what is below all rightly signed versions of them stand, since one of these is what
// counts, and not what somebody has put on top.
func (r *Repository) Standing(ctx context.Context, each func(key, seal string)) (untrusted []error, err error) {
	c := &census{repo: r, read: make(map[string]bool), parents: make(map[string]struct{})}
	l, err := c.list(ctx, nil)
	if err != nil {
		return nil, err
	}
	keys := make(map[string]struct{})
	for _, key := range l.union(nil) {
		keys[key] = struct{}{}
	}
	for info, err := range r.Store.List(ctx, "") {
		if err != nil {
			return nil, err
		}
		if ParseKey(info.Key).Kind.isSigned() {
			keys[info.Key] = struct{}{}
		}
	}
	var mu sync.Mutex
	stands := func(key string, stored []byte, err error) error {
		seal := ""
		if err == nil {
			seal, err = r.sealOf(key, stored)
		}
		var slot *Slot
		if k := ParseKey(key); err == nil && k.Kind == KeyManifest {
			slot, _ = r.parseSlot(stored, k.Domain, k.Name) // a damaged one tells of no others
		}
		mu.Lock()
		defer mu.Unlock()
		switch {
		case errors.Is(err, objstore.ErrNotFound): // removed meanwhile
		case archive.IsDamage(err):
			untrusted = append(untrusted, err)
		case err != nil:
			return err
		default:
			if each(key, seal); slot != nil && slot.Manifest != nil {
				c.descends(slot.Manifest)
			}
		}
		return nil
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(max(objstore.Connections(r.Store), 8)) // of a folder it is 0
	for key := range keys {
		c.read[key] = true
		g.Go(func() error {
			stored, err := readSealed(gctx, r.Store, key)
			return stands(key, stored, err)
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	for _, key := range c.unread() {
		switch _, err := r.Store.Stat(ctx, key); {
		case err == nil:
			return nil, &ListingError{Object: key}
		case !errors.Is(err, objstore.ErrNotFound):
			return nil, err
		}
	}
	return untrusted, r.standingBelow(ctx, func(key string, stored []byte, err error) error {
		if unusable(err) {
			return nil
		}
		seal, err := r.sealOf(key, stored)
		if err == nil {
			mu.Lock()
			defer mu.Unlock()
			each(key, seal)
		}
		if archive.IsDamage(err) {
			return nil
		}
		return err
	})
}

// standingBelow tells of the versions of manifests that are not on top, where the store keeps them.
func (r *Repository) standingBelow(ctx context.Context, each func(key string, stored []byte, err error) error) error {
	versions, err := r.versions()
	if err != nil || r.Config.ObjectLock == nil {
		return nil
	}
	of, err := manifestVersions(ctx, versions, domainsPrefix)
	if err != nil {
		return err
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(readers)
	for _, list := range of {
		for _, v := range list {
			if v.Latest || v.Marker {
				continue
			}
			g.Go(func() error {
				stored, err := readOld(gctx, versions, v)
				switch {
				case errors.Is(err, objstore.ErrNotFound):
					return nil // removed meanwhile
				case err != nil && !unusable(err):
					return err
				}
				return each(v.Key, stored, err)
			})
		}
	}
	return g.Wait()
}

// sealOf is the seal of what stands under a key, and is rightly signed.
func (r *Repository) sealOf(key string, stored []byte) (string, error) {
	data, err := r.open(crypt.Metadata, key, stored)
	if err != nil {
		return "", err
	}
	_, signature, err := seal.Open(data)
	if err != nil {
		return "", archive.Damaged(key, err)
	}
	_, err = r.checkSigned(key, data, signature)
	return seal.Digest(data), err
}
