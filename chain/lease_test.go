// SPDX-License-Identifier: Apache-2.0

package chain

import (
	"context"
	"errors"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/objstore/objstoretest"
)

func testIntent(domain string) *Intent {
	cp := NewUUID()
	return &Intent{
		UUID: NewUUID(), Domain: domain, Checkpoint: "one", CheckpointUUID: cp,
		Process: Process{Host: Host{Name: "host", ID: "id"}, BootID: "boot", PID: 17},
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
	l, err := (&Repository{}).NewLease("test")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestLeases(t *testing.T) {
	t.Parallel()
	r := newRepository(t)
	h, err := r.Hold(t.Context(), "backup of web")
	if err != nil {
		t.Fatal(err)
	}
	l := h.lease
	put(t, r.Store, leaseKey("host", NewUUID()), []byte("x"))
	if l.PID != os.Getpid() || l.ProcessStart <= 0 || l.PIDNamespace == "" {
		t.Errorf("%+v", l)
	}
	foreign := testLease(t)
	foreign.Host, foreign.BootID, foreign.PID = Host{Name: "elsewhere", ID: "other"}, "another boot", 1<<30
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
		if err := h.Release(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if got, _, err = r.Leases(t.Context()); err != nil || len(got) != 1 || got[0].UUID != foreign.UUID {
		t.Errorf("%+v, %v", got, err)
	}
	// Under another host's key it is damage.
	put(t, r.Store, leaseKey("host", foreign.UUID), get(t, r.Store, foreign.Key()))
	if _, unusable, err = r.Leases(t.Context()); err != nil || len(unusable) != 2 {
		t.Errorf("%v, %v", unusable, err)
	}
	for name, break_ := range map[string]func(l *Lease){
		"uuid": func(l *Lease) { l.UUID = "" }, "host": func(l *Lease) { l.Host.Name = "" }, "pid": func(l *Lease) { l.PID = -1 },
		"started": func(l *Lease) { l.Started = time.Time{} }, "writer": func(l *Lease) { l.MinWriter = 0 }, "format": func(l *Lease) { l.Format = "" },
		"announces": func(l *Lease) { l.Announces = &Announced{Domain: "..", Checkpoint: "c"} },
	} {
		l := testLease(t)
		break_(l)
		if err := r.PutLease(t.Context(), l); err == nil {
			t.Errorf("%s: it was stored", name)
		}
	}
}

// TestBrokenIsNoDamage: what was pruned under a lease that was broken is missing, and not
// damaged.
func TestBrokenIsNoDamage(t *testing.T) {
	t.Parallel()
	r := newRepository(t)
	h, err := r.Hold(t.Context(), "backup")
	if err != nil {
		t.Fatal(err)
	}
	m := r.sample("web", "one")
	if _, err := r.CreateMark(t.Context(), &MarkList{}); err != nil {
		t.Fatal(err)
	}
	if err := h.marks.read(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := h.RelyOn(t.Context(), m); !archive.IsDamage(err) || errors.As(err, new(*BrokenError)) {
		t.Fatalf("its maps are missing: %v", err)
	}
	if err := r.BreakLease(t.Context(), h.lease); err != nil {
		t.Fatal(err)
	}
	if err := h.RelyOn(t.Context(), m); archive.IsDamage(err) || !errors.As(err, new(*BrokenError)) {
		t.Errorf("the lease was broken: %v", err)
	}
	if err := h.Release(t.Context()); err != nil {
		t.Error(err)
	}
}
