// SPDX-License-Identifier: Apache-2.0

package backup_test

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/imgbackup/imgbackup/backup"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/objstore"
)

// intent stores one of a run of this host that has ended, for these images.
func (l *lab) intent(domain, checkpoint, uuid string, images ...string) *chain.Intent {
	l.t.Helper()
	self, err := l.repo.Self()
	l.must(err)
	self.BootID = "another boot"
	in := &chain.Intent{
		UUID: chain.NewUUID(), Domain: domain, Checkpoint: checkpoint, CheckpointUUID: uuid,
		Process: self, Created: time.Now().UTC().Truncate(time.Second),
	}
	for _, name := range images {
		in.Images = append(in.Images, chain.IntentImage{
			Disk: name, Path: l.path(name), Add: chain.BitmapName(checkpoint, uuid),
		})
	}
	l.must(l.repo.PutIntent(l.t.Context(), in))
	return in
}

// intents returns how many a domain has.
func (l *lab) intents(domain string) int {
	l.t.Helper()
	all, damaged, err := l.repo.Intents(l.t.Context(), domain)
	l.must(errors.Join(append(damaged, err)...))
	return len(all)
}

// noted runs a backup and returns what it told.
func (l *lab) noted(req backup.Request) string {
	l.t.Helper()
	var notes []string
	_, err := l.run(req, backup.Hooks{Note: func(msg string) { notes = append(notes, msg) }})
	l.must(err)
	return strings.Join(notes, "\n")
}

// An intent reaches only images of the run, or of its domain's checkpoints.
func TestSettleOtherDomainsImage(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.create("web", "1M")
	l.create("db", "1M")
	db := l.request("c1", l.disk("db"))
	db.Domain = "db"
	c1 := l.backupAs(db).Manifest
	l.intent("vm", c1.Checkpoint, c1.UUID, "db")
	before := l.state(l.path("db"))
	notes := l.noted(l.request("w1", l.disk("web")))
	if !strings.Contains(notes, l.path("db")) || !strings.Contains(notes, "is not touched") {
		t.Errorf("nobody is told: %q", notes)
	}
	if l.state(l.path("db")) != before {
		t.Error("the other domain's image was written to")
	}
	l.holds("db", "c1")
	if n := l.intents("vm"); n != 1 {
		t.Errorf("%d intents, want the one that was left", n)
	}
}

// An intent whose uuid only begins as a checkpoint's that stands does not take that
// checkpoint's bitmap.
func TestSettleForgedUUID(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.create("vda", "1M")
	c1 := l.backup("c1", l.disk("vda")).Manifest
	forged := c1.UUID[:len(c1.UUID)-12] + strings.Repeat("0", 12)
	if forged == c1.UUID || chain.BitmapName("c1", forged) != chain.BitmapName("c1", c1.UUID) {
		t.Fatalf("%s is no such uuid", forged)
	}
	l.intent("vm", "c1", forged, "vda")
	l.trusted(l.backup("c2", l.disk("vda")), "c1")
}

// Of an intent's images those of the run are settled, and the intent stays until the
// others are.
func TestSettleInParts(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	uuid := chain.NewUUID()
	for _, name := range []string{"vda", "vdb"} {
		l.create(name, "1M")
		l.img("bitmap", "--add", l.path(name), chain.BitmapName("lost", uuid))
	}
	in := l.intent("vm", "lost", uuid, "vda", "vdb")
	second := l.disk("vdb")
	second.Disk = "vdb"
	if notes := l.noted(l.request("c1", l.disk("vda"))); !strings.Contains(notes, "disk vdb") || strings.Contains(notes, "disk vda") {
		t.Errorf("told: %q", notes)
	}
	l.holds("vda", "c1")
	if n := l.intents("vm"); n != 1 {
		t.Errorf("%d intents, want 1", n)
	}
	// A person says that the image is this one's.
	var disk *chain.DiskError
	if _, err := backup.Settle(t.Context(), l.repo, in, backup.SettleOptions{}); !errors.As(err, &disk) || disk.Disk != "vdb" {
		t.Errorf("of an image that nobody named: %v", err)
	}
	_, err := backup.Settle(t.Context(), l.repo, in, backup.SettleOptions{Images: []string{l.path("vdb")}})
	l.must(err)
	if n := l.intents("vm"); n != 0 {
		t.Errorf("%d intents, want none", n)
	}
	l.backup("c2", l.disk("vda"), second)
	l.holds("vdb", "c2")
}

// What a host that is gone has left is settled by a person only.
func TestSettleOtherHosts(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.create("vda", "1M")
	l.backup("c1", l.disk("vda"))
	uuid := chain.NewUUID()
	l.img("bitmap", "--add", l.path("vda"), chain.BitmapName("lost", uuid))
	in := l.intent("vm", "lost", uuid, "vda")
	in.Host = chain.Host{Name: "gone", ID: strings.Repeat("a", 32)}
	l.must(l.repo.PutIntent(t.Context(), in))
	if notes := l.noted(l.request("c2", l.disk("vda"))); !strings.Contains(notes, "host gone left a backup") {
		t.Errorf("told: %q", notes)
	}
	_, err := backup.Settle(t.Context(), l.repo, in, backup.SettleOptions{})
	l.must(err)
	l.holds("vda", "c1", "c2")
	if n := l.intents("vm"); n != 0 {
		t.Errorf("%d intents, want none", n)
	}
}

// runOf returns the run with that uuid.
func (l *lab) runOf(uuid string) *chain.Run {
	l.t.Helper()
	runs, _, err := l.repo.Runs(l.t.Context())
	l.must(err)
	i := slices.IndexFunc(runs, func(r *chain.Run) bool { return r.UUID == uuid })
	if i < 0 {
		l.t.Fatalf("there is no run %s", uuid)
	}
	return runs[i]
}

// To settle a run by its uuid is to name its images, but not those whose bitmap is a
// checkpoint's of another domain.
func TestSettleRunForged(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.create("db", "1M")
	db := l.request("c1", l.disk("db"))
	db.Domain = "db"
	c1 := l.backupAs(db).Manifest
	in := l.intent("vm", c1.Checkpoint, c1.UUID, "db")
	before := l.state(l.path("db"))
	var disk *chain.DiskError
	if _, err := backup.SettleRun(t.Context(), l.repo, l.runOf(in.UUID), backup.RunOptions{}); !errors.As(err, &disk) || !strings.Contains(err.Error(), "is not touched") {
		t.Errorf("a forged intent: %v", err)
	}
	if l.state(l.path("db")) != before {
		t.Error("the other domain's image was written to")
	}
	if n := l.intents("vm"); n != 1 {
		t.Errorf("%d intents, want the one that was left", n)
	}
}

// What is at work, or may be, is not settled; what cannot be read only where a person
// says that nothing of it matters.
func TestSettleRunRefuses(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	put := func(change func(*chain.Lease)) string {
		lease, err := l.repo.NewLease("test")
		l.must(err)
		change(lease)
		l.must(l.repo.PutLease(t.Context(), lease))
		return lease.UUID
	}
	spoil := func(key string) {
		l.must(l.repo.Store.Put(t.Context(), key, strings.NewReader("x"), objstore.PutOptions{Mode: objstore.Replace}))
	}
	lost := l.intent("vm", "lost", chain.NewUUID())
	spoil(lost.Key())
	var damagedKey string
	damaged := put(func(l *chain.Lease) { damagedKey = l.Key() })
	spoil(damagedKey)
	for _, c := range []struct {
		name, uuid string
		refused    bool // without more words
		words      backup.RunOptions
		settles    bool // with them
	}{
		{"at work", put(func(*chain.Lease) {}), true, backup.RunOptions{Ended: true, ImagesGone: true}, false},
		{"not to be seen", put(func(l *chain.Lease) { l.PIDNamespace = "" }), true, backup.RunOptions{Ended: true}, true},
		{"ended", put(func(l *chain.Lease) { l.ProcessStart++ }), false, backup.RunOptions{}, true},
		{"another machine's", put(func(l *chain.Lease) { l.Host.Name, l.BootID = "gone", "another" }), false, backup.RunOptions{}, true},
		{"damaged intent", lost.UUID, true, backup.RunOptions{ImagesGone: true}, true},
		{"damaged lease", damaged, false, backup.RunOptions{}, true},
	} {
		run := l.runOf(c.uuid)
		if c.refused {
			if _, err := backup.SettleRun(t.Context(), l.repo, run, backup.RunOptions{}); err == nil {
				t.Errorf("%s: settled", c.name)
			}
			l.runOf(c.uuid) // it is there still
		}
		if _, err := backup.SettleRun(t.Context(), l.repo, run, c.words); (err == nil) != c.settles {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	runs, unusable, err := l.repo.Runs(t.Context())
	if err != nil || len(unusable) > 0 || len(runs) != 1 {
		t.Errorf("%d runs are left (%v, %v), want the one at work", len(runs), unusable, err)
	}
}

// With a run's intent goes its lease, and no other's: one that was forged may have the
// uuid of a run that is at work.
func TestSettleLease(t *testing.T) {
	t.Parallel()
	for name, own := range map[string]bool{"its own": true, "another's": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t)
			l.create("vda", "1M")
			in := l.intent("vm", "lost", chain.NewUUID(), "vda")
			lease, err := l.repo.NewLease("a run")
			l.must(err)
			lease.UUID, lease.Process = in.UUID, in.Process
			if !own {
				lease.Host = chain.Host{Name: "elsewhere", ID: strings.Repeat("a", 32)}
			}
			l.must(l.repo.PutLease(t.Context(), lease))
			_, err = backup.Settle(t.Context(), l.repo, in, backup.SettleOptions{Images: []string{l.path("vda")}})
			l.must(err)
			leases, _, err := l.repo.Leases(t.Context())
			l.must(err)
			if gone := len(leases) == 0; gone != own {
				t.Errorf("gone: %v", gone)
			}
			if n := l.intents("vm"); n != 0 {
				t.Errorf("%d intents, want none", n)
			}
		})
	}
}
