// SPDX-License-Identifier: Apache-2.0

package keys

import (
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"fmt"
	"path"
	"slices"
	"time"
)

// RosterFormat is the value of a roster's field "format".
const RosterFormat = "imgbackup-roster"

const rosterVersion = 1

// Role is what a member may do.
type Role string

// The roles.
const (
	Admin   Role = "admin"   // all
	Host    Role = "host"    // store its domains; read no data
	Manager Role = "manager" // keep order; read no data
	Drill   Role = "drill"   // read all; store nothing but records of drills
)

// Roles are all of them.
func Roles() []Role { return []Role{Admin, Host, Manager, Drill} }

// ReadsData reports whether the role has the private half of the data key.
func (r Role) ReadsData() bool { return r == Admin || r == Drill }

// Rehearses reports whether records of drills count from the role: from who reads the data, and
// from who copies them.
func (r Role) Rehearses() bool { return r.ReadsData() || r.Manages() }

// Manages reports whether the role may change what others have stored: revisions, voids
// and marks count from such only.
func (r Role) Manages() bool { return r == Admin || r == Manager }

// Roster says who may open a repository, and whose signature counts. Each revision has all
// that the one before it has.
type Roster struct {
	Format       string       `json:"format"`        // RosterFormat
	Version      int          `json:"version"`       // 1
	RepositoryID string       `json:"repository_id"` // a UUID
	Revision     int          `json:"revision"`      // from 1 on
	Previous     string       `json:"previous,omitempty"`
	Created      time.Time    `json:"created"`
	PostQuantum  bool         `json:"post_quantum,omitempty"` // all recipients are hybrid
	HideNames    bool         `json:"hide_names,omitempty"`   // keys of objects have digests of names
	Generations  []Generation `json:"generations"`            // the first is 1
	Members      []Member     `json:"members"`                // in the order in which they came
}

// Generation is the public halves of the keys that a repository has at a time.
type Generation struct {
	Number      int       `json:"generation"`
	DataKey     string    `json:"data_key"`     // a recipient
	MetadataKey string    `json:"metadata_key"` // a recipient
	DigestCheck string    `json:"digest_check"` // of the secret that keys digests; see digestCheck
	Created     time.Time `json:"created"`
	// Standing is the list of what stood when this generation began; of the first, none.
	Standing *Standing `json:"standing,omitempty"`
}

// Standing names a list of the signed objects that stood at some time.
type Standing struct {
	SHA256 string `json:"sha256"` // of its bytes
	Length int64  `json:"length"` // bytes
}

// Member is a person, a host or a service that has a key.
type Member struct {
	Name       string   `json:"name"`
	Role       Role     `json:"role"`
	Recipient  string   `json:"recipient"`
	Passphrase bool     `json:"passphrase,omitempty"` // opens keys/identities/NAME.age
	SigningKey string   `json:"signing_key"`          // base64, Ed25519
	Domains    []string `json:"domains,omitempty"`    // of a host: patterns; none: all
	Since      int      `json:"since"`                // the generation in which it came
	// Until is the generation in which it was removed; 0: it was not. What it signed in
	// later ones counts for nothing.
	Until int `json:"until,omitempty"`
}

// Removed reports whether the member was removed.
func (m *Member) Removed() bool { return m.Until != 0 }

// Covers reports whether the member may write a domain, of a repository that does not hide names.
func (m *Member) Covers(domain string) bool {
	switch {
	case m.Role.Manages():
		return true
	case m.Role != Host:
		return false
	case len(m.Domains) == 0:
		return true
	}
	return slices.ContainsFunc(m.Domains, func(pattern string) bool {
		ok, err := path.Match(pattern, domain)
		return err == nil && ok
	})
}

// public is the key that proves what the member signs.
func (m *Member) public() ed25519.PublicKey {
	key, err := parsePublic(m.SigningKey)
	if err != nil {
		return nil
	}
	return key
}

func parsePublic(s string) (ed25519.PublicKey, error) {
	key, err := base64.StdEncoding.Strict().DecodeString(s)
	if err != nil || len(key) != ed25519.PublicKeySize || formatPublic(key) != s {
		return nil, fmt.Errorf("not a public key of Ed25519 in base64: %.80q", s)
	}
	return key, nil
}

func formatPublic(key ed25519.PublicKey) string { return base64.StdEncoding.EncodeToString(key) }

// Generation is the number of the newest one.
func (r *Roster) Generation() int { return len(r.Generations) }

// Member returns a member by its name, or nil.
func (r *Roster) Member(name string) *Member {
	for i := range r.Members {
		if r.Members[i].Name == name {
			return &r.Members[i]
		}
	}
	return nil
}

// Standing members are those that were not removed.
func (r *Roster) standing() []Member {
	return slices.DeleteFunc(slices.Clone(r.Members), func(m Member) bool { return m.Removed() })
}

func (r *Roster) clone() *Roster {
	next := *r
	next.Generations, next.Members = slices.Clone(r.Generations), slices.Clone(r.Members)
	return &next
}

func (r *Roster) validate() error {
	switch {
	case r.Format != RosterFormat || r.Version != rosterVersion:
		return fmt.Errorf("format %.80q, version %d", r.Format, r.Version)
	case r.Revision < 1 || r.Revision > maxRevisions:
		return fmt.Errorf("revision %d", r.Revision)
	case (r.Revision == 1) != (r.Previous == "") || r.Previous != "" && !isDigest(r.Previous):
		return errors.New("what was before it is not told rightly")
	case len(r.Generations) < 1 || len(r.Generations) > maxGenerations:
		return fmt.Errorf("%d generations", len(r.Generations))
	case len(r.Members) < 1 || len(r.Members) > maxMembers:
		return fmt.Errorf("%d members", len(r.Members))
	case r.Created.Year() < 1970 || r.Created.Year() > 9999:
		return errors.New("created in no such year")
	}
	for i := range r.Generations {
		if err := r.Generations[i].validate(i + 1); err != nil {
			return fmt.Errorf("generation %d: %w", i+1, err)
		}
	}
	seen := make(map[string]bool)
	for i := range r.Members {
		m := &r.Members[i]
		if err := m.validate(r.Generation()); err != nil {
			return fmt.Errorf("member %.80q: %w", m.Name, err)
		}
		if r.PostQuantum && !isPostQuantum(m.Recipient) {
			return fmt.Errorf("member %.80q: its recipient is a classic one", m.Name)
		}
		if seen[m.Name] {
			return fmt.Errorf("member %.80q occurs twice", m.Name)
		}
		seen[m.Name] = true
	}
	return nil
}

func (g *Generation) validate(number int) error {
	switch {
	case g.Number != number:
		return fmt.Errorf("it is called %d", g.Number)
	case !isDigest(g.DigestCheck):
		return errors.New("digest_check is no SHA-256")
	case (number == 1) != (g.Standing == nil):
		return errors.New("standing is of all generations but the first")
	case g.Standing != nil && (!isDigest(g.Standing.SHA256) || g.Standing.Length < 1 || g.Standing.Length > maxStanding):
		return errors.New("standing is no list")
	}
	for _, s := range []string{g.DataKey, g.MetadataKey} {
		if _, err := parseNative(s); err != nil {
			return err
		}
	}
	return nil
}

// parseNative reads the public half of a repository's own key.
func parseNative(s string) (*Recipient, error) {
	if !isNative(s) && len(s) < 8 || len(s) > maxRecipient {
		return nil, fmt.Errorf("not a key: %.80q", s)
	}
	r, err := ParseRecipient(s, nil)
	if err != nil {
		return nil, err
	}
	if r.Text != s || !isNative(s) && !r.PostQuantum {
		return nil, fmt.Errorf("not a key of age's own: %.80q", s)
	}
	return r, nil
}

func (m *Member) validate(generations int) error {
	if err := CheckName(m.Name); err != nil {
		return err
	}
	switch {
	case !slices.Contains(Roles(), m.Role):
		return fmt.Errorf("role %.80q", m.Role)
	case m.Recipient == "" || len(m.Recipient) > maxRecipient:
		return errors.New("it has no recipient")
	case m.Since < 1 || m.Since > generations || m.Until != 0 && (m.Until < m.Since || m.Until > generations):
		return fmt.Errorf("since %d, until %d of %d generations", m.Since, m.Until, generations)
	case len(m.Domains) > 0 && m.Role != Host:
		return errors.New("domains are a host's only")
	case len(m.Domains) > maxDomains:
		return fmt.Errorf("%d patterns of domains", len(m.Domains))
	}
	if _, err := parsePublic(m.SigningKey); err != nil {
		return fmt.Errorf("signing_key: %w", err)
	}
	for _, p := range m.Domains {
		if err := CheckPattern(p); err != nil {
			return err
		}
	}
	return nil
}

// CheckPattern says why a text is no pattern of names of domains: those of path.Match.
func CheckPattern(p string) error {
	if _, err := path.Match(p, ""); err != nil || p == "" || len(p) > 255 {
		return fmt.Errorf("not a pattern of names of domains: %.80q", p)
	}
	return nil
}

// checkFollows says why the roster can't be the next revision of another one.
func (r *Roster) checkFollows(before *Roster) error {
	switch {
	case r.RepositoryID != before.RepositoryID || r.PostQuantum != before.PostQuantum || r.HideNames != before.HideNames:
		return errors.New("it is of another repository than the one before")
	case r.Revision != before.Revision+1:
		return fmt.Errorf("revision %d follows %d", r.Revision, before.Revision)
	case len(r.Generations) < len(before.Generations) || len(r.Members) < len(before.Members):
		return errors.New("it lacks what the one before has")
	}
	for i := range before.Generations {
		a, b := r.Generations[i], before.Generations[i]
		if a.DataKey != b.DataKey || a.MetadataKey != b.MetadataKey || a.DigestCheck != b.DigestCheck ||
			(a.Standing == nil) != (b.Standing == nil) || a.Standing != nil && *a.Standing != *b.Standing {
			return fmt.Errorf("it changes generation %d", b.Number)
		}
	}
	for i := range before.Members {
		a, b := r.Members[i], before.Members[i]
		if b.Until == 0 {
			b.Until = a.Until
		}
		if a.Name != b.Name || a.Role != b.Role || a.Recipient != b.Recipient || a.Passphrase != b.Passphrase ||
			a.SigningKey != b.SigningKey || !slices.Equal(a.Domains, b.Domains) || a.Since != b.Since || a.Until != b.Until {
			return fmt.Errorf("it changes member %s", b.Name)
		}
	}
	return nil
}

// CheckRosterKey says why a text is no roster's key, or nil.
func CheckRosterKey(text string) error {
	_, err := parsePublic(text)
	return err
}
