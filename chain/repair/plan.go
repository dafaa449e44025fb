// SPDX-License-Identifier: Apache-2.0

package repair

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/chain/check"
	"github.com/imgbackup/imgbackup/drill/record"
	"github.com/imgbackup/imgbackup/internal/usage"
)

// Options of a repair.
type Options struct {
	From     []Source // in the order in which they are asked
	Images   []Image
	TempDir  string // for what is too large for memory; empty: [spool.TempDir]
	Progress func(check.Event)
}

// Source is another repository.
type Source struct {
	Name string // for people
	Repo *chain.Repository
}

// Image is an image of a disk, which may still have what it had when it was backed up.
type Image struct {
	Disk   string // its name in the checkpoints
	Name   string // for people
	Size   int64  // bytes
	Reader Reader
}

// Reader reads a disk.
type Reader interface {
	// ReadAt fills p, which lies within the disk.
	ReadAt(ctx context.Context, p []byte, off int64) error
}

// What is done about an object.
const (
	Fetch   = "fetch"   // all of it, from another repository
	Rewrite = "rewrite" // maps and manifests will do without it
	Rebuild = "rebuild" // of what other objects say
	Drop    = "drop"    // what testified for bitmaps: no manifest names it any more
	Uncover = "uncover" // an earlier version of it counts, and is put on top again
	Leave   = "leave"   // nothing can be done
)

// Action is what is to be done about one damaged or missing object.
type Action struct {
	Object string `json:"object"` // its key
	Kind   string `json:"kind"`   // see package check
	Wrong  string `json:"wrong"`
	Do     string `json:"do"`
	From   string `json:"from,omitempty"` // a repository
	Why    string `json:"why,omitempty"`  // nothing can be done, or what more a person should know
	// Of a pack that is done without: how many of its chunks are found, and are not.
	Found int `json:"found_chunks,omitempty"`
	Lost  int `json:"lost_chunks,omitempty"`

	ref archive.Ref
}

// Lost is what a disk of a checkpoint loses for good.
type Lost struct {
	Domain     string       `json:"domain"`
	Checkpoint string       `json:"checkpoint"`
	Disk       string       `json:"disk"`
	Ranges     []chain.Lost `json:"ranges"`
}

// Regained is a disk of a checkpoint that gets back what it had lost, or what is damaged, by
// the maps of another repository.
type Regained struct {
	Domain     string `json:"domain"`
	Checkpoint string `json:"checkpoint"`
	Disk       string `json:"disk"`
	From       string `json:"from"`
	Bytes      int64  `json:"bytes"` // of the guest
}

// Plan is what a repair is going to do. It is carried out by [Plan.Execute].
type Plan struct {
	Actions  []Action   `json:"actions"` // sorted by object
	Lost     []Lost     `json:"lost"`
	Regained []Regained `json:"regained"`
	Indexed  int        `json:"indexed_packs"` // that no index lists, and one will
	Notes    []string   `json:"notes,omitempty"`

	repo     *chain.Repository
	o        Options
	over     *overlay
	fetch    []object                // whole objects
	mend     []mended                // manifests
	uncover  []chain.Revision        // manifests that lie below something else
	raise    []chain.Lowered         // of the configuration and the keys
	drills   []*record.Stored        // out of other repositories
	maps     map[archive.MapRef]bool // are written anew
	lostMaps map[archive.MapRef]bool // cannot be had
	wants    *wants
	flat     []diskOf // disks that get one new map
	lost     map[diskOf]*chain.LossSet
	regain   map[diskOf]regain
	drop     map[string]bool // keys of records that are taken out
	indexes  []string        // keys of damaged ones
	unlisted []archive.Ref   // packs
}

// Nothing reports whether nothing is wrong.
func (p *Plan) Nothing() bool { return len(p.Actions)+len(p.Lost)+len(p.Regained)+p.Indexed == 0 }

// Whole reports whether nothing is lost or left once the plan has been carried out.
func (p *Plan) Whole() bool {
	return len(p.Lost) == 0 && !slices.ContainsFunc(p.Actions, func(a Action) bool { return a.Do == Leave })
}

// RepositoryID is the repository's.
func (p *Plan) RepositoryID() string { return p.repo.Config.ID }

// object is a whole object to be fetched.
type object struct {
	key  string
	ref  archive.Ref
	from *chain.Repository
}

// mended is a manifest out of another repository.
type mended struct {
	manifest *chain.Manifest
	from     *chain.Repository
}

// diskOf names a disk of a checkpoint.
type diskOf struct{ domain, checkpoint, disk string }

// regain is where a disk is whole.
type regain struct {
	from   *chain.Repository
	disk   *chain.Disk
	before []archive.MapRef // of the disk, when it was planned
}

// Make looks at the whole repository, reads all of its data, and plans. It writes nothing,
// but what a check remembers.
func Make(ctx context.Context, repo *chain.Repository, o Options) (*Plan, error) {
	for _, from := range o.From {
		if !archive.KeysOf(from.Repo.Store).Same(archive.KeysOf(repo.Store)) {
			return nil, usage.Errorf("%s has other keys, or only one of the two is encrypted: none of its objects has a name of one here; imgbackup copy from it to here brings back what checkpoints lack that it has", from.Name)
		}
		if err := repo.MeetNames(ctx, from.Repo); err != nil {
			return nil, fmt.Errorf("%s: %w", from.Name, err)
		}
	}
	report, err := check.Run(ctx, repo, check.Options{ReadData: true, Progress: o.Progress})
	if err != nil {
		return nil, err
	}
	p := &Plan{
		Actions: []Action{}, Lost: []Lost{}, Regained: []Regained{}, repo: repo, o: o,
		over: &overlay{Store: repo.Store, from: make(map[string]*chain.Repository)},
		maps: make(map[archive.MapRef]bool), lostMaps: make(map[archive.MapRef]bool),
		lost: make(map[diskOf]*chain.LossSet), regain: make(map[diskOf]regain), drop: make(map[string]bool),
	}
	l := &planner{Plan: p, findings: report.Findings, refs: make(map[string]archive.Ref), whole: o.From}
	under, err := repo.Underneath(ctx)
	if err != nil {
		return nil, err
	}
	if under != nil {
		l.under = true
		l.whole = append([]Source{{Name: earlier, Repo: under}}, o.From...)
	}
	for _, step := range []func(context.Context) error{
		l.readManifests, l.mendManifests, l.fetchWhole, l.findMaps, l.findChunks, l.findLost, l.findRegained, l.planIndexes,
	} {
		if err := step(ctx); err != nil {
			return nil, err
		}
	}
	slices.SortFunc(p.Actions, func(a, b Action) int { return strings.Compare(a.Object, b.Object) })
	return p, nil
}

// earlier is the store itself, of which older versions are asked for.
const earlier = "an earlier version"

// planner makes a plan.
type planner struct {
	under bool // what lies below other things can be looked at
	*Plan
	findings  []check.Finding
	whole     []Source          // of whole objects
	manifests []*chain.Manifest // the sound ones, and those that will be
	refs      map[string]archive.Ref
	badPacks  map[archive.Ref]*Action
}

// plain is the repository as it will be when whole objects have been fetched.
func (p *Plan) plain() *chain.Repository {
	r := *p.repo
	r.Store = p.overlaid()
	return &r
}
