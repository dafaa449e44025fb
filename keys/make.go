// SPDX-License-Identifier: Apache-2.0

package keys

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"filippo.io/age"
	"filippo.io/age/plugin"

	"github.com/imgbackup/imgbackup/crypt"
	"github.com/imgbackup/imgbackup/internal/usage"
	"github.com/imgbackup/imgbackup/objstore"
)

// Joining is a member that is to come.
type Joining struct {
	Name    string
	Role    Role
	Domains []string // of a host
	// Recipient is to whom the keys are encrypted; nil: an identity is made.
	Recipient *Recipient
	// Passphrase, if there is one, opens the identity that is made, which then lies in
	// the repository.
	Passphrase []byte
	// WorkFactor is scrypt's, as a logarithm; 0: age's.
	WorkFactor int
	// locked is the identity of Recipient, as it lies under its passphrase in another repository.
	locked []byte
}

// Joined is what came of it.
type Joined struct {
	Member
	// Identity is the one that was made, a line of an identity file, and nowhere else;
	// empty: none was, or it lies in the repository under the passphrase.
	Identity string
}

// MinPassphrase is the least length of a passphrase that opens the data key, in characters.
const MinPassphrase = 20

// CheckPassphrase says why a passphrase is not good enough.
func CheckPassphrase(phrase []byte) error {
	if n := len([]rune(string(phrase))); n < MinPassphrase {
		return fmt.Errorf("a passphrase has at least %d characters, this one has %d: whoever takes a copy of the repository can try as many as they like", MinPassphrase, n)
	}
	return nil
}

// Features are what the keys of a repository are to be like, for ever.
type Features struct {
	PostQuantum bool // all recipients are hybrid
	HideNames   bool // names in keys of objects are hidden: see Roster.HideNames
}

// Make makes the keys of a new repository: of generation 1, for members of which the
// first is an admin, whose signature the roster's first revision has.
func Make(ctx context.Context, store objstore.Store, repository string, f Features, members []Joining) (*Keyring, []Joined, error) {
	if len(members) == 0 || members[0].Role != Admin {
		return nil, nil, errors.New("the first key of a repository is an admin's")
	}
	first, err := crypt.Generate(1, f.PostQuantum)
	if err != nil {
		return nil, nil, err
	}
	return begin(ctx, store, repository, f, members, []crypt.Generation{first})
}

// MakeLike is Make with the keys of another repository, so that packs can be copied between
// the two as they are, and names hidden or not. The members are new: nobody has a key of both unless
// named for both.
func (k *Keyring) MakeLike(ctx context.Context, store objstore.Store, repository string, hideNames bool, members []Joining) (*Keyring, []Joined, error) {
	if len(members) == 0 || members[0].Role != Admin {
		return nil, nil, errors.New("the first key of a repository is an admin's")
	}
	if err := k.checkAdmin("give its keys to another repository"); err != nil {
		return nil, nil, err
	}
	return begin(ctx, store, repository, Features{PostQuantum: k.Roster.PostQuantum, HideNames: hideNames}, members, k.generations)
}

// SameMembers are who can open the repository, but for hosts, whose files are for one repository
// only: to have the same keys in another one. The first is whose identity opened this one.
func (k *Keyring) SameMembers(ctx context.Context, ui *plugin.ClientUI) ([]Joining, error) {
	var all []Joining
	for _, m := range k.Roster.standing() {
		if m.Role == Host {
			continue
		}
		to, err := ParseRecipient(m.Recipient, ui)
		if err != nil {
			return nil, fmt.Errorf("the key of %s: %w", m.Name, err)
		}
		j := Joining{Name: m.Name, Role: m.Role, Recipient: to}
		if m.Passphrase {
			if j.locked, err = read(ctx, k.store, identityKey(m.Name), maxFile); err != nil {
				return nil, err
			}
		}
		if m.Name == k.Member.Name {
			all = slices.Insert(all, 0, j)
		} else {
			all = append(all, j)
		}
	}
	return all, nil
}

func begin(ctx context.Context, store objstore.Store, repository string, f Features, members []Joining, generations []crypt.Generation) (*Keyring, []Joined, error) {
	k := &Keyring{
		store: store, generations: slices.Clone(generations),
		Roster: &Roster{Format: RosterFormat, Version: rosterVersion, RepositoryID: repository, PostQuantum: f.PostQuantum, HideNames: f.HideNames},
	}
	if err := k.opened(); err != nil {
		return nil, nil, err
	}
	next := k.Roster.clone()
	for i := range k.generations {
		public := publicOf(&k.generations[i])
		if i > 0 { // of a new repository, nothing stood
			var err error
			if public.Standing, err = k.storeStanding(ctx, nil); err != nil {
				return nil, nil, err
			}
		}
		next.Generations = append(next.Generations, public)
	}
	joined, private, err := k.join(ctx, next, members)
	if err != nil {
		return nil, nil, err
	}
	k.Member, k.signing, k.rosterKey = next.Members[0], private[0], next.Members[0].SigningKey
	if err := k.commit(ctx, next); err != nil {
		return nil, nil, err
	}
	return k, joined, nil
}

func publicOf(g *crypt.Generation) Generation {
	return Generation{
		Number: g.Number, DataKey: recipientText(g.Data.Recipient), MetadataKey: recipientText(g.Metadata.Recipient),
		DigestCheck: digestCheck(g.Secret), Created: now(),
	}
}

// now is the time as it is stored.
func now() time.Time { return time.Now().UTC().Round(time.Second) }

// RosterKey is the public key that signs the first revision of the roster.
func (k *Keyring) RosterKey() string { return k.rosterKey }

// Pin is what a member's identity file pins.
func (k *Keyring) Pin(name string) *Pin {
	newest := &k.Roster.Generations[len(k.Roster.Generations)-1]
	return &Pin{
		Repository: k.Roster.RepositoryID, Name: name, RosterKey: k.rosterKey, Revision: k.Roster.Revision,
		Roster: k.digests[len(k.digests)-1], Generation: newest.Number, DataKey: newest.DataKey,
	}
}

// join makes members, adds them to next, and stores their files. It returns their
// private keys to sign with, too.
func (k *Keyring) join(ctx context.Context, next *Roster, joining []Joining) ([]Joined, []ed25519.PrivateKey, error) {
	var joined []Joined
	var private []ed25519.PrivateKey
	for i := range joining {
		j := &joining[i]
		if err := j.check(next); err != nil {
			return nil, nil, err
		}
		files, one, key, err := k.newMember(next, j)
		if err != nil {
			return nil, nil, fmt.Errorf("the key of %s: %w", j.Name, err)
		}
		if err := k.storeFiles(ctx, files); err != nil {
			return nil, nil, err
		}
		next.Members = append(next.Members, one.Member)
		joined, private = append(joined, *one), append(private, key)
	}
	return joined, private, nil
}

// check says why somebody can't join a roster.
func (j *Joining) check(r *Roster) error {
	if err := CheckName(j.Name); err != nil {
		return err
	}
	if m := r.Member(j.Name); m != nil {
		if m.Removed() {
			return fmt.Errorf("the name %s was that of a key that was removed, whose signatures still bear it: choose another one", j.Name)
		}
		return fmt.Errorf("there is a key that is called %s: %w", j.Name, objstore.ErrExists)
	}
	if j.Recipient != nil {
		if r.PostQuantum && !j.Recipient.PostQuantum {
			return fmt.Errorf("the keys of this repository are post-quantum ones, which a classic recipient would give away: give one that begins with age1pq1 (age-keygen -pq makes it)")
		}
		for i := range r.Members {
			if m := &r.Members[i]; m.Recipient == j.Recipient.Text && !m.Removed() {
				return fmt.Errorf("this is the recipient of %s (%s)", m.Name, m.Role)
			}
		}
	}
	if j.Passphrase != nil && j.Role.ReadsData() {
		return CheckPassphrase(j.Passphrase)
	}
	return nil
}

// file is an object that is to be stored.
type file struct {
	key  string
	data []byte
}

// newMember makes a member and its files.
func (k *Keyring) newMember(r *Roster, j *Joining) (files []file, one *Joined, private ed25519.PrivateKey, err error) {
	one = &Joined{Member: Member{Name: j.Name, Role: j.Role, Since: len(r.Generations)}}
	if one.Domains, err = k.patterns(j.Domains); err != nil {
		return nil, nil, nil, err
	}
	to := j.Recipient
	if to == nil {
		if to, one.Identity, err = newIdentity(r.PostQuantum); err != nil {
			return nil, nil, nil, err
		}
	}
	one.Recipient = to.Text
	if j.Passphrase != nil {
		locked, err := lockIdentity(r.RepositoryID, j, one.Identity)
		if err != nil {
			return nil, nil, nil, err
		}
		files = append(files, file{identityKey(j.Name), locked})
		one.Identity, one.Passphrase = "", true
	}
	if j.locked != nil {
		files = append(files, file{identityKey(j.Name), j.locked})
		one.Passphrase = true
	}
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		return nil, nil, nil, err
	}
	one.SigningKey = formatPublic(public)
	text, err := signingText(r.RepositoryID, j.Name, private)
	if err != nil {
		return nil, nil, nil, err
	}
	signing, err := encryptTo(to.To, text)
	if err != nil {
		return nil, nil, nil, err
	}
	files = append(files, file{signingKey(j.Name), signing})
	for i := range k.generations {
		more, err := keyFiles(r.RepositoryID, &k.generations[i], &one.Member, to.To)
		if err != nil {
			return nil, nil, nil, err
		}
		files = append(files, more...)
	}
	return files, one, private, nil
}

// patterns are those of a host's domains as the roster has them, which everybody can read: where
// names are hidden the digests of names.
func (k *Keyring) patterns(domains []string) ([]string, error) {
	all := slices.Clone(domains)
	for i := range all {
		switch {
		case k.names == nil:
		case strings.ContainsAny(all[i], `*?[\`):
			return nil, usage.Errorf("names are hidden here, and everybody can read the roster: name each domain in place of %q, or none, which are all", all[i])
		default:
			all[i] = k.names.Domain(objstore.EncodePart(all[i]))
		}
	}
	return all, nil
}

// Covers reports whether a member may write a domain.
func (k *Keyring) Covers(m *Member, domain string) bool {
	return m.Covers(domain) || m.Role == Host && k.names != nil && slices.Contains(m.Domains, k.names.Domain(objstore.EncodePart(domain)))
}

// keyFiles are what a member has of a generation.
func keyFiles(repository string, g *crypt.Generation, m *Member, to age.Recipient) ([]file, error) {
	text, err := metadataText(repository, g)
	if err != nil {
		return nil, err
	}
	data, err := encryptTo(to, text)
	if err != nil {
		return nil, err
	}
	public := publicOf(g)
	files := []file{{metadataKey(&public, m.Name), data}}
	if !m.Role.ReadsData() {
		return files, nil
	}
	if text, err = dataText(repository, g); err != nil {
		return nil, err
	}
	if data, err = encryptTo(to, text); err != nil {
		return nil, err
	}
	return append(files, file{dataKey(&public, m.Name), data}), nil
}

func newIdentity(postQuantum bool) (*Recipient, string, error) {
	if postQuantum {
		id, err := age.GenerateHybridIdentity()
		if err != nil {
			return nil, "", err
		}
		return &Recipient{Text: id.Recipient().String(), To: id.Recipient(), PostQuantum: true}, id.String(), nil
	}
	id, err := age.GenerateX25519Identity()
	if err != nil {
		return nil, "", err
	}
	return &Recipient{Text: id.Recipient().String(), To: id.Recipient()}, id.String(), nil
}

// lockIdentity encrypts an identity with a passphrase.
func lockIdentity(repository string, j *Joining, identity string) ([]byte, error) {
	if identity == "" {
		return nil, errors.New("a passphrase opens an identity that is made for it, not that of a recipient")
	}
	r, err := age.NewScryptRecipient(string(j.Passphrase))
	if err != nil {
		return nil, err
	}
	if j.WorkFactor > 0 {
		r.SetWorkFactor(j.WorkFactor)
	}
	return encryptTo(r, fmt.Sprintf("# imgbackup-repository: %s\n# imgbackup-member: %s\n%s\n", repository, j.Name, identity))
}

// storeFiles stores a member's files. What stands under one's name is of somebody who never
// came to be in the roster, unless that was changed since it was read.
func (k *Keyring) storeFiles(ctx context.Context, files []file) error {
	for _, f := range files {
		err := k.store.Put(ctx, f.key, bytes.NewReader(f.data), objstore.PutOptions{})
		if errors.Is(err, objstore.ErrExists) {
			if err = k.checkNewest(ctx); err == nil {
				err = k.store.Put(ctx, f.key, bytes.NewReader(f.data), objstore.PutOptions{Mode: objstore.Replace})
			}
		}
		if err != nil {
			return fmt.Errorf("store %s: %w", f.key, err)
		}
	}
	return nil
}

// checkNewest says whether the roster has been changed since it was read.
func (k *Keyring) checkNewest(ctx context.Context) error {
	_, err := k.store.Stat(ctx, rosterKey(k.Roster.Revision+1))
	switch {
	case err == nil:
		return fmt.Errorf("somebody else changed the roster just now, run it again: %w", objstore.ErrExists)
	case errors.Is(err, objstore.ErrNotFound):
		return nil
	}
	return err
}

// commit stores the next revision of the roster, signed by this member.
func (k *Keyring) commit(ctx context.Context, next *Roster) error {
	next.Revision, next.Created = k.Roster.Revision+1, now()
	if n := len(k.digests); n > 0 {
		next.Previous = k.digests[n-1]
	}
	data, err := sealRoster(next, k.Member.Name, k.signing)
	if err != nil {
		return err
	}
	key := rosterKey(next.Revision)
	err = k.store.Put(ctx, key, bytes.NewReader(data), objstore.PutOptions{})
	if errors.Is(err, objstore.ErrExists) {
		// Perhaps this one, whose answer was lost.
		if stands, rerr := read(ctx, k.store, key, maxRoster); rerr == nil && string(stands) == string(data) {
			err = nil
		} else {
			return fmt.Errorf("somebody else changed the roster just now, run it again: %w", err)
		}
	}
	if err != nil {
		return fmt.Errorf("store %s: %w", key, err)
	}
	k.Roster, k.digests = next, append(k.digests, digestOf(data))
	return nil
}

// checkAdmin says why the member may not do what only admins may.
func (k *Keyring) checkAdmin(what string) error {
	if k.Member.Role == Admin {
		return nil
	}
	var admins []string
	for _, m := range k.Roster.standing() {
		if m.Role == Admin {
			admins = append(admins, m.Name)
		}
	}
	return &Error{What: fmt.Sprintf("to %s takes the identity of an admin (%s); %s is a %s", what, strings.Join(admins, ", "), k.Member.Name, k.Member.Role)}
}

// NewPassphrase makes one up: 130 bits that are random, in groups of letters and digits.
func NewPassphrase() string {
	var groups []string
	for text := strings.ToLower(rand.Text()); text != ""; text = text[min(5, len(text)):] {
		groups = append(groups, text[:min(5, len(text))])
	}
	return strings.Join(groups, "-")
}
