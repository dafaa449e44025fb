// SPDX-License-Identifier: Apache-2.0

package backup

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/backup/trust"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/internal/usage"
	"github.com/imgbackup/imgbackup/view"
)

// archiver is the destination of [Run]: the disks' data goes into the repository.
type archiver struct {
	*session

	w       *archive.Writer // begun by prepare; nil: none is
	vouched bool            // as it was begun
}

func toArchive(s *session) { s.to, s.records = &archiver{session: s}, true }

// choose takes an increment by bitmap where one can be trusted, and else one by content,
// against the newest archived state that can be read.
func (s *archiver) choose(ctx context.Context, d *disk, p *DiskPlan) error {
	if d.req.Bitmap != "" {
		return usage.Errorf("bitmap %s: an archive is incremental since a checkpoint, by a bitmap that was compared with its archive; a push (--target) and export go by any", d.req.Bitmap)
	}
	if d.req.Mode == Full {
		p.Code, p.Reason = trust.ReasonRequested, "a full backup was asked for"
		return nil
	}
	judge := s.judge(d)
	states := judge.States.WithData()
	if err := checkSince(d, judge.States); err != nil {
		return err
	}
	if s.req.Import != nil {
		return s.chooseImport(ctx, d, p, states)
	}
	if len(states) == 0 {
		p.Code, p.Reason = trust.ReasonFirst, "the repository holds no earlier state of this disk"
		if d.req.Mode == Incremental {
			return refuse(d, p.Code, p.Reason)
		}
		return nil
	}
	if done, err := s.chooseUnchanged(ctx, d, p, judge, states[0]); done || err != nil {
		return err
	}
	s.ask(ctx, d)
	d.image.Survey()
	v, err := judge.Verdict(ctx, trust.Question{Since: d.req.Since, WithData: true})
	if s.req.Salvage && unreadable(err) {
		v, err = trust.Verdict{Code: trust.ReasonUnreadable, Reason: fmt.Sprintf("the image cannot be read where its bitmaps are examined: %v", err)}, nil
	}
	if err != nil {
		return hintSalvage(err)
	}
	p.Code, p.verdict = v.Code, v
	if v.Trusted || d.req.Mode != Incremental {
		if done, err := s.chooseAudit(ctx, d, p, judge, v); done || err != nil {
			return err
		}
	}
	switch {
	case v.Trusted:
		p.Mode, p.Detection, p.Reason = Incremental, ByBitmap, v.Reason
		p.base, p.Since = v.Base, v.Base.Manifest.Ref()
		if p.sound, err = judge.Sound(ctx, true); s.req.Salvage && unreadable(err) {
			p.sound, err = make(map[string]bool), nil
		}
		if err != nil {
			return err
		}
		p.sound[v.Base.Disk.Bitmap] = v.Alone
		return nil
	case d.req.Mode == Incremental && !v.NeverBitmaps:
		return refuse(d, v.Code, v.Reason)
	case v.Code == trust.ReasonArchive:
		// To compare with it by digests would be to build on what is broken.
		p.Reason = v.Reason + "; everything is read, and what the archive has of it is proven by reading it back"
		return nil
	}
	return s.chooseContent(ctx, d, p, states, v)
}

// checkSince refuses an increment since a checkpoint that no archive can build on.
func checkSince(d *disk, states chain.States) error {
	if d.req.Since == "" {
		return nil
	}
	st, ok := states.Named(d.req.Since)
	switch {
	case !ok:
		return unknownCheckpoint(d.req.Disk, d.req.Since, states)
	case !st.HasData():
		return refuse(d, trust.ReasonNoData, fmt.Sprintf("checkpoint %s of disk %s holds no data that an archive could build on", d.req.Since, d.req.Disk))
	}
	return nil
}

// refuse is an increment that was demanded and cannot be trusted.
func refuse(d *disk, code trust.Reason, reason string) error {
	return &NotTrustedError{Disk: d.req.Disk, Code: code, Reason: reason, Hint: "--mode auto backs up what is needed"}
}

// chooseContent makes p an incremental by content against the newest archived
// state that can be read, or a full when there is none.
func (s *archiver) chooseContent(ctx context.Context, d *disk, p *DiskPlan, states chain.States, v trust.Verdict) error {
	if d.req.Since != "" {
		since, _ := states.Named(d.req.Since)
		states = chain.States{since}
	}
	var damage error
	for _, st := range states {
		_, err := s.states.open(ctx, st.Disk)
		var bad *archive.DamageError
		switch {
		case err == nil:
			p.Mode, p.Detection = Incremental, ByContent
			p.base, p.Since = st, st.Manifest.Ref()
			p.Reason = fmt.Sprintf("%s; the change since %s is found by reading everything", v.Reason, st.Manifest.Checkpoint)
			return nil
		case errors.As(err, &bad):
			damage = err
			s.hooks.note("checkpoint %s of disk %s cannot serve as a base: %v", st.Manifest.Checkpoint, d.req.Disk, err)
		default:
			return err
		}
	}
	p.Reason = fmt.Sprintf("%s; no earlier state can be read (%v)", v.Reason, damage)
	return nil
}

// accept is [destination]'s. Every plan can be archived, if need not be that of clones.
func (s *archiver) accept(plan *Plan) error { return s.planClone(plan) }

// prepare begins the session in which the disks are stored, and stores where their clusters
// lie, as far as that is known.
func (s *archiver) prepare(ctx, group context.Context, plan *Plan) error {
	w, err := s.writer(ctx, plan)
	if err != nil {
		return err
	}
	g, gctx := errgroup.WithContext(group)
	g.SetLimit(recorders)
	for i, d := range s.disks {
		if known := d.clusters.layers[0]; known != nil {
			g.Go(func() error {
				if err := known.store(gctx, w, plan.Disks[i].base.Disk); err != nil {
					return &chain.DiskError{Disk: d.req.Disk, Err: err}
				}
				return nil
			})
		}
	}
	return g.Wait()
}

// writer returns the session in which the disks are stored, which drop ends.
func (s *archiver) writer(ctx context.Context, plan *Plan) (*archive.Writer, error) {
	o, err := s.req.writer(s.repo)
	if err != nil {
		return nil, err
	}
	o.Vouched, o.Contents = mayBeVouched(plan), chain.Contents(s.history)
	if s.w != nil && s.vouched == o.Vouched {
		return s.w, nil
	}
	s.drop()
	s.w, err = archive.NewWriter(ctx, s.lease.Store(), o)
	s.vouched = o.Vouched
	return s.w, err
}

func (s *archiver) drop() {
	if s.w != nil {
		s.w.Abort() // does nothing after Finish
		s.w = nil
	}
}

// write reads every disk and stores all that the manifest will name.
func (s *archiver) write(ctx context.Context, plan *Plan) (*chain.Manifest, archive.Stats, error) {
	var none archive.Stats
	if err := s.checkNewest(ctx); err != nil { // before all is read in vain
		return nil, none, err
	}
	w, err := s.writer(ctx, plan)
	if err != nil {
		return nil, none, err
	}
	defer s.drop()
	m := s.describe(plan)
	for _, p := range plan.Disks {
		if p.Code == trust.ReasonArchive {
			s.hooks.note("disk %s: %s", p.Disk, p.Reason)
		}
		if older := p.verdict.OlderThan; older != "" {
			s.hooks.note("disk %s: the image is an older copy than checkpoint %s saw: if nobody put one back on purpose, find out why", p.Disk, older)
		}
	}
	s.noteFilesLeft()
	if err := s.crossCheck(ctx); err != nil {
		return nil, none, err
	}
	if err := s.storeDisks(ctx, plan, w, m); err != nil {
		return nil, none, err
	}
	if err := s.checkSomethingNew(ctx, plan); err != nil {
		return nil, none, err
	}
	if s.restLast() {
		if err := s.storeRest(ctx, plan, w, m); err != nil {
			return nil, none, err
		}
	}
	maps, stats, err := w.Finish(ctx)
	if err != nil {
		return nil, none, err
	}
	for _, note := range stats.Notes {
		s.hooks.note("%s", note)
	}
	if err := s.listMaps(ctx, plan, m, maps); err != nil {
		return nil, none, err
	}
	s.hooks.step(StepStored)
	return m, stats, nil
}

// mayBeVouched reports whether what the archive has may count by what the store vouches
// for, too. Not where a full was asked for, or damage met: then each chunk is read back.
func mayBeVouched(plan *Plan) bool {
	return !slices.ContainsFunc(plan.Disks, func(p *DiskPlan) bool {
		return p.Code == trust.ReasonRequested || p.Code == trust.ReasonArchive
	})
}

// describe is the manifest before the data is read.
func (s *archiver) describe(plan *Plan) *chain.Manifest {
	m := s.manifest(chain.KindArchive, plan.parent)
	m.Requested = string(s.req.Mode)
	for i, p := range plan.Disks {
		rec := s.manifestDisk(s.disks[i], p)
		rec.Requested, rec.Mode, rec.Detection = string(p.Requested), string(p.Mode), string(p.Detection)
		rec.ReasonCode, rec.Reason = string(p.Code), p.Reason
		rec.IncrementalFrom, rec.NoBitmapReason, rec.DirtyBytes = p.Since, p.NoBitmapReason, p.DirtyBytes
		rec.Habit = chain.HabitOf(s.history, cmp.Or(p.RenamedFrom, p.Disk))
		m.Disks = append(m.Disks, rec)
	}
	return m
}

// CrossCheckSamples is how many clusters of a disk are read through a second
// reader, too.
const CrossCheckSamples = 8

func (s *archiver) crossCheck(ctx context.Context) error {
	random := rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64()))
	for _, d := range s.disks {
		if err := d.image.CrossCheck(ctx, CrossCheckSamples, random); err != nil {
			return &chain.DiskError{Disk: d.req.Disk, Err: hintSalvage(err)}
		}
	}
	return nil
}

// restLast reports whether the rest waits for what reading the disks shows: that nothing is new,
// or by an audit that bitmaps are not to be believed, which their records must not call sound.
func (s *archiver) restLast() bool { return s.req.SkipUnchanged || s.req.Audit }

// storeDisks stores the data of the disks, and beside that where it lies, and the rest unless
// that comes last.
func (s *archiver) storeDisks(ctx context.Context, plan *Plan, w *archive.Writer, m *chain.Manifest) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.storeClusterMaps(ctx, plan, w, m) })
	if !s.restLast() {
		g.Go(func() error { return s.storeRest(ctx, plan, w, m) })
	}
	g.Go(func() error { return s.readDisks(ctx, plan, w, m) })
	return g.Wait()
}

// storeRest stores what bitmaps show, and the domain's files.
func (s *archiver) storeRest(ctx context.Context, plan *Plan, w *archive.Writer, m *chain.Manifest) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(recorders)
	for i, d := range s.disks {
		if s.req.Import != nil {
			break // its bitmaps testify for nothing
		}
		g.Go(func() error {
			if err := s.recordBitmaps(ctx, d, plan.Disks[i], w, &m.Disks[i]); err != nil {
				return &chain.DiskError{Disk: d.req.Disk, Err: err}
			}
			return nil
		})
	}
	g.Go(func() (err error) {
		m.Files, err = s.storeFiles(ctx, w)
		return err
	})
	return g.Wait()
}

// readDisks stores the data of each disk, one after the other, and counts it in m.
func (s *archiver) readDisks(ctx context.Context, plan *Plan, w *archive.Writer, m *chain.Manifest) error {
	for i, d := range s.disks {
		d.read.total = plan.Disks[i].ReadBytes
		s.read.total += d.read.total
	}
	w.Expect(s.read.total)
	for i, d := range s.disks {
		p := plan.Disks[i]
		stats, err := s.storeDisk(ctx, d, p, w)
		if err != nil {
			return &chain.DiskError{Disk: p.Disk, Err: err}
		}
		s.endAudit(d, p, &m.Disks[i])
		d.changed = stats.Data+stats.Zero > 0
		rec := &m.Disks[i]
		if rec.Lost, err = s.lostOf(d, p); err != nil {
			return &chain.DiskError{Disk: p.Disk, Err: err}
		}
		rec.DataBytes, rec.StoredBytes, rec.ReusedBytes = stats.Data, stats.Stored, stats.Reused
		if p.Mode == Incremental {
			rec.ZeroBytes, rec.Heat = stats.Zero, stats.Heat.Text(rec.Size)
		}
		if damage := d.damage.Load(); damage != nil {
			s.hooks.note("disk %s: the archive of %s is damaged; what could not be compared is stored again: %v", p.Disk, p.base.Manifest.Checkpoint, damage)
		}
	}
	return w.Flush(ctx)
}

func (s *archiver) storeDisk(ctx context.Context, d *disk, p *DiskPlan, w *archive.Writer) (archive.DiskStats, error) {
	s.count(d, 0)
	d.lost = chain.NewLossSet(p.VirtualSize)
	m, err := s.readDisk(ctx, d, p, w)
	if err != nil {
		return archive.DiskStats{}, hintSalvage(err)
	}
	stats, err := m.Close(ctx)
	return stats, hintSalvage(err)
}

// listMaps gives each disk its list of maps: the one that was written, and those that it
// builds on.
func (s *archiver) listMaps(ctx context.Context, plan *Plan, m *chain.Manifest, maps []archive.MapRef) error {
	for i, p := range plan.Disks {
		list := []archive.MapRef{maps[i]}
		if p.Mode == Incremental {
			var err error
			if list, err = s.flatten(ctx, p, append(list, p.base.Disk.Maps...)); err != nil {
				return &chain.DiskError{Disk: p.Disk, Err: err}
			}
		}
		m.Disks[i].Maps = list
	}
	return nil
}

// maxReplay bounds the maps that one disk's replay reads.
const maxReplay = 64

// flatten replaces a long or heavy list of maps, or one under a former name of the
// disk, by one resolved full map, which names the chunks that the list names. No
// data is copied.
func (s *archiver) flatten(ctx context.Context, p *DiskPlan, list []archive.MapRef) ([]archive.MapRef, error) {
	var deltas int64
	for _, ref := range list[:len(list)-1] {
		deltas += ref.Length
	}
	full := list[len(list)-1].Length
	renamed := p.base.Disk.Name != p.Disk
	if len(list) <= maxReplay && deltas <= max(full, smallMaps) && !renamed {
		return list, nil
	}
	layout, err := s.layout(ctx, p, list, renamed)
	if err != nil {
		return nil, err
	}
	ref, err := archive.WriteMap(ctx, s.lease.Store(), archive.MapOptions{Disk: p.Disk, Size: p.VirtualSize, Full: true, TempDir: s.req.TempDir}, layout.Entries(ctx, 0, p.VirtualSize))
	if err != nil {
		return nil, err
	}
	return []archive.MapRef{ref}, nil
}

// layout merges the new map, which is the first of the list, and those that it
// builds on, which may have another disk's name.
func (s *archiver) layout(ctx context.Context, p *DiskPlan, list []archive.MapRef, renamed bool) (*view.Layout, error) {
	if !renamed {
		return view.OpenLayout(ctx, s.repo, &chain.Disk{Name: p.Disk, Size: p.VirtualSize, Maps: list})
	}
	newest, err := archive.OpenMap(ctx, s.repo.Store, list[0], 0)
	if err != nil {
		return nil, err
	}
	older, err := view.OpenLayout(ctx, s.repo, p.base.Disk)
	if err != nil {
		return nil, err
	}
	return older.With(newest), nil
}

// smallMaps is the size of deltas, bytes, below which a replay is not worth
// shortening.
const smallMaps = 1 << 20

// ask is [asker]'s. What it asks for is what the judge of bitmaps most likely asks first: the newest
// state, and what that saw of bitmaps that are there.
func (s *archiver) ask(ctx context.Context, d *disk) {
	if d.req.Mode == Full || s.req.Import != nil {
		return
	}
	states := s.judge(d).States.WithData()
	if len(states) == 0 {
		return
	}
	newest := states[0].Disk
	if newest.Bitmap == "" || d.image.Layers[0].Bitmap(newest.Bitmap) == nil {
		return
	}
	s.states.ahead(func() { _, _ = s.states.open(ctx, newest) })
	for i := range newest.Witnesses {
		if rec := &newest.Witnesses[i]; d.image.Layers[0].Bitmap(rec.Name) != nil {
			s.states.ahead(func() { _, _ = s.states.Bitmap(ctx, rec) })
		}
	}
}

// commit creates the manifest. The images are needed no more then, and neither are their
// oldest bitmaps. The lease goes beside these; what fails of that is tried again in the end.
func (s *archiver) commit(ctx context.Context, plan *Plan, m *chain.Manifest) error {
	if err := s.checkNewest(ctx); err != nil {
		return err
	}
	if err := s.create(ctx, m); err != nil {
		return err
	}
	if err := s.unlock(); err != nil {
		s.hooks.note("closing the images: %v", err)
	}
	if !s.released {
		s.locked = time.Since(s.lockedSince)
	}
	var beside sync.WaitGroup
	defer beside.Wait()
	beside.Go(func() {
		tidying, cancel := chain.Tidying(ctx)
		defer cancel()
		_ = s.lease.Release(tidying)
	})
	s.retire(context.WithoutCancel(ctx), plan, m)
	return nil
}

// after is [destination]'s. An archive is complete when its manifest stands.
func (s *archiver) after(context.Context, *Plan) error { return nil }
