// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/pflag"

	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/internal/sys"
	"github.com/imgbackup/imgbackup/internal/usage"
	"github.com/imgbackup/imgbackup/keys"
	"github.com/imgbackup/imgbackup/objstore"
)

// encryptOptions are the flags of init that make an encrypted repository.
type encryptOptions struct {
	encrypt, postQuantum bool
	recipients           []string
	out, keysOf          string
}

const firstKey = "admin" // the name of the first key, where it is given none

func (o *encryptOptions) add(f *pflag.FlagSet) {
	f.BoolVar(&o.encrypt, "encrypt", false, "encrypt all that is stored: to --recipient, with the passphrase in\n--passphrase-file, or with a new key in --out")
	f.StringArrayVar(&o.recipients, "recipient", nil, "who can open it, as an admin: age1…, age1pq1…, an SSH public key, or a\nplugin's (`[NAME=]R`); may be repeated")
	f.StringVar(&o.out, "out", "", "make a new identity, and write it to `FILE`, which must not exist")
	f.BoolVar(&o.postQuantum, "post-quantum", false, "keys that a quantum computer does not break either, which age before 1.3\ndoes not know; all recipients must be such, too")
	f.StringVar(&o.keysOf, "keys-of", "", "have the same keys as `REPO`, whose admin's identity is given: so copies\nbetween the two need not read the data")
}

// complete checks the flags.
func (o *encryptOptions) complete(a *app, f *pflag.FlagSet) error {
	if !o.encrypt {
		for _, flag := range []string{"recipient", "out", "post-quantum", "keys-of"} {
			if f.Changed(flag) {
				return usage.Errorf("--%s is for --encrypt", flag)
			}
		}
		return nil
	}
	if err := notEmpty(f, "out", "keys-of"); err != nil {
		return err
	}
	switch {
	case o.keysOf != "" && o.postQuantum:
		return usage.Errorf("--post-quantum: the keys are those of --keys-of")
	case len(o.recipients) == 0 && o.out == "" && a.keyFlags.passphraseFile == "" && !a.asks():
		return usage.Errorf("who can open it? give --recipient R (age-keygen makes one), --passphrase-file FILE, or --out FILE for a new key")
	}
	return nil
}

// members are those that the flags name, all of them admins.
func (a *app) firstMembers(o *encryptOptions) (all []keys.Joining, made string, err error) {
	name := func() string {
		if len(all) == 0 {
			return firstKey
		}
		return fmt.Sprintf("%s-%d", firstKey, len(all)+1)
	}
	for _, text := range o.recipients {
		called, text := named(text)
		r, err := keys.ParseRecipient(text, a.ways().Plugin)
		if err != nil {
			return nil, "", usage.Errorf("--recipient: %w", err)
		}
		if o.postQuantum && !r.PostQuantum {
			return nil, "", usage.Errorf("--recipient %.40s…: --post-quantum needs recipients that begin with age1pq1 (age-keygen -pq makes one)", r.Text)
		}
		if called == "" {
			called = name()
		}
		all = append(all, keys.Joining{Name: called, Role: keys.Admin, Recipient: r})
	}
	phrase, made, err := a.newPassphrase(o)
	if err != nil {
		return nil, "", err
	}
	if phrase != nil {
		all = append(all, keys.Joining{Name: name(), Role: keys.Admin, Passphrase: phrase, WorkFactor: a.workFactor})
	}
	if o.out != "" {
		all = append(all, keys.Joining{Name: name(), Role: keys.Admin})
	}
	return all, made, nil
}

// named takes NAME= from a recipient; empty: there is none.
func named(text string) (name, recipient string) {
	before, after, ok := strings.Cut(text, "=")
	if ok && keys.CheckName(before) == nil && !strings.HasPrefix(before, "age1") {
		return before, after
	}
	return "", text
}

// newPassphrase is the one for a new repository; nil: none is wanted. made is one that
// was made up, to be shown.
func (a *app) newPassphrase(o *encryptOptions) (phrase []byte, made string, err error) {
	switch {
	case a.keyFlags.passphraseFile != "":
		phrase, err = readPassphrase(a.keyFlags.passphraseFile)
	case len(o.recipients) == 0 && o.out == "":
		phrase, err = askSecret(fmt.Sprintf("passphrase, of at least %d characters (empty: one is made up): ", keys.MinPassphrase))
		if err == nil && len(phrase) == 0 {
			made = keys.NewPassphrase()
			return []byte(made), made, nil
		}
		if err == nil {
			var again []byte
			if again, err = askSecret("once more: "); err == nil && string(again) != string(phrase) {
				err = usage.Errorf("these are two passphrases")
			}
		}
	default:
		return nil, "", nil
	}
	if err == nil {
		err = usage.Wrap(keys.CheckPassphrase(phrase))
	}
	return phrase, "", err
}

// encrypting returns what makes the keys of the new repository, and what is to be done
// once it is there.
func (a *app) encrypting(ctx context.Context, o *encryptOptions, init *chain.InitOptions) (done func() error, err error) {
	if !o.encrypt {
		return func() error { return nil }, nil
	}
	members, made, err := a.firstMembers(o)
	if err != nil {
		return nil, err
	}
	var like *keys.Keyring
	if o.keysOf != "" {
		if like, err = a.ringOf(ctx, o.keysOf); err != nil {
			return nil, err
		}
	}
	out, err := a.newIdentityFile(o.out)
	if err != nil {
		return nil, err
	}
	if err := a.confirmKept(); err != nil {
		return nil, errors.Join(err, out.discard())
	}
	var ring *keys.Keyring
	var joined []keys.Joined
	init.Encrypt = func(ctx context.Context, store objstore.Store, id string) (*chain.Encryption, *chain.Access, error) {
		var err error
		if like != nil {
			ring, joined, err = like.MakeLike(ctx, store, id, members)
		} else {
			ring, joined, err = keys.Make(ctx, store, id, o.postQuantum, members)
		}
		if err != nil {
			return nil, nil, err
		}
		// The file is durable before the repository is one.
		if err := out.write(ring, &joined[len(joined)-1]); err != nil {
			return nil, nil, err
		}
		return &chain.Encryption{Scheme: chain.EncryptionScheme, RosterKey: ring.RosterKey()},
			&chain.Access{Keys: ring.Keys, Authority: authority{ring}}, nil
	}
	return func() error {
		if ring == nil {
			return out.discard()
		}
		if made != "" {
			if _, err := fmt.Fprintf(a.err, "The passphrase, which is shown once: %s\n", made); err != nil {
				return err
			}
		}
		a.note("without a key everything in this repository is lost: keep " + kept(ring, o.out) + " in another place, too; imgbackup key kit prints what to lay into a safe")
		return nil
	}, nil
}

// kept names what must be kept.
func kept(ring *keys.Keyring, out string) string {
	var all []string
	for _, m := range ring.Roster.Members {
		switch {
		case m.Passphrase:
			all = append(all, "the passphrase")
		default:
			all = append(all, "the identity of "+m.Name)
		}
	}
	if out != "" {
		all[len(all)-1] += " (" + out + ")"
	}
	return strings.Join(all, " or ")
}

// confirmKept asks whoever can be asked whether the key is kept elsewhere, too.
func (a *app) confirmKept() error {
	if a.quiet || a.json || !a.asks() {
		return nil
	}
	if _, err := fmt.Fprint(a.err, "Without a key everything in this repository is lost, and nobody can help.\nIs, or will be, a copy of the key kept in another place than this machine? [y/N] "); err != nil {
		return err
	}
	answer, err := bufio.NewReader(a.in).ReadString('\n')
	if err != nil && answer == "" {
		return err
	}
	if !strings.HasPrefix(strings.ToLower(strings.TrimSpace(answer)), "y") {
		return errors.New("no repository was made: keep the key in another place first")
	}
	return nil
}

// ringOf opens the keys of another repository.
func (a *app) ringOf(ctx context.Context, place string) (*keys.Keyring, error) {
	other := *a
	other.repoFlag, other.keyFlags.passphraseFile = place, ""
	ring, _, err := other.openKeys(ctx)
	if err != nil {
		return nil, fmt.Errorf("--keys-of: %w", err)
	}
	return ring, nil
}

// identityFile is a file for an identity that is yet to be made; nil: none is wanted.
type identityFile struct {
	f    *os.File
	path string
}

// newIdentityFile makes an empty file, which only its owner reads.
func (a *app) newIdentityFile(path string) (*identityFile, error) {
	if path == "" {
		return nil, nil
	}
	if err := a.checkOutside("--out", path); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("--out: %s is there already, and is not replaced", path)
	}
	if err != nil {
		return nil, fmt.Errorf("--out: %w", err)
	}
	return &identityFile{f, path}, nil
}

// write writes an identity with what is pinned for it; without one, what is pinned only.
func (o *identityFile) write(ring *keys.Keyring, j *keys.Joined) error {
	if o == nil {
		return nil
	}
	text := fmt.Sprintf("# %s of an imgbackup repository: %s\n# public key: %s\n%s", roleName(j.Role), j.Name, j.Recipient, ring.Pin(j.Name))
	if j.Identity != "" {
		text += j.Identity + "\n"
	}
	_, err := o.f.WriteString(text)
	if err == nil {
		err = o.f.Sync()
	}
	if err = errors.Join(err, o.f.Close()); err == nil {
		err = syncFolderOf(o.path)
	}
	if err != nil {
		return fmt.Errorf("--out: %w", err)
	}
	return nil
}

// syncFolderOf makes the name of a new file durable.
func syncFolderOf(path string) error {
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join((&sys.FolderSyncer{}).Sync(dir), dir.Close())
}

// discard removes the file, of which nothing came.
func (o *identityFile) discard() error {
	if o == nil {
		return nil
	}
	_ = o.f.Close() // it may be so already
	return os.Remove(o.path)
}

func roleName(r keys.Role) string {
	switch r {
	case keys.Admin:
		return "An admin"
	case keys.Host:
		return "A host"
	case keys.Manager:
		return "A manager"
	}
	return "A drill"
}
