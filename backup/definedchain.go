// SPDX-License-Identifier: Apache-2.0

package backup

import (
	"fmt"
	"os"

	"github.com/imgbackup/imgbackup/qcow2"
)

// DefinedChain is a backing chain as a domain's definition states it, topmost
// first. QEMU is started with that one, whatever the images say: where they
// disagree, what we would archive is not what the guest sees.
type DefinedChain struct {
	Images []DefinedImage
	Ends   bool // there is nothing below the last one
}

// DefinedImage is one backing file of it.
type DefinedImage struct {
	Path   string
	Format string // empty: not stated
}

// check compares the chain that a definition states with the one that the
// images state, which has been opened.
func (want *DefinedChain) check(c *qcow2.Image) error {
	if want == nil {
		return nil
	}
	have := c.Layers[1:]
	for i, im := range want.Images {
		if i >= len(have) {
			return fmt.Errorf("the domain's definition has %s below %s, which names no backing file", im.Path, c.Layers[i].Path)
		}
		same, err := sameImage(im.Path, have[i])
		if err != nil {
			return err
		}
		if !same {
			return fmt.Errorf("the domain's definition has %s below %s, which names %s", im.Path, c.Layers[i].Path, have[i].Path)
		}
		if im.Format != "" && im.Format != string(have[i].Format) {
			return fmt.Errorf("the domain's definition takes the backing file %s for %s, and the image above it for %s", im.Path, im.Format, have[i].Format)
		}
	}
	if want.Ends && len(have) > len(want.Images) {
		last := c.Layers[len(want.Images)]
		return fmt.Errorf("the domain's definition ends the backing chain at %s, which names %s", last.Path, have[len(want.Images)].Path)
	}
	return nil
}

// sameImage reports whether the file at path is the one that was opened.
func sameImage(path string, l *qcow2.Layer) (bool, error) {
	a, err := os.Stat(path)
	if err != nil {
		return false, fmt.Errorf("the backing file of the domain's definition: %w", err)
	}
	b, err := os.Stat(l.Path)
	if err != nil {
		return false, err
	}
	return os.SameFile(a, b), nil
}
