// SPDX-License-Identifier: Apache-2.0

package chain

import (
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/google/uuid"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/objstore"
	"github.com/imgbackup/imgbackup/objstore/hidden"
)

// MaxName is the longest name of a checkpoint, a disk or a domain, bytes.
const MaxName = 200

// ConfigKey is the key of a repository's configuration.
const ConfigKey = objstore.Marker

const (
	domainsPrefix     = "domains/"
	checkpointsFolder = "checkpoints"
	intentsFolder     = "intents"
	forgottenName     = "forgotten.json"
	leasesPrefix      = "leases/"
	accessPrefix      = "keys/"
	jsonSuffix        = ".json"
)

// CheckName says why a string can't name a checkpoint or a disk: libvirt's
// pattern for checkpoints, [A-Za-z0-9_-][A-Za-z0-9_.-]*, of at most MaxName bytes.
func CheckName(s string) error {
	switch {
	case s == "":
		return errors.New("a name must not be empty")
	case len(s) > MaxName:
		return fmt.Errorf("a name must not be longer than %d bytes: %.40q… has %d", MaxName, s, len(s))
	case s[0] == '.':
		return fmt.Errorf("a name must not begin with a dot: %q", s)
	}
	for i := range len(s) {
		if !nameByte(s[i]) {
			return fmt.Errorf("a name may only have letters, digits, and the characters _ . -: %q", s)
		}
	}
	return nil
}

func nameByte(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '_' || c == '.' || c == '-'
}

// maxEncoded is the longest encoded name of a domain, bytes: what one part of a
// key, and a name in a file system, can have.
const maxEncoded = 255

// CheckDomain says why a string can't name a domain: people give them names of
// any printable characters. They are UTF-8, of at most MaxName bytes, and at most
// 255 bytes when encoded.
func CheckDomain(s string) error {
	switch {
	case s == "":
		return errors.New("a domain's name must not be empty")
	case len(s) > MaxName || len(EncodeDomain(s)) > maxEncoded:
		return fmt.Errorf("a domain's name must not be longer than %d bytes, and %d where others than letters, digits and _ . - count three: %.40q…", MaxName, maxEncoded, s)
	case s[0] == '.':
		return fmt.Errorf("a domain's name must not begin with a dot: %q", s)
	case hidden.Is(s):
		return fmt.Errorf("no domain can be called as hidden names are stored: %q", s)
	case !utf8.ValidString(s) || strings.Contains(s, "/") || strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }):
		return fmt.Errorf("a domain's name may have all characters that can be printed, but no slash: %q", s)
	}
	return nil
}

// EncodeDomain returns the part of a key that stands for a domain, as [objstore.EncodePart] does.
// What stands for a name that is hidden, and not known, stays.
func EncodeDomain(s string) string {
	if hidden.Is(s) {
		return s
	}
	return objstore.EncodePart(s)
}

// DecodeDomain is the reverse of EncodeDomain, and refuses what that does not write.
func DecodeDomain(part string) (string, error) {
	if hidden.Is(part) {
		return part, nil
	}
	s, ok := objstore.DecodePart(part)
	if !ok {
		return "", fmt.Errorf("not an encoded domain name: %.300q", part)
	}
	return s, nil
}

// checkSlotNames says why no manifest can stand where these names lead: what a listing shows of
// one that tells no name leads there, too.
func checkSlotNames(domain, checkpoint string) error {
	var err error
	if !hidden.Is(domain) {
		err = CheckDomain(domain)
	}
	if !hidden.Is(checkpoint) {
		err = errors.Join(err, CheckName(checkpoint))
	}
	return err
}

// BitmapName is the name of the bitmap that a checkpoint adds to its images: the
// checkpoint's name alone is no identity, since it may be used again.
func BitmapName(checkpoint, id string) string {
	digits := strings.ReplaceAll(id, "-", "")
	return checkpoint + "." + digits[:min(16, len(digits))]
}

// ParseBitmapName returns the name of the checkpoint that may have added a bitmap
// of this name, and whether it is named so at all: see [BitmapName].
func ParseBitmapName(bitmap string) (checkpoint string, ok bool) {
	at := len(bitmap) - 17
	if at < 1 || bitmap[at] != '.' || strings.Trim(bitmap[at+1:], "0123456789abcdef") != "" {
		return "", false
	}
	return bitmap[:at], CheckName(bitmap[:at]) == nil
}

// ManifestKey is the key of a checkpoint's manifest.
func ManifestKey(domain, checkpoint string) string {
	return checkpointsPrefix(domain) + checkpoint + jsonSuffix
}

func checkpointsPrefix(domain string) string {
	return domainsPrefix + EncodeDomain(domain) + "/" + checkpointsFolder + "/"
}

func intentsPrefix(domain string) string {
	return domainsPrefix + EncodeDomain(domain) + "/" + intentsFolder + "/"
}

func intentKey(domain, id string) string { return intentsPrefix(domain) + id + jsonSuffix }

func leaseKey(host, id string) string { return leasesPrefix + host + "/" + id + jsonSuffix }

// KeyKind is what a key is the key of.
type KeyKind int

// The kinds of keys.
const (
	KeyUnknown KeyKind = iota // of no object of a repository
	KeyConfig
	KeyManifest
	KeyIntent
	KeyLease
	KeyForgotten
	KeySeen
	KeyData // a pack, map, bitmap, cluster map, file or index: [archive.ParseKey] takes it apart
	KeyMark
	KeyMarkList
	KeyProofs
	KeyLocked
	KeyAccess         // of an encrypted repository: who may open it
	KeyDrill          // the record of a drill
	KeyDrillSignature // what signs it
	KeyStrike         // what a host's run needs of what is marked
)

// Key is a key that has been taken apart.
type Key struct {
	Kind   KeyKind
	Domain string // of a manifest, an intent, a forgotten list, a drill or what was seen
	Name   string // of a checkpoint; the uuid of an intent, a lease or a drill
	Host   string // of a lease or a strike: the part that stands for its host
}

// ParseKey takes the key of any object of a repository apart. What it does not
// recognise is KeyUnknown; what it does recognise has exactly one key.
func ParseKey(key string) Key {
	if key == ConfigKey {
		return Key{Kind: KeyConfig}
	}
	if _, _, ok := archive.ParseKey(key); ok {
		return Key{Kind: KeyData}
	}
	switch {
	case key == MarkKey:
		return Key{Kind: KeyMark}
	case key == proofsKey:
		return Key{Kind: KeyProofs}
	case strings.HasPrefix(key, accessPrefix):
		return Key{Kind: KeyAccess}
	case key == lockedKey:
		return Key{Kind: KeyLocked}
	case parseMarkListKey(key):
		return Key{Kind: KeyMarkList}
	}
	if rest, ok := strings.CutPrefix(key, drillsPrefix); ok {
		return parseDrillKey(rest)
	}
	base, ok := strings.CutSuffix(key, jsonSuffix)
	if !ok {
		return Key{}
	}
	if rest, ok := strings.CutPrefix(base, leasesPrefix); ok {
		host, id, _ := strings.Cut(rest, "/")
		kind := KeyLease
		if run, ok := strings.CutPrefix(id, strikesFolder+"/"); ok {
			kind, id = KeyStrike, run
		}
		if host == "" || host != EncodeDomain(host) || validUUID(id) != nil {
			return Key{}
		}
		return Key{Kind: kind, Host: host, Name: id}
	}
	parts := strings.Split(base, "/")
	if len(parts) < 3 || len(parts) > 4 || parts[0]+"/" != domainsPrefix {
		return Key{}
	}
	domain, err := DecodeDomain(parts[1])
	if err != nil {
		return Key{}
	}
	if len(parts) == 3 {
		if key == forgottenKey(domain) {
			return Key{Kind: KeyForgotten, Domain: domain}
		}
		if key == seenKey(domain) {
			return Key{Kind: KeySeen, Domain: domain}
		}
		return Key{}
	}
	k := Key{Domain: domain, Name: parts[3]}
	switch {
	case parts[2] == checkpointsFolder && (CheckName(k.Name) == nil || hidden.Is(k.Name)):
		k.Kind = KeyManifest
	case parts[2] == intentsFolder && validUUID(k.Name) == nil:
		k.Kind = KeyIntent
	default:
		return Key{}
	}
	return k
}

// parseDrillKey takes apart what follows [drillsPrefix].
func parseDrillKey(rest string) Key {
	part, name, _ := strings.Cut(rest, "/")
	k := Key{Kind: KeyDrill}
	id, ok := strings.CutSuffix(name, jsonSuffix)
	if !ok {
		k.Kind = KeyDrillSignature
		id, ok = strings.CutSuffix(name, signatureSuffix)
	}
	domain, err := DecodeDomain(part)
	if !ok || err != nil || CheckDomain(domain) != nil && !hidden.Is(domain) || validUUID(id) != nil {
		return Key{}
	}
	k.Domain, k.Name = domain, id
	return k
}

// NewUUID returns a new random UUID in its canonical form.
func NewUUID() string { return uuid.NewString() }

// UUIDWithPrefix returns a new UUID whose first half is the 16 hexadecimal digits
// that a bitmap's name ends with; see BitmapName.
func UUIDWithPrefix(digits string) (string, error) {
	id := uuid.New()
	half, err := hex.DecodeString(digits)
	if err != nil || len(half) != 8 {
		return "", fmt.Errorf("not 16 hexadecimal digits: %.80q", digits)
	}
	copy(id[:], half)
	return id.String(), nil
}

// validUUID accepts the canonical form only: 36 lower-case characters.
func validUUID(s string) error {
	_, err := uuid.Parse(s)
	if err != nil || len(s) != 36 || strings.ToLower(s) != s {
		return fmt.Errorf("not a UUID in lower case: %.80q", s)
	}
	return nil
}
