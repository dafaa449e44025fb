// SPDX-License-Identifier: Apache-2.0

package keys

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// Pin is what an identity file says of the repository that it belongs to, in its comment
// lines. Who has it takes no other repository for this one, and no older state of its roster.
type Pin struct {
	Repository string // its id
	Name       string // of the member
	RosterKey  string // base64: signs the roster's first revision
	Revision   int    // of the roster, when the file was written
	Roster     string // the SHA-256 of that revision, hex
	Generation int    // of the keys, then
	DataKey    string // the recipient, then
}

const (
	pinRepository = "repository"
	pinName       = "member"
	pinRosterKey  = "roster-key"
	pinRoster     = "roster"
	pinGeneration = "generation"
	pinDataKey    = "data-key"
)

// String is the comment lines.
func (p *Pin) String() string {
	var b strings.Builder
	for _, f := range [][2]string{
		{pinRepository, p.Repository}, {pinName, p.Name}, {pinRosterKey, p.RosterKey},
		{pinRoster, strconv.Itoa(p.Revision) + " " + p.Roster}, {pinGeneration, strconv.Itoa(p.Generation)}, {pinDataKey, p.DataKey},
	} {
		fmt.Fprintf(&b, "# imgbackup-%s: %s\n", f[0], f[1])
	}
	return b.String()
}

// ParsePin finds the lines of a pin in a file; nil: it has none. One that has only some of
// them, or one of them twice, is refused.
func ParsePin(data []byte) (*Pin, error) {
	fields, err := comments(data)
	if err != nil || len(fields) == 0 {
		return nil, err
	}
	revision, digest, _ := strings.Cut(fields[pinRoster], " ")
	p := &Pin{
		Repository: fields[pinRepository], Name: fields[pinName], RosterKey: fields[pinRosterKey],
		Revision: parseNumber(revision, maxRevisions), Roster: digest,
		Generation: parseNumber(fields[pinGeneration], maxGenerations), DataKey: fields[pinDataKey],
	}
	_, kerr := parsePublic(p.RosterKey)
	_, derr := parseNative(p.DataKey)
	if err := errors.Join(kerr, derr, CheckName(p.Name)); err != nil || p.Repository == "" || len(p.Repository) > 36 ||
		p.Revision == 0 || !isDigest(digest) || p.Generation == 0 {
		return nil, errors.New("its lines that begin with # imgbackup- are not all there, or were changed: write the file anew (imgbackup key add --out)")
	}
	return p, nil
}

// comments are the fields of lines "# imgbackup-NAME: VALUE".
func comments(data []byte) (map[string]string, error) {
	fields := make(map[string]string)
	for line := range bytes.Lines(data) {
		rest, ok := strings.CutPrefix(strings.TrimSpace(string(line)), "# imgbackup-")
		if !ok {
			continue
		}
		name, value, ok := strings.Cut(rest, ": ")
		if _, twice := fields[name]; !ok || twice {
			return nil, fmt.Errorf("the line %.40q is there twice, or is none", "# imgbackup-"+name)
		}
		fields[name] = value
	}
	return fields, nil
}

// check compares a roster with what is pinned.
func (p *Pin) check(r *Roster, digests []string) error {
	refuse := func(format string, args ...any) error {
		return &Error{What: "the identity of " + p.Name + " belongs to another state of this repository, which may have been replaced: " + fmt.Sprintf(format, args...)}
	}
	switch {
	case p.Revision > len(digests):
		return refuse("its roster has revision %d, and had %d before", len(digests), p.Revision)
	case digests[p.Revision-1] != p.Roster:
		return refuse("revision %d of its roster is another one", p.Revision)
	case p.Generation > r.Generation():
		return refuse("its keys are of generation %d, and were of %d before", r.Generation(), p.Generation)
	case r.Generations[p.Generation-1].DataKey != p.DataKey:
		return refuse("its data key is another one")
	}
	return nil
}

// checkRepository compares what the configuration says with what is pinned, before
// anything else is read.
func (p *Pin) checkRepository(repository, rosterKey string) error {
	switch {
	case p == nil:
		return nil
	case p.Repository != repository:
		return &Error{What: fmt.Sprintf("the identity of %s belongs to repository %s, and this is %s"+
			" (if that is a second one, of init --keys-of: the file's line AGE-SECRET-KEY-…, in a file of its own, opens both)", p.Name, p.Repository, jsonText(repository))}
	case p.RosterKey != rosterKey:
		return &Error{What: fmt.Sprintf("the identity of %s belongs to a repository whose roster another key signs: it was replaced", p.Name)}
	}
	return nil
}

// jsonText is text that may be anybody's, as it can be shown.
func jsonText(s string) string {
	if len(s) > 80 {
		s = s[:80]
	}
	b, err := json.Marshal(s)
	if err != nil {
		return "?"
	}
	return strings.Trim(string(b), `"`)
}
