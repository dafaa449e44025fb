// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/imgbackup/imgbackup/backup"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/internal/spool"
	"github.com/imgbackup/imgbackup/internal/usage"
	"github.com/imgbackup/imgbackup/qcow2"
	"github.com/imgbackup/imgbackup/request"
)

const backupHelp = `backup archives the disks of a shut-down domain in one transaction, and makes a
checkpoint: a dirty bitmap in every qcow2 image records what is written from now on, so that the
next backup need only take that.

--mode auto is incremental where the image's bitmap stands every check; else it reads the whole disk,
stores what differs from the newest archived state, and says why. --mode incremental ends with exit
status 4 instead. While a VM runs, the backup ends with 5; while it reads, no VM can be started.

Where no disk is named, they are those of the domain's newest checkpoint from this host, or of its
definition in /etc/libvirt/qemu. lima:NAME and pve:VMID are VMs of Lima and Proxmox VE.`

const backupManual = `Formats are never guessed; a comma in a path is doubled.

--mode full reads everything, and relies on nothing of an older checkpoint: what the repository
has already is read back and proven before it counts, and else stored again.

--audit reads everything, as though there were no bitmap, and reports every range that changed and that the
bitmap calls unchanged. The archive is right either way; the exit status is 3 if there is any, and the bitmaps
that are older than the new one are removed.

An image of which no file was touched since its newest checkpoint (by inode, size and times) is not read
again, but for samples: that is how raw images and others without bitmaps stay cheap. --read-unchanged reads
it all the same. Times are believed on local file systems that keep them (ext4, XFS, Btrfs, F2FS, ZFS, tmpfs, overlayfs)
and until the host is started again; --trust-times believes them everywhere. --skip-unchanged makes no
checkpoint where nothing of the domain has changed, be it disks, definition or firmware: list and show tell when
that was seen last.

An image to which no bitmap can be added (no room, a quota or limit, read-only, no qemu-img) is archived
without one, and what the next backup has to read because of it is said. A disk that has another name than
before goes on, if the bitmap in its image shows which one it was.

--clone reads clones of the images, so that the VM may start again at once: where the file system clones
files (XFS with reflink=1, Btrfs, bcachefs), every image with all that lies below it is cloned under the locks,
when the new bitmap stands, and the locks are given up. always fails where that can't be done, before anything is
written; auto goes on under the locks then, and where less than 16 MiB are to be read, and says so. For how long no
VM could have the images is printed. Clones have no names and go with the process; what the guest writes
meanwhile takes space of its own. From then on nothing is written to the images: old bitmaps, or the new one if the
backup fails, are taken out by the next backup, before it adds its own.

--salvage saves what can be read of an image on a disk that fails. Around what cannot be read it asks for
smaller and smaller pieces, down to 4 KiB; the rest is stored as zeros, recorded as lost, listed, and the
exit status is 3. Such a checkpoint is marked wherever it is shown, and restores only with --skip-damaged. The
next backup reads what was lost again, whatever the bitmap says. A bitmap is added as always, which writes to
the disk: --no-checkpoint does not.

A --disk is TARGET=PATH,format=FORMAT. qcow2 and raw are read natively; luks, vmdk, vhdx, vdi, qed and
encrypted qcow2 (keyfile=FILE holds the passphrase) through qemu-nbd, and always by content. backupmode=
and incremental= give one disk a mode of its own. A qcow2 over a raw data file goes by content, too, since
whoever writes to that file past QEMU leaves no mark; --trust-raw-data-file, or trustraw=yes of a disk, says
that nobody does.

With --target, once for each disk, the disks go to files or block devices instead (push mode), full unless
an incremental is asked for (also since a bitmap of the image: bitmap=NAME of a disk), and a checkpoint is made only if --checkpoint names one. The repository is
needed for an incremental or a checkpoint. An incremental qcow2 holds the clusters that changed, and reads as
the disk once it is put over the backup before it: qemu-img rebase -u -b BASE -F qcow2 FILE. An incremental
raw file holds the changes and reads as zeros elsewhere; with reuse=yes they are written into the file that
is there. A --target is TARGET=PATH and may have more:

    driver=qcow2|raw                          default: qcow2
    backing=FILE,backingformat=qcow2|raw      recorded in the file, not opened
    cluster_size=SIZE                         default: the image's own
    reuse=yes                                 write into the raw file there

--domain-xml names a domain's definition, as libvirt keeps it or virsh dumpxml prints it. DOMAIN is then the
definition's name, and every disk of it is taken that can be written to, or the backup fails; --disk only says
what differs: --disk vdb,backup=no. Volumes of storage pools are found through --pools DIR. --backup-xml and
--checkpoint-xml describe the backup as libvirt's domainbackup and domaincheckpoint do. Disks to which the
backup XML gives targets are written there, and else into the repository. A FILE of - is standard input.
--print-xml prints the XML with all that was left out filled in, as libvirt fills it in, and stops: it needs no
repository and no images. --all-domains takes every definition (*.xml) in a folder, --parallel of them at once: each is a
transaction of its own, and one that fails keeps no other from being done. Together they take no more memory than --parallel
times 256 MiB, nor than there is (of less than 96 MiB for each, fewer go on at once), and read no more than --limit-rate.

lima:NAME is an instance of Lima's (in LIMA_HOME, or ~/.lima), pve:VMID a VM of this node's Proxmox VE. Their disks, with formats and backing
files, and whether they run, are found as their managers have them, and the definition is archived; --disk says what differs. A disk that can't be
read from here fails the backup, by name. docs/vms.md has which storages are read, and how a VM is brought back.

--with-file archives any other file of up to 64 MiB beside the disks, read at the same instant: a script, a key, what another program
knows of the VM. restore --output DIR puts it into DIR under its NAME, a plain name without a slash. A backup that names no disk takes
those of the last one again.

--compression takes a number as well, from 0 (none) to 4 (best).`

const backupExamples = `  imgbackup backup web --disk vda=/vm/a.qcow2,format=qcow2 --disk vdb=/dev/vg/web,format=raw
  imgbackup backup web --disk vda=/vm/web.qcow2,format=qcow2 --target vda=/b/full.qcow2 --checkpoint c1
  virsh dumpxml web | imgbackup backup --domain-xml -
  imgbackup backup pve:100 --with-file storage.cfg=/etc/pve/storage.cfg
  imgbackup backup --all-domains /etc/libvirt/qemu`

// backupOptions are the command line of backup.
type backupOptions struct {
	request.Backup
	folder   string // of definitions: all of them are taken
	parallel int    // of these at once; 0: as usual
	printXML bool
	force    bool
	dryRun   bool
}

func (a *app) backupCommand() *cobra.Command {
	var o backupOptions
	cmd := &cobra.Command{
		Use:         "backup [DOMAIN] {--disk TARGET=PATH,format=FORMAT … | --domain-xml FILE | --all-domains DIR}",
		Short:       "Back up a shut-down domain's disks",
		SuggestFor:  []string{"save", "push"},
		Long:        backupHelp,
		Annotations: exits(exitDamage, exitNotTrusted, exitInUse, exitTaken, exitInterrupted),
		Example:     backupExamples,
		Args:        takes(cobra.MaximumNArgs(1), "at most one DOMAIN"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := o.complete(cmd.Flags(), args); err != nil {
				return err
			}
			return a.runBackup(cmd.Context(), o)
		},
	}
	o.addFlags(cmd.Flags())
	addUnusual(cmd.Flags(), &a.unusual)
	addManual(cmd, backupManual+"\n\n"+unusualManual)
	return a.addProgress(cmd)
}

func (o *backupOptions) addFlags(f *pflag.FlagSet) {
	f.StringArrayVar(&o.Disks, "disk", nil, "`TARGET=PATH`,format=qcow2|raw, and more (man page); may be repeated")
	addXMLFlags(f, &o.XML)
	f.StringArrayVar(&o.WithFiles, "with-file", nil, "archive this file, too: `NAME=PATH`; may be repeated")
	f.StringVar(&o.folder, "all-domains", "", "every domain whose definition (*.xml) is in this `DIR`")
	f.IntVar(&o.parallel, "parallel", 0, parallelUsage)
	f.BoolVar(&o.printXML, "print-xml", false, "print the completed XML and do nothing else")
	f.StringVar(&o.Mode, "mode", string(backup.Auto), "`MODE`: auto, full or incremental")
	f.StringVar(&o.Engine.Since, "incremental", "", "since this `CHECKPOINT` (default: the newest that can be trusted)")
	f.StringVar(&o.Engine.Bitmap, "bitmap", "", "with --target: since the bitmap of this `NAME` in the images, be it a checkpoint's or not")
	f.StringVar(&o.Engine.Checkpoint, "checkpoint", "", "`NAME` of the new checkpoint (default: made from the time)")
	f.StringVar(&o.Engine.Description, "description", "", "`TEXT` to keep with the checkpoint")
	f.StringArrayVar(&o.Engine.Tags, "tag", nil, "give it this `TAG` (keep: never forgotten); may be repeated")
	f.BoolVar(&o.dryRun, "dry-run", false, "print the plan and write nothing")
	f.StringArrayVar(&o.Targets, "target", nil, "write a disk to a file: `TARGET=PATH`[,driver=qcow2|raw]…; all or none")
	f.BoolVar(&o.force, "force", false, "replace files that exist, and write to block devices")
	f.StringVar(&o.Compression, "compression", "fastest", "`LEVEL`: none, fastest, default, better or best")
	f.StringVar((*string)(&o.Engine.Clone), "clone", "", "`WHEN` to clone the images, so that the VM may start while they are read: auto, always or never (default)")
	f.StringVar(&o.LimitRate, "limit-rate", "", "read at most this many `BYTES` per second, as 50M")
	f.DurationVar(&o.Engine.MaxLock, "max-lock", 0, "give up after this `TIME` under the images' locks, as 30m")
	f.BoolVar(&o.Engine.NoCheckpoint, "no-checkpoint", false, "write nothing into the images, so that no bitmap begins here")
	f.BoolVar(&o.Engine.LibvirtNames, "libvirt-names", false, "add bitmaps, too, of the checkpoint's name alone, for libvirt")
	f.BoolVar(&o.Engine.Salvage, "salvage", false, "zeros for what a failing disk cannot read, listed; status 3")
	f.BoolVar(&o.Engine.NoVerify, "no-verify", false, "do not decode each compressed chunk before it is stored")
	f.BoolVar(&o.Engine.SkipUnchanged, "skip-unchanged", false, "make no checkpoint if nothing has changed since the newest")
	f.BoolVar(&o.Engine.Audit, "audit", false, "read everything, and report what changed past the bitmaps")
	f.BoolVar(&o.Engine.ReadUnchanged, "read-unchanged", false, "read images that nobody has touched since, too")
	f.BoolVar(&o.Engine.TrustTimes, "trust-times", false, "believe files' times on any file system, and across a restart")
	addImageFlags(f, &o.Engine)
	addAdoptFlag(f, &o.Engine)
	section(f, whichDisks, "disk", "domain-xml", "all-domains", "allow-dir")
	section(f, whatIsDone, "mode", "incremental", "checkpoint", "no-checkpoint", "audit", "skip-unchanged", "salvage", "dry-run")
	section(f, byXML, "backup-xml", "checkpoint-xml")
	section(f, toFiles, "target", "force")
	section(f, howItRuns, "clone", "compression")
}

// complete takes what is no flag, and refuses flags that exclude each other.
func (o *backupOptions) complete(f *pflag.FlagSet, args []string) (err error) {
	if o.folder != "" && len(args) > 0 {
		return usage.Errorf("--all-domains takes the names from the definitions: no DOMAIN can be given")
	}
	if o.Domain, err = givenDomain(args); err != nil {
		return err
	}
	switch {
	case f.Changed("parallel") && o.folder == "":
		return usage.Errorf("--parallel is for several domains: --all-domains DIR")
	case f.Changed("parallel") && o.parallel < 1:
		return usage.Errorf("--parallel %d: want a number from 1 on", o.parallel)
	}
	err = errors.Join(
		exclude(f, "all-domains", "disk", "tpm-state", "incremental", "domain-xml", "backup-xml", "checkpoint-xml", "print-xml", "target"),
		exclude(f, "salvage", "target"),
		exclude(f, "clone", "target"),
		notEmpty(f, "clone"),
		exclude(f, "backup-xml", "disk", "mode", "incremental", "target", "bitmap"),
		exclude(f, "bitmap", "incremental", "all-domains"),
		notEmpty(f, "checkpoint", "incremental", "bitmap"),
	)
	if err != nil {
		return err
	}
	if !f.Changed("mode") {
		o.Mode = "" // as the rest says
	}
	return o.Check()
}

func (a *app) runBackup(ctx context.Context, o backupOptions) error {
	switch {
	case o.printXML:
		return a.printXML(o.Backup)
	case o.folder != "":
		return a.backupAll(ctx, o)
	}
	if err := a.takeLast(ctx, &o.Backup, o.Domain); err != nil {
		return err
	}
	job, err := a.backupJob(o.Backup)
	switch {
	case err != nil:
		return err
	case len(job.Targets) > 0 && o.Engine.Salvage:
		return usage.Errorf("--salvage is for archives: what cannot be read is recorded in the repository")
	case len(job.Targets) > 0:
		return a.push(ctx, job, o)
	case o.force:
		return usage.Errorf("--force replaces files that --target names, and there is none")
	}
	defer a.dropAhead()
	repo, err := a.openCachedFor(ctx, job.Request.Domain)
	if err == nil {
		err = resolveLatest(ctx, repo, &job.Request)
	}
	if err != nil {
		return err
	}
	plan, result, err := a.carryOut(ctx, repo, job.Request, o.dryRun, false)
	switch {
	case err != nil:
		return err
	case o.dryRun:
		return a.printPlan(plan, job.Request.LeftOut)
	}
	return errors.Join(a.tellBackup(result, job.Request.LeftOut), salvaged(result.Manifest))
}

// tellBackup prints a result. What cannot be printed has been done all the same.
func (a *app) tellBackup(r *backup.Result, left []chain.LeftOut) error {
	err := a.printBackup(r, left)
	var write *fs.PathError
	if errors.As(err, &write) && r.Manifest != nil {
		return fmt.Errorf("checkpoint %s of %s is made, and the result could not be written: %w", r.Manifest.Checkpoint, r.Manifest.Domain, err)
	}
	return err
}

// backupJob makes the request, and passes on what a person should know of it.
func (a *app) backupJob(b request.Backup) (request.Job, error) {
	b.XML.Managers.Root = a.managersRoot
	job, err := b.Job(a.in)
	a.noteAll(job.Notes)
	return job, err
}

func (a *app) noteAll(notes []string) {
	for _, n := range notes {
		a.note(n)
	}
}

// printXML prints the completed XML.
func (a *app) printXML(b request.Backup) error {
	in, err := b.XML.Read(a.in)
	if err != nil {
		return err
	}
	if _, err := in.DomainName(b.Domain); err != nil {
		return err
	}
	todo, checkpoint, err := in.Complete(b.Engine.Checkpoint, time.Now())
	if err != nil {
		return err
	}
	if a.json {
		out := struct {
			Backup     string `json:"backup"`
			Checkpoint string `json:"checkpoint,omitempty"`
		}{Backup: string(todo.Format())}
		if checkpoint != nil {
			out.Checkpoint = string(checkpoint.Format())
		}
		return a.printJSON(out)
	}
	text := todo.Format()
	if checkpoint != nil {
		text = append(text, checkpoint.Format()...)
	}
	_, err = a.out.Write(text)
	return err
}

// carryOut returns a plan, in a dry run, or else a result. several: others come after it.
func (a *app) carryOut(ctx context.Context, repo *chain.Repository, req backup.Request, dryRun, several bool) (*backup.Plan, *backup.Result, error) {
	bar := a.newBar("backing up " + req.Domain)
	req.Tool, req.TempDir, req.IndexEvery = tool(), spool.TempDir(), a.indexEvery
	req.Known, req.KnownLimit = a.knownFolder()
	hooks := a.hooks(bar)
	var err error
	if req.Cloner, err = a.cloner(req.Clone); err != nil {
		return nil, nil, err
	}
	if !several && (req.Cloner == nil || !wantsClone(&req)) {
		hooks.Opened = func(images []*qcow2.Image) error {
			a.makeCache(ctx, repo)
			return a.restrict(backupNeeds(&req, images), writes(repo))
		}
	}
	if dryRun {
		plan, err := backup.DryRun(ctx, repo, req, hooks)
		return plan, nil, sayCheckpoints(ctx, repo, req.Domain, err)
	}
	a.expect(req)
	result, err := backup.Run(ctx, repo, req, hooks)
	bar.clear()
	err = sayCheckpoints(ctx, repo, req.Domain, err)
	a.settle(ctx, err)
	return nil, result, err
}

// planJSON is what backup --dry-run --json prints.
type planJSON struct {
	*backup.Plan
	Disks   []diskPlanJSON  `json:"disks"`
	LeftOut []chain.LeftOut `json:"left_out,omitempty"`
}

// diskPlanJSON is the plan for one disk.
type diskPlanJSON struct {
	Name string `json:"disk"`
	*backup.DiskPlan
}

func viewPlan(plan *backup.Plan, left []chain.LeftOut) *planJSON {
	out := &planJSON{Plan: plan, LeftOut: left}
	for _, d := range plan.Disks {
		out.Disks = append(out.Disks, diskPlanJSON{d.Disk, d})
	}
	return out
}

func (a *app) printPlan(plan *backup.Plan, left []chain.LeftOut) error {
	if a.json {
		return a.printJSON(viewPlan(plan, left))
	}
	w := &checkedWriter{w: a.out}
	if plan.Unchanged != nil {
		w.printf("Plan for %s: nothing has changed since %s, so no checkpoint would be made\n", plan.Domain, plan.Unchanged.Name)
		return w.err
	}
	w.printf("Plan for %s (nothing has been written)\n", plan.Domain)
	if err := printDiskPlans(w, plan); err != nil {
		return err
	}
	return w.err
}

func printDiskPlans(w *checkedWriter, plan *backup.Plan) error {
	for _, p := range plan.Disks {
		w.printf("  %s  %s  %s, %s to read\n", p.Disk, describeMode(p), size(p.VirtualSize), size(p.ReadBytes))
		dirty := size(p.DirtyBytes)
		if p.Detection == backup.ByContent {
			dirty = "unknown until it is read"
		}
		w.printf("      dirty: %s; why: %s\n", dirty, p.Reason)
		if p.NoBitmapReason != "" {
			w.printf("      no bitmap is added: %s\n", p.NoBitmapReason)
		}
	}
	return w.err
}

func describeMode(p *backup.DiskPlan) string {
	switch {
	case p.Mode == backup.Full:
		return "full"
	case p.Detection == backup.ByContent:
		return "incremental by content since " + p.Since.Name
	case p.Detection == backup.ByTimes:
		return "unchanged since " + p.Since.Name
	}
	return "incremental since " + p.SinceWhat()
}

// backupJSON is what backup --json prints.
type backupJSON struct {
	Domain     string          `json:"domain"`
	Checkpoint string          `json:"checkpoint"`
	UUID       string          `json:"uuid"`
	Parent     string          `json:"parent,omitempty"`
	Disks      []diskJSON      `json:"disks"`
	LeftOut    []chain.LeftOut `json:"left_out,omitempty"`
	Packs      int64           `json:"packs"`
	PackBytes  int64           `json:"pack_bytes"`
	Seconds    float64         `json:"seconds"`
	Locked     float64         `json:"locked_seconds"`       // for how long no VM could have the images
	Cloned     bool            `json:"cloned"`               // they were read from clones
	NotCloned  string          `json:"not_cloned,omitempty"` // why not, though it was asked for
	Notes      []string        `json:"notes,omitempty"`
	Unchanged  *unchangedJSON  `json:"unchanged,omitempty"`
}

// unchangedJSON says that no checkpoint was made.
type unchangedJSON struct {
	Since string    `json:"since"` // the newest checkpoint
	UUID  string    `json:"uuid"`
	Seen  time.Time `json:"seen"`
}

func (a *app) viewBackup(r *backup.Result, left []chain.LeftOut) *backupJSON {
	if r.Seen != nil {
		return &backupJSON{
			Domain: r.Seen.Domain, Disks: []diskJSON{}, Seconds: r.Elapsed.Seconds(), Notes: r.Notes,
			Unchanged: &unchangedJSON{r.Seen.Checkpoint.Name, r.Seen.Checkpoint.UUID, r.Seen.Time},
		}
	}
	m := r.Manifest
	out := &backupJSON{
		Domain: m.Domain, Checkpoint: m.Checkpoint, UUID: m.UUID, LeftOut: left, Packs: r.Stats.Packs,
		PackBytes: r.Stats.PackBytes, Seconds: r.Elapsed.Seconds(), Notes: r.Notes,
		Locked: r.Locked.Seconds(), Cloned: r.Cloned, NotCloned: r.NotCloned,
	}
	if m.Parent != nil {
		out.Parent = m.Parent.Name
	}
	for i := range m.Disks {
		d := viewDisk(&m.Disks[i])
		d.Lost, d.Unusual = m.Disks[i].Lost, m.Unusual(&m.Disks[i], a.unusual)
		out.Disks = append(out.Disks, d)
	}
	addAudits(out, r.Audits)
	return out
}

// printLocked says for how long no VM could have the images, if that was asked for.
func printLocked(w *checkedWriter, r *backup.Result) {
	locked := r.Locked.Round(time.Millisecond)
	switch {
	case r.Cloned:
		w.printf("  the images were locked for %s, and read from clones\n", locked)
	case r.NotCloned != "":
		w.printf("  the images were locked for %s, and not cloned: %s\n", locked, r.NotCloned)
	}
}

// printBackup prints a result, which may be that a bitmap has lied.
func (a *app) printBackup(r *backup.Result, left []chain.LeftOut) error {
	if a.json {
		return errors.Join(a.printJSON(a.viewBackup(r, left)), auditError(r.Audits))
	}
	w := &checkedWriter{w: a.out}
	if r.Seen != nil {
		w.printf("%s: nothing has changed since %s, so no checkpoint was made\n", r.Seen.Domain, r.Seen.Checkpoint.Name)
		return w.err
	}
	m := r.Manifest
	w.printf("checkpoint %s of %s", m.Checkpoint, m.Domain)
	if m.Parent != nil {
		w.printf(" (after %s)", m.Parent.Name)
	}
	w.printf("\n")
	t := &table{out: a.out, indent: "  "}
	var data, stored int64
	for i := range m.Disks {
		d, p := &m.Disks[i], r.Plan.Disks[i]
		t.row(d.Name, describeMode(p), size(d.DataBytes)+" data", size(d.StoredBytes)+" stored")
		data, stored = data+d.DataBytes, stored+d.StoredBytes
	}
	if w.err == nil {
		w.err = t.print()
	}
	for i := range m.Disks {
		p := r.Plan.Disks[i]
		w.printf("  %s: %s\n", p.Disk, p.Reason)
		if p.NoBitmapReason != "" {
			w.printf("  %s: no bitmap was added: %s\n", p.Disk, p.NoBitmapReason)
		}
	}
	for i := range m.Disks {
		for k := range m.Disks[i].Lost {
			w.printf("  %s\n", lostLine(m.Disks[i].Name, &m.Disks[i].Lost[k]))
		}
	}
	printLocked(w, r)
	printUnusual(w, m, a.unusual)
	printAudits(w, r.Audits)
	w.printf("done in %s: %s of data, %s stored\n", r.Elapsed.Round(10*time.Millisecond), size(data), size(stored))
	return errors.Join(w.err, auditError(r.Audits))
}
