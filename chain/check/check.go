// SPDX-License-Identifier: Apache-2.0

// Package check proves that a repository is whole, and says what damage means:
// which disks of which checkpoints can't be restored, and which of their bytes.
package check

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/bitmapstore"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/objstore"
	"github.com/imgbackup/imgbackup/objstore/split"
)

// Options are the settings of [Run]; the zero value is good.
type Options struct {
	ReadData bool     // read packs too, and decode their chunks
	NoDecode bool     // with ReadData: prove packs by their names, which is all of their bytes, alone
	Subset   Subset   // with ReadData: of the data, only this; the zero value: all
	Domains  []string // only these; nil: all. Only a check of all looks at what no checkpoint uses
	Workers  int      // objects read at once; 0: one per CPU, 2 to 8, or as many as the store is worth
	// Progress is called often, never by two goroutines at once; may be nil.
	Progress func(Event)
}

// Event is a step of a check's progress.
type Event struct {
	Phase       string // what is being checked
	Done, Total int64  // in this phase: bytes when packs are read, else objects
}

// The kinds of findings: what kind of object is damaged.
const (
	KindConfig   = "config"
	KindManifest = "manifest"
	KindMap      = "map"
	KindPack     = "pack"
	KindBitmap   = "bitmap"
	KindClusters = "clusters" // where a disk lay in its image: no checkpoint's data is affected
	KindFile     = "file"     // of a domain, beside its disks
	KindIndex    = "index"    // no checkpoint is affected; it can be rebuilt
	KindIntent   = "intent"
	KindLease    = "lease"

	KindMark = "mark" // of a prune: no checkpoint is affected, but nobody can write

	KindDrill = "drill" // the record of one, or its signature: nothing depends on it

	KindForgotten = "forgotten" // what forgotten checkpoints left: no checkpoint's data is affected
)

// Finding is one damaged or missing object.
type Finding struct {
	Object  string     `json:"object"` // key
	Kind    string     `json:"kind"`
	What    string     `json:"what"`
	Affects []string   `json:"affects,omitempty"` // what can't be restored, for people
	Details []Affected `json:"details,omitempty"` // the same for programs
	// More is how many disks of checkpoints are affected beyond the ones listed,
	// or may be.
	More int `json:"more,omitempty"`
}

// Affected is one disk of one checkpoint.
type Affected struct {
	Domain     string  `json:"domain"`
	Checkpoint string  `json:"checkpoint"`
	Disk       string  `json:"disk,omitempty"` // empty, and so is File: all of the checkpoint
	File       string  `json:"file,omitempty"` // what a file is called: its role, or file NAME
	Ranges     []Range `json:"ranges,omitempty"`
	MoreRanges int     `json:"more_ranges,omitempty"` // beyond the ones listed
	Bytes      int64   `json:"bytes"`                 // of the guest that are lost
}

// Lost is what a disk of a checkpoint is known to have lost.
type Lost struct {
	Domain     string `json:"domain"`
	Checkpoint string `json:"checkpoint"`
	Disk       string `json:"disk"`
	Ranges     int    `json:"ranges"`
	Bytes      int64  `json:"bytes"`
}

// Signed is how many sound checkpoints somebody has signed.
type Signed struct {
	By          string `json:"by"`
	Checkpoints int    `json:"checkpoints"`
}

// Range is a range of guest bytes.
type Range struct {
	Offset int64 `json:"offset"`
	Length int64 `json:"length"`
}

// Report is the result of a check.
type Report struct {
	ReadData           bool  `json:"read_data"`
	NoDecode           bool  `json:"no_decode,omitempty"`
	Complete           bool  `json:"complete"`     // nothing is left that could not be looked at
	Checkpoints        int   `json:"checkpoints"`  // manifests that are sound
	Objects            int   `json:"objects"`      // that were looked at
	Bytes              int64 `json:"bytes"`        // that were read and proven, or whose length was
	UnreadPacks        int   `json:"unread_packs"` // of them, only the length was looked at: without ReadData
	UnreadBytes        int64 `json:"unread_bytes"` // in these packs; part of Bytes
	Unreferenced       int   `json:"unreferenced"`
	UnreferencedLength int64 `json:"unreferenced_bytes"`
	// Proofs is nil where the check did not come so far as to find out.
	Proofs   *Proofs   `json:"proven,omitempty"`
	Lost     []Lost    `json:"lost"`             // what is known to be lost: no findings
	Findings []Finding `json:"findings"`         // sorted by object
	Signed   []Signed  `json:"signed,omitempty"` // who has signed them; none: nothing is signed
	Notes    []string  `json:"notes,omitempty"`
}

// Bounds of a report.
const (
	maxAffected = 64   // disks of checkpoints listed with one finding
	maxRanges   = 16   // guest ranges listed of one of them
	maxNotes    = 1000 //
)

// Run checks a repository. Without ReadData it proves the manifests, maps,
// bitmaps and cluster maps in full, and of packs that they are there with their lengths; where the store
// keeps versions also that nothing else lies on top of them.
// With it, everything: no flipped bit in any object of the repository escapes it. With
// NoDecode neither, but a chunk that its writer made wrongly, in a pack of the right name,
// does.
//
// What is damaged is in the report. An error says that the check could not be
// completed, because the store failed, the context was cancelled, or something
// needs a newer version: the report then tells what was found until there, and
// says nothing about the rest.
//
// Memory grows with the number of packs (about 100 bytes each), not with their
// size or that of the disks.
//
// What a prune removes meanwhile is not missing: where it could be that, the check begins
// anew.
func Run(ctx context.Context, repo *chain.Repository, o Options) (*Report, error) {
	for try := 0; ; try++ {
		c, err := runOnce(ctx, repo, o)
		if err != nil || !c.missing || try == prunesMeanwhile {
			return c.report, err
		}
		after, err := repo.PruneState(ctx)
		if err != nil || c.state == after {
			c.report.Complete = err == nil
			return c.report, err
		}
	}
}

// mostWorkers bounds the memory of those that read and prove a pack each.
const mostWorkers = 32

// prunesMeanwhile is how often a check begins anew since objects were missing, and a prune
// has been at work.
const prunesMeanwhile = 3

func runOnce(ctx context.Context, repo *chain.Repository, o Options) (*check, error) {
	if o.Workers <= 0 {
		o.Workers = max(min(max(runtime.GOMAXPROCS(0), 2), 8), objstore.Connections(repo.Store))
		o.Workers = repo.Memory.Count(min(o.Workers, mostWorkers), 2)
	}
	c := &check{
		repo:     repo,
		o:        o,
		report:   &Report{ReadData: o.ReadData, NoDecode: o.ReadData && (o.NoDecode || !archive.OpensChunks(repo.Store)), Lost: []Lost{}, Findings: []Finding{}},
		begun:    time.Now().UTC().Truncate(time.Second),
		maps:     make(map[archive.MapRef]*use),
		bitmaps:  make(map[bitmapUse]*use),
		clusters: make(map[chain.ClusterPart]*use),
		files:    make(map[archive.FileRef]*use),
		packs:    make(map[archive.Ref]bool),
		bad:      make(map[string]struct{}),

		mapLengths: make(map[archive.Digest]int64),
	}
	c.source = split.New(objstore.Direct(repo.Store), repo.Memory)
	c.stated = stated{objstore.Direct(repo.Store), c.mapLength}
	err := c.run(ctx)
	c.remember(ctx)
	c.report.Complete = err == nil
	c.sumSigned()
	slices.SortFunc(c.report.Lost, func(a, b Lost) int {
		return cmp.Or(strings.Compare(a.Domain, b.Domain), strings.Compare(a.Checkpoint, b.Checkpoint), strings.Compare(a.Disk, b.Disk))
	})
	slices.SortFunc(c.report.Findings, func(a, b Finding) int { return strings.Compare(a.Object, b.Object) })
	return c, err
}

// check is a check that is under way.
type check struct {
	repo *chain.Repository
	o    Options

	disks    []diskID       // all disks of all checkpoints
	doubts   []string       // whose time is not believed
	signed   map[string]int // checkpoints, by whose key has signed them
	maps     map[archive.MapRef]*use
	bitmaps  map[bitmapUse]*use
	clusters map[chain.ClusterPart]*use
	files    map[archive.FileRef]*use
	packs    map[archive.Ref]bool // true: seen with the right length
	drills   []chain.Key          // records of drills, and signatures, that are listed
	loose    []objstore.Info      // data objects that nothing refers to, as listed
	listed   []listed             // data objects, and those about them
	unlisted error                // why the listing is not believed; nil: it is
	domains  []string             // that are checked
	state    string               // of prunes, before anything was read
	newer    []error
	source   objstore.Store // the repository's, from which packs are read
	stated   objstore.Store // the repository's, which knows the lengths that are listed

	mapLengths map[archive.Digest]int64 // as they are listed

	read   map[archive.Ref]bool // packs whose data was read
	begun  time.Time
	proofs *chain.Proofs // before this check

	mu              sync.Mutex // guards what is below, and packs while maps are read
	missing         bool       // something was found to be missing
	report          *Report
	bad             map[string]struct{} // keys of damaged objects
	proven, unsound []archive.Digest    // of what was read
	done            int64
}

// diskID is one disk of one checkpoint.
type diskID struct {
	domain, checkpoint, disk string
	size                     int64
}

func (d diskID) String() string { return d.domain + "/" + d.checkpoint + "/" + d.disk }

// use is what refers to an object.
type use struct{ by []usedBy }

type usedBy struct {
	disk         int32 // index into check.disks
	newest, full bool  // see chain.MapPlace
}

// bitmapUse is a bitmap as manifests describe it.
type bitmapUse struct {
	object archive.Ref
	header bitmapstore.Header
}

func (c *check) run(ctx context.Context) error {
	// Those that are together wait for the store at the same time.
	steps := []step{
		// What a prune has done is looked at before any manifest is read.
		together(c.checkConfig, c.checkKeyFiles, c.readState, c.listObjects, c.loadProofs, c.listDomains),
		together(c.readManifests, c.readForgotten),
		together(c.checkMaps, c.checkWriters, c.checkMark), c.checkBitmaps, c.checkClusters, c.checkFiles,
		c.compareListed, c.checkLengths,
	}
	if c.o.ReadData {
		steps = append(steps, c.readData, c.checkReferences)
	}
	steps = append(steps, c.checkOnTop, c.countUnread, c.checkDrills, c.findAffected)
	for _, step := range steps {
		if err := step(ctx); err != nil {
			return fmt.Errorf("the check is not complete: %w", err)
		}
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("the check is not complete: %w", err)
		}
	}
	if len(c.newer) > 0 {
		return fmt.Errorf("not everything could be checked: %w", errors.Join(c.newer...))
	}
	return nil
}

// step is a part of a check. Of those that are together only one tells of progress.
type step func(context.Context) error

func together(steps ...step) step {
	return func(ctx context.Context) error {
		g, ctx := errgroup.WithContext(ctx)
		for _, s := range steps {
			g.Go(func() error { return s(ctx) })
		}
		return g.Wait()
	}
}

// all reports whether the whole repository is checked.
func (c *check) all() bool { return len(c.o.Domains) == 0 }

// wants reports whether the domain is checked.
func (c *check) wants(domain string) bool { return c.all() || slices.Contains(c.o.Domains, domain) }

// each runs f for each item, several at once, and keeps count.
func each[T any](
	ctx context.Context, c *check, phase string, items []T, weight func(T) int64,
	f func(context.Context, T) error,
) error {
	var total int64
	for _, it := range items {
		total += weight(it)
	}
	c.progress(phase, 0, total)
	c.done = 0
	g, inner := errgroup.WithContext(ctx)
	g.SetLimit(c.o.Workers)
	for _, it := range items {
		if inner.Err() != nil {
			break
		}
		g.Go(func() error {
			if err := inner.Err(); err != nil {
				return err
			}
			if err := f(inner, it); err != nil {
				return err
			}
			c.mu.Lock()
			defer c.mu.Unlock()
			c.done += weight(it)
			c.progress(phase, c.done, total)
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return ctx.Err()
}

func one[T any](T) int64 { return 1 }

// progress is called with mu held, or while nothing else runs.
func (c *check) progress(phase string, done, total int64) {
	if c.o.Progress != nil {
		c.o.Progress(Event{Phase: phase, Done: done, Total: total})
	}
}

// record counts an object that was looked at, and takes note if err says that
// it is damaged. Any other error comes back.
func (c *check) record(kind, key string, length int64, err error) error {
	var newer *chain.NewerError
	if err != nil && !archive.IsDamage(err) && !errors.As(err, &newer) {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.report.Objects++
	c.report.Bytes += length
	switch {
	case errors.As(err, &newer):
		c.newer = append(c.newer, newer)
	case err != nil:
		c.found(kind, key, err)
	}
	return nil
}

// found records a finding; at most one for each object. mu is held.
func (c *check) found(kind, key string, err error) {
	if _, twice := c.bad[key]; twice {
		return
	}
	c.bad[key] = struct{}{}
	c.missing = c.missing || errors.Is(err, objstore.ErrNotFound)
	what := err.Error()
	var d *archive.DamageError
	if errors.As(err, &d) && d.Object == key {
		what = d.Err.Error()
		if d.Length > 0 {
			what = fmt.Sprintf("bytes %d to %d: %s", d.Offset, d.Offset+d.Length-1, what)
		}
	}
	c.report.Findings = append(c.report.Findings, Finding{Object: key, Kind: kind, What: what})
}

// damagedKey reports whether an object has been found to be damaged.
func (c *check) damagedKey(key string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, bad := c.bad[key]
	return bad
}

func (c *check) note(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.report.Notes) < maxNotes {
		c.report.Notes = append(c.report.Notes, fmt.Sprintf(format, args...))
	}
}
