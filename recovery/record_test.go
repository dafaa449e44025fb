// SPDX-License-Identifier: Apache-2.0

package recovery

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
)

// A record names files that are written and removed: what it says is looked at before.
func TestRecordIsLookedAt(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, c := range []struct {
		name  string
		stage Stage
		good  bool
	}{
		{"web", Ready, true},
		{"../web", Ready, false},
		{"", Ready, false},
		{"web", "", false},
		{"web", "ended", false},
	} {
		text, err := json.Marshal(&Record{Format: recordFormat, Version: recordVersion, Name: c.name, Stage: c.stage})
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, recordName), text, 0o600); err != nil {
			t.Fatal(err)
		}
		if r, err := ReadRecord(dir); (err == nil) != c.good {
			t.Errorf("%q at %q: %+v, %v", c.name, c.stage, r, err)
		}
	}
}
