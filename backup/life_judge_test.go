// SPDX-License-Identifier: Apache-2.0

package backup_test

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/backup"
	"github.com/imgbackup/imgbackup/bitmapstore"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/chain/check"
	"github.com/imgbackup/imgbackup/internal/testkit"
	"github.com/imgbackup/imgbackup/qcow2"
	"github.com/imgbackup/imgbackup/restore"
)

// restoreNow restores the new checkpoint at once, while it can be told which
// backup went wrong, and by what.
func (a *attempt) restoreNow(d *lifeDisk, rec *chain.Disk, p *point) {
	l := a.l
	l.t.Helper()
	out := l.newFile("now")
	l.restoreTo(p.manifest, []restore.Target{{Disk: d.target, Path: out, Format: qcow2.Raw}}, restore.Options{})
	diff, err := differing(l.t, a.want[d.target], out)
	if err != nil {
		l.t.Fatal(err)
	}
	os.Remove(out)
	if len(diff) == 0 {
		return
	}
	if reason := a.excuse(d, rec, diff); reason != "" {
		l.note("  the bytes are wrong at %v, excused: %s", diff, reason)
		l.count.add("excused: " + reason)
		delete(p.want, d.target)
		l.over = true // whatever is incremental from here is wrong, too
		return
	}
	l.t.Errorf("checkpoint %s of disk %s (%s by %s: %s) restores wrong bytes at %v", p.name, d.target, rec.Mode, rec.Detection, rec.Reason, diff)
}

// excuse returns why nobody could have known that a bitmap was wrong. There is
// one such case: somebody cleared the bitmap that the backup rests on, made it
// anew, or had it disabled for a while, and no older bitmap contradicts it. The
// format has no generation number, the flags are perfect, and the older
// bitmaps had all those bits set before. What data there is has changed in
// place, as qemu-img map tells, so that only reading all of it would tell;
// samples may miss it.
func (a *attempt) excuse(d *lifeDisk, rec *chain.Disk, diff []bitmapstore.Run) string {
	l := a.l
	l.t.Helper()
	if rec.Detection != string(backup.ByBitmap) {
		return ""
	}
	base, err := l.repo.Manifest(context.Background(), "dom", rec.IncrementalFrom.Name)
	if err != nil {
		l.t.Fatal(err)
	}
	then := d.in(base)
	if then == nil || !d.tampered[then.Bitmap] {
		return ""
	}
	now := a.before[d.target].runs
	for i := range then.Witnesses {
		w := &then.Witnesses[i]
		older, there := now[w.Name]
		if w.Layer != 0 || !there || !w.Enabled {
			continue
		}
		grain := max(w.Granularity, then.Granularity)
		size := min(w.Size, rec.Size)
		expect := bitmapstore.Union(l.recorded(w), bitmapstore.Of(now[then.Bitmap]...)).Clip(size).Round(grain, size)
		agree, err := bitmapstore.Equal(expect, bitmapstore.Of(older...).Clip(size).Round(grain, size))
		if err != nil {
			l.t.Fatal(err)
		}
		if !agree {
			return ""
		}
	}
	c := l.open(d)
	defer c.Close()
	for _, run := range diff {
		for e, err := range c.Extents(run.Start, min(run.End, c.Size())) {
			if err != nil {
				l.t.Fatal(err)
			}
			if e.Kind == qcow2.Hole || e.Kind == qcow2.Zero {
				return "" // archived data has vanished
			}
		}
	}
	if at := a.moved(d, base, then, c, diff); at >= 0 {
		l.note("  byte %d lies elsewhere since %s", at, base.Checkpoint)
		return ""
	}
	return "a bitmap was cleared, made anew or disabled for a while, and no witness contradicts it"
}

// recorded reads a bitmap as a manifest recorded it.
func (l *life) recorded(w *chain.BitmapRecord) bitmapstore.Runs {
	l.t.Helper()
	runs, err := archive.OpenBitmap(context.Background(), l.repo.Store, w.Object, w.Header())
	if err != nil {
		l.t.Fatal(err)
	}
	return runs
}

func (l *life) restoreTo(m *chain.Manifest, targets []restore.Target, o restore.Options) {
	l.t.Helper()
	if _, err := restore.Run(context.Background(), l.repo, m, targets, o); err != nil {
		l.t.Fatalf("restoring checkpoint %s: %v", m.Checkpoint, err)
	}
}

// differing returns where two files differ, in sectors, at most 16 runs.
func differing(t testing.TB, a, b string) ([]bitmapstore.Run, error) {
	if testkit.Differ(t, a, b) < 0 {
		return nil, nil
	}
	x, err := os.ReadFile(a)
	if err != nil {
		return nil, err
	}
	y, err := os.ReadFile(b)
	if err != nil {
		return nil, err
	}
	if len(x) != len(y) {
		return []bitmapstore.Run{{Start: int64(min(len(x), len(y))), End: int64(max(len(x), len(y)))}}, nil
	}
	var diff []bitmapstore.Run
	for off := 0; off < len(x); off += 512 {
		end := min(off+512, len(x))
		if bytes.Equal(x[off:end], y[off:end]) {
			continue
		}
		if n := len(diff); n > 0 && diff[n-1].End == int64(off) {
			diff[n-1].End = int64(end)
		} else if n < 16 {
			diff = append(diff, bitmapstore.Run{Start: int64(off), End: int64(end)})
		}
	}
	return diff, nil
}

// judge restores every checkpoint, to raw and to qcow2, and compares with what
// qemu-img said when it was made. The repository must be sound to the last bit.
func (l *life) judge() {
	l.t.Helper()
	ctx := context.Background()
	for _, p := range l.points {
		// The manifest as the repository has it, not the one in memory.
		m, err := l.repo.Manifest(ctx, "dom", p.name)
		if err != nil {
			l.t.Errorf("checkpoint %s: %v", p.name, err)
			continue
		}
		dir := filepath.Join(l.dir, "judge."+p.name)
		for _, format := range []qcow2.Format{qcow2.Raw, qcow2.Qcow2} {
			targets, err := restore.TargetsIn(m, nil, dir, format)
			if err != nil {
				l.t.Fatal(err)
			}
			o := restore.Options{MakeDir: dir, Verify: l.rng.IntN(2) == 0}
			o.Continue = format == qcow2.Qcow2 && l.rng.IntN(2) == 0 && !slices.ContainsFunc(m.Disks, func(d chain.Disk) bool { return d.Bitmap == "" })
			l.restoreTo(m, targets, o)
			for _, target := range targets {
				if want, ok := p.want[target.Disk]; ok {
					l.judgeOne(p, target, want)
				}
			}
		}
		os.RemoveAll(dir)
	}
	report, err := check.Run(ctx, l.repo, check.Options{ReadData: true})
	if err != nil {
		l.t.Fatal(err)
	}
	for _, f := range report.Findings {
		l.t.Errorf("check finds %s: %s", f.Object, f.What)
	}
}

func (l *life) judgeOne(p *point, target restore.Target, want string) {
	l.t.Helper()
	got := target.Path
	if target.Format == qcow2.Qcow2 {
		got += ".raw"
		if out, err := exec.Command("qemu-img", "check", "-f", "qcow2", target.Path).CombinedOutput(); err != nil {
			l.t.Errorf("checkpoint %s restored to qcow2: qemu-img check: %v: %s", p.name, err, out)
		}
		if out, err := exec.Command("qemu-img", "convert", "-f", "qcow2", "-O", "raw", target.Path, got).CombinedOutput(); err != nil {
			l.t.Errorf("checkpoint %s restored to qcow2: qemu-img convert: %v: %s", p.name, err, out)
			return
		}
	}
	diff, err := differing(l.t, want, got)
	if err != nil {
		l.t.Fatal(err)
	}
	if len(diff) > 0 {
		l.t.Errorf("checkpoint %s, disk %s, restored to %s: other bytes at %v", p.name, target.Disk, target.Format, diff)
	}
}
