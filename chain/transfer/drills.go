// SPDX-License-Identifier: Apache-2.0

package transfer

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/drill/record"
	"github.com/imgbackup/imgbackup/objstore"
)

// copyDrills takes the records of drills along that to does not have: all of the domains
// that are copied whole, else those of the checkpoints that were asked for. They stay byte
// by byte what they are. Where the source has none, that costs one listing.
func (c *copier) copyDrills(ctx context.Context) error {
	if err := c.to.CheckRehearses(); err != nil {
		c.note(fmt.Sprintf("records of drills are not copied: %v", err))
		return nil
	}
	of := ""
	if len(c.o.Domains) == 1 {
		of = c.o.Domains[0]
	}
	theirs, err := record.List(ctx, c.from, of)
	if err != nil {
		return fmt.Errorf("the source: %w", err)
	}
	for _, domain := range c.o.Domains {
		names := slices.DeleteFunc(theirs[domain], func(n record.Name) bool { return !c.wantsDrill(domain, n) })
		if len(names) == 0 {
			continue
		}
		there, err := c.to.Drills(ctx, domain)
		if err != nil {
			return err
		}
		for _, n := range names {
			if slices.Contains(there[domain], n.UUID) {
				continue
			}
			if err := c.copyDrill(ctx, domain, n.UUID); err != nil {
				return err
			}
		}
	}
	return nil
}

func (c *copier) wantsDrill(domain string, n record.Name) bool {
	if len(c.o.Checkpoints) == 0 && c.o.Newest == 0 {
		return true
	}
	return slices.ContainsFunc(c.chosen[domain], n.Of)
}

func (c *copier) copyDrill(ctx context.Context, domain, id string) error {
	if c.o.DryRun {
		c.result.Drills++
		return nil
	}
	if c.recode == nil && archive.KeysOf(c.from.Store) != nil {
		return c.copySealedDrill(ctx, domain, id)
	}
	r, err := record.Read(ctx, c.from, domain, id)
	switch {
	case errors.Is(err, objstore.ErrNotFound):
		return nil // removed since it was listed
	case archive.IsDamage(err):
		c.damaged = append(c.damaged, fmt.Errorf("the source: %w", err))
		return nil
	case err != nil:
		return fmt.Errorf("the source: %w", err)
	}
	if err := c.to.PutDrill(ctx, r.Drill()); err != nil {
		return err
	}
	c.result.Drills++
	return nil
}

// copySealedDrill copies a record as it is stored, which takes no key to read the data.
func (c *copier) copySealedDrill(ctx context.Context, domain, id string) error {
	err := c.to.TakeDrill(ctx, c.from, domain, id)
	switch {
	case errors.Is(err, objstore.ErrNotFound):
		return nil // removed since it was listed
	case archive.IsDamage(err):
		c.damaged = append(c.damaged, err)
		return nil
	case err != nil:
		return err
	}
	c.result.Drills++
	return nil
}
