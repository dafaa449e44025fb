// SPDX-License-Identifier: Apache-2.0

package objstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
)

// Check says why an object can't be stored so, by any store.
func (o PutOptions) Check() error {
	switch {
	case o.Mode != Create && o.Mode != Replace:
		return fmt.Errorf("there is no mode %d of storing an object", o.Mode)
	case o.Old != nil && o.Mode != Replace:
		return errors.New("only what is replaced has been there before")
	case len(o.Old) > MaxOld:
		return fmt.Errorf("%d bytes are too many to be compared: %w", len(o.Old), ErrTooLarge)
	case o.Retention != Compliance && o.Retention != Governance:
		return fmt.Errorf("there is no way %d to keep an object", o.Retention)
	}
	return nil
}

// CheckNotRetained is Check for stores that can't keep an object for a time.
func (o PutOptions) CheckNotRetained() error {
	if err := o.Check(); err != nil {
		return err
	}
	if !o.RetainUntil.IsZero() {
		return &UnsupportedError{Ability: "keep an object for a time"}
	}
	return nil
}

// Same reports whether r gives exactly these bytes.
func Same(r io.Reader, want []byte) (bool, error) {
	got, err := io.ReadAll(io.LimitReader(r, int64(len(want))+1))
	return err == nil && bytes.Equal(got, want), err
}

// CheckStands returns nil when the object under the key holds exactly these
// bytes, ErrChanged when it does not or there is none, or why that can't be
// known. By the time that it returns this may be otherwise.
func CheckStands(ctx context.Context, s Store, key string, want []byte) error {
	r, err := s.Get(ctx, key, 0, -1)
	if errors.Is(err, ErrNotFound) {
		return ErrChanged
	}
	if err != nil {
		return err
	}
	same, err := Same(r, want)
	if cerr := r.Close(); err == nil {
		err = cerr
	}
	if err == nil && !same {
		err = ErrChanged
	}
	return err
}
