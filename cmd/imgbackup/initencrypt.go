// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/pflag"

	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/internal/usage"
	"github.com/imgbackup/imgbackup/keys"
	"github.com/imgbackup/imgbackup/objstore"
)

// encryptOptions are the flags of init that make an encrypted repository.
type encryptOptions struct {
	encrypt, postQuantum bool
	hideNames            bool
	recipients           []string
	out, keysOf          string
}

const firstKey = "admin" // the name of the first key, where it is given none

func (o *encryptOptions) add(f *pflag.FlagSet) {
	f.BoolVar(&o.encrypt, "encrypt", false, "encrypt all that is stored: to --recipient, with the passphrase in\n--passphrase-file, or with a new key in --out")
	f.StringArrayVar(&o.recipients, "recipient", nil, "who can open it, as an admin: age1…, age1pq1…, an SSH public key, or a\nplugin's (`[NAME=]R`); may be repeated")
	f.StringVar(&o.out, "out", "", "make a new identity, and write it to `FILE`, which must not exist")
	f.BoolVar(&o.postQuantum, "post-quantum", false, "keys that a quantum computer does not break either, which age before 1.3\ndoes not know; all recipients must be such, too")
	f.BoolVar(&o.hideNames, "hide-names", false, "put keyed digests in the place of the names of domains, checkpoints and\nhosts in the keys of objects (names of keys are still seen)")
	f.StringVar(&o.keysOf, "keys-of", "", "have the same keys as `REPO`, whose admin's identity is given: so copies\nbetween the two need not read the data; its admins, managers and drills\ncan open the new one, unless --recipient or --out say who can")
}

// complete checks the flags.
func (o *encryptOptions) complete(a *app, f *pflag.FlagSet) error {
	if !o.encrypt {
		for _, flag := range []string{"recipient", "out", "post-quantum", "hide-names", "keys-of"} {
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
	case o.keysOf == "" && len(o.recipients) == 0 && o.out == "" && a.keyFlags.passphraseFile == "" && !a.asks():
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
		phrase, err = a.askSecret(fmt.Sprintf("passphrase, of at least %d characters (empty: one is made up): ", keys.MinPassphrase))
		if err == nil && len(phrase) == 0 {
			made = keys.NewPassphrase()
			return []byte(made), made, nil
		}
		if err == nil {
			var again []byte
			if again, err = a.askSecret("once more: "); err == nil && string(again) != string(phrase) {
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
// once it is there, or why it is not.
func (a *app) encrypting(ctx context.Context, o *encryptOptions, init *chain.InitOptions) (done func(failed error) error, err error) {
	if !o.encrypt {
		return func(failed error) error { return failed }, nil
	}
	var like *keys.Keyring
	if o.keysOf != "" {
		if like, err = a.ringOf(ctx, o); err != nil {
			return nil, err
		}
	}
	var members []keys.Joining
	var made string
	if o.sameMembers() {
		members, err = like.SameMembers(ctx, a.ways().Plugin)
	} else {
		members, made, err = a.firstMembers(o)
	}
	if err != nil {
		return nil, err
	}
	out, err := a.newSecretFile("--out", o.out)
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
			ring, joined, err = like.MakeLike(ctx, store, id, o.hideNames, members)
		} else {
			ring, joined, err = keys.Make(ctx, store, id, keys.Features{PostQuantum: o.postQuantum, HideNames: o.hideNames}, members)
		}
		if err != nil {
			return nil, nil, err
		}
		// The file is durable before the repository is one.
		if out != nil {
			if err := out.finish(identityFileText(ring, &joined[len(joined)-1])); err != nil {
				return nil, nil, err
			}
		}
		return &chain.Encryption{Scheme: chain.EncryptionScheme, RosterKey: ring.RosterKey()},
			accessOf(ring), nil
	}
	return func(failed error) error {
		if failed != nil && !errors.Is(failed, chain.ErrMadeOrNot) {
			return errors.Join(failed, out.discard()) // it opens nothing
		}
		if made != "" {
			if _, err := fmt.Fprintf(a.err, "The passphrase, which is shown once: %s\n", made); err != nil {
				return err
			}
		}
		if o.sameMembers() && len(a.opened.all) > 0 && a.opened.all[0].Pin != nil {
			a.note("the identity file that was given is pinned to " + o.keysOf + " and refuses all others: its line AGE-SECRET-KEY-…, in a file of its own, opens both")
		}
		a.note("without a key everything in this repository is lost: keep " + kept(ring, o.out) + " in another place, too; imgbackup key kit prints what to lay into a safe")
		return failed
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
	var answer string
	if err := a.unlessInterrupted(func() (err error) {
		answer, err = bufio.NewReader(a.in).ReadString('\n')
		return err
	}); err != nil && answer == "" {
		return err
	}
	if !strings.HasPrefix(strings.ToLower(strings.TrimSpace(answer)), "y") {
		return errors.New("no repository was made: keep the key in another place first")
	}
	return nil
}

// sameMembers reports whether those can open the new repository that can open that of --keys-of.
func (o *encryptOptions) sameMembers() bool {
	return o.keysOf != "" && len(o.recipients) == 0 && o.out == ""
}

// ringOf opens the keys of the repository of --keys-of. A passphrase is the new repository's, if
// that has a key of its own.
func (a *app) ringOf(ctx context.Context, o *encryptOptions) (*keys.Keyring, error) {
	other, err := a.at(o.keysOf)
	if err != nil {
		return nil, fmt.Errorf("--keys-of: %w", err)
	}
	if !o.sameMembers() {
		other.keyFlags.passphraseFile = ""
	}
	ring, _, err := other.openKeys(ctx)
	if err != nil {
		return nil, fmt.Errorf("--keys-of: %w", err)
	}
	return ring, nil
}

// identityFileText is an identity file: an identity with what is pinned for it; without one, what is
// pinned only.
func identityFileText(ring *keys.Keyring, j *keys.Joined) []byte {
	text := fmt.Sprintf("# %s of an imgbackup repository: %s\n# public key: %s\n%s", roleName(j.Role), j.Name, j.Recipient, ring.Pin(j.Name))
	if j.Identity != "" {
		text += j.Identity + "\n"
	}
	return []byte(text)
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
