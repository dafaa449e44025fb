// SPDX-License-Identifier: Apache-2.0

package domain

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/google/uuid"
)

// shape is what a schema allows in an element: attributes, and children, each
// of which occurs at most once unless it is named with a star.
type shape struct {
	attrs []string
	kids  []string
	text  bool
}

// check refuses what the schema does not know. Namespace declarations may stand
// anywhere.
func (n *node) check(s shape) error {
	for _, a := range n.attrs {
		if !slices.Contains(s.attrs, a.name) && !strings.HasPrefix(a.name, "xmlns:") {
			return n.errorf("attribute %s is not allowed here", a.name)
		}
	}
	seen := make(map[string]struct{})
	for _, k := range n.kids {
		many := slices.Contains(s.kids, k.name+"*")
		if !many && !slices.Contains(s.kids, k.name) {
			return k.errorf("this element is not allowed in <%s>", n.name)
		}
		if _, twice := seen[k.name]; twice && !many {
			return k.errorf("this element may occur only once in <%s>", n.name)
		}
		seen[k.name] = struct{}{}
	}
	if !s.text && n.hasText() {
		return n.errorf("text is not allowed here")
	}
	return nil
}

// oneOf refuses an attribute with another value than these. It may be absent.
func (n *node) oneOf(name string, allowed ...string) error {
	v, ok := n.attr(name)
	if ok && !slices.Contains(allowed, v) {
		return n.errorf("%s=%q: want %s", name, clip(v), strings.Join(allowed, " or "))
	}
	return nil
}

// required returns an attribute that must be there and not be empty.
func (n *node) required(name string) (string, error) {
	v, ok := n.attr(name)
	if !ok || v == "" {
		return "", n.errorf("attribute %s is missing", name)
	}
	return v, nil
}

// clip shortens what an error quotes.
func clip(s string) string {
	const limit = 80
	if len(s) <= limit {
		return s
	}
	return s[:limit] + "…"
}

// CheckTarget returns an error for what is no name of a disk in libvirt's XML.
func CheckTarget(s string) error {
	if !validTarget(s) {
		return fmt.Errorf("%q is no name of a disk in libvirt's XML, as vda is", clip(s))
	}
	return nil
}

// validTarget is the schema's diskTargetDev: (ioemu:)?(fd|hd|sd|vd|xvd|ubd)[a-zA-Z0-9_]+
func validTarget(s string) bool {
	s = strings.TrimPrefix(s, "ioemu:")
	for _, prefix := range targetPrefixes {
		if rest, ok := strings.CutPrefix(s, prefix); ok {
			return rest != "" && strings.IndexFunc(rest, func(r rune) bool { return !word(r) }) < 0
		}
	}
	return false
}

func word(r rune) bool {
	return 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || r == '_'
}

// validPath is the schema's absFilePath: (/|[a-zA-Z]:\\).+ without line ends.
func validPath(s string) bool {
	if strings.ContainsAny(s, "\r\n\x00") {
		return false
	}
	if rest, ok := strings.CutPrefix(s, "/"); ok {
		return rest != ""
	}
	return len(s) > 3 && word(rune(s[0])) && (s[0] < '0' || s[0] > '9') && s[0] != '_' && s[1:3] == `:\`
}

// validCheckpoint is the schema's checkpointName.
func validCheckpoint(s string) bool {
	if s == "" || s[0] == '.' {
		return false
	}
	return strings.IndexFunc(s, func(r rune) bool { return !word(r) && r != '-' && r != '.' }) < 0
}

// canonicalUUID accepts what libvirt accepts of a UUID and returns its usual
// form.
func canonicalUUID(s string) (string, bool) {
	s = strings.TrimSpace(s)
	if len(s) != 32 && len(s) != 36 {
		return "", false
	}
	id, err := uuid.Parse(s)
	if err != nil {
		return "", false
	}
	return id.String(), true
}

// number is the schema's unsignedInt or unsignedLong: digits alone.
func number(s string, bits int) (uint64, bool) {
	if s == "" || strings.IndexFunc(s, func(r rune) bool { return r < '0' || r > '9' }) >= 0 {
		return 0, false
	}
	n, err := strconv.ParseUint(s, 10, bits)
	return n, err == nil
}
