// SPDX-License-Identifier: Apache-2.0

package s3

import (
	"context"
	"net/http"
	"strings"

	"github.com/minio/minio-go/v7"

	"github.com/imgbackup/imgbackup/objstore"
)

var _ objstore.BatchDeleter = (*Store)(nil)

// DeleteBatch implements objstore.BatchDeleter by one DeleteObjects, whose body the
// server checks by its MD5 and its SHA-256. A server that does not know it is asked
// for one object after the other.
func (s *Store) DeleteBatch(ctx context.Context, keys []string) error {
	for _, key := range keys {
		if err := s.valid(ctx, key); err != nil {
			return err
		}
	}
	objects := func(yield func(minio.ObjectInfo) bool) {
		for _, key := range keys {
			if !yield(minio.ObjectInfo{Key: s.prefix + key}) {
				return
			}
		}
	}
	// Any number of results but the failures may be missing: it asks to be told no
	// others. A request that failed as a whole is told of each key, or of none.
	results, err := s.core.RemoveObjectsWithIter(ctx, s.bucket, objects, minio.RemoveObjectsOptions{})
	if err != nil {
		return s.failed(ctx, "delete", s.bucket, err)
	}
	refused := &objstore.BatchError{}
	var whole error
	for r := range results {
		switch {
		case r.Err == nil, isCode(r.Err, codeNoSuchKey):
			continue
		case response(r.Err).StatusCode != 0 || response(r.Err).Code == "":
			whole = r.Err // of the request, and not of one object
		default:
			key := strings.TrimPrefix(r.ObjectName, s.prefix)
			refused.Keys = append(refused.Keys, key)
			refused.Errs = append(refused.Errs, s.failed(ctx, "delete", key, r.Err))
		}
	}
	switch {
	case ctx.Err() != nil:
		return s.failed(ctx, "delete", s.bucket, context.Cause(ctx))
	case isStatus(whole, http.StatusNotImplemented), isStatus(whole, http.StatusMethodNotAllowed):
		return objstore.DeleteEach(ctx, keys, s.Delete)
	case whole != nil:
		return s.failed(ctx, "delete", "a batch of objects", whole)
	case len(refused.Keys) > 0:
		return refused
	}
	return nil
}
