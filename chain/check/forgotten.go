// SPDX-License-Identifier: Apache-2.0

package check

import (
	"context"

	"github.com/imgbackup/imgbackup/chain"
)

// readForgotten proves the lists of what forgotten checkpoints left for others, and takes
// in the bitmaps that they name: no checkpoint's data is affected by their damage, but a
// backup knows less then.
func (c *check) readForgotten(ctx context.Context) error {
	var unusable []error
	for f, err := range c.repo.AllForgotten(ctx) {
		switch {
		case chain.Unusable(err):
			unusable = append(unusable, err)
			continue
		case err != nil:
			return err
		case !c.wants(f.Domain):
			continue
		}
		if err := c.record(KindForgotten, f.Key(), 0, nil); err != nil {
			return err
		}
		c.referForgotten(f)
	}
	return c.recordUnusable(KindForgotten, unusable)
}

func (c *check) referForgotten(f *chain.Forgotten) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for ref := range f.References() {
		b := bitmapUse{ref.Object, ref.Bitmap.Header()}
		if c.bitmaps[b] == nil {
			c.bitmaps[b] = &use{}
		}
	}
}
