// SPDX-License-Identifier: Apache-2.0

package main

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestSecurityDocs: the tests that docs/security.md and SECURITY.md name are there, and each row that says what
// somebody can't do names one.
func TestSecurityDocs(t *testing.T) {
	t.Parallel()
	known := make(map[string]bool)
	declared := regexp.MustCompile(`(?m)^func (Test\w+)\(`)
	err := filepath.WalkDir("../..", func(path string, e fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case e.IsDir() && strings.HasPrefix(e.Name(), ".") && len(e.Name()) > 2:
			return fs.SkipDir
		case !strings.HasSuffix(path, "_test.go"):
			return nil
		}
		text, err := os.ReadFile(path)
		for _, m := range declared.FindAllSubmatch(text, -1) {
			known[string(m[1])] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	named := 0
	for _, file := range []string{"docs/security.md", "SECURITY.md"} {
		text, err := os.ReadFile(filepath.Join("../..", file))
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile("`(Test\\w+)`").FindAllSubmatch(text, -1) {
			if named++; !known[string(m[1])] {
				t.Errorf("%s names %s, which is not there", file, m[1])
			}
		}
		// The last cell of these tables names the tests.
		_, table, ok := strings.Cut(string(text), "| the test that shows it |\n")
		for ok && table != "" {
			var rows string
			rows, table, _ = strings.Cut(table, "\n\n")
			for _, row := range strings.Split(rows, "\n")[1:] {
				cells := strings.Split(row, "|")
				if !strings.Contains(cells[max(0, len(cells)-2)], "`Test") {
					t.Errorf("%s: no test is named: %s", file, row)
				}
			}
			_, table, ok = strings.Cut(table, "| the test that shows it |\n")
		}
	}
	if named < 10 {
		t.Errorf("%d tests are named", named)
	}
}
