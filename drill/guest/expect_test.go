// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

const digits = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

func TestParse(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"vda:/etc/hostname=sha256:" + digits:                  "vda||/etc/hostname|" + digits + "|<nil>",
		"vda:/etc/hostname=sha256:" + strings.ToUpper(digits): "vda||/etc/hostname|" + digits + "|<nil>",
		"/etc/hostname=~^web=1$":                              "||/etc/hostname||(?m)^web=1$",
		"vda:/dev/sda2:/a:/b=~x":                              "vda|/dev/sda2|/a:/b||(?m)x",
		"vdb:/dev/vg0/root:/=odd=~x":                          "vdb|/dev/vg0/root|/=odd||(?m)x",
		"vda:/dev/null=~x":                                    "vda||/dev/null||(?m)x", // a file of the guest
		"vda:/etc/hostname=~sha256:":                          "vda||/etc/hostname||(?m)sha256:",
		"vda:/etc/hostname":                                   "",
		"vda:etc/hostname=~x":                                 "",
		":/etc/hostname=~x":                                   "",
		"etc=~x":                                              "",
		"vda:/etc/hostname=sha256:" + digits[1:]:              "",
		"vda:/etc/hostname=~(":                                "",
		"vda:/etc/hostname=md5:abc":                           "",
		"vda:/etc/\x00=~x":                                    "",
	} {
		all, err := Parse([]string{text}, nil)
		if want == "" {
			if err == nil || !strings.HasPrefix(err.Error(), "expect: ") {
				t.Errorf("%q: %v", text, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%q: %v", text, err)
			continue
		}
		e := all[0]
		if got := fmt.Sprintf("%s|%s|%s|%s|%v", e.Disk, e.Device, e.Path, e.SHA256, e.Match); got != want {
			t.Errorf("%q is %s, want %s", text, got, want)
		}
	}
}

// TestLines: a pattern is one of lines, so that the end of the last one is no part of what is
// looked for.
func TestLines(t *testing.T) {
	t.Parallel()
	all, err := Parse([]string{"vda:/etc/hostname=~^web$"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	for content, want := range map[string]bool{"web": true, "web\n": true, "# name\nweb\n": true, "web1\n": false, "aweb\n": false} {
		if all[0].Match.MatchString(content) != want {
			t.Errorf("%q: not %v", content, want)
		}
	}
}

func TestParseNewer(t *testing.T) {
	t.Parallel()
	all, err := Parse(nil, []string{"/var/log=24h", "vda:/x=y=2d"})
	if err != nil || all[0].Within != 24*time.Hour || all[0].Path != "/var/log" || all[1].Within != 48*time.Hour || all[1].Path != "/x=y" {
		t.Errorf("%+v, %v", all, err)
	}
	for _, text := range []string{"/var/log", "/var/log=", "/var/log=0s", "/var/log=soon", "var=1h"} {
		if _, err := Parse(nil, []string{text}); err == nil {
			t.Errorf("%q is taken", text)
		}
	}
}

// Whatever is taken is a path in the guest, and is written as it is read.
func FuzzParse(f *testing.F) {
	f.Add("vda:/etc/hostname=~x")
	f.Add("vda:/dev/sda2:/a=~x")
	f.Add("/x=sha256:" + digits)
	f.Fuzz(func(t *testing.T, text string) {
		all, err := Parse([]string{text}, nil)
		if err != nil {
			return
		}
		e := all[0]
		if !strings.HasPrefix(e.Path, "/") || e.Device != "" && !strings.HasPrefix(e.Device, "/dev/") || (e.SHA256 == "") == (e.Match == nil) {
			t.Errorf("%q is taken as %+v", text, e)
		}
		if !strings.HasPrefix(text, e.String()) {
			t.Errorf("%q is about %s", text, e.Where)
		}
	})
}
