// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"path/filepath"
	"slices"
	"testing"

	"github.com/imgbackup/imgbackup/chain"
)

// worldKeys are the keys of a world whose repository is encrypted: backups are made by a host that
// can read nothing of what it stores, and all else is done by an admin.
type worldKeys struct{ admin, host string } // identity files

// encrypted says which worlds of a test are: those tests that do the same in many ways do some
// of them in an encrypted repository.
type encrypted bool

const (
	plain encrypted = false
	keyed encrypted = true
)

// encrypt makes the world's repository an encrypted one.
func (w *world) encrypt(t testing.TB) {
	w.Helper()
	dir := t.TempDir() // copies of the world have the same keys
	k := &worldKeys{admin: filepath.Join(dir, "admin.id"), host: filepath.Join(dir, "host.id")}
	w.must(append(w.bucket.inits(), "--encrypt", "--hide-names", "--out", k.admin)...)
	w.keys = k
	if w.bucket != nil {
		// Where a request may arrive late, a host's run that was killed leaves its lease to a
		// manager, since to be sure of the slot takes a void. So here an admin makes the backups.
		k.host = k.admin
		return
	}
	w.must("key", "add", "host", "--role", "host", "--out", k.host)
}

// identity is the flag that gives a command line its key.
func (w *world) identity(args []string) []string {
	switch {
	case w.keys == nil:
		return nil
	case slices.Contains(args, "backup"):
		return []string{"--identity", w.keys.host}
	}
	return []string{"--identity", w.keys.admin}
}

// open opens the repository, as an admin.
func (w *world) open() *chain.Repository {
	w.Helper()
	a := &app{opened: &opened{}}
	if w.keys != nil {
		a.keyFlags.identities = []string{w.keys.admin}
	}
	r, err := chain.OpenWith(context.Background(), w.store(), a.unlock)
	if err != nil {
		w.Fatal(err)
	}
	return r
}
