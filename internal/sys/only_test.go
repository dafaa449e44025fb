// SPDX-License-Identifier: Apache-2.0

package sys

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// What one package learns of these calls, all have to know: so they are made here
// and nowhere else.
func TestOnlyHere(t *testing.T) {
	t.Parallel()
	calls := regexp.MustCompile(`\b(unix|syscall)\.(Flock|Fsync|Fstatfs|Statfs|EINTR|SEEK_DATA|SEEK_HOLE)\b`)
	seen := 0
	err := filepath.WalkDir("../..", func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if name := e.Name(); e.IsDir() {
			if strings.HasPrefix(name, ".") && name != ".." || name == "benchtool" || name == "testkit" { // no part of the program
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") || filepath.Dir(path) == "../../internal/sys" {
			return nil
		}
		seen++
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for _, m := range calls.FindAllString(string(text), -1) {
			t.Errorf("%s uses %s: package sys has that", path, m)
		}
		return nil
	})
	if err != nil || seen < 100 {
		t.Errorf("%d files seen, %v", seen, err)
	}
}
