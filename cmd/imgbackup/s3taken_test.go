// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/minio/minio-go/v7/pkg/credentials"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/crypt"
	"github.com/imgbackup/imgbackup/keys"
	"github.com/imgbackup/imgbackup/objstore"
	"github.com/imgbackup/imgbackup/objstore/retry"
	"github.com/imgbackup/imgbackup/objstore/s3"
	"github.com/imgbackup/imgbackup/objstore/s3test"
)

// strongbox is a bucket with object lock, in which everybody but the admin has the rights that key
// policy prints, and no others.
type strongbox struct {
	*bucket
	who map[string]*credentials.Credentials
}

func newStrongbox(t *testing.T, kind s3test.Kind) *strongbox {
	server := s3test.StartVersionedUsers(t, kind)
	b := &bucket{server: server, name: server.LockedBucket(), prefix: "site", init: []string{"--object-lock", "compliance", "--lock-for", "6d"}}
	if kind == s3test.VersityGW {
		b.init = append(b.init, "--single-writer")
	}
	return &strongbox{bucket: b, who: make(map[string]*credentials.Credentials)}
}

func (s *strongbox) inits() []string {
	if s == nil {
		return nil
	}
	return s.init
}

// wrap lets a program use the bucket with somebody's credentials.
func (s *strongbox) wrap(t testing.TB, who string) func(objstore.Store) objstore.Store {
	if s == nil {
		return nil
	}
	return func(objstore.Store) objstore.Store { return s.open(t, who) }
}

func (s *strongbox) open(t testing.TB, who string) objstore.Store {
	t.Helper()
	c := s.server.Config(s.name, s.prefix)
	if own := s.who[who]; own != nil {
		c.Credentials = own
	}
	store, err := s3.Open(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	return retry.New(store, retry.Options{FirstDelay: 5 * time.Millisecond, MaxDelay: 100 * time.Millisecond})
}

// allow makes a user of everybody, with what key policy says.
func (s *strongbox) allow(f *fort) {
	if s == nil {
		return
	}
	f.Helper()
	server := "minio"
	if s.server.Kind() == s3test.VersityGW {
		server = "versitygw"
	}
	var all policy
	users := [][]string{{"web1", "--role", "host", "--domain", "web*"}, {"keeper", "--role", "manager", "--object-lock", "6"},
		{"web2", "--role", "host", "--domain", "web*"}, {"db1", "--role", "host", "--domain", "db"}}
	if s.server.Kind() == s3test.VersityGW {
		users = users[:1] // of more than one the policy is too long for it; the others have all rights
	}
	for _, args := range users {
		o := f.want(exitDone, "", "admin", append(append([]string{"key", "policy"}, args...), "--for", server)...)
		text := o.out
		if s.server.Kind() == s3test.VersityGW { // one of the bucket, for all of them
			var one policy
			if err := json.Unmarshal([]byte(text), &one); err != nil {
				f.Fatal(err)
			}
			all.Version, all.Statement = one.Version, append(all.Statement, one.Statement...)
			data, err := json.Marshal(all)
			if err != nil {
				f.Fatal(err)
			}
			text = string(data)
		}
		s.who[args[0]] = s.server.User(args[0], s.name, text)
	}
}

// TestHostTakenLocked: who has all that a host has, its key, its S3 credentials and its disk, in a
// bucket with object lock and with the rights that key policy gives it, reads nothing that was backed
// up, and destroys no checkpoint that is younger than the lock, its own neither: not by deleting, and not
// by what it puts on top, after which the manager forgets and prunes by rule, and the other host goes on.
func TestHostTakenLocked(t *testing.T) {
	t.Parallel()
	for _, kind := range s3test.Kinds() {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			f := newFortIn(t, newStrongbox(t, kind))
			thief := f.steal("web1")
			thief.readsNothing()
			thief.isRefused()
			thief.putsOnTop()
			f.keysCovered()
		})
	}
}

// all are all versions that there are.
func (f *fort) all() (all []objstore.ObjectVersion) {
	f.Helper()
	versions, _ := objstore.As[objstore.Versions](f.store("admin"))
	for v, err := range versions.ListVersions(f.Context(), "", "") {
		if err != nil {
			f.Fatal(err)
		}
		all = append(all, v)
	}
	return all
}

// readsNothing tries to read what was backed up, by the program and by hand.
func (t *thief) readsNothing() {
	t.Helper()
	for _, of := range [][]string{{"web", "c1"}, {"db", "d1"}} {
		t.want(exitKey, "the data key is needed", "web1", "restore", of[0], of[1], "--to", "vda="+t.path("stolen.raw"))
	}
	tried := 0
	for _, v := range t.all() {
		prefix, _, _ := archive.ParseKey(v.Key)
		if prefix != archive.PackPrefix && !strings.HasPrefix(v.Key, "keys/data/") {
			continue
		}
		tried++
		stored, err := objstore.ReadAll(t.Context(), t.repo.Store, v.Key, 1<<30)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := t.ring.Keys.Open(nil, crypt.Data, stored); err == nil {
			t.Errorf("it reads %s", v.Key)
		}
	}
	if tried < 4 {
		t.Errorf("only %d objects were tried", tried)
	}
}

// isRefused tries what the server must refuse: to remove anything but its own leases and intents, any
// version, to shorten or lengthen what is kept, and to store what is not its own.
func (t *thief) isRefused() {
	t.Helper()
	store := t.repo.Store
	versions, _ := objstore.As[objstore.Versions](store)
	locker, _ := objstore.As[objstore.Locker](store)
	before := t.all()
	deletes, removes, extends := 0, 0, 0
	for _, v := range before {
		k := chain.ParseKey(v.Key)
		if own := k.Kind == chain.KeyLease && k.Host == "web1" || k.Kind == chain.KeyIntent && k.Domain == "web"; !own {
			if err := store.Delete(t.Context(), v.Key); err == nil {
				t.Errorf("it deletes %s", v.Key)
			}
			deletes++
		}
		if err := versions.DeleteVersion(t.Context(), v.Key, v.ID); err == nil {
			t.Errorf("it removes a version of %s", v.Key)
		}
		removes++
		if v.Marker {
			continue
		}
		for _, until := range []time.Time{time.Now().Add(time.Minute), time.Now().AddDate(50, 0, 0)} {
			for _, how := range []objstore.Retention{objstore.Compliance, objstore.Governance} {
				if err := locker.Retain(t.Context(), v.Key, v.ID, until, how); err == nil {
					t.Errorf("it has %s kept until %s", v.Key, until)
				}
				extends++
			}
		}
	}
	if err := locker.SetLockRule(t.Context(), objstore.LockRule{Days: 1, How: objstore.Governance}); err == nil {
		t.Error("it changes the bucket's rule")
	}
	for _, key := range []string{
		chain.ConfigKey, "keys/roster/2.json", "keys/roster/9.json", "keys/metadata/1/web1.age", chain.ManifestKey("db", "d1"), chain.ManifestKey("other", "x"),
		"domains/web/forgotten.json", "leases/db1/x.json", "index/db1/ab/x", chain.MarkKey, "prune/ab/x", "proofs/locked.json", chain.DrillKey("web", chain.NewUUID()),
	} {
		if err := store.Put(t.Context(), key, bytes.NewReader([]byte(archive.NoObject)), objstore.PutOptions{Mode: objstore.Replace}); err == nil {
			t.Errorf("it stores %s", key)
		}
	}
	if deletes < 15 || removes < 15 || extends < 60 {
		t.Errorf("tried: %d deletes, %d removals of versions, %d retentions", deletes, removes, extends)
	}
	if now := t.all(); !slices.EqualFunc(now, before, func(a, b objstore.ObjectVersion) bool { return a.Key == b.Key && a.ID == b.ID }) {
		t.Errorf("there are %d versions, and were %d", len(now), len(before))
	}
}

// putsOnTop stores all that it may, rightly signed by the host, after each of which the manager keeps
// order, and the other host goes on.
func (t *thief) putsOnTop() {
	t.Helper()
	f := t.fort
	c1, c2 := t.manifest("web", "c1"), t.manifest("web", "c2")
	key := func(checkpoint string) string { return chain.ManifestKey("web", checkpoint) }
	head := func(format string) chain.Head { return chain.Head{Format: format, Version: 1} }
	original, err := objstore.ReadAll(t.Context(), t.repo.Store, key("c1"), 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	// tries does what is forged, after which the manager keeps order and tells, all checkpoints are as
	// they were, and a repair has to come to its end.
	tries := func(do func(), says ...string) {
		t.Helper()
		do()
		said := ""
		for _, args := range [][]string{{"forget", "--all-domains", "--keep-last", "1"}, {"prune", "--max-unused", "0"}, {"check"}} {
			o := f.as("keeper", args...)
			said += strings.Join(args, " ") + ":\n" + o.out + o.err
		}
		for _, s := range says {
			if !strings.Contains(said, s) {
				t.Errorf("nobody says %q:\n%s", s, said)
			}
		}
		f.sound("web/c1", "web/c2")
		if o := f.as("keeper", "repair"); o.code != exitDone {
			t.Errorf("repair: exit status %d\n%s%s", o.code, o.out, o.err)
		}
	}
	otherMaps := func(m chain.Manifest) *chain.Manifest {
		m.Disks = slices.Clone(m.Disks)
		m.Disks[0].Maps = c2.Disks[0].Maps[len(c2.Disks[0].Maps)-1:]
		return &m
	}

	// Junk over all that has a name by its digest, of the other host, too.
	tries(func() {
		n := 0
		for _, v := range t.all() {
			if prefix, _, ok := archive.ParseKey(v.Key); ok && v.Latest && !v.Marker && !strings.HasPrefix(prefix, archive.IndexPrefix) {
				t.store(v.Key, slices.Concat([]byte(archive.NoObject), bytes.Repeat([]byte("junk"), int(v.Size)/4+1))[:v.Size])
				n++
			}
		}
		if n < 8 {
			t.Errorf("only %d objects", n)
		}
	}, "DAMAGED maps/", "DAMAGED packs/", "somebody has put something else on top of it")

	// What only a manager may say, over its own checkpoints.
	tries(func() {
		m := otherMaps(*c1)
		m.Revision = 2
		t.forge(key("c1"), m)
		t.forge(key("c2"), &chain.Void{Head: head(chain.VoidFormat), RepositoryID: c1.RepositoryID, UUID: chain.NewUUID()})
	}, "web1 may not change a checkpoint", "web1 may not take away a checkpoint", "nothing of domain web is forgotten")

	// What it may say, and it is not so: the same checkpoint with other maps, and another in its place.
	tries(func() {
		t.forge(key("c1"), otherMaps(*c1))
		m := otherMaps(*c2)
		m.UUID = chain.NewUUID()
		t.forge(key("c2"), m)
	}, "checkpoints/c1.json", "checkpoints/c2.json", "on top")

	// Checkpoints of other dates, many of today, with the tag that keeps them; what stood there, once more.
	flood := 0
	tries(func() {
		for n := range 12 {
			m := *c2
			m.Checkpoint, m.UUID, m.Sequence = "f"+string(rune('a'+n)), chain.NewUUID(), int64(90+n)
			switch m.Created = time.Now().UTC(); n {
			case 0, 1:
				m.Created = m.Created.AddDate(0, 1, n)
			case 2, 3:
				m.Created = m.Created.AddDate(0, -1, n)
			default:
				flood++
			}
			t.forge(key(m.Checkpoint), &m)
		}
		t.store(key("c1"), original)
	}, "the time of checkpoint fa of web is not believed", "the time of checkpoint fc of web is not believed", "rules neither remove nor count it", "younger than the lock")

	// Indexes that lie, a lease that is left, strikes, intents about files of others.
	tries(func() {
		forged, err := archive.NewIndexWriter(t.repo.Store, 1<<40, t.TempDir(), archive.Indexing{Folder: "web1"})
		if err != nil {
			t.Fatal(err)
		}
		defer forged.Close()
		chunk := archive.PackChunk{FrameLength: 100, Length: 1 << 16, Keyed: &archive.KeyedChunk{Frame: 10, Generation: 1, Parts: make([]crypt.Part, 1)}}
		if err := forged.Add(t.Context(), archive.Ref{Length: 1 << 20}, []archive.PackChunk{chunk}); err != nil {
			t.Fatal(err)
		}
		if err := forged.Finish(t.Context()); err != nil {
			t.Fatal(err)
		}
		self, err := t.repo.Self()
		if err != nil {
			t.Fatal(err)
		}
		id, checkpoint := chain.NewUUID(), chain.NewUUID()
		t.forge("leases/web1/strikes/"+id+".json", &chain.Strike{Head: head(chain.StrikeFormat), UUID: id, Mark: id, Keys: []string{}})
		t.forge("domains/web/intents/"+id+".json", &chain.Intent{
			Head: head(chain.IntentFormat), UUID: id, Domain: "web", Checkpoint: "c9", CheckpointUUID: checkpoint, Process: self, Created: time.Now().UTC(),
			Images: []chain.IntentImage{{Disk: "vda", Path: t.path("db.raw"), Before: []string{}, Add: chain.BitmapName("c9", checkpoint)}},
		})
	}, "an index stays as it is")

	// The honest go on, and it is thrown out.
	f.want(exitDone, "", "keeper", "lock")
	f.backup("db1", "db", "d3")
	f.want(exitDone, "", "keeper", "forget", "db", "d1")
	f.want(exitDone, "", "keeper", "prune", "--max-unused", "0")
	f.want(exitDone, "", "admin", "key", "remove", "web1", "--rotate")
	f.want(exitKey, "", "web1", "backup", "web", "--checkpoint", "c8", "--disk", "vda="+f.path("web.raw")+",format=raw")
	f.want(exitDone, "", "admin", "key", "add", "web2", "--role", "host", "--domain", "web*", "--out", f.path("web2.key"))
	f.backup("web2", "web", "c3")
	f.backup("db1", "db", "d4")
	f.want(exitDone, "signed by web2: 1 checkpoint", "keeper", "check")
	// Also of what was forgotten younger than the lock nothing is gone.
	o := f.want(exitDone, "", "admin", "list", "db", "--revisions", "--json")
	var listed struct{ Revisions []revisionJSON }
	if err := json.Unmarshal([]byte(o.out), &listed); err != nil {
		t.Fatal(err)
	}
	for _, r := range listed.Revisions {
		if r.Checkpoint == "d1" && r.State == revisionEarlier {
			f.want(exitDone, "", "admin", "restore", "db", "d1", "--revision", r.Version, "--to", "vda="+f.path("d1.raw"))
		}
	}
	if got, err := os.ReadFile(f.path("d1.raw")); err != nil || !bytes.Equal(got, f.was["db/d1"]) {
		t.Errorf("d1 is not as it was: %v", err)
	}
	delete(f.was, "db/d1")
	f.sound()
}

// keysCovered lets somebody with all rights of the bucket, but for the time that versions are kept,
// put other things, and markers, on the configuration and the keys: what was first there counts, for
// who has a pinned file and for who has not, and it is told and repaired.
func (f *fort) keysCovered() {
	f.Helper()
	root := f.store("admin")
	other := objstore.NewMem()
	if _, err := chain.Init(f.Context(), other, chain.InitOptions{}); err != nil {
		f.Fatal(err)
	}
	config, err := objstore.ReadAll(f.Context(), other, chain.ConfigKey, 1<<20)
	if err != nil {
		f.Fatal(err)
	}
	put := func(key string, data []byte) {
		f.Helper()
		if err := root.Put(f.Context(), key, bytes.NewReader(data), objstore.PutOptions{Mode: objstore.Replace}); err != nil {
			f.Fatal(err)
		}
	}
	last := ""
	for _, v := range f.all() {
		k := keys.ParseKey(v.Key)
		switch {
		case !v.Latest || v.Marker:
		case k.Kind == keys.RosterObject:
			if last == "" || k.Number > keys.ParseKey(last).Number {
				last = v.Key
			}
		case strings.HasPrefix(v.Key, keys.Prefix):
			put(v.Key, []byte("junk"))
		}
	}
	put(chain.ConfigKey, config)
	put("keys/roster/1.json", []byte("junk"))
	if err := root.Delete(f.Context(), last); err != nil { // as if the newest had never been
		f.Fatal(err)
	}
	f.want(exitDone, "on top of "+chain.ConfigKey, "db1", "backup", "db", "--checkpoint", "d5", "--disk", "vda="+f.path("db.raw")+",format=raw")
	f.was["db/d5"] = f.was["db"]
	f.sound("db/d5", "web/c1")
	for _, key := range []string{chain.ConfigKey, "keys/roster/1.json", last, "keys/signing/admin.age"} {
		f.want(exitDamage, "DAMAGED "+key, "admin", "check")
	}
	f.want(exitDone, "is put on top again as it counts", "admin", "repair")
	for _, who := range []string{"admin", "db1", "keeper"} { // each sees its own files
		f.as(who, "repair")
	}
	o := f.want(exitDone, "", "admin", "check")
	if strings.Contains(o.err, "on top of") {
		f.Errorf("it is told once more: %s", o.err)
	}
}
