// SPDX-License-Identifier: Apache-2.0

package newhost

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/imgbackup/imgbackup/chain"
)

// TestNewestBefore: which checkpoint is that of an instant.
func TestNewestBefore(t *testing.T) {
	t.Parallel()
	noon := time.Date(2026, 11, 28, 12, 0, 0, 0, time.UTC)
	at := func(name string, minutes float64, kind string) *chain.Manifest {
		return &chain.Manifest{Checkpoint: name, Kind: kind, Created: noon.Add(time.Duration(minutes * float64(time.Minute)))}
	}
	const archive, bare = chain.KindArchive, chain.KindCheckpoint
	doubted := at("c3", -3*24*60, archive) // says that it is old, and came to the store now
	doubted.ByHost, doubted.By, doubted.Stored = true, "web1", noon.Add(time.Hour)
	for name, c := range map[string]struct {
		ms     []*chain.Manifest
		before time.Time
		want   string
		err    string
	}{
		"the newest":                     {[]*chain.Manifest{at("c1", -2, archive), at("c2", -1, archive)}, time.Time{}, "c2", ""},
		"the newest with data":           {[]*chain.Manifest{at("c1", -2, archive), at("c2", -1, bare)}, time.Time{}, "c1", ""},
		"whatever the clock":             {[]*chain.Manifest{at("c1", 2, archive), at("c2", 1, archive)}, time.Time{}, "c2", ""},
		"of an instant":                  {[]*chain.Manifest{at("c1", -2, archive), at("c2", -1, archive), at("c3", 1, archive)}, noon, "c2", ""},
		"at that very instant":           {[]*chain.Manifest{at("c1", -2, archive), at("c2", 0, archive), at("c3", 1, archive)}, noon, "c2", ""},
		"in that second":                 {[]*chain.Manifest{at("c1", -2, archive), at("c2", 0.01, archive)}, noon, "c2", ""},
		"not where fractions are told":   {[]*chain.Manifest{at("c1", -2, archive), at("c2", 0.01, archive)}, noon.Add(time.Millisecond), "c1", ""},
		"it was none yet":                {[]*chain.Manifest{at("c1", 1, archive)}, noon, "", errNotYet.Error()},
		"none holds data":                {[]*chain.Manifest{at("c1", -1, bare)}, noon, "", "no checkpoint of it holds data"},
		"none at all":                    {nil, noon, "", "can be read"},
		"a clock was wrong":              {[]*chain.Manifest{at("c1", 5, archive), at("c2", -1, archive)}, noon, "", "c1 and c2 contradict their order"},
		"a clock was wrong, but not now": {[]*chain.Manifest{at("c1", -5, archive), at("c2", -9, archive), at("c3", 1, archive)}, noon, "c2", ""},
		"a host's word is not believed":  {[]*chain.Manifest{at("c1", -5, archive), at("c2", -4, archive), doubted}, noon, "c2", ""},
	} {
		got, err := newestBefore(c.ms, c.before)
		switch {
		case c.err != "":
			if err == nil || !strings.Contains(err.Error(), c.err) {
				t.Errorf("%s: %v", name, err)
			}
		case err != nil || got.Checkpoint != c.want:
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
	if _, err := newestBefore([]*chain.Manifest{at("c1", 1, archive)}, noon); !errors.Is(err, errNotYet) {
		t.Error(err)
	}
}
