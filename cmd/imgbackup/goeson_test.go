// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/objstore/s3test"
)

const (
	longPacks = 7 // so many packs a long backup stores
	longSize  = 200 << 20
	someIndex = indexEvery + "=33554432"
)

// longWorld is a domain with a raw disk that takes several packs, which ought not to be
// stored twice.
func longWorld(t *testing.T, b *bucket, secret encrypted) *world {
	w := &world{TB: t, dir: t.TempDir(), bucket: b, want: make(map[string]map[string]digest)}
	if secret {
		w.encrypt(t)
	} else {
		w.must("init")
	}
	noise(t, w.raw(), longSize)
	return w
}

func (w *world) raw() string { return filepath.Join(w.dir, "long.raw") }

func (w *world) longBackup() []string {
	return []string{"backup", domain, "--disk", "vda=" + w.raw() + ",format=raw", "--checkpoint", "whole"}
}

// packBytes is what the packs in the repository have together.
func (w *world) packBytes() (n, bytes int64) {
	w.Helper()
	for info, err := range w.store().List(context.Background(), archive.PackPrefix) {
		if err != nil {
			w.Fatal(err)
		}
		n++
		bytes += info.Size
	}
	return n, bytes
}

// goOn changes the disk, and completes a backup that was killed: little more is stored
// than what had not been.
func (w *world) goOn() {
	w.Helper()
	packs, _ := w.packBytes()
	if packs < longPacks-3 || packs >= longPacks {
		w.Fatalf("killed when %d packs were stored", packs)
	}
	f, err := os.OpenFile(w.raw(), os.O_WRONLY, 0)
	if err == nil {
		_, err = f.WriteAt([]byte("changed meanwhile"), 5<<20)
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		w.Fatal(err)
	}
	if o := w.outcome(w.child([]string{someIndex}, w.longBackup()...)); o.code != exitDone {
		w.Fatalf("exit status %d: %s", o.code, o.err)
	}
	_, after := w.packBytes()
	// What is in no index yet when the program is killed: two packs that are stored, one
	// more that an index waits for, and the disk's cell that has changed.
	if again := after - longSize; again > 3*32<<20+2<<20 {
		w.Errorf("%d MiB are stored twice", again>>20)
	}
	w.want["whole"] = map[string]digest{"vda": w.sum(w.raw())}
	w.verifyChain("whole")
}

// A backup that was killed near its end goes on there, also where the disk has changed: that of
// a host, too, which can read nothing of what it has stored.
func TestKilledGoesOn(t *testing.T) {
	t.Parallel()
	w := longWorld(t, nil, keyed)
	cmd := w.child([]string{someIndex, fmt.Sprintf("%s=%d:packs/", killAtOp, longPacks)}, w.longBackup()...)
	if out, err := cmd.CombinedOutput(); !diedBy(err, syscall.SIGKILL) {
		t.Fatalf("was to be killed: %v\n%s", err, out)
	}
	w.goOn()
}

// Likewise on a server, where what it vouches for is not read back, but for samples.
func TestKilledGoesOnInS3(t *testing.T) {
	t.Parallel()
	server := s3test.Start(t, s3test.MinIO)
	w := longWorld(t, newBucket(server), plain)
	fault := s3test.Fault{How: s3test.ResetUpload, Method: http.MethodPut, Key: "/packs/", After: longPacks - 1} // one pack after the other
	w.killedWhen(fault, func() *exec.Cmd { return w.child([]string{someIndex}, append(w.longBackup(), "--connections", "1")...) })
	w.awaitOrphans()
	proxy := w.bucket.behind(t)
	w.goOn()
	// Of each pack a sample and the table; and a few beside.
	if gets := proxy.Count("GET"); gets > 2*longPacks+20 {
		t.Errorf("%d requests to read: is all of it read back?", gets)
	} else {
		t.Logf("%d requests to read", gets)
	}
}
