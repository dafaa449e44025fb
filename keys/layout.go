// SPDX-License-Identifier: Apache-2.0

package keys

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// Prefix is that of all keys of objects that this package has.
const Prefix = "keys/"

const (
	rosterPrefix     = Prefix + "roster/"
	dataPrefix       = Prefix + "data/"
	metadataPrefix   = Prefix + "metadata/"
	signingPrefix    = Prefix + "signing/"
	identitiesPrefix = Prefix + "identities/"
	standingPrefix   = Prefix + "standing/"
	jsonSuffix       = ".json"
	ageSuffix        = ".age"
	standingSuffix   = ".zst"
)

// Bounds of what is read here.
const (
	maxNameLength  = 100
	maxRoster      = 4 << 20 // bytes
	maxFile        = 64 << 10
	maxMembers     = 4096
	maxRevisions   = 9999
	maxGenerations = 999
	maxDomains     = 256
	maxRecipient   = 8192 // bytes; a hybrid one has 1,959
)

// CheckName says why a member can't be called so: names match [A-Za-z0-9_][A-Za-z0-9_.-]*.
func CheckName(s string) error {
	switch {
	case s == "":
		return errors.New("a key's name must not be empty")
	case len(s) > maxNameLength:
		return fmt.Errorf("a key's name has at most %d bytes: %.40q… has %d", maxNameLength, s, len(s))
	case s[0] == '.' || s[0] == '-':
		return fmt.Errorf("a key's name must not begin with %q: %q", s[:1], s)
	}
	for i := range len(s) {
		c := s[i]
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '_' && c != '.' && c != '-' {
			return fmt.Errorf("a key's name may only have letters, digits, and the characters _ . -: %q", s)
		}
	}
	return nil
}

func rosterKey(revision int) string { return rosterPrefix + strconv.Itoa(revision) + jsonSuffix }
func dataKey(g *Generation, name string) string {
	return dataPrefix + g.folder() + "/" + name + ageSuffix
}
func metadataKey(g *Generation, name string) string {
	return metadataPrefix + g.folder() + "/" + name + ageSuffix
}

// folder is where the files of a generation are. No other keys of the same number have it: of
// two who rotate at once, or after one that was killed, nobody replaces what the other's
// roster names.
func (g *Generation) folder() string {
	return strconv.Itoa(g.Number) + "-" + digestOf([]byte(g.DataKey + "\n" + g.MetadataKey + "\n"))[:folderDigits]
}

const folderDigits = 16

func signingKey(name string) string  { return signingPrefix + name + ageSuffix }
func identityKey(name string) string { return identitiesPrefix + name + ageSuffix }
func standingKey(digest string) string {
	return standingPrefix + digest[:2] + "/" + digest + standingSuffix
}

// Kind is what an object under keys/ is.
type Kind int

// The kinds of objects.
const (
	Unknown Kind = iota
	RosterObject
	DataObject
	MetadataObject
	SigningObject
	IdentityObject
	StandingObject
)

// Key is the key of an object under keys/, taken apart.
type Key struct {
	Kind   Kind
	Number int    // the revision of a roster, the generation of a key
	Name   string // of the member; the digest of a list of what stands
	Folder string // of a generation's keys
}

// ParseKey takes a key apart. What it does not recognise is Unknown; what it does recognise
// has exactly one key.
func ParseKey(key string) Key {
	for _, p := range []struct {
		kind           Kind
		prefix, suffix string
	}{
		{RosterObject, rosterPrefix, jsonSuffix}, {DataObject, dataPrefix, ageSuffix},
		{MetadataObject, metadataPrefix, ageSuffix}, {SigningObject, signingPrefix, ageSuffix},
		{IdentityObject, identitiesPrefix, ageSuffix}, {StandingObject, standingPrefix, standingSuffix},
	} {
		rest, ok := strings.CutPrefix(key, p.prefix)
		if !ok {
			continue
		}
		if rest, ok = strings.CutSuffix(rest, p.suffix); !ok {
			return Key{}
		}
		return parsePart(p.kind, rest)
	}
	return Key{}
}

func parsePart(kind Kind, rest string) Key {
	k := Key{Kind: kind, Name: rest}
	limit := maxGenerations
	switch kind {
	case RosterObject:
		k.Name, limit = "", maxRevisions
		k.Number = parseNumber(rest, limit)
		if k.Number == 0 {
			return Key{}
		}
		return k
	case DataObject, MetadataObject:
		folder, name, _ := strings.Cut(rest, "/")
		number, digits, _ := strings.Cut(folder, "-")
		k.Name, k.Number, k.Folder = name, parseNumber(number, limit), folder
		if k.Number == 0 || len(digits) != folderDigits || strings.Trim(digits, "0123456789abcdef") != "" {
			return Key{}
		}
	case StandingObject:
		ab, digest, _ := strings.Cut(rest, "/")
		k.Name = digest
		if !isDigest(digest) || ab != digest[:2] {
			return Key{}
		}
		return k
	}
	if CheckName(k.Name) != nil {
		return Key{}
	}
	return k
}

// parseNumber reads a number from 1 to limit in its only form; else it is 0.
func parseNumber(s string, limit int) int {
	n, err := strconv.Atoi(s)
	if err != nil || n < 1 || n > limit || strconv.Itoa(n) != s {
		return 0
	}
	return n
}

func isDigest(s string) bool { return len(s) == 64 && strings.Trim(s, "0123456789abcdef") == "" }
