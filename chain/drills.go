// SPDX-License-Identifier: Apache-2.0

package chain

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/crypt"
	"github.com/imgbackup/imgbackup/objstore"
)

// Records of drills: sealed objects that are stored once, and never changed. What is in
// them is not this package's matter.

const (
	drillsPrefix    = "drills/"
	signatureSuffix = ".sig"
	// MaxDrill is the longest record of a drill, bytes; maxSignature the longest
	// signature of one.
	MaxDrill = 4 << 20
	// maxStoredDrill is what is stored of it, which may be encrypted.
	maxStoredDrill = MaxDrill + MaxDrill/1024 + crypt.MaxHeader
	maxSignature   = 64 << 10
)

// DrillKey is the key of a drill's record.
func DrillKey(domain, id string) string { return drillsOf(domain) + id + jsonSuffix }

// DrillSignatureKey is the key of its signature, if it has one.
func DrillSignatureKey(domain, id string) string { return drillsOf(domain) + id + signatureSuffix }

func drillsOf(domain string) string { return drillsPrefix + EncodeDomain(domain) + "/" }

// PutDrill stores a record, sealed as it is, and before it its signature, if there is
// one. It takes the place of nothing.
func (r *Repository) PutDrill(ctx context.Context, domain, id string, record, signature []byte) error {
	if err := errors.Join(r.CheckWritable(), CheckDomain(domain), validUUID(id)); err != nil {
		return err
	}
	if len(record) > MaxDrill || len(signature) > maxSignature {
		return fmt.Errorf("the drill's record has %d bytes, its signature %d: too many", len(record), len(signature))
	}
	if len(signature) > 0 {
		if err := r.createSame(ctx, DrillSignatureKey(domain, id), signature); err != nil {
			return err
		}
	}
	stored, err := r.encrypt(crypt.Data, record)
	if err != nil {
		return err
	}
	err = r.createSame(ctx, DrillKey(domain, id), stored)
	if errors.Is(err, objstore.ErrExists) && r.keys() != nil {
		if there, _, rerr := r.Drill(ctx, domain, id); rerr == nil && bytes.Equal(there, record) {
			return nil // a copy; an encrypted one has other bytes
		}
	}
	return err
}

// MendDrill puts a record and its signature, as another repository has them, in the place
// of one of which anything is damaged.
func (r *Repository) MendDrill(ctx context.Context, domain, id string, record, signature []byte) error {
	if err := errors.Join(r.CheckWritable(), CheckDomain(domain), validUUID(id)); err != nil {
		return err
	}
	o := objstore.PutOptions{Mode: objstore.Replace}
	if len(signature) > 0 {
		if err := r.Store.Put(ctx, DrillSignatureKey(domain, id), bytes.NewReader(signature), o); err != nil {
			return err
		}
	}
	stored, err := r.encrypt(crypt.Data, record)
	if err != nil {
		return err
	}
	return r.Store.Put(ctx, DrillKey(domain, id), bytes.NewReader(stored), o)
}

// createSame creates an object, unless its very bytes stand there already.
func (r *Repository) createSame(ctx context.Context, key string, data []byte) error {
	err := r.Store.Put(ctx, key, bytes.NewReader(data), objstore.PutOptions{Mode: objstore.Create})
	if !errors.Is(err, objstore.ErrExists) {
		return err
	}
	there, rerr := objstore.ReadAll(ctx, r.Store, key, int64(len(data)))
	if rerr == nil && bytes.Equal(there, data) {
		return nil // an earlier request has arrived, or a copy
	}
	return errors.Join(err, rerr)
}

// Drill reads a record, sealed, and its signature; none: it has none.
func (r *Repository) Drill(ctx context.Context, domain, id string) (record, signature []byte, err error) {
	key := DrillKey(domain, id)
	if record, err = objstore.ReadAll(ctx, r.Store, key, maxStoredDrill); err != nil {
		return nil, nil, tooLarge(key, err)
	}
	if record, err = r.open(crypt.Data, key, record); err != nil {
		return nil, nil, err
	}
	if len(record) > MaxDrill {
		return nil, nil, archive.Damaged(key, fmt.Errorf("it has %d bytes", len(record)))
	}
	key = DrillSignatureKey(domain, id)
	signature, err = objstore.ReadAll(ctx, r.Store, key, maxSignature)
	if errors.Is(err, objstore.ErrNotFound) {
		return record, nil, nil
	}
	return record, signature, tooLarge(key, err)
}

func tooLarge(key string, err error) error {
	if errors.Is(err, objstore.ErrTooLarge) {
		return archive.Damaged(key, err)
	}
	return err
}

// Drills are the records of drills that a listing shows, by domain: their UUIDs, in no
// order. An empty domain is all of them. Who decides by there being none asks
// [Repository.ConfirmListing].
func (r *Repository) Drills(ctx context.Context, domain string) (map[string][]string, error) {
	prefix := drillsPrefix
	if domain != "" {
		prefix = drillsOf(domain)
	}
	keys, err := r.list(ctx, prefix, KeyDrill)
	all := make(map[string][]string)
	for _, k := range keys {
		all[k.Domain] = append(all[k.Domain], k.Name)
	}
	return all, err
}

// Unseal proves a sealed object and decodes it into v, after it has been seen to be of
// the format, and of a version and with requirements that are known here. The error is an
// archive.DamageError or a NewerError.
func Unseal(data []byte, key, format string, v headed) error { return unsealAs(data, key, format, v) }
