// SPDX-License-Identifier: Apache-2.0

package keys

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"filippo.io/age"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/crypt"
	"github.com/imgbackup/imgbackup/internal/seal"
	"github.com/imgbackup/imgbackup/objstore"
)

const repository = "39208bb2-22cf-4153-88fe-88c817b65018"

// person is somebody with an identity of their own.
type person struct {
	id  *age.X25519Identity
	ids *Identities
}

func newPerson(t testing.TB) person {
	t.Helper()
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	return person{id, parse(t, id.String())}
}

func (p person) joining(t testing.TB, name string, role Role) Joining {
	t.Helper()
	r, err := ParseRecipient(p.id.Recipient().String(), nil)
	if err != nil {
		t.Fatal(err)
	}
	return Joining{Name: name, Role: role, Recipient: r}
}

func parse(t testing.TB, text string) *Identities {
	t.Helper()
	ids, err := ParseIdentities([]byte(text), "key", Ways{})
	if err != nil {
		t.Fatal(err)
	}
	return ids
}

// world is a repository's keys, made by an admin.
type world struct {
	store objstore.Store
	place Place
	ring  *Keyring
	admin person
}

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{store: objstore.NewMem(), admin: newPerson(t)}
	var err error
	w.ring, _, err = Make(t.Context(), w.store, repository, Features{}, []Joining{w.admin.joining(t, "alice", Admin)})
	if err != nil {
		t.Fatal(err)
	}
	w.place = Place{Store: w.store, Repository: repository, RosterKey: w.ring.RosterKey()}
	return w
}

// add adds a member with a new identity, and returns what its file would have.
func (w *world) add(t testing.TB, name string, role Role) string {
	t.Helper()
	joined, err := w.ring.Add(t.Context(), Joining{Name: name, Role: role})
	if err != nil {
		t.Fatal(err)
	}
	return w.ring.Pin(name).String() + joined[0].Identity + "\n"
}

func (w *world) open(t testing.TB, ids *Identities) *Keyring {
	t.Helper()
	k, err := Open(t.Context(), w.place, ids)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func wantError(t *testing.T, err error, text string) {
	t.Helper()
	var wrong *Error
	if !errors.As(err, &wrong) || archive.IsDamage(err) || !strings.Contains(err.Error(), text) {
		t.Errorf("%v, want an error of a key with %q", err, text)
	}
}

// Each role opens what it is for, of all generations, and nothing else.
func TestRoles(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	files := map[Role]string{Host: w.add(t, "h", Host), Manager: w.add(t, "m", Manager), Drill: w.add(t, "d", Drill)}
	if err := w.ring.Rotate(t.Context(), nil, nil); err != nil {
		t.Fatal(err)
	}
	late := w.add(t, "late", Admin)
	files[Admin] = late
	for role, file := range files {
		k := w.open(t, parse(t, file))
		if k.Member.Role != role || k.Keys.Generation() != 2 || !k.Keys.Opens(crypt.Metadata) || k.Keys.Opens(crypt.Data) != role.ReadsData() {
			t.Errorf("%s: %s, generation %d, data %v", role, k.Member.Role, k.Keys.Generation(), k.Keys.Opens(crypt.Data))
		}
		if _, err := k.Signer(); err != nil {
			t.Errorf("%s signs: %v", role, err)
		}
		_, err := k.Add(t.Context(), Joining{Name: "x" + string(role), Role: Host})
		if role == Admin {
			if err != nil {
				t.Error(err)
			}
			continue
		}
		wantError(t, err, "identity of an admin")
	}
	// A file that a member's role has no right to is not there.
	for _, key := range []string{dataKey(&w.ring.Roster.Generations[0], "h"), dataKey(&w.ring.Roster.Generations[1], "m")} {
		if _, err := w.store.Stat(t.Context(), key); !errors.Is(err, objstore.ErrNotFound) {
			t.Errorf("%s: %v", key, err)
		}
	}
}

func TestWrongAndMissing(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	_, err := Open(t.Context(), w.place, nil)
	wantError(t, err, "alice (admin)")
	_, err = Open(t.Context(), w.place, newPerson(t).ids)
	wantError(t, err, "key does not open this repository: give the identity of alice")
	// The right one, and a file that is damaged: every bit.
	key := metadataKey(&w.ring.Roster.Generations[0], "alice")
	good, err := objstore.ReadAll(t.Context(), w.store, key, maxFile)
	if err != nil {
		t.Fatal(err)
	}
	for i := range good {
		bad := bytes.Clone(good)
		bad[i] ^= 1
		put(t, w.store, key, bad)
		if _, err := Open(t.Context(), w.place, w.admin.ids); !archive.IsDamage(err) {
			t.Fatalf("byte %d: %v, want damage", i, err)
		}
	}
	if err := w.store.Delete(t.Context(), key); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), w.place, w.admin.ids); !archive.IsDamage(err) {
		t.Errorf("a file that is missing: %v", err)
	}
}

func put(t testing.TB, s objstore.Store, key string, data []byte) {
	t.Helper()
	if err := s.Put(t.Context(), key, bytes.NewReader(data), objstore.PutOptions{Mode: objstore.Replace}); err != nil {
		t.Fatal(err)
	}
}

// A thief who may write everything makes a roster of his own, with keys of his own, to the
// members' recipients. Who is pinned does not take it, in any of its forms.
func TestReplaced(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	host := parse(t, w.add(t, "h", Host))
	thief := newPerson(t)
	theirs, _, err := Make(t.Context(), objstore.NewMem(), repository, Features{}, []Joining{
		thief.joining(t, "alice", Admin), {Name: "h", Role: Host, Recipient: recipient(t, host.native[0])}})
	if err != nil {
		t.Fatal(err)
	}
	fake := Place{Store: theirs.store, Repository: repository, RosterKey: theirs.RosterKey()}
	_, err = Open(t.Context(), fake, host)
	wantError(t, err, "another key signs")
	// With the true key in the configuration the thief's roster proves nothing.
	fake.RosterKey = w.place.RosterKey
	if _, err = Open(t.Context(), fake, host); !archive.IsDamage(err) {
		t.Errorf("a roster of another key: %v", err)
	}
	fake.Repository = "c687db5a-025c-4517-9678-d078d84a432e"
	_, err = Open(t.Context(), fake, host)
	wantError(t, err, "belongs to repository")
	wantError(t, host.Pin.CheckAbsent(), "is not encrypted")
	// Rolled back to before the host came, and to an older generation.
	if err := w.ring.Rotate(t.Context(), nil, nil); err != nil {
		t.Fatal(err)
	}
	newer := *host
	newer.Pin = w.ring.Pin("h")
	if err := w.store.Delete(t.Context(), rosterKey(3)); err != nil {
		t.Fatal(err)
	}
	_, err = Open(t.Context(), w.place, &newer)
	wantError(t, err, "its roster has revision 2, and had 3 before")
	w.open(t, host) // whose pin is older
	if err := w.store.Delete(t.Context(), rosterKey(2)); err != nil {
		t.Fatal(err)
	}
	_, err = Open(t.Context(), w.place, host)
	wantError(t, err, "its roster has revision 1")
}

// Two rotate at once, and one of them stores its keys when the other's roster stands already: who
// comes too late changes nothing, and everybody opens the keys of the other.
func TestRotateAtOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	host := parse(t, w.add(t, "h", Host))
	late := w.open(t, w.admin.ids)
	if err := late.CheckNotRotated(t.Context()); err != nil {
		t.Error(err)
	}
	if err := w.ring.Rotate(t.Context(), nil, nil); err != nil {
		t.Fatal(err)
	}
	wantError(t, late.CheckNotRotated(t.Context()), "have been rotated since this run")
	if err := late.Rotate(t.Context(), nil, nil); !errors.Is(err, objstore.ErrExists) {
		t.Errorf("the second: %v", err)
	}
	for _, ids := range []*Identities{w.admin.ids, host} {
		if k := w.open(t, ids); k.Keys.Generation() != 2 {
			t.Errorf("generation %d", k.Keys.Generation())
		}
	}
	// Likewise who adds a name that somebody else has added.
	late = w.open(t, w.admin.ids)
	x := parse(t, w.add(t, "x", Host))
	if _, err := late.Add(t.Context(), Joining{Name: "x", Role: Host}); !errors.Is(err, objstore.ErrExists) {
		t.Errorf("the second x: %v", err)
	}
	w.open(t, x)
}

func recipient(t testing.TB, s string) *Recipient {
	t.Helper()
	r, err := ParseRecipient(s, nil)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// Whoever is no admin can't make the next revision, and nobody can change one.
func TestRosterIsSigned(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.add(t, "h", Host)
	host := w.ring
	for rev := 1; rev <= 2; rev++ {
		key := rosterKey(rev)
		good, err := objstore.ReadAll(t.Context(), w.store, key, maxRoster)
		if err != nil {
			t.Fatal(err)
		}
		body := good[:len(good)-seal.LineLength]
		for i := 0; i < len(body); i += 3 {
			bad := bytes.Clone(body)
			bad[i] ^= 2
			put(t, w.store, key, append(bad, seal.Line(bad)...))
			if _, err := ReadRoster(t.Context(), w.place); err == nil {
				t.Fatalf("revision %d, byte %d: it is taken", rev, i)
			}
		}
		put(t, w.store, key, good)
	}
	next := host.Roster.clone()
	next.Revision, next.Previous = 3, host.digests[1]
	next.Members[1].Role = Admin
	for by, key := range map[string]*Keyring{"h": nil, "alice": w.ring} {
		private := w.ring.signing
		if key == nil {
			private = newPrivate(t)
		}
		data, err := sealRoster(next, by, private)
		if err != nil {
			t.Fatal(err)
		}
		put(t, w.store, rosterKey(3), data)
		if _, err := ReadRoster(t.Context(), w.place); !archive.IsDamage(err) {
			t.Errorf("by %s: %v", by, err) // of alice since a member's role never changes
		}
	}
}

// What counts, of what members sign, before and after they are removed and keys rotated.
func TestVerify(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	host := w.open(t, parse(t, w.add(t, "h", Host)))
	object := func(k *Keyring, key, text string) (string, *seal.Signature) {
		s, err := k.Signer()
		if err != nil {
			t.Fatal(err)
		}
		data, err := seal.Seal(map[string]string{"text": text}, key, s)
		if err != nil {
			t.Fatal(err)
		}
		_, sig, err := seal.Open(data)
		if err != nil || sig == nil {
			t.Fatal(sig, err)
		}
		line := string(data[len(data)-seal.LineLength:])
		return line[len(`"sha256":"`) : len(`"sha256":"`)+64], sig
	}
	check := func(what, key, digest string, s *seal.Signature, want string) {
		t.Helper()
		m, err := w.ring.Verify(key, digest, s)
		var not *UntrustedError
		switch {
		case want == "" && (err != nil || m.Name != "h"):
			t.Errorf("%s: %v", what, err)
		case want != "" && (!errors.As(err, &not) || !archive.IsDamage(err) || !strings.Contains(err.Error(), want)):
			t.Errorf("%s: %v, want %q", what, err, want)
		}
	}
	digest, sig := object(host, "a.json", "a")
	check("as it is", "a.json", digest, sig, "")
	check("elsewhere", "b.json", digest, sig, "for another place")
	check("unsigned", "a.json", digest, nil, "not signed")
	other := *sig
	other.By = "alice"
	check("as another", "a.json", digest, &other, "signature of alice is wrong")
	other.By = "mallory"
	check("nobody's", "a.json", digest, &other, "not in the roster")
	other = *sig
	other.Repository = "x"
	check("of another repository", "a.json", digest, &other, "for another repository")

	later, laterSig := object(host, "late.json", "late")
	if _, err := w.ring.Remove(t.Context(), "h"); err != nil {
		t.Fatal(err)
	}
	check("removed, which revokes nothing", "late.json", later, laterSig, "")
	if err := w.ring.Rotate(t.Context(), []Stands{{Key: "a.json", Seal: digest}, {Key: "0.json", Seal: digest}}, nil); err != nil {
		t.Fatal(err)
	}
	check("what stood", "a.json", digest, sig, "")
	check("what did not", "late.json", later, laterSig, "did not stand when they were rotated")
	check("nor there", "0.json", digest, sig, "for another place")
	// With the newer generation, which the host has never had.
	host.Roster = w.ring.Roster
	digest, sig = object(host, "new.json", "x")
	check("forged", "new.json", digest, sig, "of which they had none")
	// The list is proven, too.
	list := w.ring.Roster.Generations[1].Standing
	data, err := objstore.ReadAll(t.Context(), w.store, standingKey(list.SHA256), maxStanding)
	if err != nil {
		t.Fatal(err)
	}
	data[len(data)/2] ^= 1
	put(t, w.store, standingKey(list.SHA256), data)
	if _, err := Open(t.Context(), w.place, w.admin.ids); !archive.IsDamage(err) {
		t.Errorf("a damaged list: %v", err)
	}
}

func TestMembers(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m := Member{Role: Host, Domains: []string{"web*", "db"}}
	for domain, want := range map[string]bool{"web1": true, "db": true, "db2": false, "": false} {
		if m.Covers(domain) != want {
			t.Errorf("%q: %v", domain, !want)
		}
	}
	for name, j := range map[string]Joining{
		"taken":         {Name: "alice", Role: Host},
		"recipient":     {Name: "x", Role: Host, Recipient: recipient(t, w.admin.id.Recipient().String())},
		"passphrase":    {Name: "x", Role: Admin, Passphrase: []byte("nineteen characters")},
		"no name":       {Role: Host},
		"path":          {Name: "../x", Role: Host},
		"twice at once": {Name: "y", Role: Host},
	} {
		all := []Joining{j}
		if name == "twice at once" {
			all = append(all, j)
		}
		if _, err := w.ring.Add(t.Context(), all...); err == nil {
			t.Errorf("%s: it was added", name)
		}
	}
	if r := w.ring.Roster; r.Revision != 1 || len(r.Members) != 1 {
		t.Errorf("the roster has changed: %+v", r)
	}
	// Two admins at once: one is told.
	other := w.open(t, w.admin.ids)
	w.add(t, "h", Host)
	if _, err := other.Add(t.Context(), Joining{Name: "i", Role: Host}); !errors.Is(err, objstore.ErrExists) {
		t.Errorf("a roster that changed meanwhile: %v", err)
	}
}

func TestPassphrase(t *testing.T) {
	t.Parallel()
	store := objstore.NewMem()
	phrase := NewPassphrase()
	if err := CheckPassphrase([]byte(phrase)); err != nil || phrase == NewPassphrase() {
		t.Fatal(phrase, err)
	}
	k, _, err := Make(t.Context(), store, repository, Features{PostQuantum: true}, []Joining{{Name: "p", Role: Admin, Passphrase: []byte(phrase), WorkFactor: 8}})
	if err != nil {
		t.Fatal(err)
	}
	place := Place{Store: store, Repository: repository, RosterKey: k.RosterKey()}
	ids, err := Passphrase([]byte(phrase), "file")
	if err != nil {
		t.Fatal(err)
	}
	k, err = Open(t.Context(), place, ids)
	if err != nil || !k.Keys.Opens(crypt.Data) || !k.Roster.PostQuantum {
		t.Fatal(err)
	}
	// Without the passphrase, at a new generation.
	if err := k.Rotate(t.Context(), nil, nil); err != nil {
		t.Fatal(err)
	}
	if _, err = k.Add(t.Context(), Joining{Name: "c", Role: Host, Recipient: newPerson(t).joining(t, "c", Host).Recipient}); err == nil {
		t.Error("a classic recipient beside hybrid ones")
	}
	if _, err = Open(t.Context(), place, ids); err != nil {
		t.Error(err)
	}
	ids, err = Passphrase([]byte("another passphrase that is long"), "file")
	if err != nil {
		t.Fatal(err)
	}
	_, err = Open(t.Context(), place, ids)
	wantError(t, err, "the passphrase does not open this repository")
}

// Two repositories with the same keys: all generations, under the same numbers.
func TestMakeLike(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	if err := w.ring.Rotate(t.Context(), nil, nil); err != nil {
		t.Fatal(err)
	}
	const id = "c687db5a-025c-4517-9678-d078d84a432e"
	store := objstore.NewMem()
	like, _, err := w.ring.MakeLike(t.Context(), store, id, false, []Joining{w.admin.joining(t, "bob", Admin)})
	if err != nil {
		t.Fatal(err)
	}
	k, err := Open(t.Context(), Place{Store: store, Repository: id, RosterKey: like.RosterKey()}, w.admin.ids)
	if err != nil {
		t.Fatal(err)
	}
	for i, g := range k.Roster.Generations {
		if o := w.ring.Roster.Generations[i]; g.DataKey != o.DataKey || g.MetadataKey != o.MetadataKey || g.DigestCheck != o.DigestCheck {
			t.Errorf("generation %d is another one", g.Number)
		}
	}
	if len(k.Roster.Generations) != 2 || k.RosterKey() == w.ring.RosterKey() {
		t.Errorf("%d generations", len(k.Roster.Generations))
	}
}

// Debian's age opens what a kit has, with the file that a host or a person has.
func TestByHand(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	file := w.add(t, "bob", Admin)
	kept, err := Kit(t.Context(), w.place, w.ring.Roster)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	write := func(name, text string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("bob.key", file)
	opened := 0
	for _, k := range kept {
		stored, err := objstore.ReadAll(t.Context(), w.store, k.Key, maxFile)
		if err != nil {
			t.Fatal(err)
		}
		write("block", k.Armor)
		back := exec.Command("sh", "-c", "grep -v -e ----- block | base64 -d")
		back.Dir = dir
		if out, err := back.Output(); err != nil || !bytes.Equal(out, stored) {
			t.Errorf("%s does not come back from its block: %v", k.Key, err)
		}
		cmd := exec.Command("age", "-d", "-i", "bob.key", "block")
		cmd.Dir = dir
		out, err := cmd.Output()
		if k.Of != "bob" {
			if err == nil {
				t.Errorf("bob opens %s", k.Key)
			}
			continue
		}
		if err != nil {
			t.Errorf("age does not open %s: %v", k.Key, err)
		}
		if ParseKey(k.Key).Kind == DataObject && bytes.Contains(out, []byte("AGE-SECRET-KEY-1")) {
			opened++
		}
	}
	if opened != 1 {
		t.Errorf("%d data keys were opened", opened)
	}
}
