// SPDX-License-Identifier: Apache-2.0

package restore

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"

	"github.com/imgbackup/imgbackup/internal/outfile"
	"github.com/imgbackup/imgbackup/internal/testkit"
	"github.com/imgbackup/imgbackup/qcow2"
)

// Whichever write goes wrong without an error, Verify sees it.
func TestVerifySeesEveryWrongWrite(t *testing.T) {
	t.Parallel()
	r, _, disks := twoDisks(t)
	// Parts of chunks, and zeros over data, come from a second checkpoint.
	for _, d := range disks {
		d.write(10<<10, 11<<10, nil)
		d.write(700<<10, 900<<10, nil)
	}
	m := r.archive(t, disks...)
	for _, format := range bothFormats {
		for _, how := range []string{"flipped", "lost"} {
			dir := t.TempDir()
			for bad := int64(1); ; bad++ {
				sys := outfile.Linux()
				var calls atomic.Int64
				sys.Pwrite = func(f *os.File, p []byte, off int64) (int, error) {
					if calls.Add(1) != bad {
						return f.WriteAt(p, off)
					}
					if how == "lost" {
						return len(p), nil
					}
					p = slices.Clone(p)
					p[len(p)/2] ^= 4
					return f.WriteAt(p, off)
				}
				targets := mustTargets(t, m, dir, format)
				_, err := run(context.Background(), sys, r.repo, m, targets, Options{Verify: true})
				if calls.Load() < bad {
					if err != nil || bad < 10 {
						t.Errorf("%d writes: %v", bad-1, err)
					}
					break
				}
				var wrong *VerifyError
				if err == nil {
					// Refcounts do not matter to what a guest reads; whether
					// they are right is tested where they are made.
					if format == qcow2.Qcow2 {
						for i, tg := range targets {
							testkit.Tool(t, "qemu-img", "convert", "-f", "qcow2", "-O", "raw", tg.Path, tg.Path+".raw")
							checkRestored(t, tg.Path+".raw", qcow2.Raw, disks[i].content)
							_ = os.Remove(tg.Path)
							_ = os.Remove(tg.Path + ".raw")
						}
						continue
					}
					t.Fatalf("write %d %s: not seen", bad, how)
				}
				if !errors.As(err, &wrong) {
					t.Fatalf("write %d %s: %v", bad, how, err)
				}
				empty(t, dir)
			}
		}
	}
}

// Bytes where zeros belong are seen, be they in a hole or not.
func TestVerifySeesStrayBytes(t *testing.T) {
	t.Parallel()
	r, m, _ := twoDisks(t)
	dir := t.TempDir()
	for _, at := range []int64{130 << 10, 191 << 10, 2049 << 10} {
		sys := outfile.Linux()
		var done atomic.Bool
		sys.Pwrite = func(f *os.File, p []byte, off int64) (int, error) {
			if done.CompareAndSwap(false, true) {
				if _, err := f.WriteAt([]byte{1}, at); err != nil {
					return 0, err
				}
			}
			return f.WriteAt(p, off)
		}
		_, err := run(context.Background(), sys, r.repo, m, []Target{{"vdb", filepath.Join(dir, "x"), qcow2.Raw}}, Options{Verify: true})
		var wrong *VerifyError
		if !errors.As(err, &wrong) || wrong.Start > at || wrong.End <= at {
			t.Errorf("a stray byte at %d: %v", at, err)
		}
		empty(t, dir)
	}
}
