// SPDX-License-Identifier: Apache-2.0

package domain_test

import (
	"path/filepath"
	"sort"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"

	"github.com/imgbackup/imgbackup/domain"
)

// rule is one rule of a schema, or of the code behind it, with its examples.
type rule struct {
	name                                string
	accepted, completed, refused, error string
}

// readRules reads the corpus of rules, and the two domains that they are about.
func readRules(t testing.TB, file string) (rules []rule, plain, block *domain.Domain) {
	t.Helper()
	archive, err := txtar.ParseFile(filepath.Join("..", "testdata", "xml", file))
	if err != nil {
		t.Fatal(err)
	}
	byName := make(map[string]*rule)
	for _, f := range archive.Files {
		name, part, ok := strings.Cut(f.Name, "/")
		if !ok {
			d, err := domain.Parse(f.Data)
			if err != nil {
				t.Fatalf("%s: %v", f.Name, err)
			}
			switch f.Name {
			case "plain.xml":
				plain = d
			case "block.xml":
				block = d
			}
			continue
		}
		r := byName[name]
		if r == nil {
			r = &rule{name: name}
			byName[name] = r
		}
		switch part {
		case "accepted.xml":
			r.accepted = string(f.Data)
		case "completed.xml":
			r.completed = string(f.Data)
		case "refused.xml":
			r.refused = string(f.Data)
		case "error":
			r.error = strings.TrimSpace(string(f.Data))
		default:
			t.Fatalf("%s is none of a rule's parts", f.Name)
		}
	}
	for _, r := range byName {
		if r.accepted == "" || r.completed == "" || r.refused == "" || r.error == "" {
			t.Errorf("rule %s lacks a part", r.name)
		}
		rules = append(rules, *r)
	}
	sort.Slice(rules, func(i, j int) bool { return rules[i].name < rules[j].name })
	if len(rules) < 20 || plain == nil || block == nil {
		t.Fatalf("%s holds %d rules", file, len(rules))
	}
	return rules, plain, block
}

func completeBackup(text string, plain, block *domain.Domain) (string, error) {
	b, err := domain.ParseBackup([]byte(text))
	if err == nil {
		b, err = b.Align(pick(text, plain, block), "SUFFIX")
	}
	if err != nil {
		return "", err
	}
	return string(b.Format()), nil
}

func completeCheckpoint(text string, plain, block *domain.Domain) (string, error) {
	c, err := domain.ParseCheckpoint([]byte(text))
	if err == nil {
		c, err = c.Align(pick(text, plain, block), 1700000000)
	}
	if err != nil {
		return "", err
	}
	return string(c.Format()), nil
}

func pick(text string, plain, block *domain.Domain) *domain.Domain {
	if strings.Contains(text, "vdc") {
		return block
	}
	return plain
}

// Each rule's examples are accepted, completed and refused; and what was
// completed is complete.
func TestRules(t *testing.T) {
	t.Parallel()
	for file, complete := range map[string]func(string, *domain.Domain, *domain.Domain) (string, error){
		"backup.txtar": completeBackup, "checkpoint.txtar": completeCheckpoint,
	} {
		rules, plain, block := readRules(t, file)
		for _, r := range rules {
			t.Run(file+"/"+r.name, func(t *testing.T) {
				t.Parallel()
				got, err := complete(r.accepted, plain, block)
				if err != nil {
					t.Fatal(err)
				}
				if got != r.completed {
					t.Errorf("completed:\n%s\nwant:\n%s", got, r.completed)
				}
				again, err := complete(got, pick(r.accepted, plain, block), block)
				if err != nil || again != got {
					t.Errorf("completed again: %v\n%s", err, again)
				}
				if got, err := complete(r.refused, plain, block); err == nil || !strings.Contains(err.Error(), r.error) {
					t.Errorf("error %v, want one with %q\n%s", err, r.error, got)
				}
			})
		}
	}
}
