// SPDX-License-Identifier: Apache-2.0

package objstore

import (
	"context"
	"fmt"
	"iter"
	"strings"

	"github.com/minio/minio-go/v7"
)

// List implements Store.
func (s *S3) List(ctx context.Context, prefix string) iter.Seq2[Info, error] {
	return s.listAfter(ctx, prefix, "")
}

// listAfter is List without the keys up to after, "" being none.
func (s *S3) listAfter(ctx context.Context, prefix, after string) iter.Seq2[Info, error] {
	return func(yield func(Info, error) bool) {
		if err := validPrefix(prefix); err != nil {
			yield(Info{}, err)
			return
		}
		owner := false
		opts := minio.ListObjectsOptions{Prefix: s.prefix + prefix, Recursive: true, FetchOwner: &owner}
		if after != "" {
			opts.StartAfter = s.prefix + after
		}
		last := after
		for o := range s.core.ListObjectsIter(ctx, s.bucket, opts) {
			info := Info{Key: strings.TrimPrefix(o.Key, s.prefix), Size: o.Size}
			err := ctx.Err()
			switch {
			case err != nil:
			case o.Err != nil:
				err = s.failed(ctx, "list", s.bucket+"/"+s.prefix+prefix, o.Err)
			case !strings.HasPrefix(o.Key, opts.Prefix):
				err = &protocolError{fmt.Sprintf("list %s: the answer has the key %.100q", opts.Prefix, o.Key)}
			case info.Key <= last && last != "":
				err = &permanentError{fmt.Errorf("list %s: the store lists %q after %q: it does not sort, which imgbackup needs", opts.Prefix, info.Key, last)}
			case o.Size < 0:
				err = &protocolError{fmt.Sprintf("list %s: %q has %d bytes", opts.Prefix, o.Key, o.Size)}
			}
			if err != nil {
				yield(Info{}, err)
				return
			}
			last = info.Key
			if ValidKey(info.Key) != nil {
				continue // no object of a repository, such as a "folder"
			}
			if !yield(info, nil) {
				return
			}
		}
		if err := ctx.Err(); err != nil {
			yield(Info{}, err)
		}
	}
}
