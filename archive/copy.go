// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"context"
	"fmt"
	"io"

	"github.com/imgbackup/imgbackup/internal/spool"
	"github.com/imgbackup/imgbackup/objstore"
)

// CopyObject copies an immutable object from one store to another, proven on the
// way: what arrives has the SHA-256 that is its name. One that stands there
// already is proven as well, and replaced if it is damaged; stored: it was not there,
// or not whole. The object passes through memory, or through tempDir if it is large.
func CopyObject(ctx context.Context, from, to objstore.Store, key string, ref Ref, tempDir string) (stored bool, err error) {
	whole, err := Proves(ctx, to, key, ref)
	if err != nil || whole {
		return false, err
	}
	r, err := getObject(ctx, from, key, 0, ref.Length)
	if err != nil {
		return false, err
	}
	s := &spool.Spool{Dir: tempDir}
	defer s.Close()
	_, err = io.CopyBuffer(onlyWriter{s}, io.LimitReader(r, ref.Length), make([]byte, copyBuffer(ref.Length)))
	if cerr := r.Close(); err == nil {
		err = cerr
	}
	if err == nil && s.Size() != ref.Length {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return false, shortRead(ctx, from, key, ref.Length, ref.Length, err)
	}
	name, err := hashBody(s)
	if err != nil {
		return false, fmt.Errorf("copy %s: %w", key, err)
	}
	if err := checkName(key, ref.Name, name); err != nil {
		return false, err
	}
	_, err = putObject(ctx, to, key, ref.Name, s)
	return err == nil, err
}

// Proves is [Stands] for an object of which every byte is read and proven.
func Proves(ctx context.Context, store objstore.Store, key string, ref Ref) (bool, error) {
	stands, err := Stands(ctx, store, key, ref.Length)
	if err != nil || !stands {
		return false, err
	}
	err = hashObject(ctx, store, key, ref.Name, ref.Length)
	if IsDamage(err) {
		return false, nil
	}
	return err == nil, err
}

// Stands reports whether an object is in the store with its length. Only the
// store's own "no" counts as no.
func Stands(ctx context.Context, store objstore.Store, key string, length int64) (bool, error) {
	_, err := statObject(ctx, store, key, length)
	if IsDamage(err) {
		return false, nil
	}
	return err == nil, err
}
