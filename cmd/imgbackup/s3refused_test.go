// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/imgbackup/imgbackup/objstore/s3test"
)

// refusal is why a store does not do what it is asked for.
type refusal struct {
	name  string
	env   []string
	words []string // of the message
	reads bool     // reading works
}

// A store that refuses: every command says so in one line with what to do, and
// leaves nothing.
func TestS3Refusals(t *testing.T) {
	t.Parallel()
	for _, kind := range s3test.Kinds() {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			server := s3test.Start(t, kind)
			s := scenesIn(t, 1, newBucket(server))[1]
			skewed := s.bucket.copy(t)
			skewed.behind(t, s3test.Fault{How: s3test.Skewed})
			refusals := []refusal{
				{"nobody's key", []string{"AWS_ACCESS_KEY_ID=nobody"}, []string{"does not know this access key", "AWS_ACCESS_KEY_ID"}, false},
				{"wrong key", []string{"AWS_SECRET_ACCESS_KEY=hunter2"}, []string{"AWS_SECRET_ACCESS_KEY"}, false},
				{"wrong clock", []string{"AWS_ENDPOINT_URL_S3=" + skewed.proxy}, []string{"RequestTimeTooSkewed", "clock", "set the right time"}, false},
				{"nobody there", []string{"AWS_ENDPOINT_URL_S3=http://" + closedAddress(t), patience + "=300ms"}, []string{"connection refused", "is the server running", "given up after"}, false},
			}
			if kind == s3test.MinIO {
				v, err := server.ReadOnly(s.bucket.name).GetWithContext(nil)
				if err != nil {
					t.Fatal(err)
				}
				refusals = append(refusals, refusal{"read only", []string{
					"AWS_ACCESS_KEY_ID=" + v.AccessKeyID, "AWS_SECRET_ACCESS_KEY=" + v.SecretAccessKey, "AWS_SESSION_TOKEN=" + v.SessionToken,
				}, []string{"AccessDenied", "do not allow to store in bucket " + s.bucket.name, "s3:PutObject"}, true})
			}
			for _, r := range refusals {
				t.Run(r.name, func(t *testing.T) {
					t.Parallel()
					s.refused(t, r)
				})
			}
			t.Run("no bucket", func(t *testing.T) {
				t.Parallel()
				gone := *s.bucket
				gone.name = "no-such-bucket"
				w := *s.world
				w.bucket = &gone
				there := scene{world: &w, checkpoints: s.checkpoints, mode: s.mode}
				there.refused(t, refusal{"", nil, []string{"NoSuchBucket", "there is no bucket no-such-bucket at " + server.Endpoint, "make the bucket first"}, false})
			})
		})
	}
}

// closedAddress is one at which nobody listens: its port is taken, so that nobody begins to.
func closedAddress(t *testing.T) string {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) }) // until then it is nobody else's
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	at, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("127.0.0.1:%d", at.(*unix.SockaddrInet4).Port)
}

// refused runs every command.
func (s scene) refused(t *testing.T, r refusal) {
	w := *s.world
	w.TB = t
	w.dir = t.TempDir()
	if err := os.CopyFS(w.dir, os.DirFS(s.dir)); err != nil {
		t.Fatal(err)
	}
	before := w.bitmaps("vda")
	out := filepath.Join(w.dir, "out")
	for command, args := range map[string][]string{
		"init":    {"init"},
		"backup":  w.backup("refused"),
		"dry run": w.backup("refused", "--dry-run"),
		"list":    {"list", domain},
		"show":    {"show", domain, "c1"},
		"check":   {"check", "--read-data"},
		"restore": {"restore", domain, "--output", out},
	} {
		o := w.outcome(w.child(r.env, args...))
		if r.reads && command != "backup" && command != "init" {
			if o.code != exitDone {
				t.Errorf("%s: exit status %d: %s", command, o.code, o.err)
			}
			continue
		}
		if o.code != exitFailed || strings.Count(o.err, "\n") != 1 {
			t.Errorf("%s: exit status %d: %s", command, o.code, o.err)
		}
		if command == "init" && r.reads {
			continue // it tells that there is a repository
		}
		w.verifyLine(o, r.words...)
	}
	if _, err := os.Stat(out); !r.reads && !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a restore left something: %v", err)
	}
	if now := w.bitmaps("vda"); len(now) != len(before) {
		t.Errorf("bitmaps %v, were %v", now, before)
	}
}

// The file system that a server keeps its data on is full: the backup says so
// at once, and leaves nothing; with more room the next one works.
func TestS3Full(t *testing.T) {
	t.Parallel()
	for _, kind := range s3test.Kinds() {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=48m"); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
					t.Error(err)
				}
			})
			server := s3test.StartIn(t, kind, dir)
			s := scenesIn(t, 1, newBucket(server))[1]
			// What compresses to nothing fills no disk.
			noise := make([]byte, 2<<20)
			_, _ = rand.NewChaCha8([32]byte{}).Read(noise) // never fails
			pattern := filepath.Join(s.dir, "noise")
			if err := os.WriteFile(pattern, noise, 0o600); err != nil {
				t.Fatal(err)
			}
			s.guest("vda", "write -s "+pattern+" 1M 2M")
			s.look("vda")
			filler := filepath.Join(dir, "filler")
			fillUp(t, filler, 1<<20)
			o := s.outcome(s.child(nil, s.backup("full")...))
			if o.code != exitFailed || strings.Count(o.err, "\n") != 1 {
				t.Errorf("exit status %d: %s", o.code, o.err)
			}
			s.verifyLine(o, "bucket "+s.bucket.name+" is full", "make room")
			if err := os.Remove(filler); err != nil {
				t.Fatal(err)
			}
			server.Kill() // which forgets how much room there was
			server.Restart()
			s.verify(s.checkpoints...)
			s.commit("more-room", "--mode", "incremental")
			s.verify(append(s.checkpoints, "more-room")...)
		})
	}
}

// fillUp writes a file that leaves so many bytes of its file system free.
func fillUp(t testing.TB, path string, leave int64) {
	t.Helper()
	var st unix.Statfs_t
	if err := unix.Statfs(filepath.Dir(path), &st); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, make([]byte, int64(st.Bavail)*int64(st.Bsize)-leave), 0o600); err != nil {
		t.Fatal(err)
	}
}
