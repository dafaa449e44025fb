// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"filippo.io/age/plugin"
	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/internal/seal"
	"github.com/imgbackup/imgbackup/internal/usage"
	"github.com/imgbackup/imgbackup/keys"
	"github.com/imgbackup/imgbackup/objstore"
)

const identityVar = "IMGBACKUP_IDENTITY" // an identity file

// keyFlags say with which key repositories are opened.
type keyFlags struct {
	identities     []string
	passphraseFile string
	passphrase     []byte // from the configuration; nil: none
	configured     bool   // the configuration has said so, for one repository
}

// add adds the flags for a repository beside the one of --repo, which flag names.
func (k *keyFlags) add(f *pflag.FlagSet, prefix, flag string) {
	f.StringArrayVar(&k.identities, prefix+"identity", nil, "the `FILE` with the key of the repository of "+flag+"; may be repeated\n(default: --identity)")
	f.StringVar(&k.passphraseFile, prefix+"passphrase-file", "", "the first line of `FILE` is the passphrase of the repository of "+flag+",\nor of its identity")
}

// openOther opens a repository beside the one of --repo, with keys of its own if they are given.
func (a *app) openOther(ctx context.Context, place string, own keyFlags) (*chain.Repository, error) {
	other, err := a.at(place)
	if err != nil {
		return nil, err
	}
	other.second = true
	if len(own.identities) > 0 || own.passphraseFile != "" {
		other.keyFlags, other.opened, other.second = own, &opened{}, false
	}
	return other.openRepo(ctx)
}

// opened are identities that were read once, since a person was perhaps asked.
type opened struct {
	read bool
	all  []*keys.Identities
}

// identity is the one for a repository: pinned to it, or else not pinned. nil: none was
// given.
func (a *app) identity(repository string) (*keys.Identities, error) {
	if !a.opened.read {
		all, err := a.readIdentities()
		if err != nil {
			return nil, err
		}
		a.opened.read, a.opened.all = true, all
	}
	var free, other *keys.Identities
	for _, ids := range a.opened.all {
		switch {
		case ids.Pin == nil && free == nil:
			free = ids
		case ids.Pin == nil:
			free = free.With(ids)
		case ids.Pin.Repository == repository:
			return ids, nil
		default:
			other = ids
		}
	}
	if free == nil {
		return other, nil // which then says what it belongs to
	}
	return free, nil
}

func (a *app) readIdentities() ([]*keys.Identities, error) {
	paths := a.keyFlags.identities
	if len(paths) == 0 {
		if path := os.Getenv(identityVar); path != "" {
			paths = []string{path}
		}
	}
	var all []*keys.Identities
	for _, path := range paths {
		if strings.HasPrefix(strings.ToUpper(strings.TrimSpace(path)), "AGE-SECRET-KEY-") {
			return nil, usage.Errorf("--identity, or %s, is the name of a file that holds the key, and not the key itself, which others can see there", identityVar)
		}
		data, err := readSmall(path, keys.MaxIdentityFile)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, &keys.Error{What: fmt.Sprintf("--identity: %v", err)}
		}
		if err != nil {
			return nil, fmt.Errorf("--identity: %w", err)
		}
		ids, err := keys.ParseIdentities(data, path, a.ways())
		if !bytes.Contains(data, []byte("-----BEGIN ")) { // of which a key for SSH is kept as it is
			clear(data)
		}
		if err != nil {
			return nil, err
		}
		all = append(all, ids)
	}
	if from := a.keyFlags.passphraseFile; len(all) == 0 && (from != "" || a.keyFlags.passphrase != nil) {
		phrase, err := a.keyFlags.readPassphrase()
		if err != nil {
			return nil, err
		}
		if from == "" {
			from = "the configuration"
		}
		ids, err := keys.Passphrase(phrase, from)
		clear(phrase)
		if err != nil {
			return nil, err
		}
		all = append(all, ids)
	}
	return all, nil
}

// ways are how a person is asked.
func (a *app) ways() keys.Ways {
	w := keys.Ways{Plugin: plugin.NewTerminalUI(func(format string, v ...any) { a.note(fmt.Sprintf(format, v...)) }, func(format string, v ...any) { a.note(fmt.Sprintf(format, v...)) })}
	switch {
	case a.keyFlags.passphraseFile != "", a.keyFlags.passphrase != nil:
		w.Passphrase = func(string) ([]byte, error) { return a.keyFlags.readPassphrase() }
	case a.asks():
		w.Passphrase = func(what string) ([]byte, error) { return a.askSecret("passphrase of " + what + ": ") }
	}
	return w
}

// asks reports whether there is a person to be asked.
func (a *app) asks() bool {
	f, ok := a.in.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// askSecret asks on the terminal, which does not show what is typed. One Ctrl-C ends it.
func (a *app) askSecret(prompt string) ([]byte, error) {
	tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = tty.Close() }() // nothing was written that must last
	// Not even what is typed before the program reads it is shown.
	shown, err := unix.IoctlGetTermios(int(tty.Fd()), unix.TCGETS)
	if err != nil {
		return nil, err
	}
	hidden := *shown
	hidden.Lflag &^= unix.ECHO
	if err := unix.IoctlSetTermios(int(tty.Fd()), unix.TCSETS, &hidden); err != nil {
		return nil, err
	}
	defer func() { _ = unix.IoctlSetTermios(int(tty.Fd()), unix.TCSETS, shown) }() // it was ours to set before
	if _, err := fmt.Fprint(tty, prompt); err != nil {
		return nil, err
	}
	var secret []byte
	if err := a.unlessInterrupted(func() (err error) {
		secret, err = term.ReadPassword(int(tty.Fd()))
		return err
	}); err != nil {
		return nil, err
	}
	fmt.Fprintln(tty)
	return secret, nil
}

// unlessInterrupted waits for a person. Who has pressed Ctrl-C is not asked on.
func (a *app) unlessInterrupted(ask func() error) error {
	done := make(chan error, 1)
	go func() { done <- ask() }()
	select {
	case err := <-done:
		return err
	case <-a.interrupted:
		return errInterrupted
	}
}

// readPassphrase is the passphrase that was given, as a copy.
func (k *keyFlags) readPassphrase() ([]byte, error) {
	if k.passphraseFile != "" {
		return readPassphrase(k.passphraseFile)
	}
	return bytes.Clone(k.passphrase), nil
}

// readPassphrase reads the first line of a file.
func readPassphrase(path string) ([]byte, error) {
	data, err := readSmall(path, 4096)
	if err != nil {
		return nil, fmt.Errorf("--passphrase-file: %w", err)
	}
	line, _, _ := bytes.Cut(data, []byte("\n"))
	line = bytes.TrimSuffix(line, []byte("\r"))
	if len(line) == 0 {
		return nil, usage.Errorf("--passphrase-file: the first line of %s is empty", path)
	}
	return line, nil
}

// unlock opens the keys of a repository, or sees that it needs none.
func (a *app) unlock(ctx context.Context, store objstore.Store, c *chain.Config) (*chain.Access, error) {
	ring, err := a.keyring(ctx, store, c, nil)
	if err != nil || ring == nil {
		return nil, err
	}
	return accessOf(ring), nil
}

// accessOf is what open keys are for a repository.
func accessOf(ring *keys.Keyring) *chain.Access {
	access := &chain.Access{Keys: ring.Keys, Authority: authority{ring}, Names: ring.Names()}
	for _, l := range ring.Lowered() {
		access.Lowered = append(access.Lowered, chain.Lowered(l))
	}
	return access
}

// unlockAhead is unlock, which has its first question asked already where the user gives a key.
func (a *app) unlockAhead(ctx context.Context, store objstore.Store) chain.Unlock {
	if len(a.keyFlags.identities) == 0 && (os.Getenv(identityVar) == "" || a.keyFlags.configured) {
		return a.unlock
	}
	listing := keys.List(ctx, store)
	return func(ctx context.Context, store objstore.Store, c *chain.Config) (*chain.Access, error) {
		ring, err := a.keyring(ctx, store, c, listing)
		if err != nil || ring == nil {
			return nil, err
		}
		return accessOf(ring), nil
	}
}

// keyring opens the keys of a repository; nil: it is not encrypted. listing was asked for before;
// nil: it was not.
func (a *app) keyring(ctx context.Context, store objstore.Store, c *chain.Config, listing *keys.Listing) (*keys.Keyring, error) {
	ids, err := a.identity(c.ID)
	if err != nil {
		return nil, err
	}
	if c.Encryption == nil {
		if ids == nil || ids.Pin == nil || a.second && ids.Pin.Repository != c.ID {
			return nil, nil
		}
		return nil, ids.Pin.CheckAbsent()
	}
	place := keys.Place{Store: store, Repository: c.ID, RosterKey: c.Encryption.RosterKey, Listing: listing}
	if ids == nil && a.asks() {
		phrase, err := a.askSecret("passphrase of the repository (or Ctrl-C, and --identity FILE): ")
		if err != nil {
			return nil, err
		}
		if ids, err = keys.Passphrase(phrase, "the passphrase"); err != nil {
			return nil, err
		}
	}
	ring, err := keys.Open(ctx, place, ids)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", a.place(), err)
	}
	return ring, nil
}

// authority is a keyring as package chain asks it.
type authority struct{ *keys.Keyring }

func (a authority) Check(key, seal string, s *seal.Signature) (chain.Author, error) {
	m, err := a.Verify(key, seal, s)
	if err != nil {
		return nil, err
	}
	return author{m, a.Keyring}, nil
}

// SettleRoster has who is no admin told so.
func (a authority) SettleRoster(ctx context.Context) error {
	if a.Member.Role != keys.Admin {
		return &chain.RoleError{Name: a.Member.Name, What: "end a rotation of the keys", Admin: true}
	}
	return a.Keyring.SettleRoster(ctx)
}

func (a authority) Self() chain.Author { return author{&a.Member, a.Keyring} }

type author struct {
	*keys.Member
	ring *keys.Keyring
}

func (a author) AuthorName() string { return a.Name }
func (a author) Manages() bool      { return a.Role.Manages() }
func (a author) Rehearses() bool    { return a.Role.Rehearses() }

// Covers asks the keyring, which knows names that are hidden.
func (a author) Covers(domain string) bool { return a.ring.Covers(a.Member, domain) }
