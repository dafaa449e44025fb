// SPDX-License-Identifier: Apache-2.0

package inherit

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/imgbackup/imgbackup/backup"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/internal/usage"
	"github.com/imgbackup/imgbackup/qcow2"
)

// Point is what somebody has left of a domain for one point in time.
type Point struct {
	Checkpoint  string // its name; empty: made from the time
	Description string
	Made        time.Time // zero: the newest time of modification of its disks' own files
	Time        string    // how that is known, as chain.TimeGiven
	From        string    // what made it, for people
	DomainUUID  string    // empty: unknown
	Disks       []backup.DiskRequest
	Files       []backup.FileRequest // of the domain beside its disks
	Autostart   bool                 // libvirt starts it with its host
	// Verify compares its files with checksums that are there beside them, which takes as long as
	// to read them; nil: there are none. wait is called before so many bytes are read.
	Verify func(ctx context.Context, wait func(ctx context.Context, n int) error) error
	// Refused is why it can't be imported; nil: it can, as far as its names tell.
	Refused error
}

// Request is what is to be imported.
type Request struct {
	Points []Point // in the order of their time
	// Engine is what is the same for all: the domain, options, tags.
	Engine backup.Request
	// SkipRefused imports the other points where some are refused.
	SkipRefused bool
}

// State is what is to be done with a point.
type State string

// The states.
const (
	New     State = "new"
	Known   State = "imported-before"
	Refused State = "refused"
	Done    State = "imported" // by this run
)

// Step is one point of a plan.
type Step struct {
	Point
	State State
	As    *chain.CheckpointRef // what it was imported as, if it was
	Disks []Disk
}

// Disk is a disk of a point. Sizes are in bytes.
type Disk struct {
	Name   string
	Format qcow2.Format
	Files  []chain.ImportedFile // what is read; none where it can't be opened
	Size   int64                // virtual
	Data   int64                // that it holds
}

// Plan is what an import does, point by point.
type Plan struct {
	Domain string
	Steps  []Step
	Notes  []string // for a person

	req Request
}

// RefusedError says which points can't be imported. Nothing has been written.
type RefusedError struct {
	Points []error
	Others bool // there are points that are not refused
}

func (e *RefusedError) Error() string {
	var all []string
	for _, err := range e.Points {
		all = append(all, err.Error())
	}
	hint := " (nothing was imported)"
	if e.Others {
		hint = " (nothing was imported; --skip-refused imports the others)"
	}
	return strings.Join(all, "; ") + hint
}

func (e *RefusedError) Unwrap() []error { return e.Points }

// Make looks at all points and at what the domain has, and writes nothing.
func Make(ctx context.Context, repo *chain.Repository, req Request) (*Plan, error) {
	if len(req.Points) == 0 {
		return nil, usage.Errorf("there is nothing to import")
	}
	ms, damaged, err := repo.Manifests(ctx, req.Engine.Domain)
	if err != nil {
		return nil, err
	}
	p := &Plan{Domain: req.Engine.Domain, req: req}
	for _, err := range damaged {
		p.note("a checkpoint can't be read, so that nobody knows whether it was one of these: %v", err)
	}
	now := time.Now()
	for i := range req.Points {
		s := Step{Point: req.Points[i], State: New}
		if err := p.look(ctx, &s, ms, now); err != nil {
			return nil, err
		}
		p.Steps = append(p.Steps, s)
	}
	if err := p.checkOrder(); err != nil {
		return nil, err
	}
	p.noteSmall()
	return p, nil
}

func (p *Plan) note(format string, args ...any) {
	p.Notes = append(p.Notes, fmt.Sprintf(format, args...))
}

// look opens the disks of a point, and decides what is to be done with it.
func (p *Plan) look(ctx context.Context, s *Step, ms []*chain.Manifest, now time.Time) error {
	var files []chain.ImportedFile
	for _, d := range s.Point.Disks {
		seen := Disk{Name: d.Disk, Format: d.Format}
		if s.Refused == nil {
			err := p.lookInto(ctx, d, &seen)
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			if err != nil {
				s.Refused = &chain.DiskError{Disk: d.Disk, Err: err}
			}
		}
		s.Disks = append(s.Disks, seen)
		files = append(files, seen.Files...)
	}
	if s.Refused == nil {
		s.Refused = s.settleTime(now)
	}
	if s.Refused == nil {
		if m := knownAs(ms, files, s.Made); m != nil {
			s.State, s.As = Known, m.Ref()
			return nil
		}
		s.Refused = checkNewer(s, chain.Newest(ms))
	}
	if s.Refused != nil {
		s.State = Refused
	}
	return nil
}

// lookInto opens a disk, and closes it again.
func (p *Plan) lookInto(ctx context.Context, d backup.DiskRequest, seen *Disk) error {
	image, err := p.req.Engine.Open(ctx, d)
	if err != nil {
		return err
	}
	seen.Files, seen.Size = backup.ImportedFiles(d.Disk, image), image.Size()
	seen.Data, err = image.Data(ctx).Bytes()
	return errors.Join(err, image.Close())
}

// settleTime finds out when a point was made.
func (s *Step) settleTime(now time.Time) error {
	if s.Made.IsZero() {
		s.Time = chain.TimeOfFile
		for _, d := range s.Disks {
			top := d.Files[0] // the disk's own; others below it are older, or were touched since
			if top.Mtime == 0 {
				return &chain.DiskError{Disk: d.Name, Err: usage.Errorf("%s has no time of its own: say when it was made (--created)", top.Path)}
			}
			if t := time.Unix(0, top.Mtime); t.After(s.Made) {
				s.Made = t
			}
		}
	}
	if s.Made = s.Made.UTC().Truncate(time.Second); s.Made.After(now) {
		return fmt.Errorf("it was made at %s, which is in the future: --created says when it was made", s.Made.Format(time.RFC3339))
	}
	return nil
}

// knownAs is the checkpoint that was imported from these very files; nil: none was. What has no time
// of its own, as a block device, may have become another under the same name: it is known only by
// the time that a person says.
func knownAs(ms []*chain.Manifest, files []chain.ImportedFile, made time.Time) *chain.Manifest {
	timeless := slices.ContainsFunc(files, func(f chain.ImportedFile) bool { return f.Mtime == 0 })
	for _, m := range slices.Backward(ms) {
		if m.Imported != nil && slices.Equal(m.Imported.Files, files) && (!timeless || m.Created.Equal(made)) {
			return m
		}
	}
	return nil
}

// checkNewer refuses what is older than what the domain has.
func checkNewer(s *Step, newest *chain.Manifest) error {
	if newest == nil || !s.Made.Before(newest.Created.Truncate(time.Second)) {
		return nil
	}
	return fmt.Errorf("it was made at %s, and the domain has checkpoint %s of %s: what is older would be its newest then (import it as another domain)",
		s.Made.Format(time.RFC3339), newest.Checkpoint, newest.Created.UTC().Format(time.RFC3339))
}

// checkOrder refuses points whose times say another order than the one that they are in.
func (p *Plan) checkOrder() error {
	var last *Step
	for i := range p.Steps {
		s := &p.Steps[i]
		if s.Made.IsZero() {
			continue
		}
		if last != nil && s.Made.Before(last.Made) {
			return usage.Errorf("%s comes after %s, and was made before it (%s, %s): name them in the order of their time, or say when each was made (--created)",
				s.what(), last.what(), s.Made.Format(time.RFC3339), last.Made.Format(time.RFC3339))
		}
		last = s
	}
	return nil
}

// what names a point for people, by its first disk.
func (s *Step) what() string {
	if s.Checkpoint != "" {
		return s.Checkpoint
	}
	if len(s.Point.Disks) > 0 {
		return s.Point.Disks[0].Path
	}
	return "a point"
}

// noteSmall tells of whole images that hold much less than the one before: they may be increments
// that nobody said were.
func (p *Plan) noteSmall() {
	before := make(map[string]Disk)
	for i := range p.Steps {
		for k, d := range p.Steps[i].Disks {
			was, ok := before[d.Name]
			alone := d.Format == qcow2.Qcow2 && len(d.Files) == 1 && p.Steps[i].Point.Disks[k].Over == nil
			if ok && alone && d.Data < was.Data/2 {
				p.note("disk %s: %s holds %d bytes of data, and what comes before it %d: if it holds only what changed, say so (increment=yes)",
					d.Name, d.Files[0].Path, d.Data, was.Data)
			}
			if len(d.Files) > 0 {
				before[d.Name] = d
			}
		}
	}
}

// CheckRefused returns an error if points are refused that may not be skipped, or if there are no
// others: to have imported nothing, now or before, is no success.
func (p *Plan) CheckRefused() error {
	var refused []error
	for i := range p.Steps {
		if s := &p.Steps[i]; s.State == Refused {
			refused = append(refused, fmt.Errorf("%s: %w", s.what(), s.Refused))
		}
	}
	others := len(refused) < len(p.Steps)
	if len(refused) == 0 || p.req.SkipRefused && others {
		return nil
	}
	return &RefusedError{refused, others}
}

// Told is called for what becomes of the points of a plan.
type Told struct {
	// Verify: a point is about to be compared with checksums beside it; may be nil.
	Verify func(s *Step)
	Begin  func(s *Step) backup.Hooks // a point is about to be imported
	// End: it is a checkpoint, or err says why not.
	End func(s *Step, r *backup.Result, err error)
}

// Execute imports what is new, one point after the other. Each that was imported stays so,
// whatever becomes of those after it.
func (p *Plan) Execute(ctx context.Context, repo *chain.Repository, told Told) error {
	if err := p.CheckRefused(); err != nil {
		return err
	}
	if err := p.verify(ctx, told); err != nil {
		return err
	}
	done := 0
	var before *backup.Before
	for i := range p.Steps {
		s := &p.Steps[i]
		if s.State != New {
			continue
		}
		result, err := backup.Run(ctx, repo, p.request(s, before), s.asLookedAt(told.Begin(s)))
		if err == nil {
			s.State, s.As, before = Done, result.Manifest.Ref(), result.Before
			done++
		}
		told.End(s, result, err)
		if err != nil && done > 0 {
			return fmt.Errorf("%s: %w (what was imported before it stays: the next run goes on behind it)", s.what(), err)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", s.what(), err)
		}
	}
	return nil
}

// asLookedAt ends a point whose files are not those any more by which it was planned, and its time was told.
func (s *Step) asLookedAt(h backup.Hooks) backup.Hooks {
	opened := h.Opened
	h.Opened = func(images []*qcow2.Image) error {
		for i, image := range images {
			d := &s.Disks[i]
			if !slices.Equal(backup.ImportedFiles(d.Name, image), d.Files) {
				return &chain.DiskError{Disk: d.Name, Err: errors.New("a file of it has changed since all were looked at: begin again")}
			}
		}
		if opened != nil {
			return opened(images)
		}
		return nil
	}
	return h
}

// verify compares what is new with the checksums that are there beside it, before any of it is
// imported.
func (p *Plan) verify(ctx context.Context, told Told) error {
	wait := func(context.Context, int) error { return nil }
	if rate := p.req.Engine.RateLimit; rate > 0 {
		wait = backup.NewLimiter(rate).WaitN
	}
	for i := range p.Steps {
		s := &p.Steps[i]
		if s.State != New || s.Verify == nil {
			continue
		}
		if told.Verify != nil {
			told.Verify(s)
		}
		err := s.Verify(ctx, wait)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			s.State, s.Refused = Refused, err
		}
	}
	return p.CheckRefused()
}

// request is what the engine is asked for.
func (p *Plan) request(s *Step, before *backup.Before) backup.Request {
	req := p.req.Engine
	req.Checkpoint, req.Description = s.Checkpoint, s.Description
	req.Disks, req.Files, req.DomainUUID, req.Autostart = s.Point.Disks, s.Files, s.DomainUUID, s.Autostart
	req.Mode, req.NoCheckpoint = backup.Auto, true
	req.Import = &backup.Import{Made: s.Made, Time: s.Time, From: s.From, Before: before}
	return req
}
