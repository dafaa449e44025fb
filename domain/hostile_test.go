// SPDX-License-Identifier: Apache-2.0

package domain_test

import (
	"runtime"
	"strings"
	"testing"

	"github.com/imgbackup/imgbackup/domain"
)

func parsers() map[string]func([]byte) error {
	return map[string]func([]byte) error{
		"domain":           func(b []byte) error { _, err := domain.Parse(b); return err },
		"domainbackup":     func(b []byte) error { _, err := domain.ParseBackup(b); return err },
		"domaincheckpoint": func(b []byte) error { _, err := domain.ParseCheckpoint(b); return err },
	}
}

// What is no XML, or too much of it, is an error that says so, at a cost that
// the text itself bounds.
func TestHostileXML(t *testing.T) {
	t.Parallel()
	const bomb = `<?xml version="1.0"?><!DOCTYPE ROOT [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">]><ROOT>&b;</ROOT>`
	for name, c := range map[string]struct{ text, want string }{
		"empty":                {"", "there is no element"},
		"blanks":               {" \n ", "there is no element"},
		"no XML":               {"ROOT", "text outside"},
		"cut":                  {"<ROOT><disks>", "not well-formed"},
		"cut tag":              {"<ROOT", "not well-formed"},
		"crossed":              {"<ROOT><a></ROOT></a>", "unexpected </"},
		"two roots":            {"<ROOT/><ROOT/>", "second element"},
		"text behind":          {"<ROOT/>x", "text outside"},
		"attribute twice":      {"<ROOT a='1' a='2'/>", "occurs twice"},
		"entity bomb":          {bomb, "document type"},
		"external entity":      {`<!DOCTYPE ROOT SYSTEM "file:///etc/passwd"><ROOT/>`, "document type"},
		"unknown entity":       {"<ROOT>&b;</ROOT>", "not well-formed"},
		"declaration later":    {" <?xml version='1.0'?><ROOT/>", "not at the beginning"},
		"another encoding":     {"<?xml version='1.0' encoding='UTF-16'?><ROOT/>", "not well-formed"},
		"not UTF-8":            {"<ROOT>\xff</ROOT>", "not well-formed"},
		"control character":    {"<ROOT>\x01</ROOT>", "not well-formed"},
		"deep":                 {"<ROOT>" + strings.Repeat("<a>", 1000), "nested more than"},
		"deeper still":         {strings.Repeat("<ROOT>", 1<<12), "nested more than"},
		"many elements":        {"<ROOT>" + strings.Repeat("<a/>", 1<<17) + "</ROOT>", "elements and attributes"},
		"many attributes":      {"<ROOT " + manyAttributes(1<<17) + "/>", "elements and attributes"},
		"too long":             {"<ROOT>" + strings.Repeat(" ", domain.MaxXML) + "</ROOT>", "longer than"},
		"comments in the text": {"<ROOT>" + strings.Repeat("a<!---->", 1<<16) + "</ROOT>", "domain"},
	} {
		for root, parse := range parsers() {
			t.Run(name+"/"+root, func(t *testing.T) {
				t.Parallel()
				err := parse([]byte(strings.ReplaceAll(c.text, "ROOT", root)))
				if err == nil || !strings.Contains(err.Error(), c.want) {
					t.Fatalf("error %.300v, want one with %q", err, c.want)
				}
				if len(err.Error()) > 1000 {
					t.Errorf("the error is %d bytes long", len(err.Error()))
				}
			})
		}
	}
}

func manyAttributes(n int) string {
	var b strings.Builder
	for i := range n {
		b.WriteString(" a" + strings.Repeat("b", i%7) + string(rune('a'+i%26)) + "='1'")
	}
	return b.String()
}

// The memory that parsing takes is a small multiple of the text's length. The
// program's own counters are read, so nothing runs beside it.
func TestMemoryOfParsing(t *testing.T) {
	text := []byte("<domain><name>web</name><metadata>" + strings.Repeat("<a b='c'>d</a>", 60000) +
		strings.Repeat(" ", 4<<20) + "</metadata><devices/></domain>")
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	d, err := domain.Parse(text)
	runtime.ReadMemStats(&after)
	if err != nil || d.Name != "web" {
		t.Fatal(err)
	}
	if used := after.TotalAlloc - before.TotalAlloc; used > 200<<20 {
		t.Errorf("%d MiB for %d MiB of XML", used>>20, len(text)>>20)
	}
}

func TestReadIsBounded(t *testing.T) {
	t.Parallel()
	if _, err := domain.Read(endless{}, "stdin"); err == nil || !strings.Contains(err.Error(), "longer than 8 MiB") {
		t.Fatal(err)
	}
}

type endless struct{}

func (endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = ' '
	}
	return len(p), nil
}
