// SPDX-License-Identifier: Apache-2.0

// Package s3 keeps the objects of a repository in a bucket of a server that
// speaks S3. See [Store]; docs/s3.md is what users read.
//
// Only an S3 server's own answers are believed (see judge), and only its own
// "no such object" is an absence. Nothing is tried again here, that is package
// retry's.
package s3

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/encrypt"

	"github.com/imgbackup/imgbackup/objstore"
	"github.com/imgbackup/imgbackup/objstore/pace"
)

// Store keeps objects in a bucket of a store that speaks S3: an object's key
// there is the store's prefix, a slash, and its key here.
//
// Every object is stored by one PUT, whose bytes the server checks against a
// CRC32C or a SHA-256 that it was sent before them. Create is a PUT with
// If-None-Match, which the server decides. What is slow, lost or broken on the
// way is an error at once, and for package retry to try again. It holds no object in
// memory.
type Store struct {
	core      minio.Core
	transport *http.Transport
	limiter   *pace.Limiter
	clock     *clock
	bucket    string
	prefix    string // "" or ends in a slash
	endpoint  string // for messages; without credentials
	sha256    bool   // bodies are checked by SHA-256
	classes   Classes
	sse       encrypt.ServerSide // what every object shall be encrypted by; nil: as the bucket does
	versions  *atomic.Bool       // an answer told of versions
}

var (
	_ objstore.Store     = (*Store)(nil)
	_ objstore.Connected = (*Store)(nil)
)

// Connections implements objstore.Connected.
func (s *Store) Connections() int { return s.limiter.Most() }

// String names the store, for people.
func (s *Store) String() string {
	return "s3://" + s.bucket + "/" + strings.TrimSuffix(s.prefix, "/") + " at " + s.endpoint
}

// Enclosing implements objstore.Enclosed.
func (s *Store) Enclosing() []objstore.Store {
	var all []objstore.Store
	for at := strings.TrimSuffix(s.prefix, "/"); at != ""; {
		at = at[:max(0, strings.LastIndexByte(at, '/'))]
		outer := *s
		outer.prefix = at
		if at != "" {
			outer.prefix += "/"
		}
		all = append(all, &outer)
	}
	return all
}

// Close drops the connections that wait to be used again.
func (s *Store) Close() error {
	s.transport.CloseIdleConnections()
	return nil
}

// valid says why an object can't be asked for.
func (s *Store) valid(ctx context.Context, key string) error {
	if err := objstore.CheckKey(key); err != nil {
		return err
	}
	if n := len(s.prefix) + len(key); n > objstore.MaxKeyLength {
		return fmt.Errorf("invalid key %q: with the prefix it has %d bytes, more than %d", key, n, objstore.MaxKeyLength)
	}
	return ctx.Err()
}

// Get implements Store.
func (s *Store) Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	r, err := s.GetVersion(ctx, key, offset, length, "")
	if err != nil {
		return nil, err // and not a nil *s3Reader
	}
	return r, nil
}

// GetVersion implements objstore.VersionGetter: Get, of the object that has this ETag; "" is any.
// Where another one stands now the error is objstore.ErrReplaced.
func (s *Store) GetVersion(ctx context.Context, key string, offset, length int64, version string) (objstore.VersionReader, error) {
	return s.get(ctx, key, offset, length, getOptions{tag: version})
}

// getOptions say of which object under a key; "" is any.
type getOptions struct {
	tag string // its ETag
	id  string // of a version
}

func (s *Store) get(ctx context.Context, key string, offset, length int64, o getOptions) (objstore.VersionReader, error) {
	if err := errors.Join(s.valid(ctx, key), objstore.CheckRange(key, offset, length)); err != nil {
		return nil, err
	}
	if length == 0 { // there are no empty ranges in HTTP
		return s.emptyRange(ctx, key, o.id, offset, length)
	}
	var opts minio.GetObjectOptions
	end := offset + length - 1
	switch {
	case length < 0 && offset > 0, end < offset && length > 0: // or beyond what can be said
		opts.Set("Range", fmt.Sprintf("bytes=%d-", offset))
	case length > 0:
		opts.Set("Range", fmt.Sprintf("bytes=%d-%d", offset, end))
	}
	if o.tag != "" {
		opts.Set("If-Match", `"`+o.tag+`"`)
	}
	opts.VersionID = o.id
	body, info, header, err := s.core.GetObject(ctx, s.bucket, s.prefix+key, opts)
	switch {
	case isCode(err, codePreconditionFailed):
		return nil, fmt.Errorf("read %s: %w", key, objstore.ErrReplaced)
	case isStatus(err, http.StatusRequestedRangeNotSatisfiable):
		return s.emptyRange(ctx, key, o.id, offset, length)
	case err != nil:
		return nil, s.failed(ctx, "read", key, err)
	}
	if info.VersionID != "" && info.VersionID != "null" {
		s.versions.Store(true)
	}
	if o.tag != "" && strongETag(info.ETag) != o.tag { // the condition got lost on its way
		_ = body.Close() // not wanted
		return nil, fmt.Errorf("read %s: %w", key, objstore.ErrReplaced)
	}
	got, size, err := gotRange(header, opts.Header().Get("Range") != "")
	if err == nil && got.offset != offset {
		err = fmt.Errorf("asked for the bytes from %d on, got those from %d on", offset, got.offset)
	}
	if err == nil && got.length != rangeLength(size, offset, length) {
		err = fmt.Errorf("asked for [%d, +%d) of %d bytes, got %d", offset, length, size, got.length)
	}
	if err != nil {
		_ = body.Close() // not wanted
		return nil, fmt.Errorf("read %s: %w", key, &protocolError{what: err.Error()})
	}
	return &s3Reader{
		ctx: ctx, store: s, key: key, body: body, left: got.length,
		short:   length > got.length,
		version: strongETag(info.ETag),
	}, nil
}

// strongETag is an ETag that is the same only for the same bytes, or "".
func strongETag(tag string) string {
	if strings.HasPrefix(tag, "W/") {
		return ""
	}
	return strings.Trim(tag, `"`)
}

// rangeLength is how many bytes the range has in an object of size bytes.
func rangeLength(size, offset, length int64) int64 {
	rest := max(size-offset, 0)
	if length < 0 {
		return rest
	}
	return min(rest, length)
}

type byteRange struct{ offset, length int64 }

// gotRange is the range that an answer holds, and the whole object's size.
func gotRange(h http.Header, partial bool) (byteRange, int64, error) {
	length, err := strconv.ParseInt(h.Get("Content-Length"), 10, 64)
	if err != nil || length < 0 {
		return byteRange{}, 0, errors.New("the answer does not tell its length")
	}
	cr := h.Get("Content-Range")
	if cr == "" {
		if partial { // the range was ignored
			return byteRange{}, 0, errors.New("asked for a range, got the whole object")
		}
		return byteRange{0, length}, length, nil
	}
	var first, last, size int64
	if n, err := fmt.Sscanf(cr, "bytes %d-%d/%d", &first, &last, &size); n != 3 || err != nil {
		return byteRange{}, 0, fmt.Errorf("can't read the range %.60q", cr)
	}
	if first < 0 || last < first || size <= last || last-first+1 != length {
		return byteRange{}, 0, fmt.Errorf("impossible range %.60q of %d bytes", cr, length)
	}
	return byteRange{first, length}, size, nil
}

// emptyRange is a range that has no bytes in the object, which must be there.
func (s *Store) emptyRange(ctx context.Context, key, id string, offset, length int64) (objstore.VersionReader, error) {
	stat := s.Stat
	if id != "" {
		stat = func(ctx context.Context, key string) (objstore.Info, error) {
			info, err := s.statVersion(ctx, key, id)
			return objstore.Info{Size: info.Size}, err
		}
	}
	info, err := stat(ctx, key)
	if err != nil {
		return nil, err
	}
	if rangeLength(info.Size, offset, length) > 0 {
		return nil, fmt.Errorf("read %s: %w", key, objstore.ErrReplaced) // it grew just now
	}
	return &s3Reader{
		ctx: ctx, store: s, key: key, body: io.NopCloser(bytes.NewReader(nil)),
		short: offset > info.Size || length > 0,
	}, nil
}

// s3Reader reads exactly what was promised.
type s3Reader struct {
	ctx     context.Context
	store   *Store
	key     string
	body    io.ReadCloser
	left    int64
	short   bool // more was asked for than there is
	version string
}

func (r *s3Reader) Version() string { return r.version }

func (r *s3Reader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	if r.left == 0 {
		if r.short {
			return 0, io.ErrUnexpectedEOF
		}
		return 0, io.EOF
	}
	if int64(len(p)) > r.left {
		p = p[:r.left]
	}
	n, err := r.body.Read(p)
	r.left -= int64(n)
	switch {
	case err == nil, r.left == 0:
		return n, nil
	case err == io.EOF, errors.Is(err, io.ErrUnexpectedEOF):
		return n, fmt.Errorf("read %s: %w", r.key, &cutError{missing: r.left})
	}
	return n, r.store.failed(r.ctx, "read", r.key, err)
}

func (r *s3Reader) Close() error {
	if r.left == 0 {
		// So that the connection is used again.
		_, _ = io.CopyN(io.Discard, r.body, 1)
	}
	_ = r.body.Close() // what was read is whole, or known not to be
	return nil
}

// Stat implements Store.
func (s *Store) Stat(ctx context.Context, key string) (objstore.Info, error) {
	if err := s.valid(ctx, key); err != nil {
		return objstore.Info{}, err
	}
	info, err := s.core.StatObject(ctx, s.bucket, s.prefix+key, minio.StatObjectOptions{Checksum: true})
	if err == nil && info.Size < 0 {
		err = &protocolError{what: "the answer does not tell the object's size"}
	}
	there := objstore.Info{Key: key, Size: info.Size, SHA256: wholeSHA256(info)}
	if status := httpStatus(err); 300 <= status && status < 500 {
		// The answer to HEAD has no body, and does not tell a missing object
		// from a missing bucket, nor why something is forbidden.
		there.Size, err = s.statByGet(ctx, key)
	}
	if err != nil {
		return objstore.Info{}, s.failed(ctx, "look for", key, err)
	}
	return there, nil
}

// wholeSHA256 is the SHA-256 of a whole object that the server keeps; zero: none. What
// was stored in parts has one of its parts' sums.
func wholeSHA256(info minio.ObjectInfo) (sum [sha256.Size]byte) {
	kept, err := base64.StdEncoding.DecodeString(info.ChecksumSHA256)
	if err == nil && len(kept) == len(sum) && info.ChecksumMode != minio.ChecksumCompositeMode.String() {
		copy(sum[:], kept)
	}
	return sum
}

// statByGet reads an object's first byte, to learn what there is.
func (s *Store) statByGet(ctx context.Context, key string) (int64, error) {
	var opts minio.GetObjectOptions
	opts.Set("Range", "bytes=0-0")
	body, _, header, err := s.core.GetObject(ctx, s.bucket, s.prefix+key, opts)
	if isStatus(err, http.StatusRequestedRangeNotSatisfiable) {
		return 0, nil // it has no first byte
	}
	if err != nil {
		return 0, err
	}
	_ = body.Close() // one byte, not wanted
	_, size, err := gotRange(header, false)
	if err != nil {
		return 0, &protocolError{what: err.Error()}
	}
	return size, nil
}

// MaxDelay implements objstore.Delayed: a server refuses what was signed 15 minutes ago
// (RequestTimeTooSkewed).
func (s *Store) MaxDelay() time.Duration { return 15 * time.Minute }

// KeepsVersions implements objstore.Versioned.
func (s *Store) KeepsVersions() bool { return s.versions.Load() }

// Delete implements Store.
func (s *Store) Delete(ctx context.Context, key string) error {
	if err := s.valid(ctx, key); err != nil {
		return err
	}
	err := s.core.RemoveObject(ctx, s.bucket, s.prefix+key, minio.RemoveObjectOptions{})
	if err == nil || isCode(err, codeNoSuchKey) {
		return nil
	}
	return s.failed(ctx, "delete", key, err)
}
