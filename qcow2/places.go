// SPDX-License-Identifier: Apache-2.0

package qcow2

import (
	"context"
	"fmt"
	"iter"

	"github.com/imgbackup/imgbackup/clustermap"
)

// Places yields where the range [start, end) of one layer's own disk lies, by its tables alone:
// in ascending order, without gaps. The layer is a qcow2 image that is read natively. An error
// comes last.
func (c *Image) Places(ctx context.Context, layer int, start, end int64) iter.Seq2[clustermap.Place, error] {
	return func(yield func(clustermap.Place, error) bool) {
		l := c.Layers[layer]
		if l.Header == nil || start < 0 || end < start || end > l.Size {
			yield(clustermap.Place{}, fmt.Errorf("%s: no table says where %d to %d lies", l.Path, start, end))
			return
		}
		c.surveyFor(layer, end-start, false)
		at := cursor{l: l}
		for n := 0; start < end; n++ {
			s, err := at.at(start, end)
			if err == nil && n%4096 == 0 {
				err = ctx.Err()
			}
			if err != nil {
				yield(clustermap.Place{}, err)
				return
			}
			p := clustermap.Place{Offset: start, Length: s.length, Kind: placeKinds[s.kind], Host: s.host, Stored: s.stored}
			if !yield(p, nil) {
				return
			}
			start += s.length
		}
	}
}

var placeKinds = [...]clustermap.Kind{
	Hole: clustermap.Hole, Zero: clustermap.Zero, Data: clustermap.Data, Compressed: clustermap.Compressed,
}
