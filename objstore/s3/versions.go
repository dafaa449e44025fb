// SPDX-License-Identifier: Apache-2.0

package s3

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"strings"

	"github.com/minio/minio-go/v7"

	"github.com/imgbackup/imgbackup/objstore"
)

var _ objstore.Versions = (*Store)(nil)

// maxVersionID bounds the ID of a version, in bytes: what S3 allows.
const maxVersionID = 1024

func validVersion(id string) error {
	if id == "" || len(id) > maxVersionID {
		return fmt.Errorf("invalid id %.40q of a version", id)
	}
	return nil
}

// ListVersions implements objstore.Versions.
func (s *Store) ListVersions(ctx context.Context, prefix, after string) iter.Seq2[objstore.ObjectVersion, error] {
	return func(yield func(objstore.ObjectVersion, error) bool) {
		if err := objstore.CheckPrefix(prefix); err != nil {
			yield(objstore.ObjectVersion{}, err)
			return
		}
		opts := minio.ListObjectsOptions{Prefix: s.prefix + prefix, Recursive: true, WithVersions: true}
		if after != "" {
			opts.StartAfter = s.prefix + after
		}
		for o := range s.core.ListObjectsIter(ctx, s.bucket, opts) {
			v := objstore.ObjectVersion{
				Key: strings.TrimPrefix(o.Key, s.prefix), ID: o.VersionID, Size: o.Size, Stored: o.LastModified,
				Latest: o.IsLatest, Marker: o.IsDeleteMarker, Tag: strongETag(o.ETag),
			}
			err := ctx.Err()
			switch {
			case err != nil:
			case o.Err != nil:
				err = s.failed(ctx, "list versions in", s.bucket+"/"+s.prefix+prefix, o.Err)
			case !strings.HasPrefix(o.Key, opts.Prefix):
				err = &protocolError{what: fmt.Sprintf("list versions of %s: the answer has the key %.100q", opts.Prefix, o.Key)}
			case v.Size < 0, validVersion(v.ID) != nil:
				err = &protocolError{what: fmt.Sprintf("list versions of %s: %q has %d bytes and the id %.40q", opts.Prefix, o.Key, o.Size, o.VersionID)}
			}
			if err != nil {
				yield(objstore.ObjectVersion{}, err)
				return
			}
			if after != "" && v.Key <= after {
				continue // a server may begin with it
			}
			if objstore.CheckKey(v.Key) != nil {
				continue // no object of a repository, such as a "folder"
			}
			if !yield(v, nil) {
				return
			}
		}
		if err := ctx.Err(); err != nil {
			yield(objstore.ObjectVersion{}, err)
		}
	}
}

// GetOld implements objstore.Versions.
func (s *Store) GetOld(ctx context.Context, key, id string, offset, length int64) (io.ReadCloser, error) {
	if err := validVersion(id); err != nil {
		return nil, err
	}
	r, err := s.get(ctx, key, offset, length, getOptions{id: id})
	if err != nil {
		return nil, err // and not a nil *s3Reader
	}
	return r, nil
}

// DeleteVersion implements objstore.Versions.
func (s *Store) DeleteVersion(ctx context.Context, key, id string) error {
	if err := errors.Join(s.valid(ctx, key), validVersion(id)); err != nil {
		return err
	}
	err := s.core.RemoveObject(ctx, s.bucket, s.prefix+key, minio.RemoveObjectOptions{VersionID: id})
	if err == nil || isCode(err, codeNoSuchKey) || isCode(err, codeNoSuchVersion) {
		return nil
	}
	return s.failed(ctx, "delete a version of", key, err)
}

// statVersion describes a version. HEAD has no body, and does not tell a missing object from a
// missing bucket: but versions are asked for that a listing has told of.
func (s *Store) statVersion(ctx context.Context, key, id string) (minio.ObjectInfo, error) {
	info, err := s.core.StatObject(ctx, s.bucket, s.prefix+key, minio.StatObjectOptions{VersionID: id})
	switch {
	case isStatus(err, http.StatusNotFound):
		return info, fmt.Errorf("look for %s: %w", key, objstore.MarkNotFound(errors.New("there is no such version")))
	case err != nil:
		return info, s.failed(ctx, "read a version of", key, err)
	case info.Size < 0:
		return info, fmt.Errorf("look for %s: %w", key, &protocolError{what: "the answer does not tell the object's size"})
	}
	return info, nil
}
