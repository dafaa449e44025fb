// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"

	"github.com/imgbackup/imgbackup/objstore"
)

// missing turns "no such object" into damage; every other error stays what it is.
func missing(key string, err error) error {
	if errors.Is(err, objstore.ErrNotFound) {
		return &DamageError{Object: key, Err: &missingError{err}}
	}
	return err
}

// getObject opens length bytes of an object from offset on. No other function of
// this package reads an object, but for what a map has kept ([keptObject]).
func getObject(ctx context.Context, store objstore.Store, key string, offset, length int64) (io.ReadCloser, error) {
	r, err := store.Get(ctx, key, offset, length)
	if err != nil {
		return nil, missing(key, err)
	}
	return r, nil
}

// statObject checks that an object is there with its length; length < 0: any.
func statObject(ctx context.Context, store objstore.Store, key string, length int64) (objstore.Info, error) {
	info, err := store.Stat(ctx, key)
	if err != nil {
		return objstore.Info{}, missing(key, err)
	}
	if length >= 0 && info.Size != length {
		return objstore.Info{}, damagef(key, 0, 0, "it is %d bytes long instead of %d", info.Size, length)
	}
	return info, nil
}

// shortRead finds out why an object of length bytes (< 0: unknown) ended before
// end: only when the store says that it is too short, this is damage.
func shortRead(ctx context.Context, store objstore.Store, key string, end, length int64, err error) error {
	if !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return fmt.Errorf("read %s: %w", key, err)
	}
	info, serr := statObject(ctx, store, key, length)
	if serr != nil {
		return serr
	}
	if info.Size < end {
		return damagef(key, 0, 0, "it is %d bytes long instead of at least %d", info.Size, end)
	}
	return fmt.Errorf("read %s: the store broke off: %w", key, err)
}

// readRange fills buf with the bytes at offset of an object that is length bytes
// long (< 0: unknown).
func readRange(ctx context.Context, store objstore.Store, key string, offset int64, buf []byte, length int64) error {
	r, err := getObject(ctx, store, key, offset, int64(len(buf)))
	if err != nil {
		return err
	}
	_, err = io.ReadFull(r, buf)
	if cerr := r.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return shortRead(ctx, store, key, offset+int64(len(buf)), length, err)
	}
	return nil
}

// hashObject reads a whole object of length bytes (< 0: unknown) and checks that
// its bytes hash to name.
func hashObject(ctx context.Context, store objstore.Store, key string, name Digest, length int64) error {
	info, err := statObject(ctx, store, key, length)
	if err != nil {
		return err
	}
	return hashBytes(ctx, store, key, name, info.Size)
}

// hashBytes is hashObject of an object that is known to have so many bytes.
func hashBytes(ctx context.Context, store objstore.Store, key string, name Digest, length int64) error {
	r, err := getObject(ctx, store, key, 0, length)
	if err != nil {
		return err
	}
	h := sha256.New()
	_, err = io.CopyBuffer(onlyWriter{h}, io.LimitReader(r, length), make([]byte, copyBuffer(length)))
	if cerr := r.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return shortRead(ctx, store, key, length, length, err)
	}
	return checkName(key, name, Digest(h.Sum(nil)))
}

// smallObject is the length, bytes, up to which an object is read without asking first how
// long it is.
const smallObject = 64 << 10

// proveObject is hashObject for one whose length is known: a small one is proven with one
// request.
func proveObject(ctx context.Context, store objstore.Store, key string, name Digest, length int64) error {
	if length > smallObject {
		return hashObject(ctx, store, key, name, length)
	}
	data, err := objstore.ReadAll(ctx, store, key, length)
	if errors.Is(err, objstore.ErrTooLarge) {
		return Damaged(key, err)
	}
	if err != nil {
		return missing(key, err)
	}
	return checkName(key, name, Sum(data))
}

func checkName(key string, name, got Digest) error {
	if got != name {
		return damagef(key, 0, 0, "its bytes have the SHA-256 %s, which is not its name", got)
	}
	return nil
}

func copyBuffer(length int64) int64 { return min(max(length, 1), 256<<10) }

// onlyWriter hides other methods, so that io.CopyBuffer uses its buffer.
type onlyWriter struct{ io.Writer }

// hashBody returns the SHA-256 of a body.
func hashBody(body objstore.Body) (Digest, error) {
	h := sha256.New()
	r := io.NewSectionReader(body, 0, body.Size())
	if _, err := io.CopyBuffer(onlyWriter{h}, struct{ io.Reader }{r}, make([]byte, copyBuffer(body.Size()))); err != nil {
		return Digest{}, err
	}
	return Digest(h.Sum(nil)), nil
}

// putObject stores an immutable object. One that already stands under the key is
// read and hashed; when it is damaged it is replaced, and replaced says what was
// wrong with it.
func putObject(ctx context.Context, store objstore.Store, key string, name Digest, body objstore.Body) (replaced, err error) {
	err = store.Put(ctx, key, body, objstore.PutOptions{Mode: objstore.Create, SHA256: name})
	if err == nil || !errors.Is(err, objstore.ErrExists) {
		return nil, err
	}
	err = proveObject(ctx, objstore.Direct(store), key, name, body.Size())
	if !IsDamage(err) {
		return nil, err
	}
	return err, store.Put(ctx, key, body, objstore.PutOptions{Mode: objstore.Replace, SHA256: name})
}
