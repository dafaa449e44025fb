// SPDX-License-Identifier: Apache-2.0

package backup_test

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/imgbackup/imgbackup/internal/testkit"
)

// TestClonedLives leads lives whose backups are of clones: made by the kernel, on each file system that does so
// and that this machine lets us mount, and by a command. IMGBACKUP_SOAK and IMGBACKUP_SEED draw more and other lives.
func TestClonedLives(t *testing.T) {
	t.Parallel()
	folders, here := testkit.OnCloning(t)
	if !here {
		return
	}
	folders = append(folders, testkit.Cloning{Kind: "command", Dir: t.TempDir()})
	count := &tally{counts: make(map[string]int)}
	for _, on := range folders {
		for _, seed := range lives(t, 2) {
			t.Run(on.Kind+"/"+strconv.FormatUint(seed, 10), func(t *testing.T) {
				dir := filepath.Join(on.Dir, strconv.FormatUint(seed, 10))
				if err := os.Mkdir(dir, 0o755); err != nil {
					t.Fatal(err)
				}
				l := newLifeIn(t, dir, seed, allEvents(), count)
				if l.clones = true; on.Kind == "command" {
					l.copies = t.TempDir()
				}
				defer func() {
					if t.Failed() {
						t.Logf("what happened:\n%s", strings.Join(l.log, "\n"))
					}
				}()
				l.lead()
				if err := os.RemoveAll(dir); err != nil { // these file systems are small
					t.Error(err)
				}
			})
		}
	}
	t.Logf("%s", count)
	if !t.Failed() && count.counts["backup: a VM wrote while its clones were read"] == 0 {
		t.Error("no VM wrote while its clones were read")
	}
}
