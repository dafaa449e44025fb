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
	// maxStoredDrill is what is stored of it: encrypted, in base64, and encrypted again.
	maxStoredDrill = (MaxDrill+MaxDrill/1024+crypt.MaxHeader)/3*4 + MaxDrill/512 + 4*crypt.MaxHeader
	maxSignature   = 64 << 10
)

// DrillKey is the key of a drill's record.
func DrillKey(domain, id string) string { return drillsOf(domain) + id + jsonSuffix }

// DrillSignatureKey is the key of its signature, if it has one.
func DrillSignatureKey(domain, id string) string { return drillsOf(domain) + id + signatureSuffix }

func drillsOf(domain string) string { return drillsPrefix + EncodeDomain(domain) + "/" }

// DrillRecord is the record of a drill, as it is stored.
type DrillRecord struct {
	Domain, ID     string
	CheckpointUUID string // of what was drilled
	Data           []byte // sealed, and as a signer of its own signs it
	Signature      []byte // of that signer; none: there is none
	By             string // whose key has signed it, in an encrypted repository
}

func (d *DrillRecord) check() error {
	err := errors.Join(CheckDomain(d.Domain), validUUID(d.ID), validUUID(d.CheckpointUUID))
	if len(d.Data) > MaxDrill || len(d.Signature) > maxSignature {
		err = errors.Join(err, fmt.Errorf("the drill's record has %d bytes, its signature %d: too many", len(d.Data), len(d.Signature)))
	}
	return err
}

// DrilledFormat is the value of the field "format" of [Drilled].
const DrilledFormat = "imgbackup-drilled"

// Drilled is what stands under the key of a drill's record in an encrypted repository: signed,
// for who has the metadata key, so that who can't read the record knows whether to believe its name;
// and the record, for who has the data key.
type Drilled struct {
	Head
	CheckpointUUID string `json:"checkpoint_uuid"`
	Record         []byte `json:"record"` // an age file

	By string `json:"-"` // who has signed it
}

// sealsDrills reports whether records are stored as a [Drilled].
func (r *Repository) sealsDrills() bool { return r.authority() != nil }

// storedDrill is what is stored of a record.
func (r *Repository) storedDrill(d *DrillRecord) ([]byte, error) {
	record, err := r.encrypt(crypt.Data, d.Data)
	if err != nil || !r.sealsDrills() {
		return record, err
	}
	return r.sealDrilled(DrillKey(d.Domain, d.ID), d.CheckpointUUID, record)
}

func (r *Repository) sealDrilled(key, checkpoint string, record []byte) ([]byte, error) {
	return r.seal(key, &Drilled{Head: Head{Format: DrilledFormat, Version: 1}, CheckpointUUID: checkpoint, Record: record})
}

// PutDrill stores a record, and before it its signature, if there is one. It takes the place of
// nothing. Where only some may record drills it is a *RoleError for others.
func (r *Repository) PutDrill(ctx context.Context, d *DrillRecord) error {
	if err := errors.Join(r.CheckWritable(), d.check()); err != nil {
		return err
	}
	stored, err := r.storedDrill(d)
	if err != nil {
		return err
	}
	return r.createDrill(ctx, d, stored, func() bool {
		there, err := r.Drill(ctx, d.Domain, d.ID)
		return err == nil && bytes.Equal(there.Data, d.Data)
	})
}

// createDrill stores a record. One that is encrypted has other bytes each time: so same says whether
// what stands there already is this record. A drill takes hours and has no lease, so that the keys may have
// been rotated meanwhile: then it would not count.
func (r *Repository) createDrill(ctx context.Context, d *DrillRecord, stored []byte, same func() bool) error {
	if r.authority() != nil {
		if err := r.authority().CheckNotRotated(ctx); err != nil {
			return err
		}
	}
	if len(d.Signature) > 0 {
		if err := r.createSame(ctx, DrillSignatureKey(d.Domain, d.ID), d.Signature); err != nil {
			return err
		}
	}
	err := r.createSame(ctx, DrillKey(d.Domain, d.ID), stored)
	if errors.Is(err, objstore.ErrExists) && r.keys() != nil && same() {
		return nil
	}
	return err
}

// TakeDrill copies a record of from, which has the same keys: it takes no key that reads it, and
// proves who has signed it. Here it is signed by who copies it.
func (r *Repository) TakeDrill(ctx context.Context, from *Repository, domain, id string) error {
	if err := errors.Join(r.CheckWritable(), CheckDomain(domain), validUUID(id)); err != nil {
		return err
	}
	key := DrillKey(domain, id)
	theirs, err := from.Drilled(ctx, domain, id)
	if err != nil {
		return fmt.Errorf("the source: %w", err)
	}
	if from.keys().Opens(crypt.Data) {
		if _, err := from.open(crypt.Data, key, theirs.Record); err != nil {
			return fmt.Errorf("the source: %w", err)
		}
	}
	d := &DrillRecord{Domain: domain, ID: id}
	if d.Signature, err = from.drillSignature(ctx, domain, id); err != nil {
		return fmt.Errorf("the source: %w", err)
	}
	stored, err := r.sealDrilled(key, theirs.CheckpointUUID, theirs.Record)
	if err != nil {
		return err
	}
	return r.createDrill(ctx, d, stored, func() bool {
		there, err := r.Drilled(ctx, domain, id)
		return err == nil && bytes.Equal(there.Record, theirs.Record)
	})
}

// MendDrill puts a record and its signature, as another repository has them, in the place
// of one of which anything is damaged.
func (r *Repository) MendDrill(ctx context.Context, d *DrillRecord) error {
	if err := errors.Join(r.CheckWritable(), d.check()); err != nil {
		return err
	}
	stored, err := r.storedDrill(d)
	if err != nil {
		return err
	}
	o := objstore.PutOptions{Mode: objstore.Replace}
	if len(d.Signature) > 0 {
		if err := r.Store.Put(ctx, DrillSignatureKey(d.Domain, d.ID), bytes.NewReader(d.Signature), o); err != nil {
			return err
		}
	}
	return r.Store.Put(ctx, DrillKey(d.Domain, d.ID), bytes.NewReader(stored), o)
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

// Drilled reads what stands under the key of a record in an encrypted repository, and proves who
// has signed it. What nobody has signed who may is an archive.DamageError.
func (r *Repository) Drilled(ctx context.Context, domain, id string) (*Drilled, error) {
	key := DrillKey(domain, id)
	stored, err := objstore.ReadAll(ctx, r.Store, key, maxStoredDrill)
	if err != nil {
		return nil, tooLarge(key, err)
	}
	return r.openDrilled(key, stored)
}

func (r *Repository) openDrilled(key string, stored []byte) (*Drilled, error) {
	d := new(Drilled)
	who, err := r.openBy(stored, key, DrilledFormat, d)
	if err == nil {
		if verr := validUUID(d.CheckpointUUID); verr != nil {
			err = archive.Damaged(key, fmt.Errorf("checkpoint_uuid: %w", verr))
		}
	}
	if err != nil {
		return nil, err
	}
	d.By = who.AuthorName()
	return d, nil
}

// ProvesDrills reports whether records are signed, so that [Repository.Drilled] tells whether to
// believe a record's name.
func (r *Repository) ProvesDrills() bool { return r.sealsDrills() }

// Drill reads a record and its signature. Where records are signed it is proven that somebody has
// signed it who may.
func (r *Repository) Drill(ctx context.Context, domain, id string) (*DrillRecord, error) {
	key := DrillKey(domain, id)
	stored, err := objstore.ReadAll(ctx, r.Store, key, maxStoredDrill)
	if err != nil {
		return nil, tooLarge(key, err)
	}
	d := &DrillRecord{Domain: domain, ID: id}
	if r.sealsDrills() {
		drilled, err := r.openDrilled(key, stored)
		if err != nil {
			return nil, err
		}
		d.CheckpointUUID, d.By, stored = drilled.CheckpointUUID, drilled.By, drilled.Record
	}
	if d.Data, err = r.open(crypt.Data, key, stored); err != nil {
		return nil, err
	}
	if len(d.Data) > MaxDrill {
		return nil, archive.Damaged(key, fmt.Errorf("it has %d bytes", len(d.Data)))
	}
	d.Signature, err = r.drillSignature(ctx, domain, id)
	return d, err
}

// drillSignature reads the signature of a record; none: it has none.
func (r *Repository) drillSignature(ctx context.Context, domain, id string) ([]byte, error) {
	key := DrillSignatureKey(domain, id)
	signature, err := objstore.ReadAll(ctx, r.Store, key, maxSignature)
	if errors.Is(err, objstore.ErrNotFound) {
		return nil, nil
	}
	return signature, tooLarge(key, err)
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
