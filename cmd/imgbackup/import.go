// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/imgbackup/imgbackup/backup"
	"github.com/imgbackup/imgbackup/backup/inherit"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/confine"
	"github.com/imgbackup/imgbackup/internal/spool"
	"github.com/imgbackup/imgbackup/internal/usage"
	"github.com/imgbackup/imgbackup/request"
)

const importHelp = `import takes what others have left of a domain as checkpoints, so that nobody has to begin anew: files of its
disks from several points in time, backups of libvirt, or a folder of virtnbdbackup. Each point becomes a checkpoint: what differs from the
one before is found by reading, and stored. Nothing is written to what is imported.

The files of a disk are named in the order of their time; the n-th of each disk belongs to the n-th checkpoint. When
each was made say the files' times, or --created. A run that was interrupted goes on where it ended: what was
imported before is not imported again.`

const importManual = `A --disk is TARGET=FILE,format=FORMAT; formats are those of backup, and never guessed. A qcow2 image that names a
backing file is taken where that is the file named before it (as qemu-img rebase -u makes such chains); else it
has to be said what lies below it:

    increment=yes   the file named before it, whatever the image says: as libvirt's incremental push backups,
                    which hold only what changed. Nothing is written to do that (no qemu-img rebase)
    backing=yes     what the image itself names, which has not changed since
    layers=yes      likewise, and each image of the chain is a point in time of its own, the lowest the first

--virtnbdbackup takes what that program has left in a folder: streams, compressed or not, and the domain's
definitions, and files that these name, beside them. Each backup is a point in time. Where a checksum lies beside a
stream the stream is compared with it before anything is imported. What lies over what say the links that the streams have, not
the times of files. A backup of which a stream is missing, damaged, or does not fit is refused; those that do not need
it are not. The dates in streams have no zone: --timezone says which it is. Disks that it copied as they are (raw ones)
need the definition beside them. Without a DOMAIN the definition names it.

Points are known again by disk, path, size and time of modification of all their files. One that is older than the
newest checkpoint of the domain is refused: it would be the newest then. Import before the first backup, or as
another domain.

A checkpoint's time is when its point was made (--created, or the newest time of modification of the disks' own
files), so that rules of forget count it as what it is; when it was imported, and from what, is recorded beside that,
and show tells. Images get no bitmap: the domain's next backup reads everything, stores what differs from the newest
checkpoint, and says so.

In an encrypted repository the times that a host says of its imports are not believed by rules, which neither remove
nor count such checkpoints; an admin's or a manager's are.`

// importOptions are the command line of import.
type importOptions struct {
	request.Import
	dryRun bool
}

func (a *app) importCommand() *cobra.Command {
	var o importOptions
	cmd := &cobra.Command{
		Use:         "import [DOMAIN] {--disk TARGET=FILE,format=FORMAT … | --virtnbdbackup DIR}",
		Short:       "Take what others left as checkpoints",
		SuggestFor:  []string{"adopt", "migrate", "convert"},
		Long:        importHelp,
		Annotations: exits(exitDamage, exitInUse, exitTaken, exitInterrupted),
		Example: `  imgbackup import web --disk vda=/old/mon.raw,format=raw --disk vda=/old/tue.raw,format=raw --dry-run
  imgbackup import web --disk vda=/old/1.vhdx,format=vhdx --created '2026-01-31 03:00' --checkpoint january
  imgbackup import web --disk vda=/old/full.qcow2,format=qcow2 --disk vda=/old/inc1.qcow2,format=qcow2,increment=yes
  imgbackup import web --disk vda=/old/newest.qcow2,format=qcow2,layers=yes
  imgbackup import --virtnbdbackup /old/web --dry-run`,
		Args: takes(cobra.MaximumNArgs(1), "at most one DOMAIN"),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if o.Domain, err = givenDomain(args); err != nil {
				return err
			}
			if err := errors.Join(exclude(cmd.Flags(), "virtnbdbackup", "disk"), notEmpty(cmd.Flags(), "virtnbdbackup")); err != nil {
				return err
			}
			return a.runImport(cmd.Context(), o)
		},
	}
	o.addFlags(cmd.Flags())
	addManual(cmd, importManual)
	return a.addProgress(cmd)
}

func (o *importOptions) addFlags(f *pflag.FlagSet) {
	f.StringArrayVar(&o.Disks, "disk", nil, "`TARGET=FILE`,format=FORMAT of a disk at one point in time, and more (man page)")
	f.StringVar(&o.VirtNBD, "virtnbdbackup", "", "what virtnbdbackup has left in this `DIR`")
	f.StringSliceVar(&o.Checkpoints, "checkpoint", nil, "`NAME,…` of the checkpoints (default: made from their times)")
	f.StringSliceVar(&o.Created, "created", nil, "`TIME,…` at which each was made (default: as the files' times say)")
	f.StringVar(&o.Timezone, "timezone", "", "`ZONE` of times that say none, as Europe/Berlin (default: this host's)")
	f.StringVar(&o.From, "from", "", "`TEXT`: what made the files, to be recorded")
	f.StringArrayVar(&o.Engine.Tags, "tag", nil, "give the checkpoints this `TAG`; may be repeated")
	f.BoolVar(&o.SkipRefused, "skip-refused", false, "import the other points where some can't be")
	f.BoolVar(&o.dryRun, "dry-run", false, "say what was found and what would be done, and write nothing")
	f.StringVar(&o.Compression, "compression", "fastest", "`LEVEL`: none, fastest, default, better or best")
	f.StringVar(&o.LimitRate, "limit-rate", "", "read at most this many `BYTES` per second, as 50M")
	f.BoolVar(&o.Engine.NoLock, "no-lock", false, "go without QEMU's image locks, where the file system has none")
	f.StringArrayVar(&o.Engine.AllowDirs, "allow-dir", nil, "allow backing and data files in this `DIR`, too; may be repeated")
	addAdoptFlag(f, &o.Engine)
	section(f, whichDisks, "disk", "virtnbdbackup", "allow-dir")
	section(f, whatIsDone, "checkpoint", "created", "timezone", "from", "tag", "skip-refused", "adopt", "dry-run")
	section(f, howItRuns, "compression", "limit-rate")
}

func (a *app) runImport(ctx context.Context, o importOptions) error {
	req, err := o.Request()
	a.noteAll(o.Notes)
	if err != nil {
		return err
	}
	if err := chain.CheckDomain(req.Engine.Domain); err != nil {
		return usage.Wrap(err)
	}
	defer a.dropAhead()
	repo, err := a.openCachedFor(ctx, req.Engine.Domain)
	if err != nil {
		return err
	}
	e := &req.Engine
	e.Tool, e.TempDir, e.IndexEvery = tool(), spool.TempDir(), a.indexEvery
	e.Known, e.KnownLimit = a.knownFolder()
	plan, err := inherit.Make(ctx, repo, req)
	if err != nil {
		return err
	}
	a.noteAll(plan.Notes)
	if o.dryRun {
		return errors.Join(a.printImport(plan, nil, true), plan.CheckRefused())
	}
	if err := a.restrict(importNeeds(plan), writes(repo)); err != nil {
		return err
	}
	results := make(map[*inherit.Step]*backup.Result)
	err = plan.Execute(ctx, repo, a.toldImport(ctx, plan, results))
	if err != nil && len(results) == 0 {
		return err
	}
	return errors.Join(a.printImport(plan, results, false), err)
}

// toldImport tells of the points as they are imported.
func (a *app) toldImport(ctx context.Context, plan *inherit.Plan, results map[*inherit.Step]*backup.Result) inherit.Told {
	var b *bar
	return inherit.Told{
		Verify: func(s *inherit.Step) {
			a.note(fmt.Sprintf("comparing what is to be imported of %s with the checksums beside it", shortTime(s.Made)))
		},
		Begin: func(s *inherit.Step) backup.Hooks {
			b = a.newBar("importing " + plan.Domain + " of " + shortTime(s.Made))
			var disks []string
			for _, d := range s.Disks {
				disks = append(disks, d.Name)
			}
			a.events.expect(plan.Domain, disks...)
			return a.hooks(b)
		},
		End: func(s *inherit.Step, r *backup.Result, err error) {
			b.clear()
			a.settle(ctx, err)
			if r != nil {
				results[s] = r
			}
		},
	}
}

// importNeeds are the files of an import.
func importNeeds(plan *inherit.Plan) (self confine.Self) {
	for i := range plan.Steps {
		s := &plan.Steps[i]
		for _, d := range s.Disks {
			for _, f := range d.Files {
				self.Read = append(self.Read, f.Path)
			}
		}
		for _, d := range s.Point.Disks { // qemu-nbd is started anew
			self.Read = append(self.Read, d.Path)
			if d.KeyFile != "" {
				self.Read = append(self.Read, d.KeyFile)
			}
		}
		for _, f := range s.Files {
			if f.Data == nil {
				self.Read = append(self.Read, f.Path)
			}
		}
	}
	return self
}

// importJSON is what import --json prints.
type importJSON struct {
	Domain string            `json:"domain"`
	DryRun bool              `json:"dry_run,omitempty"`
	Points []importPointJSON `json:"points"`
	Notes  []string          `json:"notes,omitempty"`
}

type importPointJSON struct {
	State      inherit.State    `json:"state"`
	Reason     string           `json:"reason,omitempty"` // why it is refused
	Checkpoint string           `json:"checkpoint,omitempty"`
	UUID       string           `json:"uuid,omitempty"`
	Created    *time.Time       `json:"created,omitempty"`
	TimeFrom   string           `json:"time_from,omitempty"`
	From       string           `json:"from"`
	Disks      []importDiskJSON `json:"disks"`
}

type importDiskJSON struct {
	Disk        string           `json:"disk"`
	Format      string           `json:"format"`
	VirtualSize int64            `json:"virtual_size"` // with held_bytes: of a disk that could be opened
	HeldBytes   int64            `json:"held_bytes"`
	Files       []importFileJSON `json:"files"`
	*importedJSON
}

type importFileJSON struct {
	Path  string     `json:"path"`
	Size  int64      `json:"size"`
	Mtime *time.Time `json:"mtime,omitempty"`
}

// importedJSON is what became of a disk that this run imported.
type importedJSON struct {
	Mode            string `json:"mode"`
	ReasonCode      string `json:"reason_code"`
	Reason          string `json:"reason"`
	IncrementalFrom string `json:"incremental_from,omitempty"`
	DataBytes       int64  `json:"data_bytes"`
	StoredBytes     int64  `json:"stored_bytes"`
	ReusedBytes     int64  `json:"reused_bytes"`
}

func viewImport(plan *inherit.Plan, results map[*inherit.Step]*backup.Result, dryRun bool) *importJSON {
	out := &importJSON{Domain: plan.Domain, DryRun: dryRun, Points: []importPointJSON{}, Notes: plan.Notes}
	for i := range plan.Steps {
		s := &plan.Steps[i]
		p := importPointJSON{State: s.State, Checkpoint: s.Checkpoint, From: s.From, TimeFrom: s.Time, Disks: []importDiskJSON{}}
		if s.Refused != nil {
			p.Reason = s.Refused.Error()
		}
		if s.As != nil {
			p.Checkpoint, p.UUID = s.As.Name, s.As.UUID
		}
		if !s.Made.IsZero() {
			p.Created = &s.Made
		}
		for _, d := range s.Disks {
			p.Disks = append(p.Disks, viewImportDisk(&d, results[s]))
		}
		out.Points = append(out.Points, p)
	}
	return out
}

func viewImportDisk(d *inherit.Disk, r *backup.Result) importDiskJSON {
	out := importDiskJSON{Disk: d.Name, Format: string(d.Format), VirtualSize: d.Size, HeldBytes: d.Data, Files: []importFileJSON{}}
	for _, f := range d.Files {
		one := importFileJSON{Path: f.Path, Size: f.Size}
		if f.Mtime != 0 {
			t := time.Unix(0, f.Mtime).UTC()
			one.Mtime = &t
		}
		out.Files = append(out.Files, one)
	}
	if r == nil {
		return out
	}
	if rec, ok := r.Manifest.Disk(d.Name); ok {
		out.importedJSON = &importedJSON{
			Mode: rec.Mode, ReasonCode: rec.ReasonCode, Reason: rec.Reason,
			DataBytes: rec.DataBytes, StoredBytes: rec.StoredBytes, ReusedBytes: rec.ReusedBytes,
		}
		if rec.IncrementalFrom != nil {
			out.IncrementalFrom = rec.IncrementalFrom.Name
		}
	}
	return out
}

// printImport prints a plan, and what became of it.
func (a *app) printImport(plan *inherit.Plan, results map[*inherit.Step]*backup.Result, dryRun bool) error {
	if a.json {
		return a.printJSON(viewImport(plan, results, dryRun))
	}
	t := &table{out: a.out}
	for i := range plan.Steps {
		s := &plan.Steps[i]
		name, made, what := s.Checkpoint, "", string(s.State)
		if s.As != nil {
			name = s.As.Name
		}
		if !s.Made.IsZero() {
			made = shortTime(s.Made)
		}
		if s.Refused != nil {
			what += ": " + s.Refused.Error()
		}
		for k, d := range s.Disks {
			if k > 0 {
				name, made, what = "", "", ""
			}
			t.row(cmp.Or(name, "-"), made, d.Name, readFrom(s, k), size(d.Data)+" data", stored(results[s], d.Name), what)
		}
	}
	return t.print()
}

// readFrom names what a disk of a point is read from.
func readFrom(s *inherit.Step, disk int) string {
	d := s.Point.Disks[disk]
	text := fmt.Sprintf("%s (%s)", oneLine(d.Path), d.Format)
	if n := len(s.Disks[disk].Files); n > 1 {
		text += fmt.Sprintf(" over %s", count(n-1, "file"))
	}
	return text
}

// stored says how much of a disk was stored, if it was imported now.
func stored(r *backup.Result, disk string) string {
	if r == nil {
		return ""
	}
	rec, ok := r.Manifest.Disk(disk)
	if !ok {
		return ""
	}
	return size(rec.StoredBytes) + " stored"
}
