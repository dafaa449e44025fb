// SPDX-License-Identifier: Apache-2.0

package objstore

import (
	"github.com/imgbackup/imgbackup/internal/usage"
)

// Placed is what a [Store] can do beside, that lies in a folder of this machine.
type Placed interface {
	// Contains reports whether a path, at which nothing need be, is that folder or
	// lies in it, by whatever links it leads there.
	Contains(path string) (bool, error)
	// Dir is the folder's path.
	Dir() string
}

// CheckOutside refuses the path of what is to be written beside the store, if it is
// the store's own folder or lies in it: there it might take an object's place. A path
// of which that cannot be found out is refused, too.
func CheckOutside(s Store, path string) error {
	p, ok := As[Placed](s)
	if !ok {
		return nil
	}
	inside, err := p.Contains(path)
	if err != nil {
		return err
	}
	if inside {
		return usage.Errorf("%s lies in the folder of the repository %s, where nothing else may be written", path, p.Dir())
	}
	return nil
}
