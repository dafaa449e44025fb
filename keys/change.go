// SPDX-License-Identifier: Apache-2.0

package keys

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"filippo.io/age/plugin"

	"github.com/imgbackup/imgbackup/crypt"
	"github.com/imgbackup/imgbackup/objstore"
)

// Add adds members; an admin does.
func (k *Keyring) Add(ctx context.Context, members ...Joining) ([]Joined, error) {
	if err := k.checkAdmin("add a key"); err != nil {
		return nil, err
	}
	next := k.Roster.clone()
	joined, _, err := k.join(ctx, next, members)
	if err != nil {
		return nil, err
	}
	return joined, k.commit(ctx, next)
}

// Remove removes a member: its files, and its name from those whose later signatures count
// after a [Keyring.Rotate]. Until then it opens what it has a copy of, and all that is
// stored, and its signatures count.
func (k *Keyring) Remove(ctx context.Context, name string) (*Member, error) {
	if err := k.checkAdmin("remove a key"); err != nil {
		return nil, err
	}
	next := k.Roster.clone()
	m := next.Member(name)
	switch {
	case m == nil || m.Removed():
		return nil, fmt.Errorf("there is no key that is called %s", jsonText(name))
	case name == k.Member.Name:
		return nil, fmt.Errorf("%s is the key that you are using: another admin removes it", name)
	}
	m.Until = next.Generation()
	if err := k.commit(ctx, next); err != nil {
		return nil, err
	}
	return m, k.removeFiles(ctx, m)
}

// removeFiles removes what a member had. That revokes nothing: it may have copies.
func (k *Keyring) removeFiles(ctx context.Context, m *Member) error {
	var all []string
	if m.Role.Signs() {
		all = append(all, signingKey(m.Name))
	}
	if m.Passphrase {
		all = append(all, identityKey(m.Name))
	}
	for i := range k.Roster.Generations {
		g := &k.Roster.Generations[i]
		all = append(all, metadataKey(g, m.Name))
		if m.Role.ReadsData() {
			all = append(all, dataKey(g, m.Name))
		}
	}
	var errs []error
	for _, key := range all {
		if err := k.store.Delete(ctx, key); err != nil {
			errs = append(errs, fmt.Errorf("%s was removed from the roster, but not %s: %w", m.Name, key, err))
		}
	}
	return errors.Join(errs...)
}

// Rotate begins a new generation: new keys, which only those have that were not removed. What
// stands is recorded: signatures of before count for that alone.
func (k *Keyring) Rotate(ctx context.Context, stands []Stands, ui *plugin.ClientUI) error {
	if err := k.checkAdmin("rotate the keys"); err != nil {
		return err
	}
	next := k.Roster.clone()
	fresh, err := crypt.Generate(next.Generation()+1, next.PostQuantum)
	if err != nil {
		return err
	}
	var files []file
	for _, m := range next.standing() {
		to, err := ParseRecipient(m.Recipient, ui)
		if err != nil {
			return fmt.Errorf("the key of %s: %w", m.Name, err)
		}
		more, err := keyFiles(next.RepositoryID, &fresh, &m, to.To)
		if err != nil {
			return fmt.Errorf("the key of %s: %w", m.Name, err)
		}
		files = append(files, more...)
	}
	public := publicOf(&fresh)
	if public.Standing, err = k.storeStanding(ctx, stands); err != nil {
		return err
	}
	if err := k.storeFiles(ctx, files); err != nil {
		return err
	}
	next.Generations = append(next.Generations, public)
	if err := k.commit(ctx, next); err != nil {
		return err
	}
	k.generations = append(k.generations, fresh)
	k.standing = make(standingSet)
	for _, s := range stands {
		k.standing[lineSum(s.Seal, s.Key)] = struct{}{}
	}
	k.Keys, err = crypt.New(k.generations...)
	return err
}

func (k *Keyring) storeStanding(ctx context.Context, stands []Stands) (*Standing, error) {
	data, err := writeStanding(stands)
	if err != nil {
		return nil, err
	}
	digest := digestOf(data)
	err = k.store.Put(ctx, standingKey(digest), bytes.NewReader(data), objstore.PutOptions{})
	if err != nil && !errors.Is(err, objstore.ErrExists) {
		return nil, fmt.Errorf("store what stands: %w", err)
	}
	return &Standing{SHA256: digest, Length: int64(len(data))}, nil
}
