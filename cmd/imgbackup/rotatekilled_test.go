// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"os/exec"
	"slices"
	"testing"
	"time"

	"github.com/imgbackup/imgbackup/objstore"
)

// late is a store to which requests may arrive when their client has ended.
type late struct{ objstore.Store }

func (l late) Unwrap() objstore.Store  { return l.Store }
func (l late) MaxDelay() time.Duration { return 15 * time.Minute }

// TestRotateAfterKilled: after a rotation of the keys that was killed the next one takes the revision of the roster
// that the other wanted, and goes on from there.
func TestRotateAfterKilled(t *testing.T) {
	t.Parallel()
	f := newFort(t)
	admin := f.steal("admin")
	for _, args := range [][]string{{"key", "rotate"}, {"key", "remove", "db1", "--rotate"}} {
		ended := exec.Command("true")
		if err := ended.Run(); err != nil {
			t.Fatal(err)
		}
		before := admin.ring.Roster
		l, err := admin.repo.NewLease("key rotate")
		if err == nil {
			l.Rotates, l.PID = true, ended.ProcessState.Pid()
			err = admin.repo.PutLease(t.Context(), l)
		}
		if err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		p := program{out: &out, err: &out, workFactor: 8, wrap: func(s objstore.Store) objstore.Store { return late{s} }}
		if code := run(slices.Concat([]string{"--repo", f.place(), "--identity", f.path("admin.key")}, args), p); code != exitDone {
			t.Fatalf("%v: exit status %d\n%s", args, code, out.String())
		}
		admin = f.steal("admin")
		if now := admin.ring.Roster; now.Generation() != before.Generation()+1 || now.Revision < before.Revision+2 {
			t.Errorf("%v: generation %d, revision %d of the roster", args, now.Generation(), now.Revision)
		}
	}
}
