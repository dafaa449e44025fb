// SPDX-License-Identifier: Apache-2.0

package s3

import (
	"regexp"
	"strings"

	"github.com/imgbackup/imgbackup/internal/usage"
)

// Classes are the storage classes of what a repository holds, by the words of the server;
// "" is what it takes by itself, as it does for all that is not named here: manifests and
// other small objects, which are read and replaced often.
type Classes struct {
	Pack  string // packs
	Map   string // maps, bitmaps, cluster maps
	Index string // indexes
}

// of is the class of an object. The first parts of keys are docs/format.md's.
func (c *Classes) of(key string) string {
	kind, _, _ := strings.Cut(key, "/")
	switch kind {
	case "packs":
		return c.Pack
	case "maps", "bitmaps", "clusters":
		return c.Map
	case "index":
		return c.Index
	}
	return ""
}

var className = regexp.MustCompile(`^[A-Za-z0-9_.-]{1,64}$`)

// check refuses what can be no class, and the cold ones: what is stored is read by later
// backups, checks and prunes, which would all wait for a person.
func (c *Classes) check() error {
	for _, o := range []struct{ option, class string }{{"packclass", c.Pack}, {"mapclass", c.Map}, {"indexclass", c.Index}} {
		switch {
		case o.class != "" && !className.MatchString(o.class):
			return usage.Errorf("%s: %q is no name of a storage class", o.option, printable(o.class, 70))
		case strings.EqualFold(o.class, "GLACIER"), strings.EqualFold(o.class, "DEEP_ARCHIVE"):
			return usage.Errorf("%s=%s: what lies there can't be read at once, and later backups, checks and prunes read it; STANDARD_IA or GLACIER_IR can", o.option, o.class)
		}
	}
	return nil
}
