// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"

	"github.com/imgbackup/imgbackup/objstore"
	"github.com/imgbackup/imgbackup/objstore/open"
)

// checkOutside refuses to write what the flag names into the folder of a repository, be
// it the one that --repo names, whether the command needs that or not, or another. One
// that cannot be opened has nothing to lose, and the command that needs it says so.
func (a *app) checkOutside(flag string, paths ...string) error {
	var store objstore.Store
	if place := a.place(); place != "" {
		opened, err := open.Open(place, open.Options{})
		if err == nil {
			store = opened
		}
		if c, ok := opened.(io.Closer); ok && err == nil {
			defer func() { _ = c.Close() }() // nothing was written
		}
	}
	for _, path := range paths {
		if err := objstore.CheckOutside(store, path); err != nil {
			return fmt.Errorf("%s: %w", flag, err)
		}
	}
	return nil
}
