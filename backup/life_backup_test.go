// SPDX-License-Identifier: Apache-2.0

package backup_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/imgbackup/imgbackup/backup"
	"github.com/imgbackup/imgbackup/bitmapstore"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/internal/testkit"
	"github.com/imgbackup/imgbackup/qcow2"
	"github.com/imgbackup/imgbackup/qemu"
)

// attempt is one backup of a life: what was asked, and how all stood before.
type attempt struct {
	l     *life
	req   backup.Request
	disks []*lifeDisk
	must  map[string]bool // targets for which only an incremental by bitmap is right
	could bool            // an incremental was demanded, which may be refused
	plot  string          // what goes wrong in between, see the constants
	want  map[string]string

	places map[string][]place

	ran bool // a VM had the images, and wrote to them, when they were cloned

	before map[string]*imageState
	known  map[string]bool // bitmaps that manifests named before
	points int             // manifests before
}

// What may go wrong while a backup runs.
const (
	plotNone   = ""
	plotVM     = "a VM ran between plan and locks"
	plotWriter = "a program without locks wrote while it was read"
	plotCancel = "it was interrupted"
)

// imageState is what a backup must leave alone.
type imageState struct {
	digest  [sha256.Size]byte
	bitmaps []qcow2.BitmapState
	clean   bool // qemu-img check finds nothing
	runs    map[string][]bitmapstore.Run
}

// backup makes a backup of a kind drawn at random, and checks all that can be
// checked at once.
func (l *life) backup() {
	if l.t.Failed() {
		return
	}
	a := l.prepare()
	switch n := l.rng.IntN(100); {
	case n < 10:
		a.req.Mode = backup.Full
	case n < 28:
		a.req.Mode, a.could = backup.Incremental, true
	case n < 36 && len(l.points) > 0:
		a.req.Since, a.could = l.points[l.rng.IntN(len(l.points))].name, true
	case n < 40 && len(a.disks) > 1:
		a.req.Disks[0].Mode = backup.Full
	}
	switch l.rng.IntN(25) {
	case 0, 1:
		a.plot = plotVM
	case 2, 3:
		a.plot = plotWriter
	case 4, 5:
		a.plot = plotCancel
	}
	if l.rng.IntN(20) == 0 {
		a.req.NoCheckpoint = true
	}
	if l.clones && l.rng.IntN(3) > 0 {
		if a.req.Clone = backup.CloneAlways; l.copies != "" {
			a.req.Cloner = copies(l.copies)
		}
	}
	switch l.rng.IntN(15) {
	case 0:
		a.req.Audit = a.req.Mode != backup.Full
	case 1, 2:
		a.req.SkipUnchanged = true
	}
	a.run()
}

// prepare notes how all stands, and asks for a backup of mode auto.
func (l *life) prepare() *attempt {
	l.files++
	a := &attempt{
		l: l, disks: l.disks,
		places: make(map[string][]place),
		want:   make(map[string]string), must: make(map[string]bool),
		before: make(map[string]*imageState), known: l.namedBitmaps(),
		points: len(l.checkpoints()),
		req: backup.Request{
			Domain: "dom", Checkpoint: fmt.Sprintf("cp%d", l.files), Mode: backup.Auto, Tool: "life test",
			ImageOptions: backup.ImageOptions{AllowDirs: []string{l.dir}, LockWait: 10 * time.Second},
			StoreOptions: backup.StoreOptions{TempDir: l.dir},
		},
	}
	if len(l.disks) > 1 && l.rng.IntN(8) == 0 {
		i := l.rng.IntN(2)
		a.disks = l.disks[i : i+1] // a disk was left out
	}
	a.name()
	return a
}

// all includes every disk.
func (a *attempt) all() {
	a.disks = a.l.disks
	a.name()
}

// name fills the disks into the request.
func (a *attempt) name() {
	a.req.Disks = nil
	for _, d := range a.disks {
		a.req.Disks = append(a.req.Disks, backup.DiskRequest{Disk: d.target, Path: d.path, Format: qcow2.Format(d.format)})
		a.must[d.target] = d.sound
	}
}

func (l *life) checkpoints() []string {
	l.t.Helper()
	names, err := l.repo.Checkpoints(context.Background(), "dom")
	if err != nil {
		l.t.Fatal(err)
	}
	return names
}

// namedBitmaps are all bitmaps that are ours: a manifest names them, or did until it was
// forgotten.
func (l *life) namedBitmaps() map[string]bool {
	l.t.Helper()
	ms, damaged, err := l.repo.Manifests(context.Background(), "dom")
	if err != nil || len(damaged) > 0 {
		l.t.Fatal(err, damaged)
	}
	left, err := l.repo.Forgotten(context.Background(), "dom")
	if err != nil {
		l.t.Fatal(err)
	}
	named := make(map[string]bool)
	for _, m := range append(left.Manifests(), ms...) {
		for _, d := range m.Disks {
			if d.Bitmap != "" {
				named[d.Bitmap] = true
			}
		}
	}
	return named
}

func (l *life) stateOf(d *lifeDisk) *imageState {
	l.t.Helper()
	s := &imageState{digest: testkit.Sum(l.t, d.path), runs: make(map[string][]bitmapstore.Run)}
	if d.format != "qcow2" {
		return s
	}
	err := qcow2.WithTopLayer(d.path, func(layer *qcow2.Layer) error {
		var err error
		s.bitmaps, err = layer.BitmapStates()
		return err
	})
	if err != nil {
		l.t.Fatalf("bitmaps of %s: %v", d.path, err)
	}
	c := l.open(d)
	defer c.Close()
	for _, layer := range slices.Backward(c.Layers) {
		for _, b := range layer.Bitmaps {
			if b.Problem == nil && !b.InUse {
				if s.runs[b.Name], err = b.Runs().Collect(); err != nil {
					l.t.Fatal(err)
				}
			}
		}
	}
	s.clean = exec.Command("qemu-img", "check", "-q", "-f", "qcow2", d.path).Run() == nil
	return s
}

func (a *attempt) look() {
	for _, d := range a.disks {
		a.want[d.target] = a.l.rawCopy(d)
		a.places[d.target] = a.l.placesOf(d)
		a.before[d.target] = a.l.stateOf(d)
	}
}

// run makes the backup and checks what came of it.
func (a *attempt) run() {
	l := a.l
	l.t.Helper()
	a.look()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	played, released := false, false
	cancelAt := l.rng.IntN(9)
	var notes []string
	steps := 0
	hooks := backup.Hooks{
		Note: func(msg string) { notes = append(notes, msg) },
		Now:  later, // so that all that was not touched since is old
		Step: func(step string) {
			steps++
			if step == backup.StepReleased {
				// A VM runs, and what it writes is the next backup's.
				released = true
				for _, d := range a.disks {
					if l.writeSome(d.path, d.format, 2, false) {
						l.count.add("backup: a VM wrote while its clones were read")
					}
				}
			}
			switch {
			case a.plot == plotCancel && steps > cancelAt:
				cancel()
			case played:
			case a.plot == plotVM && (step == backup.StepIntent && cancelAt < 4 || step == backup.StepAdded && cancelAt >= 4):
				played = true
				d := a.disks[l.rng.IntN(len(a.disks))]
				if l.writeSome(d.path, d.format, 2, true) {
					a.want[d.target], a.places[d.target] = l.rawCopy(d), l.placesOf(d)
				}
			case a.plot == plotWriter && step == backup.StepStored && a.req.Clone == "":
				played = true
				l.writeBehind(a.disks[l.rng.IntN(len(a.disks))])
			}
		},
	}
	result, err := backup.Run(ctx, l.writer, a.req, hooks)
	l.note("backup %s mode %s since %q no-checkpoint %v (%s): %v; notes %q", a.req.Checkpoint, a.req.Mode, a.req.Since, a.req.NoCheckpoint, a.plot, err, notes)
	var refused *backup.NotTrustedError
	var inUse *qemu.InUseError
	switch {
	case err == nil && a.plot == plotWriter && played:
		l.t.Errorf("backup %s: nobody saw that the image was written to while it was read", a.req.Checkpoint)
	case err == nil:
		if played || a.plot == plotCancel {
			l.count.add("backup: came through although " + a.plot)
		}
		if result.Manifest == nil {
			a.skipped()
			break
		}
		if a.ran = released; result.Cloned != released {
			l.t.Errorf("backup %s: cloned: %v, and released: %v", a.req.Checkpoint, result.Cloned, released)
		}
		a.done(result)
	case errors.As(err, &refused) && a.could:
		l.count.add("verdict: refused")
		l.count.add("refused: " + string(refused.Code))
		for _, d := range a.disks {
			if a.must[d.target] && refused.Disk == d.target && a.req.Since == "" {
				l.t.Errorf("backup %s of disk %s was refused without need: %v", a.req.Checkpoint, d.target, err)
			}
			if !played && !l.clones && testkit.Sum(l.t, d.path) != a.before[d.target].digest {
				l.t.Errorf("backup %s was refused, and has written to %s", a.req.Checkpoint, d.path)
			}
		}
		a.undone(played || l.clones) // it may have settled what an earlier one left
	case errors.As(err, &inUse) && a.plot == plotWriter && played,
		errors.Is(err, context.Canceled) && a.plot == plotCancel:
		l.count.add("backup: failed since " + a.plot)
		a.ran = released
		a.undone(played || l.clones)
	default:
		l.t.Errorf("backup %s: %v", a.req.Checkpoint, err)
	}
	a.nothingLeft()
}

// writeBehind writes into an image as a loop mount does: without locks.
func (l *life) writeBehind(d *lifeDisk) {
	l.t.Helper()
	f, err := os.OpenFile(d.path, os.O_RDWR, 0)
	if err != nil {
		l.t.Fatal(err)
	}
	defer f.Close()
	was, err := f.Stat()
	if err != nil {
		l.t.Fatal(err)
	}
	for {
		var b [1]byte
		if _, err := f.ReadAt(b[:], 0); err != nil {
			l.t.Fatal(err)
		}
		if d.format == "raw" {
			b[0]++
		}
		if _, err := f.WriteAt(b[:], 0); err != nil {
			l.t.Fatal(err)
		}
		is, err := f.Stat()
		if err != nil {
			l.t.Fatal(err)
		}
		// The clock of file times goes in ticks.
		if !is.ModTime().Equal(was.ModTime()) {
			return
		}
	}
}

// undone checks that a backup that failed has left no trace.
func (a *attempt) undone(written bool) {
	l := a.l
	l.t.Helper()
	if n := len(l.checkpoints()); n != a.points {
		l.t.Errorf("backup %s failed, and there are %d checkpoints instead of %d", a.req.Checkpoint, n, a.points)
	}
	if written {
		return
	}
	for _, d := range a.disks {
		now := l.stateOf(d)
		if !slices.Equal(now.bitmaps, a.before[d.target].bitmaps) {
			l.t.Errorf("backup %s failed, and the bitmaps of %s were\n%+v\nand are\n%+v", a.req.Checkpoint, d.path, a.before[d.target].bitmaps, now.bitmaps)
		}
		a.sameContent(d)
	}
}

// sameContent checks that the guest's data is what it was.
func (a *attempt) sameContent(d *lifeDisk) {
	l := a.l
	l.t.Helper()
	if a.ran {
		return
	}
	now := l.rawCopy(d)
	defer os.Remove(now)
	if testkit.Sum(l.t, now) != testkit.Sum(l.t, a.want[d.target]) {
		l.t.Errorf("backup %s changed what the guest sees in %s", a.req.Checkpoint, d.path)
	}
}

// nothingLeft checks that no intent and no lease stays.
func (a *attempt) nothingLeft() {
	l := a.l
	l.t.Helper()
	if l.copies != "" {
		if names := testkit.Names(l.t, l.copies); len(names) > 0 {
			l.t.Errorf("backup %s left the copies %q behind", a.req.Checkpoint, names)
		}
	}
	for info, err := range l.store.List(context.Background(), "") {
		if err != nil {
			l.t.Fatal(err)
		}
		if strings.Contains(info.Key, "/intents/") && l.clones {
			continue // of a run that cloned, for the next one of that image
		}
		if strings.Contains(info.Key, "/intents/") || strings.HasPrefix(info.Key, "leases/") {
			l.t.Errorf("backup %s left %s behind", a.req.Checkpoint, info.Key)
		}
	}
}

// done checks a backup that succeeded.
func (a *attempt) done(result *backup.Result) {
	l := a.l
	l.t.Helper()
	m := result.Manifest
	p := &point{name: m.Checkpoint, manifest: m, want: a.want, places: a.places}
	for _, d := range a.disks {
		rec, ok := m.Disk(d.target)
		if !ok || len(m.Disks) != len(a.disks) {
			l.t.Fatalf("checkpoint %s does not hold disk %s alone", p.name, d.target)
		}
		l.note("  %s: %s by %s (%s): %s; bitmap %q %s", d.target, rec.Mode, rec.Detection, rec.ReasonCode, rec.Reason, rec.Bitmap, rec.NoBitmapReason)
		verdict := rec.Mode
		if rec.Mode == string(backup.Incremental) {
			verdict += " by " + rec.Detection
		}
		l.count.add("verdict: " + verdict)
		l.count.add("reason: " + rec.ReasonCode)
		asked := result.Plan.Disks[slices.IndexFunc(result.Plan.Disks, func(p *backup.DiskPlan) bool { return p.Disk == d.target })].Requested
		if a.must[d.target] && asked != backup.Full && a.req.Since == "" && !a.req.Audit && rec.Detection != string(backup.ByBitmap) && rec.Detection != string(backup.ByTimes) {
			l.t.Errorf("checkpoint %s of disk %s could have been incremental by its bitmap: %s", p.name, d.target, rec.Reason)
		}
		a.sameContent(d)
		a.checkBitmaps(d, rec)
		d.sound, d.shrunk = rec.Bitmap != "" && l.canBeSound(d), false
		d.flattened = false
		a.restoreNow(d, rec, p)
	}
	l.points = append(l.points, p)
}

// skipped checks a backup that made no checkpoint, since nothing had changed.
func (a *attempt) skipped() {
	l := a.l
	l.t.Helper()
	l.count.add("verdict: skipped")
	a.undone(false)
	history, _, err := l.repo.Manifests(context.Background(), "dom")
	if err != nil {
		l.t.Fatal(err)
	}
	newest := chain.Newest(history)
	i := slices.IndexFunc(l.points, func(p *point) bool { return p.manifest.UUID == newest.UUID })
	if !a.req.SkipUnchanged || i < 0 || len(newest.Disks) != len(a.disks) {
		l.t.Fatalf("backup %s was skipped", a.req.Checkpoint)
	}
	for _, d := range a.disks {
		want, known := l.points[i].want[d.in(newest).Name]
		if known && testkit.Sum(l.t, want) != testkit.Sum(l.t, a.want[d.target]) {
			l.t.Errorf("backup %s was skipped since nothing had changed since %s, and disk %s has", a.req.Checkpoint, newest.Checkpoint, d.target)
		}
	}
}

// checkBitmaps checks what a backup has left in the image.
func (a *attempt) checkBitmaps(d *lifeDisk, rec *chain.Disk) {
	l := a.l
	l.t.Helper()
	if d.format != "qcow2" {
		return
	}
	if a.ran { // so that all bitmaps are as the guest's writes left them
		if rec.Bitmap != "" && !slices.ContainsFunc(l.stateOf(d).bitmaps, func(b qcow2.BitmapState) bool { return b.Name == rec.Bitmap }) {
			l.t.Errorf("checkpoint %s: its bitmap %s is not in the image", a.req.Checkpoint, rec.Bitmap)
		}
		return
	}
	before, now := a.before[d.target], l.stateOf(d)
	left := make(map[string]qcow2.BitmapState)
	for _, b := range now.bitmaps {
		left[b.Name] = b
	}
	for _, b := range before.bitmaps {
		if a.known[b.Name] {
			continue
		}
		got, ok := left[b.Name]
		delete(left, b.Name)
		if a.plot == plotVM {
			got.Digest, b.Digest = [32]byte{}, [32]byte{} // the guest wrote
		}
		if !ok || got != b {
			l.t.Errorf("checkpoint %s: foreign bitmap was %+v and is %+v (there: %v)", a.req.Checkpoint, b, got, ok)
		}
	}
	ours := 0
	for name, b := range left {
		ours++
		switch {
		case name == rec.Bitmap:
			if !b.Enabled || b.InUse || !b.Readable || b.Granularity != rec.Granularity || len(now.runs[name]) != 0 {
				l.t.Errorf("checkpoint %s: its bitmap is %+v, dirty %v", a.req.Checkpoint, b, now.runs[name])
			}
		case !a.known[name]:
			l.t.Errorf("checkpoint %s: a stray bitmap %s is left", a.req.Checkpoint, name)
		}
	}
	if rec.Bitmap != "" {
		if _, ok := left[rec.Bitmap]; !ok {
			l.t.Errorf("checkpoint %s: its bitmap %s is not in the image", a.req.Checkpoint, rec.Bitmap)
		}
		if ours > 2 {
			l.t.Errorf("checkpoint %s: %d bitmaps of ours are left: %v", a.req.Checkpoint, ours, slices.Collect(maps.Keys(left)))
		}
	}
	if before.clean && !now.clean {
		l.t.Errorf("checkpoint %s: qemu-img check finds fault with %s", a.req.Checkpoint, d.path)
	}
}
