// SPDX-License-Identifier: Apache-2.0

package backup_test

import (
	"errors"
	"testing"

	"github.com/imgbackup/imgbackup/backup"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/objstore/objstoretest"
)

// A backup does not begin anew, nor from an older state, because a listing leaves out what
// is there: of that the image's bitmaps tell.
func TestUnlisted(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.create("vda", "1M")
	l.backup("c1", l.disk("vda"))
	l.write("vda", "write -P 1 0 64k")
	l.backup("c2", l.disk("vda"))
	before := l.state(l.path("vda"))
	store := l.repo.Store
	newest := chain.ManifestKey("vm", "c2")
	for name, hidden := range map[string]func(key string) bool{
		"everything":     func(string) bool { return true },
		"all but config": func(key string) bool { return key != chain.ConfigKey },
		"the newest":     func(key string) bool { return key == newest },
	} {
		l.repo.Store = &objstoretest.Hiding{Store: store, Hidden: hidden}
		var listing *chain.ListingError
		if _, err := l.run(l.request("c3", l.disk("vda")), backup.Hooks{}); !errors.As(err, &listing) {
			t.Errorf("%s is hidden: %v", name, err)
		}
	}
	l.repo.Store = store
	if l.state(l.path("vda")) != before {
		t.Error("the image was written to")
	}
	l.trusted(l.backup("c3", l.disk("vda")), "c2")
	// A bitmap that is another repository's is no sign of anything.
	other := newLab(t)
	other.images = l.images
	other.backup("c1", other.disk("vda"))
}
