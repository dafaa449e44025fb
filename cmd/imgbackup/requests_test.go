// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/objstore"
	"github.com/imgbackup/imgbackup/objstore/s3"
	"github.com/imgbackup/imgbackup/objstore/s3test"
	"github.com/imgbackup/imgbackup/view"
)

// requests counts what a server was asked.
type requests struct{ put, get, head, list int }

// TestRequestsAreFew: a backup stores each object with one request, and a restore
// asks for each pack at most twice and for each map once; beside that, there are a
// few.
func TestRequestsAreFew(t *testing.T) {
	t.Parallel()
	const few = 10
	server := s3test.Start(t, s3test.MinIO)
	proxy := s3test.NewProxy(t, server)
	bucket := server.Bucket()
	dir := t.TempDir()
	tool := func(name string, args ...string) requests {
		t.Helper()
		before := requests{proxy.Count("PUT"), proxy.Count("GET"), proxy.Count("HEAD"), proxy.Count("LIST")}
		cmd := exec.CommandContext(t.Context(), name, args...)
		cmd.Dir, cmd.Env = dir, append(append(os.Environ(), server.Env()...), "AWS_ENDPOINT_URL_S3="+proxy.URL, "IMGBACKUP_REPO=s3://"+bucket+"/r", cacheVar+"="+filepath.Join(dir, "cache"))
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s %q: %v\n%s", name, args, err, out)
		}
		return requests{proxy.Count("PUT") - before.put, proxy.Count("GET") - before.get, proxy.Count("HEAD") - before.head, proxy.Count("LIST") - before.list}
	}
	store, err := s3.Open(server.Config(bucket, "r"))
	if err != nil {
		t.Fatal(err)
	}
	objects := func() (n int) {
		t.Helper()
		for _, prefix := range []string{archive.PackPrefix, archive.MapPrefix, archive.BitmapPrefix, archive.IndexPrefix} {
			for _, err := range store.List(t.Context(), prefix) {
				if err != nil {
					t.Fatal(err)
				}
				n++
			}
		}
		return n
	}
	atMost := func(what string, n, most int) {
		t.Helper()
		if n > most {
			t.Errorf("%s: %d requests, more than %d", what, n, most)
		}
	}
	noise(t, filepath.Join(dir, "noise"), 40<<20)
	tool("imgbackup", "init")
	tool("qemu-img", "dd", "-f", "raw", "-O", "qcow2", "if=noise", "of=a.qcow2", "bs=1M")

	checkpoints, before := 0, 0
	backup := func(mode string) requests {
		t.Helper()
		checkpoints++
		r := tool("imgbackup", "backup", domain, "--disk", "vda=a.qcow2,format=qcow2", "--mode", mode, "--checkpoint", fmt.Sprintf("c%d", checkpoints))
		after := objects()
		atMost(mode+": PUT", r.put, after-before+few)
		atMost(mode+": LIST", r.list, few)
		before = after
		return r
	}
	restore := func(checkpoint string) {
		t.Helper()
		packs, maps := contentOf(t, store, checkpoint)
		r := tool("imgbackup", "restore", domain, "--output", "out-"+checkpoint, "--checkpoint", checkpoint)
		atMost(checkpoint+" restored: GET and HEAD", r.get+r.head, 2*packs+maps+few)
		if r.put != 0 || r.list != 0 {
			t.Errorf("restore: %+v", r)
		}
	}
	r := backup("full")
	atMost("full: GET and HEAD", r.get+r.head, few)
	for i := range 4 {
		var writes []string
		for n := range 8 {
			writes = append(writes, "-c", fmt.Sprintf("write -P %d %dk 64k", 10*i+n+1, 5000*n+100*i))
		}
		tool("qemu-io", append(append([]string{"-f", "qcow2"}, writes...), "a.qcow2")...)
		packs, maps := contentOf(t, store, fmt.Sprintf("c%d", checkpoints))
		r := backup("incremental")
		// It looks for every pack and map that it builds on, and reads samples of some packs.
		// What this host has written itself is not read again.
		atMost("incremental: GET", r.get, 2*packs+few)
		atMost("incremental: HEAD", r.head, packs+maps+few)
	}
	for i := range checkpoints {
		restore(fmt.Sprintf("c%d", i+1))
	}
}

// noise writes a file that does not compress.
func noise(t *testing.T, path string, size int64) {
	t.Helper()
	data := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(data) // never fails
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// contentOf counts the packs and maps that a checkpoint of one disk is made of.
func contentOf(t *testing.T, store objstore.Store, checkpoint string) (packs, maps int) {
	t.Helper()
	ctx := context.Background()
	repo, err := chain.Open(ctx, store)
	if err != nil {
		t.Fatal(err)
	}
	m, err := repo.Manifest(ctx, domain, checkpoint)
	if err != nil {
		t.Fatal(err)
	}
	layout, err := view.OpenLayout(ctx, repo, &m.Disks[0])
	if err != nil {
		t.Fatal(err)
	}
	seen := make(map[archive.Digest]bool)
	for e, err := range layout.Entries(ctx, 0, m.Disks[0].Size) {
		if err != nil {
			t.Fatal(err)
		}
		if !e.Zero {
			seen[e.Pack.Name] = true
		}
	}
	return len(seen), len(layout.Maps())
}
