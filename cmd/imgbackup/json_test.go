// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/chain/check"
	"github.com/imgbackup/imgbackup/chain/prune"
	"github.com/imgbackup/imgbackup/chain/transfer"
	"github.com/imgbackup/imgbackup/jobs"
)

// TestJSONIsDocumented: docs/json.md names every field that a command prints with
// --json, so that one that is added without a word there fails.
func TestJSONIsDocumented(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../docs/json.md")
	if err != nil {
		t.Fatal(err)
	}
	sections := make(map[string]string)
	for _, p := range strings.Split(string(text), "\n\n**") {
		name, _, _ := strings.Cut(p, "**")
		sections[strings.Trim(name, "`")] += p
	}
	disk := sections["A disk of a checkpoint"]
	for what, v := range map[string]any{
		"list":                  checkpointJSON{},
		"backup":                backupJSON{},
		"backup --dry-run":      pushPlanJSON{},
		"import":                importJSON{},
		"backup --target":       pushJSON{},
		"checkpoint list":       listedCheckpoint{},
		"checkpoint delete":     deletedJSON{},
		"restore":               restoreJSON{},
		"restore --all-domains": restoredAllJSON{},
		"serve":                 servedJSON{},
		"serve --fill":          filledJSON{},
		"recover":               recoveredJSON{},
		"export":                offerJSON{},
		"init":                  initJSON{},
		"version":               versionJSON{},
		"doctor":                doctorJSON{},
		"config check":          configCheckJSON{},
		"run":                   jobs.Run{},
		"status":                statusJSON{},
		"run --dry-run":         plannedJSON{},
		"key list":              keysJSON{},
		"key rotate":            rotatedJSON{},
		"check":                 check.Report{},
		"copy":                  transfer.Result{},
		"prune":                 prune.Result{},
		"leases":                runJSON{},
		"inspect":               inspectJSON{},
		"bitmap remove":         removedBitmapsJSON{},
		"forget":                decisionJSON{},
		"backup --all-domains":  domainOutcome{},
	} {
		section, ok := sections[what]
		if !ok {
			t.Errorf("docs/json.md has no section %q", what)
			continue
		}
		for _, field := range jsonFields(reflect.TypeOf(v)) {
			if !strings.Contains(section+disk, "`"+field+"`") {
				t.Errorf("%s: field %s is not in docs/json.md", what, field)
			}
		}
	}
}

// jsonFields are the names of all fields, those of its own fields' structs, too;
// not those of backups and plans, which have sections of their own.
func jsonFields(v reflect.Type) (all []string) {
	for v.Kind() == reflect.Pointer || v.Kind() == reflect.Slice {
		v = v.Elem()
	}
	if v.Kind() != reflect.Struct || !strings.Contains(v.PkgPath(), "imgbackup") {
		return nil
	}
	for i := range v.NumField() {
		f := v.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if name == "-" || name == "" && !f.Anonymous {
			continue
		}
		if name != "" {
			all = append(all, name)
		}
		if !slices.Contains([]string{"backup", "plan", "restore"}, name) {
			all = append(all, jsonFields(f.Type)...)
		}
	}
	return all
}

// TestReasonsAreDocumented: so is every word of reason_code.
func TestReasonsAreDocumented(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../docs/json.md")
	if err != nil {
		t.Fatal(err)
	}
	source, err := os.ReadFile("../../backup/trust/reason.go")
	if err != nil {
		t.Fatal(err)
	}
	words := []string{chain.LeftOutByRequest, chain.LeftOutCdrom, chain.LeftOutEmpty, chain.LeftOutReadOnly}
	for _, m := range regexp.MustCompile(`Reason = "([a-z0-9-]+)"`).FindAllStringSubmatch(string(source), -1) {
		words = append(words, m[1])
	}
	if len(words) < 20 {
		t.Fatalf("only %d reasons were found", len(words))
	}
	for _, w := range words {
		if !strings.Contains(string(text), "`"+w+"`") {
			t.Errorf("the reason %s is not in docs/json.md", w)
		}
	}
}
