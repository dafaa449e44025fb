// SPDX-License-Identifier: Apache-2.0

package keys

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"filippo.io/age"
	"golang.org/x/sync/errgroup"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/crypt"
	"github.com/imgbackup/imgbackup/objstore"
	"github.com/imgbackup/imgbackup/objstore/hidden"
)

// Keyring is a repository's keys as one of its members has them, open. It is safe for
// concurrent use.
type Keyring struct {
	Roster *Roster
	Member Member // whose identity opened it
	Keys   *crypt.Keys

	store       objstore.Store
	rosterKey   string   // that the configuration names
	digests     []string // of the roster's revisions
	signing     ed25519.PrivateKey
	generations []crypt.Generation // the oldest first
	standing    standingSet
	names       *hidden.Names // nil: they are not hidden
	ahead       ahead         // while it is opened
	lowered     *lowered
}

// Place is where keys are read.
type Place struct {
	Store      objstore.Store
	Repository string // its id, as the configuration has it
	RosterKey  string // likewise
	// Listing was asked for before; nil: it was not.
	Listing *Listing

	lowered *lowered
}

// parallel is how many small objects are fetched at once.
const parallel = 32

// ReadRoster reads and proves the roster alone, which takes no key.
func ReadRoster(ctx context.Context, p Place) (*Roster, error) {
	r, _, err := readRoster(ctx, p)
	return r, err
}

func readRoster(ctx context.Context, p Place) (*Roster, []string, error) {
	root, err := parsePublic(p.RosterKey)
	if err != nil {
		return nil, nil, archive.Damaged(objstore.Marker, fmt.Errorf("roster_key: %w", err))
	}
	var versions versionedRoster
	var unlisted error
	var looked sync.WaitGroup
	looked.Go(func() { versions, unlisted = versionsOfRoster(ctx, p.Store) }) // beside the rest
	defer looked.Wait()
	last, err := p.lastRoster(ctx)
	if err != nil {
		return nil, nil, fmt.Errorf("read the roster: %w", err)
	}
	revisions, wrong := make([][]byte, last), make([]error, last)
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(parallel)
	for i := range revisions {
		g.Go(func() error {
			revisions[i], wrong[i] = p.readRevision(gctx, i+1)
			if wrong[i] != nil && !archive.IsDamage(wrong[i]) {
				return wrong[i]
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, nil, err
	}
	if looked.Wait(); unlisted != nil {
		return nil, nil, fmt.Errorf("read the roster: %w", unlisted)
	}
	c := &rosterChain{repository: p.Repository, root: root}
	for i := range max(last, versions.last) {
		var top []byte
		why := error(archive.Damaged(rosterKey(i+1), errors.New("it is missing, and later ones are there")))
		if i < last {
			top, why = revisions[i], wrong[i]
		}
		err := p.addRevision(ctx, c, top, why, versions.several[i+1])
		if archive.IsDamage(err) && i >= last {
			break // what is hidden, and proves itself not, is nothing
		}
		if err != nil {
			return nil, nil, err
		}
	}
	return c.end()
}

func (p Place) readRevision(ctx context.Context, number int) ([]byte, error) {
	key := rosterKey(number)
	data, err := read(ctx, p.Store, key, maxRoster)
	if errors.Is(err, objstore.ErrNotFound) {
		err = archive.Damaged(key, errors.New("it is missing, and later ones are there"))
	}
	return data, err
}

// lastRoster is the number of the newest revision of the roster; 0: there is none.
func (p Place) lastRoster(ctx context.Context) (last int, err error) {
	see := func(key string) {
		if k := ParseKey(key); k.Kind == RosterObject {
			last = max(last, k.Number)
		}
	}
	if listed := p.Listing.wait(ctx); listed != nil {
		for _, info := range listed {
			see(info.Key)
		}
		return last, nil
	}
	for info, err := range p.Store.List(ctx, rosterPrefix) {
		if err != nil {
			return 0, err
		}
		see(info.Key)
	}
	return last, nil
}

// read reads a small object; a longer one is damage.
func read(ctx context.Context, s objstore.Store, key string, limit int64) ([]byte, error) {
	data, err := objstore.ReadAll(ctx, s, key, limit)
	if errors.Is(err, objstore.ErrTooLarge) {
		return nil, archive.Damaged(key, err)
	}
	return data, err
}

// Open opens a repository's keys with identities, and proves them against the roster. A
// missing or wrong identity is an [*Error] that says which ones there are; one of a pinned
// identity's, too, if the repository is not the one that it is pinned to.
func Open(ctx context.Context, p Place, ids *Identities) (*Keyring, error) {
	if ids != nil {
		if err := ids.Pin.checkRepository(p.Repository, p.RosterKey); err != nil {
			return nil, err
		}
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // what was read ahead, and not wanted
	var files ahead
	if ids != nil {
		member := ""
		if ids.Pin != nil {
			member = ids.Pin.Name
		}
		files = readAhead(ctx, p.Store, p.Listing.wait(ctx), member)
	}
	p.lowered = new(lowered)
	r, digests, err := readRoster(ctx, p)
	if err != nil {
		return nil, err
	}
	if ids == nil {
		return nil, &Error{What: "this repository is encrypted: give the identity of " + whose(r) + " (--identity FILE, or the environment variable IMGBACKUP_IDENTITY)"}
	}
	if ids.Pin != nil {
		if err := ids.Pin.check(r, digests); err != nil {
			return nil, err
		}
	}
	k := &Keyring{Roster: r, store: p.Store, rosterKey: p.RosterKey, digests: digests, ahead: files, lowered: p.lowered}
	m, ids, err := k.find(ctx, ids)
	if err != nil {
		return nil, err
	}
	k.Member = *m
	err = k.openAll(ctx, ids)
	k.ahead = nil
	return k, err
}

// whose names the members whose identities open a repository.
func whose(r *Roster) string {
	const most = 8
	var names []string
	for _, m := range r.standing() {
		name := fmt.Sprintf("%s (%s)", m.Name, m.Role)
		if m.Passphrase {
			name = fmt.Sprintf("%s (%s, a passphrase)", m.Name, m.Role)
		}
		names = append(names, name)
	}
	if n := len(names) - most; n > 0 {
		names = append(names[:most], fmt.Sprintf("%d more", n))
	}
	return strings.Join(names, ", ")
}

// find finds out whose the identities are, and returns the ones that open that member's
// files.
func (k *Keyring) find(ctx context.Context, ids *Identities) (*Member, *Identities, error) {
	for i := range k.Roster.Members {
		m := &k.Roster.Members[i]
		if slices.Contains(ids.native, m.Recipient) {
			if m.Removed() {
				return nil, nil, &Error{What: fmt.Sprintf("the key of %s was removed from this repository: give the identity of %s", m.Name, whose(k.Roster))}
			}
			return m, ids, nil
		}
	}
	for _, m := range k.Roster.standing() {
		found, err := k.try(ctx, &m, ids)
		if err != nil {
			return nil, nil, err
		}
		if found != nil {
			return k.Roster.Member(m.Name), found, nil
		}
	}
	what := ids.From + " does not open this repository"
	if ids.phrase {
		what = "the passphrase does not open this repository"
	}
	return nil, nil, &Error{What: what + ": give the identity of " + whose(k.Roster)}
}

// try tries identities on a member's file: such that do not say whose they are.
func (k *Keyring) try(ctx context.Context, m *Member, ids *Identities) (*Identities, error) {
	if ids.phrase {
		if !m.Passphrase {
			return nil, nil
		}
		return k.unlock(ctx, m, ids)
	}
	if len(ids.native) == len(ids.all) || m.Passphrase {
		return nil, nil
	}
	if r, err := parseNative(m.Recipient); err == nil && r != nil {
		return nil, nil // and it is none of the native ones
	}
	err := k.openFile(ctx, metadataKey(&k.Roster.Generations[k.Roster.Generation()-1], m.Name), ids, func([]byte) error { return nil })
	switch {
	case errors.Is(err, errOther):
		return nil, nil
	case err != nil:
		return nil, err
	}
	return ids, nil
}

// unlock opens the identity of a member that has a passphrase.
func (k *Keyring) unlock(ctx context.Context, m *Member, ids *Identities) (*Identities, error) {
	key := identityKey(m.Name)
	var id age.Identity
	err := k.openFile(ctx, key, ids, func(text []byte) (err error) {
		id, err = oneIdentity(text, m.Recipient)
		return err
	})
	if errors.Is(err, errOther) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return &Identities{From: ids.From, all: []age.Identity{id}, native: []string{m.Recipient}}, nil
}

// openFile reads and decrypts an object under keys/, and gives its content to use, which proves it, and
// keeps none of it. Where it does not open with these identities the error is errOther; all but that and
// what a store says is damage.
func (k *Keyring) openFile(ctx context.Context, key string, ids *Identities, use func(text []byte) error) error {
	prove := func(data []byte) error {
		text, err := decrypt(data, ids.all)
		if err == nil {
			err = use(text)
			wipe(text)
		}
		var told *Error
		if err != nil && !errors.Is(err, errOther) && !errors.As(err, &told) {
			err = archive.Damaged(key, err)
		}
		return err
	}
	data, err := k.ahead.read(ctx, k.store, key, maxFile)
	switch {
	case errors.Is(err, objstore.ErrNotFound):
		err = archive.Damaged(key, errors.New("it is missing, and the roster says whose it is"))
	case err == nil:
		err = prove(data)
	}
	if err == nil {
		return nil
	}
	return k.lowered.find(ctx, k.store, key, maxFile, err, prove)
}

// Lowered is what lies below something that was put on top of it, and was read all the same.
func (k *Keyring) Lowered() []Lowered { return k.lowered.sorted() }

// openAll opens all files of the member. Whose identity it is, is known: what does not open
// is damaged.
func (k *Keyring) openAll(ctx context.Context, ids *Identities) error {
	m := &k.Member
	k.generations = make([]crypt.Generation, len(k.Roster.Generations))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(parallel)
	open := func(key string, use func(text []byte) error) {
		g.Go(func() error {
			err := k.openFile(ctx, key, ids, use)
			if errors.Is(err, errOther) {
				return archive.Damaged(key, fmt.Errorf("the identity of %s, whose it is, does not open it", m.Name))
			}
			return err
		})
	}
	g.Go(func() (err error) {
		k.standing, err = k.loadStanding(ctx)
		return err
	})
	open(signingKey(m.Name), func(text []byte) (err error) {
		k.signing, err = parseSigning(text, m)
		return err
	})
	for i := range k.generations {
		public, gen := &k.Roster.Generations[i], &k.generations[i]
		if err := setPublic(gen, public); err != nil {
			return err
		}
		open(metadataKey(public, m.Name), func(text []byte) (err error) {
			gen.Metadata.Identity, gen.Secret, err = parseMetadata(text, public)
			return err
		})
		if m.Role.ReadsData() {
			open(dataKey(public, m.Name), func(text []byte) (err error) {
				gen.Data.Identity, err = oneIdentity(text, public.DataKey)
				return err
			})
		}
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return k.opened()
}

// opened is called when the generations are known.
func (k *Keyring) opened() (err error) {
	if k.Keys, err = crypt.New(k.generations...); err != nil {
		return err
	}
	if k.Roster.HideNames && k.names == nil {
		k.names = hidden.New(k.Keys.First().Name)
		for i := range k.Roster.Members {
			k.names.Host(k.Roster.Members[i].Name) // so it is met
		}
	}
	return nil
}

// Names hides names in keys of objects; nil: they are not hidden.
func (k *Keyring) Names() *hidden.Names { return k.names }

// storedKey is the key under which is stored what belongs under a key.
func (k *Keyring) storedKey(key string) string {
	if k.names == nil {
		return key
	}
	return k.names.Stored(key)
}

// setPublic takes the public halves from the roster.
func setPublic(g *crypt.Generation, public *Generation) error {
	data, derr := parseNative(public.DataKey)
	metadata, merr := parseNative(public.MetadataKey)
	if err := errors.Join(derr, merr); err != nil {
		return err
	}
	g.Number, g.Data.Recipient, g.Metadata.Recipient = public.Number, data.To, metadata.To
	return nil
}
