// SPDX-License-Identifier: Apache-2.0

package backup_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/imgbackup/imgbackup/backup"
	"github.com/imgbackup/imgbackup/backup/trust"
	"github.com/imgbackup/imgbackup/bitmapstore"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/objstore/objstoretest"
	"github.com/imgbackup/imgbackup/qcow2"
)

// receiver is a [backup.Receiver] of functions, any of which may be nil.
type receiver struct {
	accept, publish func() error
	write           backup.Consumer
	calls           []string
}

func (r *receiver) call(name string, fn func() error) error {
	r.calls = append(r.calls, name)
	if fn == nil {
		return nil
	}
	return fn()
}

func (r *receiver) Accept([]backup.OpenDisk) error { return r.call("accept", r.accept) }
func (r *receiver) Publish() error                 { return r.call("publish", r.publish) }
func (r *receiver) Retract() error                 { return r.call("retract", nil) }
func (r *receiver) Write(ctx context.Context, disks []backup.OpenDisk) error {
	return r.call("write", func() error {
		if r.write == nil {
			return nil
		}
		return r.write(ctx, disks)
	})
}

// changesSince is what a push since the checkpoint would take.
func (l *lab) changesSince(name string, d backup.DiskRequest) ([]bitmapstore.Run, error) {
	l.t.Helper()
	req := l.request("", d)
	req.Mode, req.Since = backup.Incremental, name
	var runs []bitmapstore.Run
	_, err := backup.Push(l.t.Context(), l.repo, req, backup.Hooks{}, &receiver{write: func(_ context.Context, disks []backup.OpenDisk) (err error) {
		if len(disks) != 1 || disks[0].Plan.Since.Name != name {
			l.t.Errorf("since %s: got %+v", name, disks[0].Plan)
		}
		runs, err = disks[0].Changes.Collect()
		return err
	}})
	return runs, err
}

// A push that fails leaves neither bitmap nor checkpoint; one that succeeds makes
// it for the instant at which the data was read.
func TestPushCheckpoint(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.create("a", "1M")
	l.write("a", "write -P 1 0 64k")
	boom := errors.New("boom")
	before := l.tool("qemu-img", "info", "a")
	_, err := backup.Push(t.Context(), l.repo, l.request("p1", l.disk("a")), backup.Hooks{}, &receiver{write: func(context.Context, []backup.OpenDisk) error { return boom }})
	if !errors.Is(err, boom) {
		t.Fatalf("got %v", err)
	}
	if _, err := l.repo.Manifest(t.Context(), "vm", "p1"); !errors.Is(err, chain.ErrNoCheckpoint) {
		t.Errorf("after a failed push: %v", err)
	}
	if after := l.tool("qemu-img", "info", "a"); strings.Contains(after, "p1.") {
		t.Errorf("the bitmap stays: %s\nbefore: %s", after, before)
	}
	l.remember("vm", "p1", l.disk("a"))
	out := &receiver{write: func(_ context.Context, disks []backup.OpenDisk) error {
		n, err := disks[0].Changes.Bytes()
		if n != 1<<20 || err != nil {
			t.Errorf("a full push of %d bytes, %v", n, err)
		}
		return nil
	}}
	_, err = backup.Push(t.Context(), l.repo, l.request("p1", l.disk("a")), backup.Hooks{}, out)
	l.must(err)
	if fmt.Sprint(out.calls) != "[accept write publish]" {
		t.Errorf("the receiver was called: %v", out.calls)
	}
	l.write("a", "write -P 2 128k 64k")
	runs, err := l.changesSince("p1", l.disk("a"))
	l.must(err)
	if fmt.Sprint(runs) != "[{131072 196608}]" {
		t.Errorf("since p1: %v", runs)
	}
}

// What the file system calls a hole today, and data tomorrow, is no sign of a write that a bitmap
// missed: an image with zeros that are only allocated, and with zeros that are written, keeps its
// increments, however its holes turn. Data that a table has lost is a sign, as before.
func TestPushWhileHolesTurn(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.create("a", "1M", "-o", "preallocation=falloc")
	l.write("a", "write -P 1 0 64k", "write -P 0 256k 128k")
	turned := make(map[string]bool)
	mapped := make(map[int64]bool)
	push := func(name string) {
		_, err := backup.Push(t.Context(), l.repo, l.request(name, l.disk("a")), backup.Hooks{}, &receiver{})
		l.must(err)
		mapped[l.manifest(name).Disks[0].Held.DirtyBytes] = true
	}
	f, err := os.OpenFile(l.path("a"), os.O_RDWR, 0)
	l.must(err)
	defer f.Close()
	last := ""
	for i, turn := range []func() error{
		func() error { _, err := os.ReadFile(l.path("a")); return err }, // zeros in the page cache are data
		func() error { return errors.Join(f.Sync(), unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)) },
		func() error { return l.punch("a", f, 256<<10, 128<<10) },
		func() error { return unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, 1<<20) },
	} {
		l.must(turn())
		image, err := qcow2.Open(l.path("a"), qcow2.Qcow2, qcow2.OpenOptions{})
		l.must(err)
		data, err := image.Data(t.Context()).Collect()
		l.must(errors.Join(err, image.Close()))
		turned[fmt.Sprint(data)] = true
		if last != "" {
			runs, err := l.changesSince(last, l.disk("a"))
			if l.must(err); len(runs) > 0 {
				t.Errorf("turn %d: %v changed", i, runs)
			}
		}
		last = fmt.Sprint("p", i)
		push(last)
	}
	if len(turned) < 2 {
		t.Errorf("no hole has turned: %v", turned)
	}
	if len(mapped) != 1 || !mapped[1<<20] {
		t.Errorf("the disk held %v bytes", mapped)
	}
	l.img("resize", "-q", "-f", "qcow2", "--shrink", "a", "512k")
	l.img("resize", "-q", "-f", "qcow2", "a", "1M")
	_, err = l.changesSince(last, l.disk("a"))
	var refused *backup.NotTrustedError
	if !errors.As(err, &refused) || refused.Code != trust.ReasonMap {
		t.Errorf("what was cut off is not missed: %v", err)
	}
}

// punch makes a hole of a range of a disk in its image's file, behind which zeros lie.
func (l *lab) punch(name string, f *os.File, at, length int64) error {
	image, err := qcow2.Open(l.path(name), qcow2.Qcow2, qcow2.OpenOptions{})
	l.must(err)
	defer image.Close()
	for p, err := range image.Places(l.t.Context(), 0, at, at+length) {
		if err == nil {
			err = unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, p.Host, p.Length)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// unpublished is a receiver that fails the test if it is told to publish.
func unpublished(t *testing.T, write backup.Consumer) *receiver {
	return &receiver{write: write, publish: func() error {
		t.Error("what was read of a changing image is published")
		return nil
	}}
}

// Nothing is done for disks that the receiver does not accept; what it cannot
// publish makes no checkpoint; and when the checkpoint cannot be made, what it
// published is taken back.
func TestPushIsAllOrNothing(t *testing.T) {
	t.Parallel()
	boom := errors.New("boom")
	fail := func() error { return boom }
	for what, c := range map[string]struct {
		out   receiver
		fault *objstoretest.Fault
		calls string
	}{
		"not accepted":  {out: receiver{accept: fail}, calls: "[accept]"},
		"not published": {out: receiver{publish: fail}, calls: "[accept write publish]"},
		"not committed": {fault: &objstoretest.Fault{Op: objstoretest.Put, Prefix: "domains/vm/checkpoints/", Err: boom}, calls: "[accept write publish retract]"},
		"not stored":    {fault: &objstoretest.Fault{Op: objstoretest.Put, Prefix: "bitmaps/", Err: boom}, calls: "[accept write]"},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			l := newLab(t)
			l.create("a", "1M")
			l.createCheckpoint("k0", l.disk("a"))
			repo := l.repo
			if c.fault != nil {
				repo = &chain.Repository{Store: objstoretest.NewFaulty(t, l.repo.Store, *c.fault), Config: l.repo.Config}
			}
			if _, err := backup.Push(t.Context(), repo, l.request("p1", l.disk("a")), backup.Hooks{}, &c.out); !errors.Is(err, boom) {
				t.Errorf("got %v", err)
			}
			if fmt.Sprint(c.out.calls) != c.calls {
				t.Errorf("the receiver was called: %v, want %s", c.out.calls, c.calls)
			}
			if _, err := l.repo.Manifest(t.Context(), "vm", "p1"); !errors.Is(err, chain.ErrNoCheckpoint) {
				t.Errorf("a checkpoint: %v", err)
			}
			if info := l.tool("qemu-img", "info", "a"); strings.Contains(info, "p1.") {
				t.Errorf("the bitmap stays: %s", info)
			}
		})
	}
}

// What is written to an image while it is given out fails the push and the pull.
func TestPushOfAChangingImage(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.create("a", "1M")
	l.write("a", "write -P 1 0 64k")
	for i, run := range []func(backup.Consumer) error{
		func(out backup.Consumer) error {
			_, err := backup.Push(t.Context(), l.repo, l.request("", l.disk("a")), backup.Hooks{}, unpublished(t, out))
			return err
		},
		func(out backup.Consumer) error {
			_, err := backup.Pull(t.Context(), l.repo, l.request("", l.disk("a")), backup.Hooks{}, out)
			return err
		},
		func(out backup.Consumer) error {
			_, err := backup.Push(t.Context(), l.repo, l.request("p", l.disk("a")), backup.Hooks{}, unpublished(t, out))
			return err
		},
	} {
		err := run(func(context.Context, []backup.OpenDisk) error {
			info, err := os.Stat(l.path("a"))
			l.must(err)
			l.patch("a", info.Size()-1, []byte{byte(i) + 1})
			return nil
		})
		l.inUse(err, "a")
	}
	if _, err := l.repo.Manifest(t.Context(), "vm", "p"); !errors.Is(err, chain.ErrNoCheckpoint) {
		t.Errorf("a checkpoint of an image that changed: %v", err)
	}
}

// A pull that makes a checkpoint can read, for as long as it goes on, changes that
// only the repository knows.
func TestPullOfRecordedChanges(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.create("a", "4M")
	l.write("a", "write -P 1 0 1M")
	l.backup("c1", l.disk("a"))
	l.write("a", "write -P 2 64k 64k")
	l.backup("c2", l.disk("a"))
	l.img("bitmap", "--remove", l.path("a"), l.bitmapOf("c1"))
	l.write("a", "write -P 3 256k 64k")
	req := l.request("c3", l.disk("a"))
	req.Mode, req.Since = backup.Incremental, "c1"
	var got []bitmapstore.Run
	r, err := backup.Pull(t.Context(), l.repo, req, backup.Hooks{}, func(ctx context.Context, disks []backup.OpenDisk) (err error) {
		if err := ctx.Err(); err != nil {
			return err
		}
		if _, err := l.repo.Manifest(ctx, "vm", "c3"); err != nil {
			t.Errorf("the checkpoint does not stand yet: %v", err)
		}
		got, err = disks[0].Changes.Collect()
		return err
	})
	l.must(err)
	if want := []bitmapstore.Run{{Start: 64 << 10, End: 128 << 10}, {Start: 256 << 10, End: 320 << 10}}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	if p := r.Plan.Disks[0]; p.Mode != backup.Incremental || p.Since.Name != "c1" {
		t.Errorf("%+v", p)
	}
}
