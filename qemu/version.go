// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"bytes"
	"context"
	"fmt"
	"regexp"
	"strconv"
)

// Version is one of QEMU's, as 7.2.18.
type Version struct{ Major, Minor, Micro int }

func (v Version) String() string { return fmt.Sprintf("%d.%d.%d", v.Major, v.Minor, v.Micro) }

// Before reports whether v is older than w.
func (v Version) Before(w Version) bool {
	if v.Major != w.Major {
		return v.Major < w.Major
	}
	if v.Minor != w.Minor {
		return v.Minor < w.Minor
	}
	return v.Micro < w.Micro
}

// Found is one of QEMU's programs on this host.
type Found struct {
	Path    string
	Version Version
	Says    string // what it says of its version, with the package's: one line
}

// versionText is a version in what QEMU's programs say of themselves, each in its own words.
var versionText = regexp.MustCompile(`\s(\d{1,4})\.(\d{1,4})\.(\d{1,4})(?:\s|$)`)

// Find looks a program of QEMU's up in PATH, or at a path, and asks it for its version. Where it is not
// installed the error says so, and in which package it is.
func Find(ctx context.Context, name string) (f Found, err error) {
	p := program{name: name, args: []string{"--version"}}
	if f.Path, err = p.find(); err != nil {
		return f, err
	}
	run, err := p.run(ctx)
	if err == nil && run.status != 0 {
		err = run.failed(name + " --version")
	}
	if err != nil {
		return f, err
	}
	f.Version, f.Says, err = parseVersion(run.stdout)
	if err != nil {
		return f, fmt.Errorf("%s --version: %w", f.Path, err)
	}
	return f, nil
}

func parseVersion(out []byte) (v Version, says string, err error) {
	line, _, _ := bytes.Cut(out, []byte("\n"))
	m := versionText.FindSubmatch(line)
	if m == nil {
		return v, "", fmt.Errorf("%.80q tells no version", line)
	}
	for i, n := range []*int{&v.Major, &v.Minor, &v.Micro} {
		if *n, err = strconv.Atoi(string(m[i+1])); err != nil {
			return v, "", err
		}
	}
	return v, string(line), nil
}
