// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"

	"github.com/imgbackup/imgbackup/objstore"
	"github.com/imgbackup/imgbackup/objstore/open"
)

// checkOutside refuses to write what the flag names into the folder of the repository
// that --repo names, whether the command needs that repository or not. One that cannot
// be opened has nothing to lose, and the command that needs it says so.
func (a *app) checkOutside(flag string, paths ...string) error {
	place := a.place()
	if place == "" {
		return nil
	}
	store, err := open.Open(place, open.Options{})
	if err != nil {
		return nil
	}
	if c, ok := store.(io.Closer); ok {
		defer func() { _ = c.Close() }() // nothing was written
	}
	for _, path := range paths {
		if err := objstore.CheckOutside(store, path); err != nil {
			return fmt.Errorf("%s: %w", flag, err)
		}
	}
	return nil
}
