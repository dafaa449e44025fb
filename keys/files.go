// SPDX-License-Identifier: Apache-2.0

package keys

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"slices"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/crypt"
	"github.com/imgbackup/imgbackup/objstore"
	"github.com/imgbackup/imgbackup/objstore/below"
)

// CheckFiles looks at the files of all members that were not removed, by one listing: whether each is there, and
// has the length that it has to have. More nobody can tell but the member whose it is, whose key opens it. Where
// a store keeps versions, one below what is on top is as good: it is what that member reads. What is wrong is
// damage; the error is the store's.
func (k *Keyring) CheckFiles(ctx context.Context) (wrong []error, err error) {
	lengths := make(map[string]int64)
	for info, err := range k.store.List(ctx, Prefix) {
		if err != nil {
			return nil, fmt.Errorf("list %s: %w", Prefix, err)
		}
		lengths[info.Key] = info.Size
	}
	files, err := k.Roster.expected()
	if err != nil {
		return nil, err
	}
	for _, f := range files {
		length, is := lengths[f.key]
		if is && f.fits(length) {
			continue
		}
		lower, err := k.fitsBelow(ctx, f)
		if err != nil {
			return nil, err
		}
		switch {
		case lower:
			continue
		case !is:
			err = fmt.Errorf("it is missing: without it %s does not open this repository", f.of)
		case f.length > 0 && length != f.length:
			err = fmt.Errorf("it has %d bytes, and this file of %s has to have %d", length, f.of, f.length)
		default:
			err = errors.New("it can't be what it has to be, by its length")
		}
		wrong = append(wrong, archive.Damaged(f.key, err))
	}
	return wrong, nil
}

// shortestFile is less than any file has that is encrypted to somebody, bytes.
const shortestFile = 200

// expectedFile is a file that a member has.
type expectedFile struct {
	key, of string
	length  int64 // bytes; 0: not known
}

// fits reports whether the file can have a length.
func (f *expectedFile) fits(length int64) bool {
	return length >= shortestFile && length <= maxFile && (f.length == 0 || length == f.length)
}

// fitsBelow reports whether the store has a version of the file that can be it.
func (k *Keyring) fitsBelow(ctx context.Context, f expectedFile) (bool, error) {
	versions, ok := objstore.As[objstore.Versions](k.store)
	if !ok {
		return false, nil
	}
	all, err := below.List(ctx, versions, f.key)
	if err != nil && objstore.Permanent(err) {
		return false, nil // nobody tells of others
	}
	return slices.ContainsFunc(all, func(v objstore.ObjectVersion) bool { return !v.Marker && f.fits(v.Size) }), err
}

// expected are the files of all members. Lengths are known of those that are encrypted to age's own recipients.
func (r *Roster) expected() (all []expectedFile, err error) {
	lengths := make([]struct{ data, metadata int64 }, len(r.Generations)) // of the texts
	for i := range lengths {
		fake, err := crypt.Generate(i+1, r.PostQuantum) // whose texts are as long as those of the real one
		if err != nil {
			return nil, err
		}
		data, derr := dataText(r.RepositoryID, &fake)
		metadata, merr := metadataText(r.RepositoryID, &fake)
		if err := errors.Join(derr, merr); err != nil {
			return nil, err
		}
		lengths[i].data, lengths[i].metadata = int64(len(data)), int64(len(metadata))
	}
	more := make(map[bool]int64) // that a file has more than its text, by whether it is hybrid
	for _, m := range r.standing() {
		add := func(key string, text int64) {
			f := expectedFile{key: key, of: m.Name}
			if to, err := parseNative(m.Recipient); err == nil && text > 0 {
				if more[to.PostQuantum] == 0 {
					empty, err := encryptTo(to.To, "")
					if err != nil {
						return
					}
					more[to.PostQuantum] = int64(len(empty))
				}
				f.length = more[to.PostQuantum] + text
			}
			all = append(all, f)
		}
		if m.Passphrase {
			add(identityKey(m.Name), 0)
		}
		text, err := signingText(r.RepositoryID, m.Name, ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize)))
		if err != nil {
			return nil, err
		}
		add(signingKey(m.Name), int64(len(text)))
		for i := range r.Generations {
			g := &r.Generations[i]
			add(metadataKey(g, m.Name), lengths[i].metadata)
			if m.Role.ReadsData() {
				add(dataKey(g, m.Name), lengths[i].data)
			}
		}
	}
	return all, nil
}
