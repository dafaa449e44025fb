// SPDX-License-Identifier: Apache-2.0

package s3

import (
	"context"
	"fmt"
	"iter"
	"strings"

	"github.com/minio/minio-go/v7"

	"github.com/imgbackup/imgbackup/objstore"
)

// List implements Store.
func (s *Store) List(ctx context.Context, prefix string) iter.Seq2[objstore.Info, error] {
	return s.ListAfter(ctx, prefix, "")
}

// ListAfter implements objstore.ListerAfter: List without the keys up to after, "" being none.
func (s *Store) ListAfter(ctx context.Context, prefix, after string) iter.Seq2[objstore.Info, error] {
	return func(yield func(objstore.Info, error) bool) {
		if err := objstore.CheckPrefix(prefix); err != nil {
			yield(objstore.Info{}, err)
			return
		}
		owner := false
		opts := minio.ListObjectsOptions{Prefix: s.prefix + prefix, Recursive: true, FetchOwner: &owner}
		if after != "" {
			opts.StartAfter = s.prefix + after
		}
		last := after
		for o := range s.core.ListObjectsIter(ctx, s.bucket, opts) {
			info := objstore.Info{Key: strings.TrimPrefix(o.Key, s.prefix), Size: o.Size, Version: strongETag(o.ETag), Stored: o.LastModified}
			err := ctx.Err()
			switch {
			case err != nil:
			case o.Err != nil:
				err = s.failed(ctx, "list", s.bucket+"/"+s.prefix+prefix, o.Err)
			case !strings.HasPrefix(o.Key, opts.Prefix):
				err = &protocolError{what: fmt.Sprintf("list %s: the answer has the key %.100q", opts.Prefix, o.Key)}
			case info.Key <= last && last != "":
				err = objstore.MarkPermanent(fmt.Errorf("list %s: the store lists %q after %q: it does not sort, which imgbackup needs", opts.Prefix, info.Key, last))
			case o.Size < 0:
				err = &protocolError{what: fmt.Sprintf("list %s: %q has %d bytes", opts.Prefix, o.Key, o.Size)}
			}
			if err != nil {
				yield(objstore.Info{}, err)
				return
			}
			last = info.Key
			if objstore.CheckKey(info.Key) != nil {
				continue // no object of a repository, such as a "folder"
			}
			if !yield(info, nil) {
				return
			}
		}
		if err := ctx.Err(); err != nil {
			yield(objstore.Info{}, err)
		}
	}
}
