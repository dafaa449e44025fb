// SPDX-License-Identifier: Apache-2.0

package chain

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"reflect"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/objstore/objstoretest"
)

func testIntent(domain string) *Intent {
	cp := NewUUID()
	return &Intent{
		UUID: NewUUID(), Domain: domain, Checkpoint: "one", CheckpointUUID: cp, Host: Host{Name: "host", ID: "id"}, BootID: "boot", PID: 17,
		Created: time.Now(),
		Images: []IntentImage{{
			Disk: "vda", Path: "/images/\xff.qcow2", Device: 1, Inode: 1 << 63,
			Before: []string{"foreign \xfe\x00 bitmap", "ours.0123456789abcdef"}, Add: BitmapName("one", cp),
		}},
	}
}

// TestTidying: what ends a session goes on when it was cancelled, and not for ever.
func TestTidying(t *testing.T) {
	t.Parallel()
	ended, end := context.WithCancel(t.Context())
	end()
	ctx, cancel := Tidying(ended)
	defer cancel()
	if err := ctx.Err(); err != nil {
		t.Error(err)
	}
	if deadline, ok := ctx.Deadline(); !ok || time.Until(deadline) > time.Minute {
		t.Errorf("it ends at %v, %v", deadline, ok)
	}
}

func TestIntents(t *testing.T) {
	t.Parallel()
	r := newRepository(t)
	a, b := testIntent("web"), testIntent("web")
	b.Created = a.Created.Add(-time.Hour)
	for _, in := range []*Intent{a, b, testIntent("web-2")} {
		if err := r.PutIntent(t.Context(), in); err != nil {
			t.Fatal(err)
		}
	}
	broken := testIntent("web")
	put(t, r.Store, intentKey("web", broken.UUID), []byte("x"))
	got, unusable, err := r.Intents(t.Context(), "web")
	if err != nil || len(got) != 2 || !reflect.DeepEqual(got[0], b) || !reflect.DeepEqual(got[1], a) {
		t.Errorf("%+v, %v", got, err)
	}
	if len(unusable) != 1 || !archive.IsDamage(unusable[0]) || !strings.Contains(unusable[0].Error(), broken.UUID) {
		t.Errorf("unusable: %v", unusable)
	}
	// A later state of the same intent.
	a.Images[0].Before = nil
	if err := r.PutIntent(t.Context(), a); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := r.DeleteIntent(t.Context(), "web", b.UUID); err != nil {
			t.Fatal(err)
		}
	}
	if got, _, err = r.Intents(t.Context(), "web"); err != nil || len(got) != 1 || len(got[0].Images[0].Before) != 0 {
		t.Errorf("%+v, %v", got, err)
	}
	// Under another's key it is damage.
	other := NewUUID()
	put(t, r.Store, intentKey("web", other), get(t, r.Store, intentKey("web", a.UUID)))
	if _, unusable, err = r.Intents(t.Context(), "web"); err != nil || len(unusable) != 2 {
		t.Errorf("%v, %v", unusable, err)
	}
	if err := r.DeleteIntent(t.Context(), "web", "../x"); err == nil {
		t.Error("a wrong uuid was taken")
	}
	down := r.with(objstoretest.NewFaulty(t, r.Store, objstoretest.Fault{Op: objstoretest.Get, Err: errOutage}))
	if _, _, err := down.Intents(t.Context(), "web"); !errors.Is(err, errOutage) {
		t.Errorf("in an outage: %v", err)
	}
}

func TestIntentValidate(t *testing.T) {
	t.Parallel()
	r := newRepository(t)
	for name, break_ := range map[string]func(in *Intent){
		"uuid":       func(in *Intent) { in.UUID = "x" },
		"domain":     func(in *Intent) { in.Domain = "../x" },
		"checkpoint": func(in *Intent) { in.Checkpoint = "" },
		"cp uuid":    func(in *Intent) { in.CheckpointUUID = "" },
		"host":       func(in *Intent) { in.Host.Name = "" },
		"created":    func(in *Intent) { in.Created = time.Time{} },
		"target":     func(in *Intent) { in.Images[0].Disk = "/" },
		"path":       func(in *Intent) { in.Images[0].Path = "" },
		"add":        func(in *Intent) { in.Images[0].Add = "foreign" },
		"before":     func(in *Intent) { in.Images[0].Before[0] = "" },
		"pid":        func(in *Intent) { in.PID = -1 },
	} {
		in := testIntent("web")
		break_(in)
		if err := r.PutIntent(t.Context(), in); err == nil {
			t.Errorf("%s: it was stored", name)
		}
	}
}

func testLease(t *testing.T) *Lease {
	t.Helper()
	l, err := NewLease("test")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestLeases(t *testing.T) {
	t.Parallel()
	r := newRepository(t)
	l, err := r.TakeLease(t.Context(), "backup of web")
	if err != nil {
		t.Fatal(err)
	}
	put(t, r.Store, leaseKey(NewUUID()), []byte("x"))
	if l.PID != os.Getpid() || l.ProcessStart <= 0 || l.PIDNamespace == "" {
		t.Errorf("%+v", l)
	}
	foreign := testLease(t)
	foreign.Host, foreign.PID = Host{Name: "elsewhere", ID: "other"}, 1<<30
	if err := r.PutLease(t.Context(), foreign); err != nil {
		t.Fatal(err)
	}
	if err := r.CleanLeases(t.Context()); err != nil {
		t.Fatal(err)
	}
	got, unusable, err := r.Leases(t.Context())
	if err != nil || len(got) != 2 || !reflect.DeepEqual(got[0], l) || len(unusable) != 1 {
		t.Errorf("%+v, %v, %v", got, unusable, err)
	}
	for range 2 {
		if err := r.DeleteLease(t.Context(), l.UUID); err != nil {
			t.Fatal(err)
		}
	}
	if got, _, err = r.Leases(t.Context()); err != nil || len(got) != 1 || got[0].UUID != foreign.UUID {
		t.Errorf("%+v, %v", got, err)
	}
	for name, break_ := range map[string]func(l *Lease){
		"uuid": func(l *Lease) { l.UUID = "" }, "host": func(l *Lease) { l.Host.Name = "" }, "pid": func(l *Lease) { l.PID = -1 },
		"started": func(l *Lease) { l.Started = time.Time{} }, "writer": func(l *Lease) { l.MinWriter = 0 }, "format": func(l *Lease) { l.Format = "" },
	} {
		l := testLease(t)
		break_(l)
		if err := r.PutLease(t.Context(), l); err == nil {
			t.Errorf("%s: it was stored", name)
		}
	}
}

const (
	machineID = "0123456789abcdef0123456789abcdef"
	bootID    = "11111111-2222-3333-4444-555555555555"
)

func stat(pid, name string, start string) string {
	return pid + " (" + name + ") S 1 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 " + start + " 169 18446744073709551615 1 1\n"
}

// fakeHost has processes 1 and 17.
func fakeHost() fstest.MapFS {
	return fstest.MapFS{
		"proc/sys/kernel/hostname":       {Data: []byte("node7\n")},
		"etc/machine-id":                 {Data: []byte(machineID + "\n")},
		"proc/sys/kernel/random/boot_id": {Data: []byte(bootID + "\n")},
		"proc/self/ns/pid":               {Data: []byte("pid:[4026531836]"), Mode: fs.ModeSymlink},
		"proc/1/stat":                    {Data: []byte(stat("1", "init", "5"))},
		"proc/17/stat":                   {Data: []byte(stat("17", "odd) S 1 (name", "900"))},
	}
}

func TestCurrentHost(t *testing.T) {
	t.Parallel()
	host, boot := currentHost(fakeHost())
	if host.Name != "node7" || boot != bootID || len(host.ID) != 32 || host.ID == machineID {
		t.Errorf("%+v, %s", host, boot)
	}
	host, boot = currentHost(fstest.MapFS{})
	if host.Name == "" || host.ID != "" || boot != "" {
		t.Errorf("nothing is known: %+v, %q", host, boot)
	}
	if host, boot := CurrentHost(); host.Name == "" || boot == "" {
		t.Errorf("this host: %+v, %q", host, boot)
	}
}

func TestLeaseIsStale(t *testing.T) {
	t.Parallel()
	host, _ := currentHost(fakeHost())
	alive := Lease{Host: host, BootID: bootID, PID: 17, ProcessStart: 900, PIDNamespace: "pid:[4026531836]"}
	for name, c := range map[string]struct {
		change func(l *Lease, root fstest.MapFS)
		want   bool
	}{
		"alive":               {func(*Lease, fstest.MapFS) {}, false},
		"gone":                {func(l *Lease, _ fstest.MapFS) { l.PID = 18 }, true},
		"its id used again":   {func(l *Lease, _ fstest.MapFS) { l.ProcessStart = 899 }, true},
		"restarted":           {func(l *Lease, _ fstest.MapFS) { l.BootID = "another" }, true},
		"another host":        {func(l *Lease, _ fstest.MapFS) { l.Host.ID, l.PID = "another", 18 }, false},
		"a cloned host":       {func(l *Lease, _ fstest.MapFS) { l.Host.Name, l.BootID = "node8", "another" }, false},
		"no machine id":       {func(l *Lease, root fstest.MapFS) { l.Host.ID, l.PID = "", 18; delete(root, "etc/machine-id") }, false},
		"no boot id":          {func(l *Lease, root fstest.MapFS) { l.BootID = ""; l.PID = 18 }, false},
		"another namespace":   {func(l *Lease, _ fstest.MapFS) { l.PIDNamespace, l.PID = "pid:[1]", 18 }, false},
		"no namespace":        {func(l *Lease, _ fstest.MapFS) { l.PIDNamespace, l.PID = "", 18 }, false},
		"no process shows":    {func(l *Lease, root fstest.MapFS) { l.PID = 18; delete(root, "proc/1/stat") }, false},
		"its entry is broken": {func(_ *Lease, root fstest.MapFS) { root["proc/17/stat"] = &fstest.MapFile{Data: []byte("17 x")} }, false},
		"no process id":       {func(l *Lease, _ fstest.MapFS) { l.PID = 0 }, false},
	} {
		l, root := alive, fakeHost()
		c.change(&l, root)
		if got := l.stale(root); got != c.want {
			t.Errorf("%s: stale %v, want %v", name, got, c.want)
		}
	}
}

// TestOwnProcess: this very process is found alive in the real /proc.
func TestOwnProcess(t *testing.T) {
	t.Parallel()
	l := testLease(t)
	if l.stale(os.DirFS("/")) {
		t.Errorf("this process has ended: %+v", l)
	}
	p := process{pid: l.PID, start: l.ProcessStart + 1, namespace: l.PIDNamespace}
	if !p.gone(os.DirFS("/")) {
		t.Error("another start time makes no difference")
	}
}
