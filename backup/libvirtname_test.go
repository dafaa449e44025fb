// SPDX-License-Identifier: Apache-2.0

package backup_test

import (
	"context"
	"slices"
	"testing"

	"github.com/imgbackup/imgbackup/backup"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/chain/chaintest"
)

// forLibvirt is a request for a checkpoint that libvirt can know.
func (l *lab) forLibvirt(checkpoint string, disks ...backup.DiskRequest) backup.Request {
	req := l.request(checkpoint, disks...)
	req.LibvirtNames = true
	return req
}

// A backup that breaks off takes both bitmaps out again.
func TestLibvirtNameUndone(t *testing.T) {
	t.Parallel()
	for _, step := range []string{backup.StepAdded, backup.StepRead, backup.StepStored, backup.StepCommit} {
		t.Run(step, func(t *testing.T) {
			t.Parallel()
			l := newLab(t)
			l.create("vda", "1M")
			ctx, cancel := context.WithCancel(t.Context())
			hit := false
			hooks := backup.Hooks{Step: func(s string) {
				if s == step {
					hit = true
					cancel()
				}
			}}
			_ = l.failsIn(ctx, l.forLibvirt("c1", l.disk("vda")), hooks) // looks for traces
			if !hit {
				t.Errorf("there was no step %s", step)
			}
		})
	}
}

// What a run that was killed has left is taken out by the next, but for a bitmap of
// libvirt's name that isn't ours.
func TestLibvirtNameSettled(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		add  func(l *lab, ours string)
		left []string
	}{
		{"both", func(l *lab, ours string) {
			l.img("bitmap", "--add", l.path("vda"), ours)
			l.img("bitmap", "--add", l.path("vda"), "lost")
			l.write("vda", "write 0 64k")
		}, nil},
		{"ours alone", func(l *lab, ours string) { l.img("bitmap", "--add", l.path("vda"), ours) }, nil},
		{"another's alone", func(l *lab, _ string) { l.img("bitmap", "--add", l.path("vda"), "lost") }, []string{"lost"}},
		{"another's beside ours", func(l *lab, ours string) {
			l.img("bitmap", "--add", l.path("vda"), "lost")
			l.write("vda", "write 0 64k")
			l.img("bitmap", "--add", l.path("vda"), ours)
		}, []string{"lost"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t)
			l.create("vda", "1M")
			uuid := chain.NewUUID()
			ours := chain.BitmapName("lost", uuid)
			tt.add(l, ours)
			in := l.intent("vm", "lost", uuid, "vda")
			theirs := in.Images[0]
			theirs.Add = "lost"
			in.Images = slices.Insert(in.Images, 0, theirs)
			l.must(l.repo.PutIntent(t.Context(), in))
			l.backup("c1", l.disk("vda"))
			l.holds("vda", append([]string{"c1"}, tt.left...)...)
			if n := l.intents("vm"); n != 0 {
				t.Errorf("%d intents, want none", n)
			}
		})
	}
}

// The second bitmap of a checkpoint that was forgotten goes with the first.
func TestLibvirtNameForgotten(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.create("vda", "1M")
	for _, c := range []string{"c1", "c2"} {
		_, err := l.run(l.forLibvirt(c, l.disk("vda")), backup.Hooks{})
		l.must(err)
	}
	l.holds("vda", "c1", "c1", "c2", "c2")
	gone := l.manifest("c1")
	l.must(l.repo.Remember(t.Context(), "vm", []*chain.Manifest{gone}, []*chain.Manifest{l.manifest("c2")}))
	l.must(chaintest.Forget(t.Context(), l.repo, gone))
	l.backup("c3", l.disk("vda"))
	l.holds("vda", "c2", "c2", "c3")
}
