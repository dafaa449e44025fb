// SPDX-License-Identifier: Apache-2.0

package check

import (
	"context"
	"errors"
	"slices"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/objstore"
	"github.com/imgbackup/imgbackup/objstore/below"
)

// checkOnTop looks, in a bucket that keeps versions, at which packs something else lies on top of what
// was stored first: by a listing of versions. What has other bytes by that is read and proven, also
// where no data is; most often that is nothing.
func (c *check) checkOnTop(ctx context.Context) error {
	versions, ok := objstore.As[objstore.Versions](c.repo.Store)
	if !ok || c.repo.Config.ObjectLock == nil && !objstore.KeepsVersions(c.repo.Store) {
		return nil
	}
	var other []objstore.ObjectVersion // what is on top
	var same []objstore.ObjectVersion  // those of one key
	see := func() {
		if top, ok := replaced(same); ok {
			other = append(other, top)
		}
		same = same[:0]
	}
	for v, err := range versions.ListVersions(ctx, archive.PackPrefix, "") {
		switch {
		case err != nil && objstore.Permanent(err) && c.repo.Config.ObjectLock == nil:
			c.note("what may lie on top of packs was not looked at: %v", err)
			return nil
		case err != nil:
			return err
		}
		if len(same) > 0 && same[0].Key != v.Key {
			see()
		}
		same = append(same, v)
	}
	see()
	return each(ctx, c, "packs with something on top", other, one, c.readOnTop)
}

// replaced returns what is on top of an object, if that has other bytes than what was stored first since
// it was last removed, as far as a listing tells.
func replaced(all []objstore.ObjectVersion) (top objstore.ObjectVersion, ok bool) {
	below.Sort(all)
	if n := slices.IndexFunc(all, func(v objstore.ObjectVersion) bool { return v.Marker }); n >= 0 {
		all = all[:n]
	}
	if len(all) < 2 {
		return top, false
	}
	top = all[0]
	first := all[len(all)-1]
	return top, top.Tag == "" || top.Tag != first.Tag || top.Size != first.Size
}

func (c *check) readOnTop(ctx context.Context, v objstore.ObjectVersion) error {
	_, name, ok := archive.ParseKey(v.Key)
	if !ok || c.damagedKey(v.Key) || c.read[archive.Ref{Name: name, Length: v.Size}] {
		return nil
	}
	err := archive.VerifyName(ctx, c.source, v.Key, -1)
	switch {
	case err == nil, errors.Is(err, objstore.ErrNotFound):
		return nil // it is on top again; or it was removed since
	case archive.IsDamage(err):
		err = archive.Damaged(v.Key, errors.New("somebody has put something else on top of it"))
	}
	return c.record(KindPack, v.Key, 0, err)
}
