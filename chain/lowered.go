// SPDX-License-Identifier: Apache-2.0

package chain

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"

	"github.com/imgbackup/imgbackup/objstore"
	"github.com/imgbackup/imgbackup/objstore/below"
)

// Lowered is a version of what is written once, the configuration or something under keys/, that was
// read since something else lies on top of it.
type Lowered struct{ Key, ID string }

// firstConfig is the configuration as it was first stored, if that is not what is on top.
type firstConfig struct {
	config  *Config // nil: what is on top counts
	lowered Lowered
	err     error
}

// findFirst looks for the oldest configuration that proves itself: what is stored over it later is
// somebody else's. Where nobody may ask for versions, what is on top counts, which may be nothing: nil.
func findFirst(ctx context.Context, store objstore.Store, top *Config) firstConfig {
	versions, ok := objstore.As[objstore.Versions](store)
	if !ok {
		return firstConfig{}
	}
	all, err := below.List(ctx, versions, ConfigKey)
	if err != nil && (top == nil || objstore.Permanent(err)) {
		return firstConfig{}
	}
	if err != nil {
		return firstConfig{err: fmt.Errorf("open the repository: %w", err)}
	}
	for _, v := range slices.Backward(all) {
		if v.Marker {
			continue
		}
		if v.Latest {
			break // the only one, or the first that proves itself
		}
		data, err := readOld(ctx, versions, v)
		if errors.Is(err, objstore.ErrNotFound) || unusable(err) {
			continue
		}
		if err != nil {
			return firstConfig{err: fmt.Errorf("open the repository: %w", err)}
		}
		c, err := parseConfig(data)
		switch {
		case err != nil:
			continue
		case top != nil && reflect.DeepEqual(c, top):
			return firstConfig{} // it is on top again
		}
		return firstConfig{config: c, lowered: Lowered{ConfigKey, v.ID}}
	}
	return firstConfig{}
}

// maxRaised is more than anything has that is put on top again, bytes: lists of what stands are longest.
const maxRaised = 256 << 20

// Raise puts a version on top again, byte by byte, in the place of whatever is there.
func (r *Repository) Raise(ctx context.Context, l Lowered) error {
	versions, err := r.versions()
	if err != nil {
		return err
	}
	in, err := versions.GetOld(ctx, l.Key, l.ID, 0, -1)
	if err != nil {
		return err
	}
	data, err := io.ReadAll(io.LimitReader(in, maxRaised+1))
	if err == nil && len(data) > maxRaised {
		err = fmt.Errorf("version %s of %s has more than %d bytes", l.ID, l.Key, maxRaised)
	}
	if err := errors.Join(err, in.Close()); err != nil {
		return err
	}
	return r.Store.Put(ctx, l.Key, bytes.NewReader(data), objstore.PutOptions{Mode: objstore.Replace})
}
