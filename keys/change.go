// SPDX-License-Identifier: Apache-2.0

package keys

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

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
	all := []string{signingKey(m.Name)}
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
	stands = slices.Clone(stands)
	for i := range stands { // the list is for everybody to read
		stands[i].Key = k.storedKey(stands[i].Key)
	}
	if public.Standing, err = k.storeStanding(ctx, stands); err != nil {
		return err
	}
	if err := k.storeFiles(ctx, files); err != nil {
		return err
	}
	next.Generations = append(next.Generations, public)
	before := k.Roster.clone()
	if err := k.commit(ctx, next); err != nil {
		if objstore.Permanent(err) {
			return err
		}
		if err := k.settle(ctx, before, next, err); err != nil {
			return err
		}
	}
	k.generations = append(k.generations, fresh)
	k.standing = make(standingSet)
	for _, s := range stands {
		k.standing[lineSum(s.Seal, s.Key)] = struct{}{}
	}
	return k.opened()
}

// CheckRotates says why [Keyring.Rotate] can't be, as far as that can be known before.
func (k *Keyring) CheckRotates(ui *plugin.ClientUI) error {
	if err := k.checkAdmin("rotate the keys"); err != nil {
		return err
	}
	if k.Roster.Generation() == maxGenerations {
		return fmt.Errorf("the keys were rotated %d times, and that is as often as they can be", maxGenerations-1)
	}
	for _, m := range k.Roster.standing() {
		if _, err := ParseRecipient(m.Recipient, ui); err != nil {
			return fmt.Errorf("the key of %s: %w", m.Name, err)
		}
	}
	return nil
}

// settleTime bounds how long it may take to find out what became of a rotation.
const settleTime = time.Minute

// UnsettledError says that nobody knows whether the keys have been rotated: the request may
// still arrive at the store, and what is signed with the older keys after what stands was
// recorded will not count then.
type UnsettledError struct{ Err error }

func (e *UnsettledError) Error() string {
	return fmt.Sprintf("it is not known whether the keys have been rotated, or will be when a request arrives late: %v", e.Err)
}

// Unwrap returns what was wrong with the request.
func (e *UnsettledError) Unwrap() error { return e.Err }

// Unsettled tells who guards the repository meanwhile that it has to stay so.
func (e *UnsettledError) Unsettled() bool { return true }

// settle decides a rotation of which no answer came, and returns nil if it has been: the revision
// of the roster that it was to have is taken by one that changes nothing, unless it stands. So
// the request can't succeed any more when it arrives late.
func (k *Keyring) settle(ctx context.Context, before, rotated *Roster, why error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), settleTime)
	defer cancel()
	err := k.commit(ctx, before)
	if err == nil {
		return why
	}
	if !errors.Is(err, objstore.ErrExists) {
		return &UnsettledError{why}
	}
	r, rerr := ReadRoster(ctx, Place{Store: k.store, Repository: k.Roster.RepositoryID, RosterKey: k.rosterKey})
	switch {
	case rerr != nil:
		return &UnsettledError{errors.Join(why, rerr)}
	case r.Revision != rotated.Revision || r.Generations[len(r.Generations)-1].DataKey != rotated.Generations[len(rotated.Generations)-1].DataKey:
		return err // another's, or the one that changes nothing
	}
	data, rerr := read(ctx, k.store, rosterKey(r.Revision), maxRoster)
	if rerr != nil {
		return &UnsettledError{errors.Join(why, rerr)}
	}
	k.Roster, k.digests = rotated, append(k.digests, digestOf(data))
	return nil
}

// SettleRoster takes the next revision of the roster by one that changes nothing: a request that was to
// store another there, and whose program was killed, can't succeed any more. An admin does.
func (k *Keyring) SettleRoster(ctx context.Context) error {
	if err := k.checkAdmin("end a rotation of the keys"); err != nil {
		return err
	}
	return k.commit(ctx, k.Roster.clone())
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
