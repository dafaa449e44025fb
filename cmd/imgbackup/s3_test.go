// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/imgbackup/imgbackup/objstore/s3test"
)

// The main job on real servers: full, writes, incremental, both checkpoints
// restored and compared, also out of copies to and from a directory.
func TestMainJobInS3(t *testing.T) {
	t.Parallel()
	for _, kind := range s3test.Kinds() {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			server := s3test.Start(t, kind)
			dir := t.TempDir()
			env := append(os.Environ(), server.Env()...)
			tool := func(name string, args ...string) []byte {
				t.Helper()
				cmd := exec.CommandContext(t.Context(), name, args...)
				cmd.Dir, cmd.Env = dir, env
				out, err := cmd.CombinedOutput()
				if err != nil {
					t.Fatalf("%s %q: %v\n%s", name, args, err, out)
				}
				return out
			}
			read := func(name string) []byte {
				t.Helper()
				data, err := os.ReadFile(filepath.Join(dir, name))
				if err != nil {
					t.Fatal(err)
				}
				return data
			}
			bucket := "s3://" + server.Bucket() + "/site/one"
			tool("imgbackup", "init", "-r", bucket)
			within := exec.CommandContext(t.Context(), "imgbackup", "init", "-r", bucket+"/sub/deep")
			within.Env = env
			if out, err := within.CombinedOutput(); err == nil || !bytes.Contains(out, []byte("this place lies in the repository s3://")) {
				t.Errorf("a repository within a repository: %v, %s", err, out)
			}
			tool("qemu-img", "create", "-q", "-f", "qcow2", "a.qcow2", "24M")
			tool("qemu-io", "-f", "qcow2", "-c", "write -P 1 0 9M", "-c", "write -P 2 20M 1M", "a.qcow2")
			backup := func(checkpoint, mode string) {
				t.Helper()
				tool("qemu-img", "convert", "-f", "qcow2", "-O", "raw", "a.qcow2", checkpoint+".raw")
				tool("imgbackup", "backup", "-r", bucket, "web", "--disk", "vda=a.qcow2,format=qcow2", "--checkpoint", checkpoint, "--mode", mode)
			}
			backup("c1", "full")
			tool("qemu-io", "-f", "qcow2", "-c", "write -P 3 8M 3M", "-c", "write -z 1M 1M", "-c", "discard 20M 512k", "a.qcow2")
			backup("c2", "incremental")
			tool("imgbackup", "init", "-r", "local")
			tool("imgbackup", "copy", "-r", bucket, "--to", "local")
			back := "s3://" + server.Bucket() + "/back"
			tool("imgbackup", "init", "-r", back)
			tool("imgbackup", "copy", "-r", "local", "--to", back)
			for i, repo := range []string{bucket, "local", back} {
				tool("imgbackup", "check", "-r", repo, "--read-data")
				for _, checkpoint := range []string{"c1", "c2"} {
					out := filepath.Join("out", string(rune('a'+i))+checkpoint)
					if err := os.MkdirAll(filepath.Join(dir, "out"), 0o700); err != nil {
						t.Fatal(err)
					}
					tool("imgbackup", "restore", "-r", repo, "web", "--checkpoint", checkpoint, "--output", out)
					if !bytes.Equal(read(out+"/vda.raw"), read(checkpoint+".raw")) {
						t.Errorf("%s restored from %s differs", checkpoint, repo)
					}
					tool("nbdcopy", "--", "[", "imgbackup", "serve", "-r", repo, "web", "--checkpoint", checkpoint, "]", "served.raw")
					if !bytes.Equal(read("served.raw"), read(checkpoint+".raw")) {
						t.Errorf("%s served from %s differs", checkpoint, repo)
					}
				}
			}
		})
	}
}
