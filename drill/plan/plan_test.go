// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"slices"
	"strings"
	"testing"
	"time"
)

const example = `
require: [chunks, restore]
scratch: none
timeout: 90s
expect: ["vda:/etc/hostname=~web"]
boot: {pattern: "login:", timeout: 5m}
domains:
  db:
    require: [command]
    command: {run: [check-db], expect: fine, timeout: 1d}
`

// TestParse: what a domain has of its own replaces what holds for all, field by field.
func TestParse(t *testing.T) {
	t.Parallel()
	f, err := Parse([]byte(example))
	if err != nil {
		t.Fatal(err)
	}
	web, db := f.Of("web"), f.Of("db")
	if !slices.Equal(web.Require, []string{"chunks", "restore"}) || len(web.Command.Run) > 0 || time.Duration(web.Timeout) != 90*time.Second {
		t.Errorf("%+v", web)
	}
	if !slices.Equal(db.Require, []string{"command"}) || db.Scratch != NoScratch || time.Duration(db.Command.Timeout) != 24*time.Hour || !db.Boot.Wanted() {
		t.Errorf("%+v", db)
	}
	if f, err := Parse(nil); err != nil || len(f.Of("x").Require) > 0 {
		t.Errorf("an empty file: %v", err)
	}
}

// TestRefused: what is misspelt or makes no sense is told, with its place.
func TestRefused(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"requires: [chunks]":                     "line 1",
		"require: [sleep]":                       "there is no step",
		"timeout: soon":                          "line 1",
		"command: {expect: x}":                   "nothing to run",
		"boot: {pattern: '('}":                   "boot.pattern",
		"domains: {web: {scratsch: x}}":          "domain web",
		"domains: {web: {command: {expect: x}}}": "domain web",
		"a: &a [*a]":                             "line",
		strings.Repeat("#", MaxFile+1):           "bytes",
	} {
		if _, err := Parse([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.40q: %v", text, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(example))
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := Parse(data)
		if err != nil {
			return
		}
		for _, name := range append(p.Names(), "") {
			one := p.Of(name)
			if err := one.Check(); err != nil {
				t.Error(err)
			}
		}
	})
}
