// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/imgbackup/imgbackup/drill/plan"
)

// Where is a file in a guest.
type Where struct {
	Disk   string // empty: that of the operating system
	Device string // a volume, as libguestfs names it; empty: the disk's root, or its only file system
	Path   string // absolute, in the guest
}

// String is the file as it is written on a command line.
func (w Where) String() string {
	var parts []string
	for _, p := range []string{w.Disk, w.Device, w.Path} {
		if p != "" {
			parts = append(parts, p)
		}
	}
	return strings.Join(parts, ":")
}

// Expectation is what is expected of one file.
type Expectation struct {
	Where
	SHA256 string         // of its content, 64 hexadecimal digits; empty: not asked
	Match  *regexp.Regexp // somewhere in its content, ^ and $ are of lines; nil: not asked
	Within time.Duration  // it, or a file in it, is younger than that before the checkpoint; 0: not asked
}

// Parse reads the expectations of a plan: [DISK:[DEVICE:]]/PATH=sha256:DIGITS, =~REGEX,
// and of ExpectNewer =TIME.
func Parse(expect, newer []string) ([]Expectation, error) {
	var all []Expectation
	for _, text := range expect {
		at, what, err := cutWhere(text)
		if err != nil {
			return nil, fmt.Errorf("expect: %w", err)
		}
		e := Expectation{Where: at}
		sum, isSum := strings.CutPrefix(what, "=sha256:")
		pattern, isPattern := strings.CutPrefix(what, "=~")
		switch {
		case isSum && sumPattern.MatchString(sum):
			e.SHA256 = strings.ToLower(sum)
		case isPattern:
			// By lines: a file of one line ends with the line's end.
			if e.Match, err = regexp.Compile("(?m)" + pattern); err != nil {
				return nil, fmt.Errorf("expect: %s: %w", at, err)
			}
		default:
			return nil, fmt.Errorf("expect: %.80q: want DISK:/PATH=sha256: and 64 digits, or DISK:/PATH=~REGEX", text)
		}
		all = append(all, e)
	}
	for _, text := range newer {
		at, what, err := cutWhere(text)
		if err != nil {
			return nil, fmt.Errorf("expect-newer: %w", err)
		}
		within, err := plan.ParseDuration(strings.TrimPrefix(what, "="))
		if err != nil || within == 0 {
			return nil, fmt.Errorf("expect-newer: %.80q: want [DISK:]/PATH=24h", text)
		}
		all = append(all, Expectation{Where: at, Within: within})
	}
	return all, nil
}

var sumPattern = regexp.MustCompile(`^[0-9a-fA-F]{64}$`)

// cutWhere parts a file from what is expected of it, which begins with the last = that
// can begin it.
func cutWhere(text string) (w Where, what string, err error) {
	i := strings.Index(text, "=sha256:")
	if i < 0 {
		i = strings.Index(text, "=~")
	}
	if i < 0 {
		i = strings.LastIndexByte(text, '=')
	}
	if i < 0 {
		return w, "", fmt.Errorf("%.80q: it has no =", text)
	}
	file := text[:i]
	if !strings.HasPrefix(file, "/") {
		disk, rest, ok := strings.Cut(file, ":")
		if !ok || disk == "" {
			return w, "", fmt.Errorf("%.80q: want [DISK:[DEVICE:]]/PATH", text)
		}
		w.Disk, file = disk, rest
		if device, path, ok := strings.Cut(file, ":/"); ok && strings.HasPrefix(file, "/dev/") {
			w.Device, file = device, "/"+path
		}
	}
	w.Path = file
	if !strings.HasPrefix(w.Path, "/") || strings.ContainsRune(w.Path, 0) {
		return w, "", fmt.Errorf("%.80q: the path in the guest must begin with /", text)
	}
	return w, text[i:], nil
}
