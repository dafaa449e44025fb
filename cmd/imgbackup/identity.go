// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"fmt"
	"os"

	"filippo.io/age/plugin"
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
		data, err := readSmall(path, keys.MaxIdentityFile)
		if err != nil {
			return nil, fmt.Errorf("--identity: %w", err)
		}
		ids, err := keys.ParseIdentities(data, path, a.ways())
		if err != nil {
			return nil, err
		}
		all = append(all, ids)
	}
	if len(all) == 0 && a.keyFlags.passphraseFile != "" {
		phrase, err := readPassphrase(a.keyFlags.passphraseFile)
		if err != nil {
			return nil, err
		}
		ids, err := keys.Passphrase(phrase, a.keyFlags.passphraseFile)
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
	case a.keyFlags.passphraseFile != "":
		w.Passphrase = func(string) ([]byte, error) { return readPassphrase(a.keyFlags.passphraseFile) }
	case a.asks():
		w.Passphrase = func(what string) ([]byte, error) { return askSecret("passphrase of " + what + ": ") }
	}
	return w
}

// asks reports whether there is a person to be asked.
func (a *app) asks() bool {
	f, ok := a.in.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// askSecret asks on the terminal, which does not show what is typed.
func askSecret(prompt string) ([]byte, error) {
	tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = tty.Close() }() // nothing was written that must last
	if _, err := fmt.Fprint(tty, prompt); err != nil {
		return nil, err
	}
	secret, err := term.ReadPassword(int(tty.Fd()))
	fmt.Fprintln(tty)
	return secret, err
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
	ring, err := a.keyring(ctx, store, c)
	if err != nil || ring == nil {
		return nil, err
	}
	return &chain.Access{Keys: ring.Keys, Authority: authority{ring}}, nil
}

// keyring opens the keys of a repository; nil: it is not encrypted.
func (a *app) keyring(ctx context.Context, store objstore.Store, c *chain.Config) (*keys.Keyring, error) {
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
	place := keys.Place{Store: store, Repository: c.ID, RosterKey: c.Encryption.RosterKey}
	if ids == nil && a.asks() {
		phrase, err := askSecret("passphrase of the repository (or Ctrl-C, and --identity FILE): ")
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
	return author{m}, nil
}

type author struct{ *keys.Member }

func (a author) AuthorName() string { return a.Name }
func (a author) Manages() bool      { return a.Role.Manages() }
