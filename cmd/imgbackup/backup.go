// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"os"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/backup"
	"github.com/imgbackup/imgbackup/chain"
)

func (a *app) backupCommand() *cobra.Command {
	var (
		req         backup.Request
		disks       []string
		mode        string
		compression string
		rate        string
		dryRun      bool
		xml         xmlFlags
		targets     []string
		force       bool
	)
	cmd := &cobra.Command{
		Use:   "backup [DOMAIN] {--disk TARGET=PATH,format=FORMAT … | --domain-xml FILE | --all-domains DIR}",
		Short: "Back up a shut-down domain's disks",
		Long: `backup archives the disks of a domain, all of them in one transaction, and
makes a checkpoint: in every qcow2 image a dirty bitmap is added that records
what is written from now on, so that the next backup need only take that.

The images are locked as QEMU locks them: while a VM runs, the backup ends with
exit status 5, and while they are read, no VM can be started on them.

--mode auto (the default) takes an incremental backup where the image's bitmap
stands every check, and else reads the whole disk and stores what differs from
the newest archived state; it says why. --mode incremental ends with exit
status 4 instead. --mode full stores everything.

A --disk is TARGET=PATH,format=FORMAT; a comma in a path is doubled. The format
is never guessed. qcow2 and raw are read natively; luks, vmdk, vhdx, vdi, qed and
encrypted qcow2 (keyfile=FILE holds the passphrase) through qemu-nbd, and always
by content. backupmode= and incremental= give one disk a mode of its own.

With --target, once for each disk, the disks go to files or block devices
instead (push mode), full unless an incremental is asked for, and a checkpoint
is made only if --checkpoint names one. The repository is needed for an
incremental or a checkpoint. An incremental qcow2 holds the clusters that
changed, and reads as the disk once it is put over the backup before it:
qemu-img rebase -u -b BASE -F qcow2 FILE. An incremental raw file holds the
changes and reads as zeros elsewhere; with reuse=yes they are written into the
file that is there. A --target is TARGET=PATH and may have more:

    driver=qcow2|raw                          default: qcow2
    backing=FILE,backingformat=qcow2|raw      recorded in the file, not opened
    cluster_size=SIZE                         default: the image's own
    reuse=yes                                 write into the raw file there

--domain-xml names a domain's definition, as libvirt keeps it or virsh dumpxml
prints it. DOMAIN is then the definition's name, and every disk of it is taken
that can be written to; --disk only says what differs: --disk vdb,backup=no.
--backup-xml and --checkpoint-xml describe the backup as libvirt's domainbackup
and domaincheckpoint do. Disks to which the backup XML gives targets are written
there, and else into the repository. A FILE of - is standard input. --print-xml
prints the XML with all that was left out filled in, as libvirt fills it in, and
stops: it needs no repository and no images. --all-domains takes every definition
(*.xml) in a folder, one after the other.` + progressHelp + exitHelp(exitDamage, exitNotTrusted, exitInUse, exitTaken, exitInterrupted),
		Example: `  imgbackup backup web --disk vda=/vm/web.qcow2,format=qcow2
  imgbackup backup web --disk vda=/vm/a.qcow2,format=qcow2 --disk vdb=/dev/vg/web,format=raw
  imgbackup backup web --disk vda=/vm/web.qcow2,format=qcow2 --mode incremental --checkpoint monday
  imgbackup backup web --disk vda=/vm/web.qcow2,format=qcow2 --dry-run
  imgbackup backup web --disk vda=/vm/web.qcow2,format=qcow2 --target vda=/b/full.qcow2 --checkpoint c1
  imgbackup backup web --disk vda=/vm/web.qcow2,format=qcow2 --target vda=/b/inc.qcow2 --incremental c1
  virsh dumpxml web | imgbackup backup --domain-xml -
  imgbackup backup --all-domains /etc/libvirt/qemu
  imgbackup backup --domain-xml web.xml --backup-xml backup.xml --print-xml`,
		Args: maxArgs(1, "at most one DOMAIN"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := xml.conflicts(cmd.Flags(), args); err != nil {
				return err
			}
			in, err := a.readXML(xml)
			if err != nil {
				return err
			}
			if xml.print {
				if _, err := domainName(args, in); err != nil {
					return err
				}
				return a.printXML(in, req.Checkpoint)
			}
			if req.Mode, err = backup.ParseMode(mode); err != nil {
				return usageError{fmt.Errorf("--mode: %w", err)}
			}
			if req.Level, err = archive.ParseLevel(compression); err != nil {
				return usageError{fmt.Errorf("--compression: %w", err)}
			}
			if rate != "" {
				n, err := humanize.ParseBytes(rate)
				if err != nil || n == 0 || n > 1<<50 {
					return usageError{fmt.Errorf("--limit-rate %q: want bytes per second, as 50M or 200MiB", rate)}
				}
				req.RateLimit = int64(n)
			}
			if req.MaxLock < 0 {
				return usageError{fmt.Errorf("--max-lock %s: want a time, as 90s or 30m", req.MaxLock)}
			}
			if cmd.Flags().Changed("incremental") && !cmd.Flags().Changed("mode") {
				req.Mode = backup.Incremental
			}
			if cmd.Flags().Changed("checkpoint") && req.Checkpoint == "" {
				return usageError{fmt.Errorf("--checkpoint: the name is empty")}
			}
			if xml.folder != "" {
				return a.backupAll(cmd, req, xml.folder, dryRun)
			}
			if req.Domain, err = domainName(args, in); err != nil {
				return err
			}
			flags := make([]diskFlag, len(disks))
			for i, d := range disks {
				if flags[i], err = parseDiskFlag(d, in.domain != nil); err != nil {
					return err
				}
			}
			left, err := a.describe(&req, &in, flags)
			if err != nil {
				return err
			}
			if len(targets) > 0 || len(in.targets) > 0 {
				to, err := in.pushTargets()
				if err == nil {
					to, err = pushTargets(cmd, targets, to, req)
				}
				if err != nil {
					return err
				}
				return a.push(cmd, req, to, force, dryRun)
			}
			if force {
				return usageError{fmt.Errorf("--force replaces files that --target names, and there is none")}
			}
			return a.backup(cmd, req, left, dryRun)
		},
	}
	f := cmd.Flags()
	f.StringArrayVar(&disks, "disk", nil, "`DISK`: "+diskForm+"; may be repeated")
	xml.add(f)
	f.StringVar(&mode, "mode", "auto", "`MODE`: auto, full or incremental")
	f.StringVar(&req.Since, "incremental", "", "be incremental since this `CHECKPOINT` (default: the newest that can be trusted)")
	f.StringVar(&req.Checkpoint, "checkpoint", "", "`NAME` of the new checkpoint (default: made from the time)")
	f.StringVar(&req.Description, "description", "", "`TEXT` to keep with the checkpoint")
	f.BoolVar(&dryRun, "dry-run", false, "print the plan and write nothing")
	f.StringArrayVar(&targets, "target", nil, "`WHERE` to write a disk: TARGET=PATH[,driver=qcow2|raw]…; for all disks or none")
	f.BoolVar(&force, "force", false, "with --target: replace files that exist, and write to block devices")
	f.StringVar(&compression, "compression", "fastest", "`LEVEL`: "+archive.LevelNames)
	f.StringVar(&rate, "limit-rate", "", "read at most so many `BYTES` per second, as 50M")
	f.DurationVar(&req.MaxLock, "max-lock", 0, "give up rather than keep the images locked for longer than this `TIME`, as 30m")
	f.BoolVar(&req.NoCheckpoint, "no-checkpoint", false, "write nothing into the images; nothing can be incremental by bitmap since this backup")
	f.BoolVar(&req.NoLock, "no-lock", false, "do not take QEMU's image locks, where the file system has none; recorded in the manifest")
	f.BoolVar(&req.NoVerify, "no-verify", false, "do not decode each compressed chunk again before it is stored")
	f.BoolVar(&req.Adopt, "adopt", false, "go on with a domain that another host began")
	f.StringArrayVar(&req.AllowDirs, "allow-dir", nil, "allow backing and data files in this `DIR`, besides each image's own folder")
	return a.addProgress(cmd)
}

// backup carries out a request and prints what came of it.
func (a *app) backup(cmd *cobra.Command, req backup.Request, left []leftOut, dryRun bool) error {
	repo, err := a.openRepo(cmd.Context())
	if err != nil {
		return err
	}
	plan, result, err := a.carryOut(cmd.Context(), repo, req, dryRun)
	switch {
	case err != nil:
		return err
	case dryRun:
		return a.printPlan(plan, left)
	}
	return a.printBackup(result, left)
}

// carryOut returns a plan, in a dry run, or else a result.
func (a *app) carryOut(ctx context.Context, repo *chain.Repository, req backup.Request, dryRun bool) (*backup.Plan, *backup.Result, error) {
	bar := a.newBar("backing up " + req.Domain)
	req.Tool, req.TempDir = "imgbackup "+version(), tempDir()
	hooks := a.hooks(bar)
	if dryRun {
		plan, err := backup.DryRun(ctx, repo, req, hooks)
		return plan, nil, err
	}
	a.expect(req)
	result, err := backup.Run(ctx, repo, req, hooks)
	bar.clear()
	a.settle(ctx, err)
	return nil, result, err
}

// planJSON is what backup --dry-run --json prints.
type planJSON struct {
	*backup.Plan
	LeftOut []leftOut `json:"left_out,omitempty"`
}

func (a *app) printPlan(plan *backup.Plan, left []leftOut) error {
	if a.json {
		return a.printJSON(planJSON{plan, left})
	}
	w := &checkedWriter{w: a.out}
	w.printf("Plan for %s (nothing has been written)\n", plan.Domain)
	if err := printDiskPlans(w, plan); err != nil {
		return err
	}
	return w.err
}

func printDiskPlans(w *checkedWriter, plan *backup.Plan) error {
	for _, p := range plan.Disks {
		w.printf("  %s  %s  %s, %s to read\n", p.Disk, describeMode(p), size(p.VirtualSize), size(p.ReadBytes))
		w.printf("      dirty: %s; why: %s\n", size(p.DirtyBytes), p.Reason)
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
	}
	return "incremental since " + p.Since.Name
}

// backupJSON is what backup --json prints.
type backupJSON struct {
	Domain     string     `json:"domain"`
	Checkpoint string     `json:"checkpoint"`
	UUID       string     `json:"uuid"`
	Parent     string     `json:"parent,omitempty"`
	Disks      []diskJSON `json:"disks"`
	LeftOut    []leftOut  `json:"left_out,omitempty"`
	Packs      int64      `json:"packs"`
	PackBytes  int64      `json:"pack_bytes"`
	Seconds    float64    `json:"seconds"`
	Notes      []string   `json:"notes,omitempty"`
}

func describeBackup(r *backup.Result, left []leftOut) *backupJSON {
	m := r.Manifest
	out := &backupJSON{
		Domain: m.Domain, Checkpoint: m.Checkpoint, UUID: m.UUID, LeftOut: left, Packs: r.Stats.Packs,
		PackBytes: r.Stats.PackBytes, Seconds: r.Elapsed.Seconds(), Notes: r.Notes,
	}
	if m.Parent != nil {
		out.Parent = m.Parent.Name
	}
	for i := range m.Disks {
		out.Disks = append(out.Disks, describeDisk(&m.Disks[i]))
	}
	return out
}

func (a *app) printBackup(r *backup.Result, left []leftOut) error {
	m := r.Manifest
	if a.json {
		return a.printJSON(describeBackup(r, left))
	}
	w := &checkedWriter{w: a.out}
	w.printf("checkpoint %s of %s", m.Checkpoint, m.Domain)
	if m.Parent != nil {
		w.printf(" (after %s)", m.Parent.Name)
	}
	w.printf("\n")
	tab := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
	t := &checkedWriter{w: tab}
	var data, stored int64
	for i := range m.Disks {
		d, p := &m.Disks[i], r.Plan.Disks[i]
		t.printf("  %s\t%s\t%s data\t%s stored\n", d.Name, describeMode(p), size(d.DataBytes), size(d.StoredBytes))
		data, stored = data+d.DataBytes, stored+d.StoredBytes
	}
	if t.err == nil {
		t.err = tab.Flush()
	}
	if t.err != nil {
		return t.err
	}
	for i := range m.Disks {
		p := r.Plan.Disks[i]
		w.printf("  %s: %s\n", p.Disk, p.Reason)
		if p.NoBitmapReason != "" {
			w.printf("  %s: no bitmap was added: %s\n", p.Disk, p.NoBitmapReason)
		}
	}
	w.printf("done in %s: %s of data, %s stored\n", r.Elapsed.Round(10*time.Millisecond), size(data), size(stored))
	return w.err
}

// tempDir is where what does not fit into memory goes: not /tmp, which may be
// memory itself.
func tempDir() string {
	const disk = "/var/tmp"
	if info, err := os.Stat(disk); os.Getenv("TMPDIR") == "" && err == nil && info.IsDir() {
		return disk
	}
	return os.TempDir()
}
