// SPDX-License-Identifier: Apache-2.0

package check

import (
	"context"
	"errors"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/drill/record"
	"github.com/imgbackup/imgbackup/objstore"
)

// checkDrills proves the records of drills that were listed, and their signatures, as far
// as that goes without knowing who may sign.
func (c *check) checkDrills(ctx context.Context) error {
	signed := make(map[chain.Key]bool)
	var records []chain.Key
	for _, k := range c.drills {
		if k.Kind == chain.KeyDrill {
			records = append(records, k)
		} else {
			signed[chain.Key{Domain: k.Domain, Name: k.Name}] = true
		}
	}
	for _, k := range records {
		delete(signed, chain.Key{Domain: k.Domain, Name: k.Name})
	}
	for k := range signed {
		c.note("%s is the signature of no record: a drill was cut off, or its record was removed", chain.DrillSignatureKey(k.Domain, k.Name))
	}
	if len(records) == 0 {
		return nil
	}
	if !archive.OpensChunks(c.repo.Store) { // as of what chunks hold
		c.note("of %d records of drills only who has signed them was looked at: to read them takes the data key", len(records))
		return each(ctx, c, "records of drills", records, one, c.checkDrilled)
	}
	return each(ctx, c, "records of drills", records, one, c.checkDrill)
}

func (c *check) checkDrill(ctx context.Context, k chain.Key) error {
	key := chain.DrillKey(k.Domain, k.Name)
	r, err := record.Read(ctx, c.repo, k.Domain, k.Name)
	if errors.Is(err, objstore.ErrNotFound) {
		return nil // removed since it was listed
	}
	var length int
	if err == nil {
		length = len(r.Data) + len(r.Signature)
	}
	if err == nil && len(r.Signature) > 0 {
		if serr := record.CheckSignature(r.Data, r.Signature); serr != nil {
			key = chain.DrillSignatureKey(k.Domain, k.Name)
			err = archive.Damaged(key, serr)
		}
	}
	return c.record(KindDrill, key, int64(length), err)
}

// checkDrilled proves who has signed a record.
func (c *check) checkDrilled(ctx context.Context, k chain.Key) error {
	d, err := c.repo.Drilled(ctx, k.Domain, k.Name)
	if errors.Is(err, objstore.ErrNotFound) {
		return nil // removed since it was listed
	}
	var length int
	if err == nil {
		length = len(d.Record)
	}
	return c.record(KindDrill, chain.DrillKey(k.Domain, k.Name), int64(length), err)
}
