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
	return each(ctx, c, "records of drills", records, one, c.checkDrill)
}

func (c *check) checkDrill(ctx context.Context, k chain.Key) error {
	key := chain.DrillKey(k.Domain, k.Name)
	data, sig, err := c.repo.Drill(ctx, k.Domain, k.Name)
	if errors.Is(err, objstore.ErrNotFound) {
		return nil // removed since it was listed
	}
	if err == nil {
		_, err = record.Parse(data, k.Domain, k.Name)
	}
	if err == nil && len(sig) > 0 {
		if serr := record.CheckSignature(data, sig); serr != nil {
			key = chain.DrillSignatureKey(k.Domain, k.Name)
			err = archive.Damaged(key, serr)
		}
	}
	return c.record(KindDrill, key, int64(len(data)+len(sig)), err)
}
