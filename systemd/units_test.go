// SPDX-License-Identifier: Apache-2.0

package systemd

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/imgbackup/imgbackup/config"
)

const text = `
repositories:
  site1:
    place: /backup
    passphrase: {credential: phrase}
    credentials: {AWS_SECRET_ACCESS_KEY: {credential: s3-secret}, AWS_PROFILE: site}
  off: {place: s3://bucket/x, credentials: {AWS_ACCESS_KEY_ID: {credential: s3-id}}}
notices: {mon: {ping: {url: {credential: ping}}}, other: {ping: {url: {credential: unused}}}}
jobs:
  nightly: {repository: site1, domains: [web], schedule: "30 2 * * 1-5", random_delay: 20m, notices: [mon]}
  drilled: {repository: site1, domains: [web], copy: {to: [off]}, drill: {}, schedule: "0 4 1,15 * Sun"}
  by-hand: {repository: site1, domains: [web]}
`

func TestUnits(t *testing.T) {
	t.Parallel()
	c, _, err := config.Parse("f", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	// The program that units name must be there for systemd-analyze to be content.
	program, err := exec.LookPath("true")
	if err != nil {
		t.Fatal(err)
	}
	files, err := Units(c, program, "/etc/img backup/100%.yaml")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	var names, paths []string
	all := make(map[string]string)
	for _, f := range files {
		names, all[f.Name] = append(names, f.Name), f.Text
		path := filepath.Join(dir, f.Name)
		paths = append(paths, path)
		if err := os.WriteFile(path, []byte(f.Text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want := []string{"imgbackup@by-hand.service", "imgbackup@drilled.service", "imgbackup@drilled.timer", "imgbackup@nightly.service", "imgbackup@nightly.timer"}
	if !slices.Equal(names, want) {
		t.Fatalf("got %v", names)
	}
	for name, lines := range map[string][]string{
		"imgbackup@nightly.timer":   {"OnCalendar=Mon,Tue,Wed,Thu,Fri *-*-* 2:30:00", "RandomizedDelaySec=1200", "Persistent=true", "WantedBy=timers.target"},
		"imgbackup@drilled.timer":   {"OnCalendar=*-*-1,15 4:0:00", "OnCalendar=Sun *-*-* 4:0:00"},
		"imgbackup@nightly.service": {"LoadCredential=phrase", "LoadCredential=s3-secret", "LoadCredential=ping", `ExecStart=` + program + ` run --config "/etc/img backup/100%%.yaml" nightly`},
		"imgbackup@drilled.service": {"LoadCredential=s3-id"},
	} {
		for _, line := range lines {
			if !strings.Contains(all[name], "\n"+line+"\n") {
				t.Errorf("%s has no line %s:\n%s", name, line, all[name])
			}
		}
	}
	if strings.Contains(all["imgbackup@nightly.service"], "unused") || strings.Contains(all["imgbackup@nightly.service"], "s3-id") {
		t.Error("a service is given what it does not need")
	}
	out, err := exec.Command("systemd-analyze", append([]string{"verify", "--man=false", "--recursive-errors=no"}, paths...)...).CombinedOutput()
	if err != nil || len(out) > 0 {
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
	for _, path := range paths {
		if strings.HasSuffix(path, ".service") {
			exposure(t, path)
		}
	}
}

var level = regexp.MustCompile(`Overall exposure level for .*: ([0-9.]+)`)

// exposure sees that systemd finds a service hardened enough.
func exposure(t *testing.T, path string) {
	out, err := exec.Command("systemd-analyze", "security", "--no-pager", "--offline=true", path).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	m := level.FindSubmatch(out)
	if m == nil {
		t.Fatalf("no level is told:\n%s", out)
	}
	n, err := strconv.ParseFloat(string(m[1]), 64)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s: %.1f", filepath.Base(path), n)
	if n >= 5 {
		t.Errorf("%s: exposure %.1f\n%s", path, n, out)
	}
}

func TestCalendar(t *testing.T) {
	t.Parallel()
	for cron, want := range map[string]string{
		"0 * * * *":        "*-*-* *:0:00",
		"*/20 8-10 * * *":  "*-*-* 8,9,10:0,20,40:00",
		"0 0 1 * *":        "*-*-1 0:0:00",
		"0 0 * 2,12 *":     "*-2,12-* 0:0:00",
		"0 0 * * 0":        "Sun *-*-* 0:0:00",
		"0 0 * * 7":        "Sun *-*-* 0:0:00",
		"0 0 * * mon-wed":  "Mon,Tue,Wed *-*-* 0:0:00",
		"0 0 13 * 5":       "*-*-13 0:0:00 | Fri *-*-* 0:0:00",
		"15 3 1-7/2 jan *": "*-1-1,3,5,7 3:15:00",
	} {
		got, err := calendar(cron)
		if err != nil || strings.Join(got, " | ") != want {
			t.Errorf("%s: %v, %v; want %s", cron, got, err, want)
			continue
		}
		for _, line := range got {
			if out, err := exec.Command("systemd-analyze", "calendar", line).CombinedOutput(); err != nil {
				t.Errorf("%s: %v\n%s", line, err, out)
			}
		}
	}
}
