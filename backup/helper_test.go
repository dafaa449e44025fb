// SPDX-License-Identifier: Apache-2.0

package backup_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/imgbackup/imgbackup/backup"
	"github.com/imgbackup/imgbackup/backup/trust"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/internal/testkit"
	"github.com/imgbackup/imgbackup/objstore/local"
	"github.com/imgbackup/imgbackup/qcow2"
	"github.com/imgbackup/imgbackup/restore"
)

// lab is a folder with images, a repository, and what QEMU said of every disk
// at every checkpoint.
type lab struct {
	t       *testing.T
	images  string // folder of the images
	repoDir string
	oracles string
	repo    *chain.Repository
	taken   []oracle
	count   int // of oracles that were ever made
}

// oracle is a disk as qemu-img converted it when its checkpoint was made.
type oracle struct{ domain, checkpoint, target, raw string }

func newLab(t *testing.T) *lab {
	t.Helper()
	return newLabIn(t, t.TempDir(), t.TempDir())
}

// newLabIn keeps the images in a folder of the caller's.
func newLabIn(t *testing.T, images, scratch string) *lab {
	t.Helper()
	l := &lab{t: t, images: images, repoDir: filepath.Join(scratch, "repo"), oracles: filepath.Join(scratch, "oracles")}
	l.must(os.Mkdir(l.oracles, 0o755))
	store, err := local.Create(l.repoDir, local.Options{})
	l.must(err)
	t.Cleanup(func() { l.must(store.Close()) })
	l.repo, err = chain.Init(t.Context(), store, chain.InitOptions{})
	l.must(err)
	return l
}

func (l *lab) must(err error) {
	l.t.Helper()
	if err != nil {
		l.t.Fatal(err)
	}
}

// tool runs a program in the images' folder and returns its output.
func (l *lab) tool(name string, args ...string) string {
	l.t.Helper()
	return testkit.ToolIn(l.t, l.images, name, args...)
}

func (l *lab) img(args ...string) { l.t.Helper(); l.tool("qemu-img", args...) }

// path is where the image of that name lies.
func (l *lab) path(name string) string { return filepath.Join(l.images, name) }

// create makes a qcow2 image; options are those of qemu-img create.
func (l *lab) create(name, size string, options ...string) {
	l.t.Helper()
	l.img(slices.Concat([]string{"create", "-q", "-f", "qcow2"}, options, []string{name, size})...)
}

// overlay makes a qcow2 image over another.
func (l *lab) overlay(name, base string, options ...string) {
	l.t.Helper()
	l.img(slices.Concat([]string{"create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2"}, options, []string{name})...)
}

// write is what a VM does: qemu-io's commands on the image.
func (l *lab) write(name string, commands ...string) {
	l.t.Helper()
	l.writeAs("qcow2", name, commands...)
}

func (l *lab) writeAs(format, name string, commands ...string) {
	l.t.Helper()
	args := []string{"-f", format}
	for _, c := range commands {
		args = append(args, "-c", c)
	}
	// qemu-io returns 0 after failed commands, too.
	if out := l.tool("qemu-io", append(args, name)...); strings.Contains(out, "failed") || strings.Contains(out, "error") {
		l.t.Fatalf("qemu-io %q: %s", commands, out)
	}
}

// crash writes as a VM does that is then killed: all bitmaps stay in use.
func (l *lab) crash(name string, commands ...string) {
	l.t.Helper()
	args := []string{"-f", "qcow2"}
	for _, c := range append(commands, "flush", "sigraise 9") {
		args = append(args, "-c", c)
	}
	cmd := exec.CommandContext(l.t.Context(), "qemu-io", append(args, name)...)
	cmd.Dir = l.images
	if out, err := cmd.CombinedOutput(); err == nil {
		l.t.Fatalf("qemu-io was not killed: %s", out)
	}
}

// patch overwrites bytes of a file.
func (l *lab) patch(name string, offset int64, data []byte) {
	l.t.Helper()
	f, err := os.OpenFile(l.path(name), os.O_RDWR, 0)
	l.must(err)
	_, err = f.WriteAt(data, offset)
	l.must(errors.Join(err, f.Close()))
}

// byteAt reads one byte of a file.
func (l *lab) byteAt(name string, offset int64) byte {
	l.t.Helper()
	f, err := os.Open(l.path(name))
	l.must(err)
	defer f.Close()
	var b [1]byte
	_, err = f.ReadAt(b[:], offset)
	l.must(err)
	return b[0]
}

// disk is a request for the image NAME as the disk vda, in qcow2.
func (l *lab) disk(name string) backup.DiskRequest {
	return backup.DiskRequest{Disk: "vda", Path: l.path(name), Format: qcow2.Qcow2}
}

// request is a request for one checkpoint of the domain vm.
func (l *lab) request(checkpoint string, disks ...backup.DiskRequest) backup.Request {
	return backup.Request{Domain: "vm", Disks: disks, Mode: backup.Auto, Checkpoint: checkpoint, Tool: "test"}
}

func (l *lab) run(req backup.Request, hooks backup.Hooks) (*backup.Result, error) {
	return backup.Run(l.t.Context(), l.repo, req, hooks)
}

// backup asks QEMU what the disks hold, and backs them up.
func (l *lab) backup(checkpoint string, disks ...backup.DiskRequest) *backup.Result {
	l.t.Helper()
	return l.backupAs(l.request(checkpoint, disks...))
}

func (l *lab) backupAs(req backup.Request) *backup.Result {
	l.t.Helper()
	for _, d := range req.Disks {
		l.remember(req.Domain, req.Checkpoint, d)
	}
	result, err := l.run(req, backup.Hooks{})
	if err != nil {
		l.t.Fatalf("backup of checkpoint %s: %v", req.Checkpoint, err)
	}
	return result
}

// remember keeps what QEMU reads of a disk now.
func (l *lab) remember(domain, checkpoint string, d backup.DiskRequest) {
	l.t.Helper()
	raw := filepath.Join(l.oracles, fmt.Sprintf("%d.raw", l.count))
	l.count++
	l.img("convert", "-f", string(d.Format), "-O", "raw", d.Path, raw)
	l.taken = append(l.taken, oracle{domain, checkpoint, d.Disk, raw})
}

// restoreAll restores every checkpoint that was made and compares it with what
// QEMU had read.
func (l *lab) restoreAll() {
	l.t.Helper()
	for _, o := range l.taken {
		m, err := l.repo.Manifest(l.t.Context(), o.domain, o.checkpoint)
		if errors.Is(err, chain.ErrNoCheckpoint) {
			l.t.Errorf("checkpoint %s is not there", o.checkpoint)
			continue
		}
		l.must(err)
		out := o.raw + ".restored"
		_, err = restore.Run(l.t.Context(), l.repo, m, []restore.Target{{Disk: o.target, Path: out, Format: qcow2.Raw}}, restore.Options{})
		if err != nil {
			l.t.Errorf("restore of %s, disk %s: %v", o.checkpoint, o.target, err)
			continue
		}
		l.same(o.raw, out, fmt.Sprintf("checkpoint %s, disk %s", o.checkpoint, o.target))
		l.must(os.Remove(out))
	}
}

// same compares two files.
func (l *lab) same(want, got, what string) {
	l.t.Helper()
	if at := testkit.Differ(l.t, want, got); at >= 0 {
		l.t.Errorf("%s: differs from what QEMU read, first at byte %d", what, at)
	}
}

// expect checks how a disk was backed up.
func (l *lab) expect(r *backup.Result, target string, mode backup.Mode, detection backup.Detection, code trust.Reason) *chain.Disk {
	l.t.Helper()
	d, ok := r.Manifest.Disk(target)
	if !ok {
		l.t.Fatalf("the manifest of %s has no disk %s", r.Manifest.Checkpoint, target)
	}
	if d.Mode != string(mode) || d.Detection != string(detection) || d.ReasonCode != string(code) {
		l.t.Errorf("%s of %s: %s, detection %s, %s (%s); want %s, %s, %s",
			target, r.Manifest.Checkpoint, d.Mode, d.Detection, d.ReasonCode, d.Reason, mode, detection, code)
	}
	if d.Reason == "" {
		l.t.Errorf("%s of %s: no reason is given", target, r.Manifest.Checkpoint)
	}
	return d
}

// trusted checks that the disk vda was backed up by its bitmap, since the given
// checkpoint.
func (l *lab) trusted(r *backup.Result, since string) *chain.Disk {
	l.t.Helper()
	d := l.expect(r, "vda", backup.Incremental, backup.ByBitmap, trust.ReasonTrusted)
	if d.IncrementalFrom == nil || d.IncrementalFrom.Name != since {
		l.t.Errorf("%s is incremental from %v, want %s", r.Manifest.Checkpoint, d.IncrementalFrom, since)
	}
	if r.Manifest.Parent == nil || r.Manifest.Parent.Name != since {
		l.t.Errorf("the parent of %s is %v, want %s", r.Manifest.Checkpoint, r.Manifest.Parent, since)
	}
	return d
}

// state describes every file under the folders: names, modes, times and
// content.
func (l *lab) state(dirs ...string) string {
	l.t.Helper()
	var b strings.Builder
	for _, dir := range dirs {
		l.must(filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			info, err := e.Info()
			if err != nil || !info.Mode().IsRegular() {
				fmt.Fprintf(&b, "%s %v\n", path, e.Type())
				return err
			}
			data, err := os.ReadFile(path)
			fmt.Fprintf(&b, "%s %v %d %d %x\n", path, info.Mode(), info.Size(), info.ModTime().UnixNano(), sha256.Sum256(data))
			return err
		}))
	}
	return b.String()
}

// unchanged runs do and checks that repository and images are as they were.
func (l *lab) unchanged(do func()) {
	l.t.Helper()
	before := l.state(l.repoDir, l.images)
	do()
	if after := l.state(l.repoDir, l.images); after != before {
		l.t.Errorf("repository or images have changed:\n%s", differences(before, after))
	}
}

// differences lists the lines that only one of two texts has.
func differences(before, after string) string {
	was, is := strings.Split(before, "\n"), strings.Split(after, "\n")
	var b strings.Builder
	for _, line := range was {
		if !slices.Contains(is, line) {
			b.WriteString("- " + line + "\n")
		}
	}
	for _, line := range is {
		if !slices.Contains(was, line) {
			b.WriteString("+ " + line + "\n")
		}
	}
	return b.String()
}

// refused demands an incremental and checks that it is refused for the given
// reason and that nothing was written.
func (l *lab) refused(code trust.Reason, disks ...backup.DiskRequest) {
	l.t.Helper()
	req := l.request("refused", disks...)
	req.Mode = backup.Incremental
	l.refusedAs(req, code)
}

func (l *lab) refusedAs(req backup.Request, code trust.Reason) {
	l.t.Helper()
	l.unchanged(func() {
		l.t.Helper()
		_, err := l.run(req, backup.Hooks{})
		var refused *backup.NotTrustedError
		if !errors.As(err, &refused) {
			l.t.Fatalf("an incremental was demanded: got %v, want a NotTrustedError", err)
		}
		if refused.Code != code {
			l.t.Errorf("an incremental was demanded: refused with %s (%s), want %s", refused.Code, refused.Reason, code)
		}
	})
}

// fails runs a backup that must fail, and checks that nothing of it stays: no
// checkpoint, intent or lease, and the images' bitmaps as they were.
func (l *lab) fails(req backup.Request, hooks backup.Hooks) error {
	l.t.Helper()
	return l.failsIn(l.t.Context(), req, hooks)
}

func (l *lab) failsIn(ctx context.Context, req backup.Request, hooks backup.Hooks) error {
	l.t.Helper()
	before := l.traces(req)
	_, err := backup.Run(ctx, l.repo, req, hooks)
	if err == nil {
		l.t.Fatalf("the backup of %s succeeded", req.Checkpoint)
	}
	if after := l.traces(req); after != before {
		l.t.Errorf("the failed backup (%v) left traces:\n%s\nbefore:\n%s", err, after, before)
	}
	return err
}

// traces are checkpoints, intents and leases, and the images' bitmaps.
func (l *lab) traces(req backup.Request) string {
	l.t.Helper()
	var b strings.Builder
	for _, dir := range []string{"domains", "leases", "tmp"} {
		err := filepath.WalkDir(filepath.Join(l.repoDir, dir), func(path string, e fs.DirEntry, err error) error {
			if err == nil && !e.IsDir() {
				fmt.Fprintln(&b, path)
			}
			return err
		})
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			l.t.Fatal(err)
		}
	}
	for _, d := range req.Disks {
		if d.Format == qcow2.Qcow2 {
			fmt.Fprintf(&b, "%s %+v\n", d.Path, l.bitmaps(filepath.Base(d.Path)))
		}
	}
	return b.String()
}

// bitmaps are the image's bitmaps and what they say.
func (l *lab) bitmaps(name string) []qcow2.BitmapState {
	l.t.Helper()
	var states []qcow2.BitmapState
	l.must(qcow2.WithTopLayer(l.path(name), func(layer *qcow2.Layer) error {
		var err error
		states, err = layer.BitmapStates()
		return err
	}))
	return states
}

// bitmapsOf are the names of the image's bitmaps, cut to their checkpoints'
// names where they are ours, sorted.
func (l *lab) bitmapsOf(name string) []string {
	l.t.Helper()
	names := []string{}
	for _, b := range l.bitmaps(name) {
		checkpoint, _, _ := strings.Cut(b.Name, ".")
		names = append(names, checkpoint)
	}
	slices.Sort(names)
	return names
}

// holds checks which checkpoints' (and others') bitmaps are in an image.
func (l *lab) holds(name string, want ...string) {
	l.t.Helper()
	if got := l.bitmapsOf(name); !slices.Equal(got, want) {
		l.t.Errorf("%s holds the bitmaps %q, want %q", name, got, want)
	}
}

// manifest reads a checkpoint of the domain vm.
func (l *lab) manifest(checkpoint string) *chain.Manifest {
	l.t.Helper()
	m, err := l.repo.Manifest(l.t.Context(), "vm", checkpoint)
	l.must(err)
	return m
}

// bitmapOf is the name of the bitmap that a checkpoint added to vda.
func (l *lab) bitmapOf(checkpoint string) string {
	l.t.Helper()
	d, ok := l.manifest(checkpoint).Disk("vda")
	if !ok || d.Bitmap == "" {
		l.t.Fatalf("checkpoint %s has added no bitmap", checkpoint)
	}
	return d.Bitmap
}

// doctor replaces a stored manifest by a changed one.
func (l *lab) doctor(checkpoint string, change func(*chain.Manifest)) {
	l.t.Helper()
	m := l.manifest(checkpoint)
	change(m)
	data, err := chain.Seal(m)
	l.must(err)
	l.must(os.WriteFile(filepath.Join(l.repoDir, filepath.FromSlash(chain.ManifestKey(m.Domain, m.Checkpoint))), data, 0o644))
}
