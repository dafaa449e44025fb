// SPDX-License-Identifier: Apache-2.0

package chain

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/crypt"
	"github.com/imgbackup/imgbackup/internal/protocol"
	"github.com/imgbackup/imgbackup/internal/seal"
	"github.com/imgbackup/imgbackup/keys"
	"github.com/imgbackup/imgbackup/objstore"
)

// forge is what a host stores that does not ask whether it may: rightly signed by its own
// key, and encrypted.
func forge(t *testing.T, host *Repository, key string, v any) []byte {
	t.Helper()
	sign, err := host.signer()
	if err != nil {
		t.Fatal(err)
	}
	data, err := seal.Seal(v, key, sign)
	if err == nil {
		data, err = host.encrypt(crypt.Metadata, data)
	}
	if err != nil {
		t.Fatal(err)
	}
	put(t, host.Store, key, data)
	return data
}

// What only a manager may say does not count from a host, whatever it is; and nobody is led
// to take away anything for it.
func TestHostsRole(t *testing.T) {
	t.Parallel()
	admin, host := signedWorld(t)
	commit(t, host, host.sample("web1", "one"))
	key := ManifestKey("web1", "one")
	right := get(t, host.Store, key)
	read := func(r *Repository) error {
		_, err := r.Manifest(t.Context(), "web1", "one")
		return err
	}
	census := func() error {
		_, err := admin.Census(t.Context(), nil, func(*Manifest) error { return nil })
		return err
	}
	wantForged := func(what, text string, err error) {
		t.Helper()
		if !archive.IsDamage(err) || !strings.Contains(err.Error(), text) || !strings.Contains(err.Error(), "the key of h may not") {
			t.Errorf("%s: %v; want damage that says %q", what, err, text)
		}
	}

	emptied := host.sample("web1", "one")
	emptied.Revision = 2
	forge(t, host, key, emptied)
	wantForged("a revision", "its revision 2", read(admin))
	wantForged("a revision, for another host", "its revision 2", read(host))
	wantForged("a revision, to a prune", "its revision 2", census())
	forge(t, host, key, host.newVoid())
	wantForged("a void", "take away a checkpoint", read(admin))
	wantForged("a void, to a prune", "take away a checkpoint", census())
	if h, err := admin.History(t.Context(), "web1"); err != nil || len(h.Unusable) != 1 || len(h.Names) != 1 {
		t.Errorf("a void hides the checkpoint from who lists: %+v, %v", h, err)
	}
	put(t, host.Store, key, right)
	if err := errors.Join(read(admin), census()); err != nil {
		t.Error(err)
	}

	self, err := host.Self()
	if err != nil {
		t.Fatal(err)
	}
	forge(t, host, MarkKey, &Mark{
		Head: Head{Format: MarkFormat, Version: 1}, UUID: NewUUID(), Revision: 1, State: MarkMarked, Owner: NewUUID(), Process: self, Since: now(),
		List: archive.Ref{Name: archive.Digest{1}, Length: 1},
	})
	_, err = host.Mark(t.Context())
	wantForged("a mark", "prune", err)
	forge(t, host, forgottenKey("web1"), &Forgotten{Head: Head{Format: ForgottenFormat, Version: 1}, RepositoryID: host.Config.ID, Domain: "web1"})
	_, err = admin.Forgotten(t.Context(), "web1")
	wantForged("what was forgotten", "forget", err)
	forge(t, host, proofsKey, storedProofs{Head: Head{Format: ProofsFormat, Version: 1}, RepositoryID: host.Config.ID, Runs: []proofRun{}})
	_, damage, err := admin.Proofs(t.Context())
	if err != nil {
		t.Error(err)
	}
	wantForged("proofs", "proven", damage)
	forge(t, host, lockedKey, &Locked{Head: Head{Format: LockedFormat, Version: 1}, RepositoryID: host.Config.ID, At: now()})
	if at, err := admin.LastLocked(t.Context()); err != nil || !at.IsZero() {
		t.Errorf("a host's word counts for when objects were kept on: %v, %v", at, err)
	}
	if err := admin.PutLocked(t.Context(), now()); err != nil {
		t.Fatal(err)
	}
	if at, err := host.LastLocked(t.Context()); err != nil || at.IsZero() {
		t.Errorf("an admin's does not: %v, %v", at, err)
	}

	// Nothing of it is stored by a program that asks.
	var role *RoleError
	if _, err := host.Retag(t.Context(), "web1", "one", []string{"keep"}, nil); !errors.As(err, &role) {
		t.Errorf("a host changes tags: %v", err)
	}
	err = host.Under(t.Context(), "test", func(h *Hold) error {
		m, err := host.Manifest(t.Context(), "web1", "one")
		if err != nil {
			return err
		}
		return h.Forget(t.Context(), m)
	})
	if !errors.As(err, &role) || read(admin) != nil {
		t.Errorf("a host forgets: %v", err)
	}
}

// A host has leases in its own folder only, ends its own, and breaks nobody's.
func TestHostsLeases(t *testing.T) {
	t.Parallel()
	admin, host := signedWorld(t)
	l, err := host.NewLease("test")
	if err != nil || !strings.HasPrefix(l.Key(), "leases/h/") {
		t.Fatal(l.Key(), err)
	}
	theirs, err := admin.NewLease("test")
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(host.PutLease(t.Context(), l), admin.PutLease(t.Context(), theirs)); err != nil {
		t.Fatal(err)
	}
	var role *RoleError
	if err := host.BreakLease(t.Context(), theirs); !errors.As(err, &role) {
		t.Errorf("a host breaks the lease of another: %v", err)
	}
	forged := *theirs
	forged.Broken = true
	before := get(t, host.Store, theirs.Key())
	forge(t, host, theirs.Key(), &forged)
	all, unusable, err := admin.Leases(t.Context())
	if err != nil || len(all) != 1 || len(unusable) != 1 || !strings.Contains(unusable[0].Error(), "may not have leases in leases/alice") {
		t.Errorf("%v, %v, %v", all, unusable, err)
	}
	put(t, host.Store, theirs.Key(), before)
	if err := host.BreakLease(t.Context(), l); err != nil {
		t.Errorf("its own, which has ended: %v", err)
	}
	if keys, err := host.LeaseKeys(t.Context()); err != nil || len(keys) != 1 || keys[0] != theirs.Key() {
		t.Error(keys, err)
	}
}

// A host rotates no keys: nobody stops writing for its lease that says so, and who keeps order is told.
func TestHostRotates(t *testing.T) {
	t.Parallel()
	admin, host := signedWorld(t)
	l, err := host.NewLease("test")
	if err != nil {
		t.Fatal(err)
	}
	l.Rotates = true
	forge(t, host, l.Key(), l)
	if err := admin.Under(t.Context(), "test", func(*Hold) error { return nil }); err != nil {
		t.Error(err)
	}
	all, unusable, err := admin.Leases(t.Context())
	if err != nil || len(all) != 0 || len(unusable) != 1 || !archive.IsDamage(unusable[0]) || !strings.Contains(unusable[0].Error(), "may not rotate the keys") {
		t.Errorf("%v, %v, %v", all, unusable, err)
	}
}

// What a host needs of a mark it strikes beside it: the mark stays the manager's, and who
// deletes finds it, and so does the host itself.
func TestHostStrikes(t *testing.T) {
	t.Parallel()
	admin, host := signedWorld(t)
	keys := []string{archive.PackKey(archive.Digest{1}), archive.PackKey(archive.Digest{2}), archive.PackKey(archive.Digest{3})}
	m, err := admin.CreateMark(t.Context(), &MarkList{Objects: keys})
	if err != nil {
		t.Fatal(err)
	}
	h, err := host.Hold(t.Context(), "test")
	if err != nil {
		t.Fatal(err)
	}
	if !h.Marked(keys[0]) {
		t.Fatal("the host does not see the mark")
	}
	for _, key := range keys[:2] {
		if err := h.Rely(t.Context(), key); err != nil || h.Marked(key) {
			t.Fatalf("%s is struck, and still marked: %v", key, err)
		}
	}
	if now, err := admin.Mark(t.Context()); err != nil || now.Revision != m.Revision {
		t.Errorf("the host has changed the mark: %+v, %v", now, err)
	}
	if err := h.Release(t.Context()); err != nil { // what is struck stays so
		t.Fatal(err)
	}
	if m, err = admin.SetDeleting(t.Context(), m, &MarkList{Objects: keys}); err != nil {
		t.Fatal(err)
	}
	struck, err := admin.Struck(t.Context(), m)
	if err != nil || len(struck) != 2 || struck[keys[0]] != "h" || struck[keys[1]] != "h" {
		t.Errorf("%v, %v", struck, err)
	}

	// A strike that comes too late counts for nothing: the host waits.
	h2, err := host.Hold(t.Context(), "test")
	if err != nil {
		t.Fatal(err)
	}
	waits, cancel := context.WithCancel(t.Context())
	cancel()
	if err := h2.Rely(waits, keys[2]); !errors.Is(err, context.Canceled) || !h2.Marked(keys[2]) {
		t.Errorf("it relies on what is being deleted: %v", err)
	}
	if err := h2.Release(t.Context()); err != nil {
		t.Fatal(err)
	}

	// One that is forged, or of another host, is an error: who put it may need anything.
	for _, folder := range []string{"alice", "other"} {
		id := NewUUID()
		forge(t, host, strikeKey(folder, id), &Strike{Head: Head{Format: StrikeFormat, Version: 1}, UUID: id, Mark: m.UUID, Keys: []string{}})
		if _, err := admin.Struck(t.Context(), m); !archive.IsDamage(err) {
			t.Errorf("a strike in the folder of %s: %v", folder, err)
		}
		if err := host.Store.Delete(t.Context(), strikeKey(folder, id)); err != nil {
			t.Fatal(err)
		}
	}
	if err := admin.RemoveStrikes(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	for info, err := range host.Store.List(t.Context(), leasesPrefix) {
		t.Errorf("%s is left, %v", info.Key, err)
	}
}

// Keys are rotated while nobody writes, and nobody begins to.
func TestRotating(t *testing.T) {
	t.Parallel()
	admin, host := signedWorld(t)
	h, err := host.Hold(t.Context(), "test")
	if err != nil {
		t.Fatal(err)
	}
	done := func(context.Context) error { t.Error("beside a writer"); return nil }
	var writers *WritersError
	if err := admin.Rotating(t.Context(), done); !errors.As(err, &writers) || !strings.HasPrefix(writers.Key, "leases/h/") {
		t.Errorf("beside a writer: %v", err)
	}
	if err := h.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	commit(t, host, host.sample("web1", "one"))
	err = admin.Rotating(t.Context(), func(ctx context.Context) error {
		var rotates *RotatingError
		if _, err := admin.Retag(ctx, "web1", "one", []string{"keep"}, nil); !errors.As(err, &rotates) {
			t.Errorf("a tag beside it: %v", err)
		}
		m, err := admin.Manifest(ctx, "web1", "one")
		if err != nil {
			return err
		}
		if err := admin.Remember(ctx, "web1", []*Manifest{m}, nil); !errors.As(err, &rotates) {
			t.Errorf("what is forgotten, beside it: %v", err)
		}
		if _, err := host.Hold(ctx, "test"); !errors.As(err, &rotates) {
			t.Errorf("a writer begins beside it: %v", err)
		}
		if err := admin.Rotating(ctx, done); !errors.As(err, &rotates) {
			t.Errorf("two at once: %v", err)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	if keys, err := admin.LeaseKeys(t.Context()); err != nil || len(keys) > 0 {
		t.Errorf("what is left: %v, %v", keys, err)
	}
	mark, err := admin.CreateMark(t.Context(), &MarkList{})
	if err != nil {
		t.Fatal(err)
	}
	if err := admin.Rotating(t.Context(), done); !errors.As(err, new(*MarkStandsError)) {
		t.Errorf("beside a prune: %v", err)
	}
	if _, err := admin.EndMark(t.Context(), mark); err != nil {
		t.Fatal(err)
	}
	// While a request may still do it nobody writes.
	err = admin.Rotating(t.Context(), func(context.Context) error { return &keys.UnsettledError{Err: errOutage} })
	if !errors.Is(err, errOutage) {
		t.Error(err)
	}
	var rotates *RotatingError
	if _, err := host.Hold(t.Context(), "test"); !errors.As(err, &rotates) {
		t.Errorf("a writer begins: %v", err)
	}
}

// another makes another admin, whose identities these are.
func another(t *testing.T, ring *keys.Keyring) *keys.Identities {
	t.Helper()
	joined, err := ring.Add(t.Context(), keys.Joining{Name: "bob", Role: keys.Admin})
	if err != nil {
		t.Fatal(err)
	}
	bob, err := keys.ParseIdentities([]byte(joined[0].Identity), "bob", keys.Ways{})
	if err != nil {
		t.Fatal(err)
	}
	return bob
}

// rotation leaves the lease of a rotation of the keys by bob, whose requests arrive when late is called.
func rotation(t *testing.T, admin *Repository, bob *keys.Identities) (l *Lease, late func()) {
	t.Helper()
	l, err := admin.NewLease("key rotate")
	if err != nil {
		t.Fatal(err)
	}
	l.Rotates = true
	if err := admin.PutLease(t.Context(), l); err != nil {
		t.Fatal(err)
	}
	beside := objstore.NewMem()
	for info := range admin.Store.List(t.Context(), "keys/") {
		put(t, beside, info.Key, get(t, admin.Store, info.Key))
	}
	rosterKey := admin.authority().(ringAuthority).RosterKey()
	other, err := keys.Open(t.Context(), keys.Place{Store: beside, Repository: admin.Config.ID, RosterKey: rosterKey}, bob)
	if err == nil {
		err = other.Rotate(t.Context(), nil, nil)
	}
	if err != nil {
		t.Fatal(err)
	}
	return l, func() {
		for info := range beside.List(t.Context(), "keys/") {
			err := admin.Store.Put(t.Context(), info.Key, bytes.NewReader(get(t, beside, info.Key)), objstore.PutOptions{})
			if err != nil && !errors.Is(err, objstore.ErrExists) {
				t.Fatal(err)
			}
		}
	}
}

// TestRotatingSuspended: a machine that rotates the keys is suspended for more than a day, so that its lease is
// broken, and goes on when others have begun to write. It rotates nothing any more. Only an admin can see to
// that, so nobody else breaks that lease.
func TestRotatingSuspended(t *testing.T) {
	t.Parallel()
	for what, breaks := range map[string]func(r *Repository, l *Lease) (bool, error){
		"a prune": func(r *Repository, l *Lease) (bool, error) { return r.breakIfEnded(t.Context(), l, 25*time.Hour) },
		"a person": func(r *Repository, l *Lease) (bool, error) {
			err := r.BreakLease(t.Context(), l)
			return err == nil, err
		},
	} {
		admin, host := signedWorld(t)
		ring := admin.authority().(ringAuthority).Keyring
		bob := another(t, ring)
		l, late := rotation(t, admin, bob)
		manager := *admin
		manager.Access = &Access{Keys: admin.Access.Keys, Authority: noAdmin{admin.Access.Authority}}
		var role *RoleError
		if gone, err := breaks(&manager, l); gone || what == "a person" && !errors.As(err, &role) || what == "a prune" && err != nil {
			t.Errorf("%s, without an admin's key: broken %v, %v", what, gone, err)
		}
		if gone, err := breaks(admin, l); !gone || err != nil {
			t.Fatalf("%s: %v, %v", what, gone, err)
		}
		err := host.Under(t.Context(), "backup", func(*Hold) error {
			commit(t, host, host.sample("web1", "one"))
			late()
			return nil
		})
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
		place := keys.Place{Store: admin.Store, Repository: admin.Config.ID, RosterKey: ring.RosterKey()}
		if r, err := keys.ReadRoster(t.Context(), place); err != nil || r.Generation() != 1 {
			t.Errorf("%s: what was suspended has rotated the keys: %v", what, err)
		}
		if _, err := admin.Manifest(t.Context(), "web1", "one"); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// noAdmin is an authority that can change no roster.
type noAdmin struct{ Authority }

// TestRotatingKilled: who rotates the keys is killed when its request is on its way. Who writes then waits
// until that can't arrive any more; when it does arrive meanwhile, nothing is written that would not
// count; and the next rotation sees to it that it comes too late.
func TestRotatingKilled(t *testing.T) {
	t.Parallel()
	for _, arrives := range []bool{false, true} {
		admin, host := signedWorld(t)
		admin.Store, host.Store = quarterLate{admin.Store}, quarterLate{host.Store}
		ring := admin.authority().(ringAuthority).Keyring
		bob := another(t, ring)
		killed := func() (run string, late func()) {
			l, late := rotation(t, admin, bob)
			return l.UUID, late
		}
		run, late := killed()
		again := ""
		pauses := 0
		ctx := protocol.WithTest(t.Context(), &protocol.Test{
			Ended: func(uuid string) bool { return uuid == run || uuid == again },
			Pause: func(context.Context) error {
				if pauses++; pauses == 10 && arrives {
					late()
				}
				return nil
			},
		})
		var told []string
		host.Told = func(msg string) { told = append(told, msg) }
		wrote := false
		err := host.Under(ctx, "backup", func(*Hold) error {
			wrote = true
			return nil
		})
		if pauses < 30 || wrote == arrives || (err == nil) == arrives {
			t.Errorf("arrives %v: it waited %d times, wrote %v, %v", arrives, pauses, wrote, err)
		}
		if len(told) == 0 || !strings.Contains(told[0], run) || !strings.Contains(told[0], "up to 16m0s") {
			t.Errorf("nobody is told what is waited for: %q", told)
		}
		if keys, err := admin.LeaseKeys(t.Context()); err != nil || len(keys) != 1 {
			t.Errorf("a host takes away the lease of who rotates: %v, %v", keys, err)
		}
		if arrives {
			continue
		}

		// An admin need not wait: what is on its way comes too late then.
		again, late = killed()
		pauses = 0
		rotated := false
		if err := admin.Rotating(ctx, func(ctx context.Context) error {
			rotated = true
			late()
			return ring.CheckNotRotated(ctx)
		}); err != nil || !rotated || pauses > 0 || ring.Roster.Generation() != 1 {
			t.Errorf("the next rotation: %v, %v", rotated, err)
		}
	}
}
