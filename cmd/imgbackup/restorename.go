// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/internal/usage"
	"github.com/imgbackup/imgbackup/qcow2"
	"github.com/imgbackup/imgbackup/restore"
)

// option is what a value of --to looks like where somebody took it for one of --disk.
var option = regexp.MustCompile(`,[a-z][a-z_-]*=`)

// checkToWords refuses a path that was not meant to be one.
func checkToWords(to, path string) error {
	if at := option.FindString(path); at != "" {
		return usage.Errorf("--to %q: it takes a path and no %s…: --format says what is written", to, strings.TrimPrefix(at, ","))
	}
	return nil
}

// checkToName refuses to write an image where its name, or the image that is there,
// says another format, and no --format was given: it is never guessed which was meant.
func checkToName(t restore.Target) error {
	if t.Path == restore.Stdout {
		return nil
	}
	for _, other := range []struct{ format, why string }{
		{formatOfName(t.Path), "its name says"},
		{formatOfFile(t.Path), "what is there now is"},
	} {
		if other.format != "" && other.format != string(t.Format) {
			return usage.Errorf("--to %s=%s would be written as %s, and %s %s: give --format %s, or --format %s if that is meant",
				t.Disk, t.Path, t.Format, other.why, other.format, other.format, t.Format)
		}
	}
	return nil
}

// formatOfName is the format whose suffix a file's name has; empty: none.
func formatOfName(path string) string {
	suffix := strings.ToLower(strings.TrimPrefix(filepath.Ext(path), "."))
	switch suffix {
	case "qcow2", "vmdk", "vhdx", "vdi", "qed", "raw":
		return suffix
	}
	return ""
}

// formatOfFile is the format of an image that is to be replaced, as far as its first
// bytes tell; empty: none, or there is no such file. It only ever leads to a refusal.
func formatOfFile(path string) string {
	if fi, err := os.Stat(path); err != nil || !fi.Mode().IsRegular() {
		return ""
	}
	f, err := os.Open(path)
	if err != nil {
		return "" // the restore will say so
	}
	defer func() { _ = f.Close() }() // it was only read
	like, err := qcow2.Resemble(f)
	if err != nil {
		return ""
	}
	return string(like.Format)
}

// noteDefinition tells of disks that the restored definition describes in another
// format than they have now.
func (a *app) noteDefinition(m *chain.Manifest, r *restore.Result) {
	at := ""
	for _, f := range r.Files {
		if f.Role == chain.RoleDomainXML && !f.Adjusted {
			at = f.Path
		}
	}
	if at == "" {
		return
	}
	var differ []string
	for _, d := range r.Disks {
		if was, ok := m.Disk(d.Disk); ok && was.Source.Format != d.Format {
			differ = append(differ, fmt.Sprintf("%s was %s and is %s here", d.Disk, was.Source.Format, d.Format))
		}
	}
	if len(differ) > 0 {
		a.note(fmt.Sprintf("%s says what it said: %s (--format chooses, and --adjust-xml lets it name the restored files)",
			at, strings.Join(differ, ", ")))
	}
}
