// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"io"
	"maps"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

const module = "github.com/imgbackup/imgbackup/"

// tools is what any package may use; docs/design.md leaves them out of its table's
// last column.
var tools = []string{"internal/printable", "internal/spool", "internal/sys", "internal/usage", "internal/zero"}

// imports returns what each package imports of ours, the tests' imports left out.
func imports(t *testing.T) map[string][]string {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,GoFiles,Imports", "./...")
	cmd.Dir = "../.."
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	all := make(map[string][]string)
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p struct {
			ImportPath       string
			GoFiles, Imports []string
		}
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		if len(p.GoFiles) == 0 {
			continue
		}
		ours := []string{}
		for _, path := range p.Imports {
			if name, ok := strings.CutPrefix(path, module); ok {
				ours = append(ours, name)
			}
		}
		slices.Sort(ours)
		all[strings.TrimPrefix(p.ImportPath, module)] = ours
	}
	return all
}

// designTable returns the last column of the table of packages in docs/design.md.
func designTable(t *testing.T) map[string][]string {
	t.Helper()
	text, err := os.ReadFile("../../docs/design.md")
	if err != nil {
		t.Fatal(err)
	}
	quoted := regexp.MustCompile("`([a-z0-9/]+)`")
	names := func(cell string) []string {
		found := []string{}
		for _, m := range quoted.FindAllStringSubmatch(cell, -1) {
			found = append(found, m[1])
		}
		slices.Sort(found)
		return found
	}
	_, table, _ := strings.Cut(string(text), "| package | what it does | stands on |")
	table, _, _ = strings.Cut(table, "\n\n")
	rows := make(map[string][]string)
	for line := range strings.Lines(table) {
		cells := strings.Split(line, "|")
		if len(cells) != 5 || strings.HasPrefix(cells[1], " ---") {
			continue
		}
		for _, name := range names(cells[1]) {
			if _, twice := rows[name]; twice {
				t.Errorf("docs/design.md: two rows of %s", name)
			}
			rows[name] = names(cells[3])
		}
	}
	return rows
}

// allowLists returns depguard's rules of .golangci.yml: by package, what of ours it
// may import.
func allowLists(t *testing.T) map[string][]string {
	t.Helper()
	text, err := os.ReadFile("../../.golangci.yml")
	if err != nil {
		t.Fatal(err)
	}
	var config struct {
		Linters struct {
			Settings struct {
				Depguard struct {
					Rules map[string]struct {
						Files []string
						Mode  string `yaml:"list-mode"`
						Allow []string
					}
				}
			}
		}
	}
	if err := yaml.Unmarshal(text, &config); err != nil {
		t.Fatal(err)
	}
	lists := make(map[string][]string)
	for rule, r := range config.Linters.Settings.Depguard.Rules {
		name, ok := strings.CutSuffix(strings.TrimPrefix(r.Files[0], "**/"), "/*.go")
		if !ok || rule != name || r.Mode != "strict" || !slices.Equal(r.Files[1:], []string{"!$test"}) {
			t.Errorf(".golangci.yml: the rule %s is not the strict one of a package", rule)
		}
		ours := []string{}
		for _, path := range r.Allow {
			if p, ok := strings.CutPrefix(path, module); ok {
				exact, ok := strings.CutSuffix(p, "$")
				if !ok {
					t.Errorf(".golangci.yml: %s allows all packages that begin with %s", rule, p)
				}
				ours = append(ours, exact)
			}
		}
		slices.Sort(ours)
		lists[name] = ours
	}
	return lists
}

// The table of docs/design.md is what the packages import, and what lint lets them
// import.
func TestLayers(t *testing.T) {
	t.Parallel()
	table, allowed := designTable(t), allowLists(t)
	packages := imports(t)
	for name, ours := range packages {
		if !slices.Equal(allowed[name], ours) {
			t.Errorf("%s imports %q, and .golangci.yml allows it %q", name, ours, allowed[name])
		}
		stands := slices.DeleteFunc(slices.Clone(ours), func(s string) bool { return slices.Contains(tools, s) })
		if row, ok := table[name]; !ok {
			t.Errorf("docs/design.md has no row of %s", name)
		} else if !slices.Equal(row, stands) {
			t.Errorf("%s imports %q, and docs/design.md says %q", name, stands, row)
		}
	}
	for _, lists := range []map[string][]string{table, allowed} {
		for name := range maps.Keys(lists) {
			if _, ok := packages[name]; !ok {
				t.Errorf("there is a row or a rule of %s, and no such package", name)
			}
		}
	}
}
