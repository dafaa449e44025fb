// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/internal/testkit"
	"github.com/imgbackup/imgbackup/keys"
	"github.com/imgbackup/imgbackup/objstore"
	"github.com/imgbackup/imgbackup/objstore/local"
)

// handRecovery is a repository that the program made, and what qemu-img read from
// the images when each checkpoint was made.
type handRecovery struct {
	*testing.T
	dir    string
	script string
	path   string                                  // of the only programs that the script has
	key    string                                  // an identity file; empty: the repository is plain
	hide   bool                                    // names are hidden
	want   map[string]map[string][sha256.Size]byte // checkpoint → disk → content
}

// TestRecoverByHand carries out the recovery of docs/format.md, with no program
// but those that it names, at every checkpoint of a chain with zeros, discards,
// a disk that shrinks and grows, and runs smaller than a grid cell; of a plain repository, and of
// an encrypted one that hides names, and whose keys are rotated in between.
func TestRecoverByHand(t *testing.T) {
	t.Parallel()
	eachRecovery(t, recoverByHand)
}

// eachRecovery tests with a repository that is plain, and one that is encrypted.
func eachRecovery(t *testing.T, test func(r *handRecovery)) {
	t.Helper()
	for name, encrypted := range map[string]bool{"plain": false, "encrypted": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRecovery(t)
			if encrypted {
				r.tool("age-keygen", "-o", r.dir+"/admin.key")
				r.key = r.dir + "/admin.key"
			}
			test(r)
		})
	}
}

func recoverByHand(r *handRecovery) {
	t := r.T
	r.hide = r.key != ""
	r.history()
	for checkpoint, disks := range r.want {
		if r.key != "" && checkpoint == "c1" {
			continue // it is in the others, and each takes seconds
		}
		for disk, want := range disks {
			out := filepath.Join(r.dir, checkpoint+"-"+disk+".raw")
			if msg, err := r.recover(r.repo(), checkpoint, disk, out); err != nil {
				t.Fatalf("disk %s of %s: %v\n%s", disk, checkpoint, err, msg)
			}
			if testkit.Sum(r, out) != want {
				t.Errorf("disk %s of %s is not what qemu-img read then", disk, checkpoint)
			}
		}
	}
	if r.hide {
		r.moved()
	}
}

// moved: where a manifest stands in two places, which may be two revisions, none is believed.
func (r *handRecovery) moved() {
	r.Helper()
	for _, key := range r.objects("domains/") {
		data, err := os.ReadFile(filepath.Join(r.repo(), key))
		if err != nil {
			r.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(r.repo(), filepath.Dir(key), "moved-"+filepath.Base(key)), data, 0o600); err != nil {
			r.Fatal(err)
		}
	}
	out := filepath.Join(r.dir, "moved.raw")
	if msg, err := r.recover(r.repo(), "c2", "vda", out); err == nil || !strings.Contains(msg, "are both signed for domains/web/checkpoints/c2.json") {
		r.Errorf("%v: %s", err, msg)
	}
	if _, err := os.Lstat(out); !errors.Is(err, fs.ErrNotExist) {
		r.Errorf("an image is there: %v", err)
	}
}

// TestRecoverByHandSynthetic recovers from a full map that was made of many
// others: its runs are parts of chunks.
func TestRecoverByHandSynthetic(t *testing.T) {
	t.Parallel()
	r := newRecovery(t)
	r.init()
	image := filepath.Join(r.dir, "vda.img")
	disk := bytes.Repeat([]byte("imgbackup"), 300_000)
	disk = disk[:len(disk)/512*512]
	var last string
	for i := range 65 {
		at := (i%5*7 + 1) * archive.DiffSize
		disk[at] += byte(i + 1)
		if err := os.WriteFile(image, disk, 0o600); err != nil {
			t.Fatal(err)
		}
		last = "c" + strconv.Itoa(i)
		r.imgbackup("backup", "web", "--checkpoint", last, "--disk", "vda="+image+",format=raw")
	}
	r.demandMaps(last, "vda", []int64{int64(len(disk))})
	out := filepath.Join(r.dir, "out.raw")
	if msg, err := r.recover(r.repo(), last, "vda", out); err != nil {
		t.Fatalf("%v\n%s", err, msg)
	}
	if testkit.Sum(r, out) != sha256.Sum256(disk) {
		t.Error("the disk is not what it was")
	}
}

// TestRecoverByHandDamage: no damage gets past the script, and none leaves an
// image.
func TestRecoverByHandDamage(t *testing.T) {
	t.Parallel()
	eachRecovery(t, recoverDamage)
}

func recoverDamage(r *handRecovery) {
	t := r.T
	r.history()
	kinds := []string{"imgbackup.json", "domains/web/checkpoints/c3.json", "maps/", "packs/"}
	if r.key != "" {
		kinds = append(kinds, "keys/roster/")
	}
	for _, kind := range kinds {
		hit := 0
		for _, key := range r.objects(kind) {
			if r.key != "" && hit > 0 {
				break // each takes a second
			}
			repo := filepath.Join(r.dir, "damaged")
			if err := os.CopyFS(repo, os.DirFS(r.repo())); err != nil {
				t.Fatal(err)
			}
			r.flip(filepath.Join(repo, key))
			// Not every pack and map belongs to this checkpoint's disk.
			if out := filepath.Join(r.dir, "out.raw"); r.refuses(repo, "vda", out) {
				hit++
			}
			if err := os.RemoveAll(repo); err != nil {
				t.Fatal(err)
			}
		}
		if hit == 0 {
			t.Errorf("a flipped bit in %s is not seen", kind)
		}
	}
	for _, c := range [][2]string{{"c4", "vda"}, {"c3", "vd"}, {"c3", "vdaa"}} {
		out := filepath.Join(r.dir, "none.raw")
		if msg, err := r.recover(r.repo(), c[0], c[1], out); err == nil {
			t.Errorf("checkpoint %s, disk %s: recovered from nothing: %s", c[0], c[1], msg)
		}
	}
	if r.key != "" {
		r.forged()
	}
	r.nothingLeft()
}

// forged demands that what somebody has put in the place of a manifest who had no key to sign, or
// another place for it, is refused.
func (r *handRecovery) forged() {
	r.Helper()
	path := filepath.Join(r.repo(), "domains/web/checkpoints/c3.json")
	kept, err := os.ReadFile(path)
	if err != nil {
		r.Fatal(err)
	}
	for _, exchange := range []string{"c2.json", "imgbackup.json"} {
		other, err := os.ReadFile(filepath.Join(filepath.Dir(path), exchange))
		if exchange == "imgbackup.json" { // a sealed file that anybody could encrypt
			other, err = r.encrypted(filepath.Join(r.repo(), exchange)), nil
		}
		if err == nil {
			err = os.WriteFile(path, other, 0o600)
		}
		if err != nil {
			r.Fatal(err)
		}
		if out := filepath.Join(r.dir, "out.raw"); !r.refuses(r.repo(), "vda", out) {
			r.Errorf("%s in the place of c3 was recovered", exchange)
		}
	}
	if err := os.WriteFile(path, kept, 0o600); err != nil {
		r.Fatal(err)
	}
	// Another's key opens nothing.
	out := filepath.Join(r.dir, "other.raw")
	r.tool("age-keygen", "-o", r.dir+"/other.key")
	cmd := exec.Command("sh", r.script, r.repo(), "web", "c3", "vda", out, r.dir+"/other.key")
	cmd.Env = []string{"PATH=" + r.path}
	if msg, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(msg), "opens nothing") {
		r.Errorf("another key: %v, %s", err, msg)
	}
}

// encrypted is a file encrypted to the repository's metadata key.
func (r *handRecovery) encrypted(path string) []byte {
	r.Helper()
	roster := filepath.Join(r.repo(), "keys/roster/1.json")
	to := strings.TrimSpace(string(r.tool("jq", "-r", ".generations[-1].metadata_key", roster)))
	return r.tool("age", "-r", to, path)
}

// refuses runs the recovery of c3. One that succeeds has to be right.
func (r *handRecovery) refuses(repo, disk, out string) bool {
	r.Helper()
	_, err := r.recover(repo, "c3", disk, out)
	if err != nil {
		if _, err := os.Lstat(out); err == nil {
			r.Error("a recovery that failed left an image")
		}
		return true
	}
	if testkit.Sum(r, out) != r.want["c3"][disk] {
		r.Error("wrong bytes were recovered from a damaged repository")
	}
	if err := os.Remove(out); err != nil {
		r.Fatal(err)
	}
	return false
}

// nothingLeft demands that the script has tidied up after itself.
func (r *handRecovery) nothingLeft() {
	r.Helper()
	entries, err := os.ReadDir(r.dir)
	if err != nil {
		r.Fatal(err)
	}
	for _, e := range entries {
		if strings.Contains(e.Name(), ".raw.") {
			r.Errorf("left behind: %s", e.Name())
		}
	}
}

func newRecovery(t *testing.T) *handRecovery {
	r := &handRecovery{T: t, dir: t.TempDir(), want: make(map[string]map[string][sha256.Size]byte)}
	r.script = filepath.Join(r.dir, "recover.sh")
	if err := os.WriteFile(r.script, recoveryScript(t), 0o600); err != nil {
		t.Fatal(err)
	}
	r.path = filepath.Join(r.dir, "bin")
	if err := os.Mkdir(r.path, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, tool := range []string{
		"zstd", "jq", "awk", "dd", "sha256sum", "truncate", "mktemp", "mv", "rm", "age", "openssl", "base64", "od",
	} {
		program, err := exec.LookPath(tool)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(program, filepath.Join(r.path, tool)); err != nil {
			t.Fatal(err)
		}
	}
	return r
}

// recoveryScript is the script in docs/format.md.
func recoveryScript(t *testing.T) []byte {
	t.Helper()
	doc, err := os.ReadFile("../../docs/format.md")
	if err != nil {
		t.Fatal(err)
	}
	_, script, ok := bytes.Cut(doc, []byte("```sh\n#!/bin/sh\n# recover.sh "))
	script, _, ended := bytes.Cut(script, []byte("\n```\n"))
	if !ok || !ended || bytes.Contains(script, []byte("\n#!/bin/sh")) {
		t.Fatal("docs/format.md has no script recover.sh")
	}
	return append([]byte("#!/bin/sh\n# recover.sh "), append(script, '\n')...)
}

func (r *handRecovery) recover(repo, checkpoint, disk, out string) (string, error) {
	args := []string{r.script, repo, "web", checkpoint, disk, out}
	if r.key != "" {
		args = append(args, r.key)
	}
	cmd := exec.Command("sh", args...)
	cmd.Env = []string{"PATH=" + r.path}
	msg, err := cmd.CombinedOutput()
	return string(msg), err
}

func (r *handRecovery) repo() string             { return filepath.Join(r.dir, "repo") }
func (r *handRecovery) image(disk string) string { return filepath.Join(r.dir, disk+".qcow2") }

// history makes three checkpoints of two disks, and demands that they put the
// script to the test.
func (r *handRecovery) history() {
	r.Helper()
	r.init()
	r.tool("qemu-img", "create", "-q", "-f", "qcow2", r.image("vda"), "6M")
	r.tool("qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=4096", r.image("vdb"), "2561K")
	r.guest("vda", "write -P 1 0 2M", "write -P 2 2500k 900k", "write -P 3 5M 1M", "write -P 4 1000k 48k")
	r.guest("vdb", "write -P 5 4k 1300k", "write -P 6 2560k 1k")
	r.backup("c1")

	r.guest("vda", "write -z 64k 320k", "discard 1M 128k", "write -P 7 2600k 5k")
	r.guest("vdb", "write -P 8 100k 3k", "write -z 200k 8k", "write -P 9 1200k 4k", "discard 600k 64k")
	r.tool("qemu-img", "resize", "-q", "--shrink", "-f", "qcow2", r.image("vda"), "5376K")
	r.backup("c2")
	if r.key != "" {
		r.imgbackup("key", "rotate", "--identity", r.key)
	}

	r.tool("qemu-img", "resize", "-q", "-f", "qcow2", r.image("vda"), "7M")
	r.guest("vda", "write -P 10 6300k 7k", "write -P 11 128k 64k", "write -z 3M 64k")
	r.guest("vdb", "write -P 12 204k 4k", "write -P 13 0 1k", "write -z 8k 4k")
	r.backup("c3")

	r.demandMaps("c3", "vda", []int64{7 << 20, 5376 << 10, 6 << 20})
	r.demandMaps("c3", "vdb", []int64{2561 << 10, 2561 << 10, 2561 << 10})
}

// demandMaps demands that a disk is given by maps of these sizes, newest first:
// with runs smaller than a grid cell, zeros in every delta, and in a single map
// runs that do not begin where their chunk does.
func (r *handRecovery) demandMaps(checkpoint, disk string, sizes []int64) {
	r.Helper()
	ctx := context.Background()
	store, err := local.Open(r.repo(), local.Options{})
	if err != nil {
		r.Fatal(err)
	}
	defer store.Close() // only read
	repo, err := chain.OpenWith(ctx, store, r.unlock)
	if err != nil {
		r.Fatal(err)
	}
	m, err := repo.Manifest(ctx, "web", checkpoint)
	if err != nil {
		r.Fatal(err)
	}
	d, ok := m.Disk(disk)
	if !ok {
		r.Fatalf("checkpoint %s has no disk %s", checkpoint, disk)
	}
	maps, err := chain.ReplayMaps(ctx, repo, d)
	if err != nil {
		r.Fatal(err)
	}
	var have []int64
	for _, m := range maps {
		have = append(have, m.Size())
		zeros, small, inner := 0, 0, 0
		for e, err := range m.Entries(ctx, 0, m.Size()) {
			switch {
			case err != nil:
				r.Fatal(err)
			case e.Zero:
				zeros++
			case e.ChunkOffset > 0:
				inner++
			case e.Length < archive.GridSize:
				small++
			}
		}
		if !m.Full() && zeros == 0 || small == 0 || len(sizes) == 1 && inner == 0 {
			r.Fatalf("disk %s: a map of %d bytes has %d runs of zeros, %d small ones and %d that do not begin with their chunk",
				disk, m.Size(), zeros, small, inner)
		}
	}
	if !slices.Equal(have, sizes) {
		r.Fatalf("disk %s: the maps have the sizes %v, want %v", disk, have, sizes)
	}
}

// backup makes a checkpoint and notes what it has to restore to.
func (r *handRecovery) backup(checkpoint string) {
	r.Helper()
	args := []string{"backup", "web", "--checkpoint", checkpoint}
	r.want[checkpoint] = make(map[string][sha256.Size]byte)
	for _, disk := range []string{"vda", "vdb"} {
		args = append(args, "--disk", disk+"="+r.image(disk)+",format=qcow2")
		raw := r.image(disk) + ".look"
		r.tool("qemu-img", "convert", "-f", "qcow2", "-O", "raw", r.image(disk), raw)
		r.want[checkpoint][disk] = testkit.Sum(r, raw)
	}
	if r.key != "" { // a host, who can't read what lies around a change, stores more and no zeros
		args = append(args, "--identity", r.key)
	}
	r.imgbackup(args...)
}

// init makes the repository.
func (r *handRecovery) init() {
	r.Helper()
	if r.key == "" {
		r.imgbackup("init")
		return
	}
	args := []string{"init", "--encrypt"}
	if r.hide {
		args = append(args, "--hide-names")
	}
	r.imgbackup(append(args, "--recipient", strings.TrimSpace(string(r.tool("age-keygen", "-y", r.key))))...)
}

// unlock opens the repository with r.key.
func (r *handRecovery) unlock(ctx context.Context, store objstore.Store, c *chain.Config) (*chain.Access, error) {
	if r.key == "" {
		return nil, nil
	}
	data, err := os.ReadFile(r.key)
	if err != nil {
		return nil, err
	}
	ids, err := keys.ParseIdentities(data, r.key, keys.Ways{})
	if err != nil {
		return nil, err
	}
	ring, err := keys.Open(ctx, keys.Place{Store: store, Repository: c.ID, RosterKey: c.Encryption.RosterKey}, ids)
	if err != nil {
		return nil, err
	}
	return accessOf(ring), nil
}

func (r *handRecovery) imgbackup(args ...string) {
	r.Helper()
	var out bytes.Buffer
	p := program{in: strings.NewReader(""), out: &out, err: &out}
	if code := run(append([]string{"--repo", r.repo()}, args...), p); code != exitDone {
		r.Fatalf("imgbackup %v: exit status %d\n%s", args, code, &out)
	}
}

func (r *handRecovery) guest(disk string, commands ...string) {
	r.Helper()
	testkit.Guest(r, r.image(disk), commands...)
}

func (r *handRecovery) tool(name string, args ...string) []byte {
	r.Helper()
	return []byte(testkit.Tool(r, name, args...))
}

// objects lists the keys of a repository that begin with prefix.
func (r *handRecovery) objects(prefix string) []string {
	r.Helper()
	var keys []string
	err := fs.WalkDir(os.DirFS(r.repo()), ".", func(path string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() && strings.HasPrefix(path, prefix) {
			keys = append(keys, path)
		}
		return err
	})
	if err != nil || len(keys) == 0 {
		r.Fatalf("objects of %s: %v, %v", prefix, keys, err)
	}
	return keys
}

// flip flips one bit in the middle of a file.
func (r *handRecovery) flip(path string) {
	r.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		r.Fatal(err)
	}
	data[len(data)/2] ^= 1
	if err := os.WriteFile(path, data, 0o600); err != nil {
		r.Fatal(err)
	}
}
