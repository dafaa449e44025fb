// SPDX-License-Identifier: Apache-2.0

package backup

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/backup/trust"
	"github.com/imgbackup/imgbackup/bitmapstore"
	"github.com/imgbackup/imgbackup/chain"
)

// An audit reads everything, as by content, and compares what differs from the archive with what
// the bitmap says: what differs and is clean by it, it has missed.

// Audit is what came of the audit of one disk. Sizes are in bytes.
type Audit struct {
	Disk   string
	Bitmap string // the one that was audited; empty: there is none that could be
	Since  string // the checkpoint that it belongs to
	Missed []bitmapstore.Run
	Bytes  int64 // in all that was missed
	More   bool  // there is more than in Missed
}

// Lied reports whether the bitmap missed anything.
func (a *Audit) Lied() bool { return a.Bytes > 0 }

// maxMissed bounds the ranges that an audit lists.
const maxMissed = 10000

// sector is the grain of what was missed, bytes.
const sector = 512

// audit is a disk's audit while the disk is read.
type audit struct {
	Audit
	dirty bitmapstore.Runs

	mu     sync.Mutex
	runs   []bitmapstore.Run
	untold int64 // clean bytes of which it can't be told whether they were missed
}

// chooseAudit makes p an increment by content, beside what a bitmap says: one that is trusted,
// or one that was found to lie. False: there is none, and p is to be chosen as without an audit.
func (s *archiver) chooseAudit(ctx context.Context, d *disk, p *DiskPlan, judge *trust.Judge, v trust.Verdict) (bool, error) {
	d.audit = nil
	base, dirty := v.Base, v.Dirty
	if a := v.Accused; !v.Trusted && a != nil {
		base, dirty = a.State, a.Dirty
	}
	if !s.req.Audit || base.Disk == nil || v.Code == trust.ReasonArchive {
		return false, nil
	}
	if _, err := s.states.open(ctx, base.Disk); err != nil {
		if archive.IsDamage(err) {
			err = nil // whoever chooses otherwise meets it again
		}
		return false, err
	}
	p.Mode, p.Detection, p.Code = Incremental, ByContent, v.Code
	p.Reason = v.Reason + "; everything is read, for an audit of the bitmap"
	p.base, p.Since = base, base.Manifest.Ref()
	d.audit = &audit{Audit: Audit{Disk: p.Disk, Bitmap: base.Disk.Bitmap, Since: base.Manifest.Checkpoint}, dirty: dirty}
	if !v.Trusted {
		return true, nil
	}
	var err error
	if p.sound, err = judge.Sound(ctx, true); err == nil {
		p.sound[base.Disk.Bitmap] = v.Alone
	}
	return true, err
}

// clean is what the audited bitmap calls unchanged; nil: there is no audit.
func (a *audit) clean(size int64) bitmapstore.Runs {
	if a == nil {
		return nil
	}
	return bitmapstore.Subtract(bitmapstore.Between(0, size), a.dirty)
}

// compare notes where bytes that are called clean differ. now lies at off; then repeats where it
// is shorter.
func (a *audit) compare(clean []bitmapstore.Run, off int64, now, then []byte) {
	for _, r := range clean {
		r.Start, r.End = max(r.Start, off), min(r.End, off+int64(len(now)))
		for at := r.Start; at < r.End; {
			end := min(r.End, at/sector*sector+sector)
			mine := now[at-off : end-off]
			old := then
			if len(then) == len(now) {
				old = then[at-off:]
			}
			if !bytes.Equal(mine, old[:len(mine)]) {
				a.add(bitmapstore.Run{Start: at, End: end})
			}
			at = end
		}
	}
}

// differs notes a range in which something differs, nobody knows where. If all of it is called
// clean it was missed; where only some is, or what differs may lie outside of it, as it may unless
// the range was compared as a whole, that can't be told.
func (a *audit) differs(clean []bitmapstore.Run, in bitmapstore.Run, whole bool) {
	var n int64
	for _, r := range clean {
		n += max(min(r.End, in.End)-max(r.Start, in.Start), 0)
	}
	switch {
	case n == 0: // also where there is no audit
	case whole && n == in.Len():
		a.add(in)
	default:
		a.mu.Lock()
		defer a.mu.Unlock()
		a.untold += n
	}
}

// add notes a range that was missed. It is called by several goroutines.
func (a *audit) add(r bitmapstore.Run) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.Bytes += r.Len()
	if n := len(a.runs); n > 0 && a.runs[n-1].End == r.Start {
		a.runs[n-1].End = r.End
		return
	}
	if a.runs = append(a.runs, r); len(a.runs) > 4*maxMissed {
		a.trim()
	}
}

// trim keeps the first of what was missed, joined. It needs mu.
func (a *audit) trim() {
	slices.SortFunc(a.runs, func(x, y bitmapstore.Run) int { return cmp.Compare(x.Start, y.Start) })
	joined := a.runs[:0]
	for _, r := range a.runs {
		if n := len(joined); n > 0 && joined[n-1].End >= r.Start {
			joined[n-1].End = max(joined[n-1].End, r.End)
		} else {
			joined = append(joined, r)
		}
	}
	if a.runs = joined; len(joined) > maxMissed {
		a.runs, a.More = joined[:maxMissed], true
	}
}

// endAudit draws the conclusions: a bitmap that missed anything is believed no more, nor are
// older ones, and the checkpoint says so.
func (s *archiver) endAudit(d *disk, p *DiskPlan, rec *chain.Disk) {
	a := d.audit
	if a == nil {
		return
	}
	a.trim()
	a.Missed = a.runs
	if a.untold > 0 {
		s.hooks.note("disk %s: whether bitmap %s missed anything in %d bytes beside what changed can't be told without the data key", p.Disk, a.Bitmap, a.untold)
	}
	if !a.Lied() {
		return
	}
	first := a.Missed[0]
	if p.verdict.Trusted { // else its reason is known already
		p.Code = trust.ReasonContent
		p.Reason = "an audit of the bitmap " + a.Bitmap
	}
	p.Reason = fmt.Sprintf("%s; it missed %d bytes that changed since %s, the first at %d", p.Reason, a.Bytes, a.Since, first.Start)
	p.verdict.DistrustAll, p.sound = true, nil
	rec.ReasonCode, rec.Reason = string(p.Code), p.Reason
	s.hooks.note("disk %s: bitmap %s missed %d bytes that changed since %s: backups since then that relied on it may lack them; this one has them",
		p.Disk, a.Bitmap, a.Bytes, a.Since)
}

// audits are those of a result.
func (s *session) audits() []Audit {
	var all []Audit
	if !s.req.Audit {
		return nil
	}
	for _, d := range s.disks {
		if d.audit == nil {
			all = append(all, Audit{Disk: d.req.Disk})
			continue
		}
		all = append(all, d.audit.Audit)
	}
	return all
}
