// SPDX-License-Identifier: Apache-2.0

package s3

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net/http"

	"github.com/minio/minio-go/v7"

	"github.com/imgbackup/imgbackup/objstore"
)

// Put implements Store.
func (s *Store) Put(ctx context.Context, key string, body objstore.Body, o objstore.PutOptions) error {
	if err := errors.Join(s.valid(ctx, key), o.Check()); err != nil {
		return err
	}
	opts, err := s.conditions(ctx, key, o)
	if err != nil {
		return fmt.Errorf("store %s: %w", key, err)
	}
	err = s.put(ctx, key, body, o.SHA256, opts)
	if err == nil {
		return nil
	}
	told := s.failed(ctx, "store", key, err)
	switch {
	case isCode(err, codePreconditionFailed) && o.Mode == objstore.Create:
		return fmt.Errorf("store %s: %w", key, objstore.ErrExists)
	case o.Old != nil && (isCode(err, codePreconditionFailed) || isCode(err, codeNoSuchKey)):
		return fmt.Errorf("store %s: %w", key, objstore.ErrChanged)
	case isCode(err, codePreconditionFailed):
		return fmt.Errorf("store %s: the store refuses to replace an object: %w", key, noSentinel(err))
	case !o.RetainUntil.IsZero() && (isStatus(err, http.StatusBadRequest) || isStatus(err, http.StatusNotImplemented)):
		// The bucket was made without object lock, or the server has none.
		return &objstore.UnsupportedError{Ability: "keep an object for a time", Err: told}
	case objstore.InDoubt(err):
		return objstore.MarkInDoubt(told)
	}
	return told
}

// conditions are the headers that o asks for.
func (s *Store) conditions(ctx context.Context, key string, o objstore.PutOptions) (minio.PutObjectOptions, error) {
	var opts minio.PutObjectOptions
	if !o.RetainUntil.IsZero() {
		opts.Mode, opts.RetainUntilDate = minio.Compliance, o.RetainUntil
		if o.Retention == objstore.Governance {
			opts.Mode = minio.Governance
		}
	}
	switch {
	case o.Mode == objstore.Create:
		opts.SetMatchETagExcept("*")
	case o.Old != nil:
		tag, err := s.tagOf(ctx, key, o.Old)
		if err != nil {
			return opts, err
		}
		opts.SetMatchETag(tag)
	}
	return opts, nil
}

// tagOf is the entity tag of the object that stands under the key, which must
// hold these bytes.
func (s *Store) tagOf(ctx context.Context, key string, want []byte) (string, error) {
	r, err := s.GetVersion(ctx, key, 0, -1, "")
	if errors.Is(err, objstore.ErrNotFound) {
		return "", objstore.ErrChanged
	}
	if err != nil {
		return "", err
	}
	same, err := objstore.Same(r, want)
	_ = r.Close() // all that matters has been read
	switch {
	case err != nil:
		return "", err
	case !same:
		return "", objstore.ErrChanged
	case r.Version() == "":
		return "", &objstore.UnsupportedError{Ability: "compare and replace an object in one step", Err: errors.New("it has no entity tag")}
	}
	return r.Version(), nil
}

// deniedTries is how often an object is sent that MinIO denies to store. It keeps
// objects in folders, and says so for a moment also when the one that it has made for
// this object is removed with the last of others, such as a lease.
const deniedTries = 4

// put sends an object; once more, if the server could not be asked whether it wants
// it. Its errors say whether they leave doubt.
func (s *Store) put(ctx context.Context, key string, body objstore.Body, known [sha256.Size]byte, opts minio.PutObjectOptions) error {
	for try := 1; ; try++ {
		err := s.send(ctx, key, body, known, opts)
		denied := isCode(err, codeAccessDenied) && response(err).Server == "MinIO"
		if !errors.Is(err, errUnasked) && !denied || try == deniedTries {
			return err
		}
	}
}

func (s *Store) send(ctx context.Context, key string, body objstore.Body, known [sha256.Size]byte, opts minio.PutObjectOptions) error {
	sums, err := s.checksum(body, known)
	if err != nil {
		return &bodyError{err}
	}
	opts.DisableContentSha256, opts.UserMetadata, opts.ServerSideEncryption = true, sums.headers, s.sse
	opts.StorageClass = s.classes.of(key)
	content := &bodyReader{ctx: ctx, r: io.NewSectionReader(body, 0, body.Size())}
	stored, err := s.core.PutObject(ctx, s.bucket, s.prefix+key, content, body.Size(), "", sums.sha256, opts)
	if stored.VersionID != "" && stored.VersionID != "null" { // which it is where versions were suspended
		s.versions.Store(true)
	}
	// The body's own failure comes back as whatever the transport made of it.
	sent, berr := content.end()
	switch {
	case berr != nil:
		return &bodyError{berr}
	case err == nil, errors.Is(err, errUnasked), errors.As(err, new(*credentialsError)):
		return err
	case sent && !refused(err):
		return objstore.MarkInDoubt(err)
	}
	return err
}

// checksums go before a body, so that the server can check it.
type checksums struct {
	headers map[string]string
	sha256  string // hex; "" when the signature does not cover the body
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// checksum reads the body once, unless its SHA-256 is known: then that goes with it, and
// the server keeps it. CRC32C costs next to nothing; servers that do not check either
// get a SHA-256 as a part of the signature, which they must check.
func (s *Store) checksum(body objstore.Body, known [sha256.Size]byte) (checksums, error) {
	isKnown := known != [sha256.Size]byte{}
	if s.sha256 {
		if isKnown {
			return checksums{sha256: hex.EncodeToString(known[:])}, nil
		}
		sum, err := hexSHA256(body)
		return checksums{sha256: sum}, err
	}
	if isKnown {
		return header("x-amz-checksum-sha256", known[:]), nil
	}
	h := crc32.New(castagnoli)
	if err := readBody(h, body); err != nil {
		return checksums{}, err
	}
	return header("x-amz-checksum-crc32c", binary.BigEndian.AppendUint32(nil, h.Sum32())), nil
}

func header(name string, sum []byte) checksums {
	return checksums{headers: map[string]string{name: base64.StdEncoding.EncodeToString(sum)}}
}
