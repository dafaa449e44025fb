// SPDX-License-Identifier: Apache-2.0

package backup_test

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/imgbackup/imgbackup/backup"
	"github.com/imgbackup/imgbackup/backup/trust"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/chain/chaintest"
	"github.com/imgbackup/imgbackup/internal/sys"
	"github.com/imgbackup/imgbackup/qcow2"
)

// later is a clock by which every file is old.
func later() time.Time { return time.Now().Add(time.Hour) }

// backupLater backs up when all files have been as they are for an hour.
func (l *lab) backupLater(req backup.Request, notes *[]string) *backup.Result {
	l.t.Helper()
	for _, d := range req.Disks {
		l.remember(req.Domain, req.Checkpoint, d)
	}
	result, err := l.run(req, backup.Hooks{Now: later, Note: func(msg string) { *notes = append(*notes, msg) }})
	l.must(err)
	if result.Manifest == nil {
		l.taken = l.taken[:len(l.taken)-len(req.Disks)]
	}
	return result
}

func (l *lab) rawDisk(name, disk string) backup.DiskRequest {
	return backup.DiskRequest{Disk: disk, Path: l.path(name), Format: qcow2.Raw}
}

// detections are how each disk of a result was dealt with.
func detections(r *backup.Result) string {
	var all []string
	for _, d := range r.Manifest.Disks {
		all = append(all, d.Detection)
	}
	return strings.Join(all, " ")
}

// What nobody touched is not read again, whatever its format, and is read as soon as anything
// about it differs.
func TestUnchanged(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.must(os.WriteFile(l.path("a"), bytes.Repeat([]byte("data"), 1<<20), 0o600))
	l.create("base", "8M")
	l.write("base", "write -P 1 0 1M")
	l.overlay("old", "base", "-o", "compat=0.10")
	l.write("old", "write -P 2 4M 64k")
	disks := []backup.DiskRequest{l.rawDisk("a", "vda"), {Disk: "vdb", Path: l.path("old"), Format: qcow2.Qcow2}}
	count := 0
	next := func(want string, change func(req *backup.Request)) *backup.Result {
		t.Helper()
		count++
		var notes []string
		req := l.request(fmt.Sprintf("c%d", count), disks...)
		if change != nil {
			change(&req)
		}
		r := l.backupLater(req, &notes)
		if got := detections(r); got != want {
			t.Errorf("%s: %s, want %s (%s)", req.Checkpoint, got, want, notes)
		}
		return r
	}
	next("none none", nil)
	r := next("unchanged unchanged", nil)
	for _, d := range r.Manifest.Disks {
		if d.Mode != chain.ModeIncremental || d.DirtyBytes != 0 || d.DataBytes != 0 || d.ReasonCode != string(trust.ReasonUnchanged) {
			t.Errorf("%+v", d)
		}
	}
	next("content content", func(req *backup.Request) { req.ReadUnchanged = true })
	next("none none", func(req *backup.Request) { req.Mode = backup.Full })
	next("unchanged unchanged", func(req *backup.Request) { req.Mode = backup.Incremental })

	l.writeAs("raw", "a", "write -P 9 1M 512")
	next("content unchanged", nil)
	next("unchanged unchanged", nil)
	// The same bytes, written anew.
	data, err := os.ReadFile(l.path("a"))
	l.must(err)
	l.must(os.WriteFile(l.path("a"), data, 0o600))
	next("content unchanged", nil)
	l.must(os.Chtimes(l.path("a"), time.Time{}, time.Unix(1, 0)))
	next("content unchanged", nil)
	l.must(os.Rename(l.path("a"), l.path("b")))
	disks[0] = l.rawDisk("b", "vda")
	next("content unchanged", nil)
	next("unchanged unchanged", nil)
	// A backing file.
	l.write("base", "write -P 7 2M 512")
	next("unchanged content", nil)
	l.restoreAll()
}

// Times that were noted while they were young, by another boot or another host, say nothing.
func TestUnchangedIsNotBelieved(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.must(os.WriteFile(l.path("a"), bytes.Repeat([]byte("data"), 1<<18), 0o600))
	written := func() time.Time { return must(os.Stat(l.path("a")))(t).ModTime() }
	for _, name := range []string{"c1", "c2"} {
		req := l.request(name, l.rawDisk("a", "vda"))
		l.remember(req.Domain, name, req.Disks[0])
		r, err := l.run(req, backup.Hooks{Now: written})
		l.must(err)
		d := r.Manifest.Disks[0]
		if d.Source.BootID != "" || d.Source.Mtime == 0 || d.Detection == string(backup.ByTimes) {
			t.Errorf("young: %+v, %s", d.Source, d.Detection)
		}
	}
	var notes []string
	m := l.backupLater(l.request("c3", l.rawDisk("a", "vda")), &notes).Manifest
	if m.Disks[0].Source.BootID == "" || m.Disks[0].Detection != string(backup.ByContent) {
		t.Errorf("old: %+v", m.Disks[0])
	}
	for name, lie := range map[string]func(m *chain.Manifest){
		"boot": func(m *chain.Manifest) { m.Disks[0].Source.BootID = "another" },
		"host": func(m *chain.Manifest) { m.Host = chain.Host{Name: "another"} },
		"lost": func(m *chain.Manifest) {
			m.Disks[0].Lost = []chain.Lost{{Offset: 0, Length: 512, Reason: "test"}}
		},
	} {
		r := newLab(t)
		r.images = l.images
		r.backupLater(r.request("c1", r.rawDisk("a", "vda")), &notes)
		first, err := r.repo.Manifest(t.Context(), "vm", "c1")
		r.must(err)
		r.must(chaintest.Forget(t.Context(), r.repo, first))
		lie(first)
		r.must(r.repo.Commit(t.Context(), first))
		req := r.request("c2", r.rawDisk("a", "vda"))
		req.Adopt = true
		if got := detections(r.backupLater(req, &notes)); got != "content" {
			t.Errorf("%s: %s", name, got)
		}
		if req.Checkpoint, req.TrustTimes = "c3", true; name == "boot" {
			r.must(chaintest.Forget(t.Context(), r.repo, must(r.repo.Manifest(t.Context(), "vm", "c2"))(t)))
			if got := detections(r.backupLater(req, &notes)); got != "unchanged" {
				t.Errorf("%s, believed: %s", name, got)
			}
		}
	}
}

func must[T any](v T, err error) func(t *testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// Times may lie, by a program that sets them or a disk that forgets: samples are compared all
// the same.
func TestUnchangedSamples(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.must(os.WriteFile(l.path("a"), bytes.Repeat([]byte("data"), 1<<14), 0o600))
	var notes []string
	first := l.backupLater(l.request("c1", l.rawDisk("a", "vda")), &notes).Manifest
	l.must(os.WriteFile(l.path("a"), bytes.Repeat([]byte("else"), 1<<14), 0o600))
	// As though they were those of the file that it is now.
	c := must(qcow2.Open(l.path("a"), qcow2.Raw, qcow2.OpenOptions{}))(t)
	id := c.Layers[0].Files()[0].Opened()
	l.must(c.Close())
	l.must(chaintest.Forget(t.Context(), l.repo, first))
	first.Disks[0].Source.Mtime, first.Disks[0].Source.Ctime = id.MtimeNs, id.CtimeNs
	l.must(l.repo.Commit(t.Context(), first))
	l.taken = nil
	for _, skip := range []bool{true, false} {
		notes = nil
		req := l.request(fmt.Sprintf("c%v", skip), l.rawDisk("a", "vda"))
		req.SkipUnchanged = skip
		r := l.backupLater(req, &notes)
		if skip && (r.Manifest == nil || detections(r) != "content" || !strings.Contains(strings.Join(notes, "\n"), "its times lie")) {
			t.Errorf("%+v, %s", r, notes)
		}
	}
	l.restoreAll()
}

// A store through a shared mapping leaves no trace in a file's times, if it meets a page that
// was not written back.
func TestUnchangedMapped(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	if must(sys.SystemKind(l.images))(t) == unix.TMPFS_MAGIC {
		return // which never writes back
	}
	const size = 1 << 20
	l.must(os.WriteFile(l.path("a"), bytes.Repeat([]byte("data"), size/4), 0o600))
	f := must(os.OpenFile(l.path("a"), os.O_RDWR, 0))(t)
	mapped := must(unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED))(t)
	var notes []string
	mapped[size/2] = 1
	l.backupLater(l.request("c1", l.rawDisk("a", "vda")), &notes)
	mapped[size/2] = 2
	notes = nil
	r := l.backupLater(l.request("c2", l.rawDisk("a", "vda")), &notes)
	if detections(r) != "content" || strings.Contains(strings.Join(notes, "\n"), "its times lie") {
		t.Errorf("%s, %s", detections(r), notes)
	}
	l.must(unix.Munmap(mapped))
	l.must(f.Close())
	l.restoreAll()
}

// A domain of which nothing has changed gets no checkpoint, by times, by bitmaps, and by
// content; and when that was seen is known.
func TestSkipUnchanged(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.must(os.WriteFile(l.path("a"), bytes.Repeat([]byte("data"), 1<<18), 0o600))
	l.create("b", "8M")
	l.write("b", "write -P 1 0 1M")
	l.must(os.WriteFile(l.path("vars"), []byte("variables"), 0o600))
	definition := "<domain/>"
	var notes []string
	try := func(name, since string, change func(req *backup.Request)) {
		t.Helper()
		req := l.request(name, l.rawDisk("a", "vda"), backup.DiskRequest{Disk: "vdb", Path: l.path("b"), Format: qcow2.Qcow2})
		req.SkipUnchanged = true
		req.Files = []backup.FileRequest{{Role: chain.RoleDomainXML, Data: []byte(definition)}, {Role: chain.RoleNVRAM, Path: l.path("vars")}}
		if change != nil {
			change(&req)
		}
		images := l.state(l.images)
		r := l.backupLater(req, &notes)
		switch {
		case since == "" && (r.Manifest == nil || r.Seen != nil):
			t.Fatalf("%s: no checkpoint was made", name)
		case since == "":
			return
		case r.Manifest != nil || r.Seen == nil || r.Seen.Checkpoint.Name != since:
			t.Fatalf("%s: %+v", name, r)
		}
		if now := l.state(l.images); now != images {
			t.Errorf("%s: images have changed:\n%s", name, differences(images, now))
		}
		seen := must(l.repo.Seen(t.Context(), "vm"))(t)
		if seen == nil || seen.Checkpoint.Name != since || len(seen.Disks) != 2 {
			t.Errorf("%s: seen %+v", name, seen)
		}
		l.noLeftovers()
	}
	try("c1", "", nil)
	try("no", "c1", nil) // by vdb's bitmap
	if seen := must(l.repo.Seen(t.Context(), "vm"))(t); len(seen.Disks[0].Files) != 1 || len(seen.Disks[1].Files) != 1 {
		t.Errorf("the files are not known: %+v", seen.Disks)
	}
	try("no", "c1", nil) // by times
	l.write("b", "write -P 2 1M 64k")
	try("c2", "", nil)
	definition = "<domain>other</domain>"
	try("c3", "", nil)
	l.must(os.WriteFile(l.path("vars"), []byte("VARIABLES"), 0o600))
	try("c4", "", nil)
	try("c5", "", func(req *backup.Request) { req.Disks = req.Disks[:1] })
	try("c6", "", func(req *backup.Request) { req.Mode = backup.Full })
	try("no", "c6", nil)
	// Touched, and the same: by content, where no bitmap would be added.
	data := must(os.ReadFile(l.path("a")))(t)
	l.must(os.WriteFile(l.path("a"), data, 0o600))
	only := func(req *backup.Request) { req.NoCheckpoint = true }
	try("no", "c6", only)
	try("no", "c6", only)
	l.writeAs("raw", "a", "write -P 7 0 512")
	try("c7", "", nil)
	plan := must(backup.DryRun(t.Context(), l.repo, func() backup.Request {
		req := l.request("", l.rawDisk("a", "vda"))
		req.SkipUnchanged = true
		return req
	}(), backup.Hooks{Now: later}))(t)
	if plan.Unchanged != nil {
		t.Errorf("one of two disks: %+v", plan)
	}
	l.restoreAll()
}

// noLeftovers looks for leases and intents.
func (l *lab) noLeftovers() {
	l.t.Helper()
	leases, bad, err := l.repo.Leases(l.t.Context())
	l.must(err)
	intents, worse, err := l.repo.AllIntents(l.t.Context())
	l.must(err)
	if len(leases)+len(intents)+len(bad)+len(worse) > 0 {
		l.t.Errorf("left: %v %v %v %v", leases, intents, bad, worse)
	}
}
