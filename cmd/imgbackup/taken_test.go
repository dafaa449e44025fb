// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/crypt"
	"github.com/imgbackup/imgbackup/internal/seal"
	"github.com/imgbackup/imgbackup/keys"
	"github.com/imgbackup/imgbackup/objstore"
	"github.com/imgbackup/imgbackup/objstore/local"
)

// fort is an encrypted repository of two hosts, with an admin and a manager.
type fort struct {
	testing.TB
	dir  string
	was  map[string][]byte // what each checkpoint's disk was like
	site *strongbox        // where it is, if not in dir
}

func (f *fort) path(name string) string { return filepath.Join(f.dir, name) }

func (f *fort) place() string {
	if f.site != nil {
		return f.site.String()
	}
	return f.path("repo")
}

// store is the repository's store with somebody's credentials.
func (f *fort) store(who string) objstore.Store {
	f.Helper()
	if f.site != nil {
		return f.site.open(f, who)
	}
	store, err := local.Open(f.path("repo"), local.Options{})
	if err != nil {
		f.Fatal(err)
	}
	return store
}

// as runs a command with somebody's key.
func (f *fort) as(who string, args ...string) outcome {
	var out, stderr bytes.Buffer
	p := program{in: strings.NewReader(""), out: &out, err: &stderr, workFactor: 8, wrap: f.site.wrap(f, who)}
	code := run(append([]string{"--repo", f.place(), "--identity", f.path(who + ".key")}, args...), p)
	return outcome{code, out.String(), stderr.String()}
}

// want runs a command that has to end so, and to say something.
func (f *fort) want(code int, says, who string, args ...string) outcome {
	f.Helper()
	o := f.as(who, args...)
	if o.code != code || !strings.Contains(o.out+o.err, says) {
		f.Errorf("%s: imgbackup %v: exit status %d, want %d and %q\n%s%s", who, args, o.code, code, says, o.out, o.err)
	}
	return o
}

func newFort(t *testing.T) *fort { return newFortIn(t, nil) }

func newFortIn(t *testing.T, s *strongbox) *fort {
	f := &fort{TB: t, dir: t.TempDir(), was: make(map[string][]byte), site: s}
	var out, stderr bytes.Buffer
	p := program{in: strings.NewReader(""), out: &out, err: &stderr, wrap: s.wrap(f, "admin")}
	if code := run(slices.Concat([]string{"--repo", f.place(), "init", "--encrypt", "--out", f.path("admin.key")}, s.inits()), p); code != exitDone {
		t.Fatal(stderr.String())
	}
	f.want(exitDone, "", "admin", "key", "add", "web1", "--role", "host", "--domain", "web*", "--out", f.path("web1.key"))
	f.want(exitDone, "", "admin", "key", "add", "db1", "--role", "host", "--domain", "db", "--out", f.path("db1.key"))
	f.want(exitDone, "", "admin", "key", "add", "keeper", "--role", "manager", "--out", f.path("keeper.key"))
	s.allow(f)
	f.backup("web1", "web", "c1")
	f.backup("web1", "web", "c2")
	f.backup("db1", "db", "d1")
	f.backup("db1", "db", "d2")
	return f
}

// backup changes a domain's disk, and backs it up with somebody's key.
func (f *fort) backup(who, domain, checkpoint string) {
	f.Helper()
	disk := f.path(domain + ".raw")
	data := slices.Clone(f.was[domain])
	if data == nil {
		data = make([]byte, 1<<20)
	}
	rng := rand.New(rand.NewPCG(uint64(len(f.was)), 7))
	for i := 0; i < 100<<10; i++ {
		data[len(f.was)<<16%len(data)+i] = byte(rng.Uint32())
	}
	f.was[domain], f.was[domain+"/"+checkpoint] = data, data
	if err := os.WriteFile(disk, data, 0o600); err != nil {
		f.Fatal(err)
	}
	f.want(exitDone, "", who, "backup", domain, "--checkpoint", checkpoint, "--disk", "vda="+disk+",format=raw")
}

// sound demands that all checkpoints that were ever made, or those that are given, are there, and restore
// as they were.
func (f *fort) sound(of ...string) {
	f.Helper()
	for name, data := range f.was {
		domain, checkpoint, ok := strings.Cut(name, "/")
		if !ok || len(of) > 0 && !slices.Contains(of, name) {
			continue
		}
		to := f.path("restored.raw")
		f.want(exitDone, "signed", "admin", "restore", domain, checkpoint, "--to", "vda="+to, "--force")
		if got, err := os.ReadFile(to); err != nil || !bytes.Equal(got, data) {
			f.Errorf("%s is not as it was: %v", name, err)
		}
	}
}

// objects are all files of the repository.
func (f *fort) objects() map[string][]byte {
	f.Helper()
	all := make(map[string][]byte)
	repo := f.path("repo")
	err := filepath.WalkDir(repo, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		rel, _ := filepath.Rel(repo, path)
		all[filepath.ToSlash(rel)] = data
		return err
	})
	if err != nil {
		f.Fatal(err)
	}
	return all
}

// restoreTo puts back what stood there, as from the versions that a bucket keeps.
func (f *fort) restoreTo(before map[string][]byte) {
	f.Helper()
	now := f.objects()
	for key, data := range before {
		if bytes.Equal(now[key], data) {
			continue
		}
		path := filepath.Join(f.path("repo"), key)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			f.Fatal(err)
		}
		_ = os.Remove(path) // which may be there
		if err := os.WriteFile(path, data, 0o600); err != nil {
			f.Fatal(err)
		}
	}
	for key := range now {
		if _, was := before[key]; !was {
			if err := os.Remove(filepath.Join(f.path("repo"), key)); err != nil {
				f.Fatal(err)
			}
		}
	}
}

// thief has all that a host has.
type thief struct {
	*fort
	repo *chain.Repository
	ring *keys.Keyring
	sign seal.Signer
}

func (f *fort) steal(who string) *thief {
	f.Helper()
	data, err := os.ReadFile(f.path(who + ".key"))
	if err != nil {
		f.Fatal(err)
	}
	ids, err := keys.ParseIdentities(data, who, keys.Ways{})
	if err != nil {
		f.Fatal(err)
	}
	store := f.store(who)
	t := &thief{fort: f}
	t.repo, err = chain.OpenWith(f.Context(), store, func(ctx context.Context, s objstore.Store, c *chain.Config) (*chain.Access, error) {
		if t.ring, err = keys.Open(ctx, keys.Place{Store: s, Repository: c.ID, RosterKey: c.Encryption.RosterKey}, ids); err != nil {
			return nil, err
		}
		return accessOf(t.ring), nil
	})
	if err == nil {
		t.sign, err = t.ring.Signer()
	}
	if err != nil {
		f.Fatal(err)
	}
	return t
}

// forge stores what the thief likes under any key, rightly signed by the host.
func (t *thief) forge(key string, v any) {
	t.Helper()
	data, err := seal.Seal(v, key, t.sign)
	if err == nil {
		data, err = t.ring.Keys.Append(nil, crypt.Metadata, data)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.store(key, data)
}

func (t *thief) store(key string, data []byte) {
	t.Helper()
	if err := t.repo.Store.Put(t.Context(), key, bytes.NewReader(data), objstore.PutOptions{Mode: objstore.Replace}); err != nil {
		t.Fatal(err)
	}
}

func (t *thief) manifest(domain, checkpoint string) *chain.Manifest {
	t.Helper()
	m, err := t.repo.Manifest(t.Context(), domain, checkpoint)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// TestHostTaken: who has all that a host has, its key, its access to the store and its disk, reads
// nothing that was backed up, and destroys no checkpoint, its own neither, by anything that it
// stores; what it tried is told; the manager keeps order, and the other host goes on.
// That it can delete and overwrite files where the store lets it is another matter, and said in
// docs/security.md: then what is left proves what is missing.
func TestHostTaken(t *testing.T) {
	t.Parallel()
	f := newFort(t)
	thief := f.steal("web1")
	before := f.objects()
	data := func(all map[string][]byte) (keys []string) {
		for key := range all {
			if prefix, _, ok := archive.ParseKey(key); ok && !strings.HasPrefix(prefix, archive.IndexPrefix) {
				keys = append(keys, key)
			}
		}
		slices.Sort(keys)
		return keys
	}
	kept := data(before)

	// It reads nothing.
	f.want(exitKey, "the data key is needed", "web1", "restore", "web", "c1", "--to", "vda="+f.path("stolen.raw"))
	f.want(exitKey, "the data key is needed", "web1", "restore", "db", "d1", "--to", "vda="+f.path("stolen.raw"))
	for key, stored := range before {
		if prefix, _, _ := archive.ParseKey(key); prefix == archive.PackPrefix || prefix == archive.FilePrefix {
			if _, err := thief.ring.Keys.Open(nil, crypt.Data, stored); err == nil {
				t.Errorf("it reads %s", key)
			}
		}
	}

	// keepOrder is what the manager does each night, and must not take anything away.
	keepOrder := func() (said string) {
		t.Helper()
		for _, args := range [][]string{
			{"forget", "--all-domains", "--keep-last", "2", "--keep-daily", "7"}, {"prune", "--max-unused", "0"}, {"check"},
		} {
			o := f.as("keeper", args...)
			said += o.out + o.err
		}
		return said
	}
	// tries does something forged, after which the manager keeps order, and tells.
	tries := func(what string, do func(), says ...string) {
		t.Helper()
		do()
		said := keepOrder()
		for _, s := range says {
			if !strings.Contains(said, s) {
				t.Errorf("%s: nobody says %q:\n%s", what, s, said)
			}
		}
		if now := data(f.objects()); !slices.Equal(now, kept) {
			t.Errorf("%s: objects are gone, or others:\n%s", what, said)
		}
		f.restoreTo(before)
	}

	c1, c2 := thief.manifest("web", "c1"), thief.manifest("web", "c2")
	key := func(domain, checkpoint string) string { return chain.ManifestKey(domain, checkpoint) }
	head := func(format string) chain.Head { return chain.Head{Format: format, Version: 1} }
	self, err := thief.repo.Self()
	if err != nil {
		t.Fatal(err)
	}
	tries("a revision with other maps", func() {
		m := *c1
		m.Revision, m.Disks = 2, slices.Clone(c1.Disks)
		m.Disks[0].Maps = c2.Disks[0].Maps[len(c2.Disks[0].Maps)-1:]
		thief.forge(key("web", "c1"), &m)
	}, "web1 may not change a checkpoint", "nothing of domain web is forgotten")
	tries("a void over its own checkpoint", func() {
		thief.forge(key("web", "c1"), &chain.Void{Head: head(chain.VoidFormat), RepositoryID: c1.RepositoryID, UUID: chain.NewUUID()})
	}, "web1 may not take away a checkpoint")
	tries("a void over another's", func() {
		thief.forge(key("db", "d1"), &chain.Void{Head: head(chain.VoidFormat), RepositoryID: c1.RepositoryID, UUID: chain.NewUUID()})
	}, "signed by web1, who may not store domain db")
	tries("its own checkpoint in another's domain", func() {
		m := *c2
		m.Domain, m.Checkpoint, m.UUID = "db", "d9", chain.NewUUID()
		thief.forge(key("db", "d9"), &m)
	}, "signed by web1, who may not store domain db")
	tries("another's checkpoint under a name of its own", func() {
		thief.store(key("web", "c9"), before[key("db", "d1")])
	}, "for another place")
	tries("a repository that says that it was forgotten", func() {
		thief.forge("domains/web/forgotten.json", &chain.Forgotten{Head: head(chain.ForgottenFormat), RepositoryID: c1.RepositoryID, Domain: "web"})
	}, "web1 may not forget a checkpoint")
	for what, created := range map[string]time.Time{"of the future": time.Now().AddDate(0, 1, 0), "of the past": time.Now().AddDate(0, -1, 0)} {
		tries("checkpoints "+what, func() {
			for i := range 5 {
				m := *c2
				m.Checkpoint, m.UUID, m.Sequence, m.Created = "f"+string(rune('0'+i)), chain.NewUUID(), int64(90+i), created.AddDate(0, 0, i).UTC()
				thief.forge(key("web", m.Checkpoint), &m)
			}
		}, "rules neither remove nor count it", "the time of checkpoint f0 of web is not believed")
	}
	mark := func(state string) *chain.Mark {
		var list archive.Ref
		for info, err := range thief.repo.Store.List(t.Context(), "prune/") {
			if err == nil && strings.HasSuffix(info.Key, ".zst") {
				d, derr := archive.ParseDigest(strings.TrimSuffix(filepath.Base(info.Key), ".zst"))
				if derr == nil {
					list = archive.Ref{Name: d, Length: info.Size}
				}
			}
		}
		return &chain.Mark{Head: head(chain.MarkFormat), UUID: chain.NewUUID(), Revision: 1, State: state, Owner: chain.NewUUID(), Process: self,
			Since: time.Now().UTC(), List: list, Listed: true, Released: true}
	}
	if o := f.as("keeper", "prune"); o.code != exitDone { // so that there is a list
		t.Fatal(o.err)
	}
	before = f.objects()
	for _, state := range []string{chain.MarkMarked, chain.MarkDeleting} {
		tries("a mark that is "+state, func() { thief.forge(chain.MarkKey, mark(state)) }, "web1 may not prune")
	}
	tries("proofs", func() {
		thief.forge("proofs/objects.json", map[string]any{"format": chain.ProofsFormat, "version": 1, "repository_id": c1.RepositoryID, "runs": []any{}})
	})
	tries("a lease of another, broken", func() {
		l, err := thief.repo.NewLease("thief")
		if err != nil {
			t.Fatal(err)
		}
		l.Broken = true
		thief.forge("leases/db1/"+l.UUID+".json", l)
	})
	tries("a strike of another", func() {
		id := chain.NewUUID()
		thief.forge("leases/db1/strikes/"+id+".json", &chain.Strike{Head: head(chain.StrikeFormat), UUID: id, Mark: id, Keys: []string{}})
	})

	// Its lease keeps a prune waiting, as any does, and strikes make it keep more.
	hold, err := thief.repo.Hold(t.Context(), "thief")
	if err != nil {
		t.Fatal(err)
	}
	f.want(exitDone, "", "keeper", "prune")
	if err := hold.Release(t.Context()); err != nil {
		t.Fatal(err)
	}

	// A forged mark is in everybody's way until the manager has taken it away.
	thief.forge(chain.MarkKey, mark(chain.MarkDeleting))
	f.want(exitDamage, "may not prune", "db1", "backup", "db", "--checkpoint", "d3", "--disk", "vda="+f.path("db.raw")+",format=raw")
	f.want(exitDone, "", "keeper", "prune", "--take-over")
	if now := data(f.objects()); !slices.Equal(now, kept) {
		t.Error("a mark of the thief has deleted something")
	}
	f.backup("db1", "db", "d4")
	f.want(exitDone, "", "admin", "key", "remove", "web1", "--rotate")
	f.want(exitKey, "", "web1", "backup", "web", "--checkpoint", "c8", "--disk", "vda="+f.path("web.raw")+",format=raw")
	f.want(exitDone, "", "admin", "key", "add", "web2", "--role", "host", "--domain", "web*", "--out", f.path("web2.key"))
	f.backup("web2", "web", "c3")
	f.backup("db1", "db", "d5")
	f.want(exitDone, "signed by web2: 1 checkpoint", "keeper", "check")
	f.sound()
}

// TestRepositoryReplaced: a host stores nothing where another repository has taken the place of
// its own, or an older state of it.
func TestRepositoryReplaced(t *testing.T) {
	t.Parallel()
	f := newFort(t)
	right := f.objects()
	other := newFort(t).objects()
	// The same repository, one key later.
	f.want(exitDone, "", "admin", "key", "add", "late", "--role", "host", "--out", f.path("late.key"))
	later := f.objects()
	refuses := func(what, who string, change func(all map[string][]byte)) {
		t.Helper()
		all := make(map[string][]byte)
		for key, data := range later {
			all[key] = data
		}
		change(all)
		f.restoreTo(all)
		before := f.objects()
		o := f.as(who, "backup", "web", "--disk", "vda="+f.path("web.raw")+",format=raw")
		if o.code == exitDone {
			t.Errorf("%s: it stores there", what)
		}
		for key, data := range f.objects() {
			if !bytes.Equal(before[key], data) {
				t.Errorf("%s: it has stored %s", what, key)
			}
		}
	}
	under := func(all map[string][]byte, prefix string, from map[string][]byte) {
		for key := range all {
			if strings.HasPrefix(key, prefix) {
				delete(all, key)
			}
		}
		for key, data := range from {
			if strings.HasPrefix(key, prefix) {
				all[key] = data
			}
		}
	}
	refuses("another repository", "web1", func(all map[string][]byte) { under(all, "", other) })
	refuses("another configuration", "web1", func(all map[string][]byte) { under(all, chain.ConfigKey, other) })
	refuses("other keys", "web1", func(all map[string][]byte) { under(all, "keys/", other) })
	refuses("an older roster", "late", func(all map[string][]byte) { under(all, "keys/", right) })
	refuses("no encryption", "web1", func(all map[string][]byte) {
		store := objstore.NewMem()
		if _, err := chain.Init(t.Context(), store, chain.InitOptions{}); err != nil {
			t.Fatal(err)
		}
		data, err := objstore.ReadAll(t.Context(), store, chain.ConfigKey, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		all[chain.ConfigKey] = data
	})
	f.restoreTo(later)
	f.backup("web1", "web", "c3")
	f.sound()
}
