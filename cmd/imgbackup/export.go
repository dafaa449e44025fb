// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/imgbackup/imgbackup/backup"
	"github.com/imgbackup/imgbackup/backup/pull"
	"github.com/imgbackup/imgbackup/backup/trust"
)

func (a *app) exportCommand() *cobra.Command {
	var (
		job   exportJob
		disks []string
		xml   xmlFlags
	)
	cmd := &cobra.Command{
		Use:   "export [DOMAIN] {--disk TARGET=PATH,format=FORMAT … | --domain-xml FILE} {--socket PATH | --listen ADDRESS}",
		Short: "Offer a shut-down domain's disks over NBD, for a client to pull",
		Long: `export offers the disks of a domain as read-only NBD exports, straight from the
images: libvirt's backup in pull mode, for a domain that is shut down. Each
export is named by its disk's target (or exportname=). A --disk is that of backup,
and may have exportname=NAME, exportbitmap=NAME and checkpoint=no.

With --incremental, or incremental= for one disk, an export has the context
qemu:dirty-bitmap:backup-TARGET (or exportbitmap=), in which is dirty what may
have changed since that checkpoint, over the whole backing chain. An incremental
that cannot be trusted ends with exit status 4, and nothing is served. What was
not asked to be incremental is full and has no such context.

With --checkpoint, a checkpoint without data is made for the same instant, before
the first byte is served, so that the next export can be incremental since it. It
stays whatever becomes of the client.

The images are locked as QEMU locks them for as long as they are served: no VM
can be started on them, and no scratch file is needed. Had something written to
them all the same, the exit status is 5: what was read is not to be relied on.
The repository is needed for an incremental or a checkpoint only.

--domain-xml names a domain's definition, whose writable disks are then served;
--disk only says what differs. --backup-xml and --checkpoint-xml say all of it as
libvirt's domainbackup, with mode='pull', and domaincheckpoint do; scratch files
in it are not used. A FILE of - is standard input.

` + listenHelp + exitHelp(exitDamage, exitNotTrusted, exitInUse, exitTaken, exitInterrupted),
		Example: `  imgbackup export web --disk vda=/vm/web.qcow2,format=qcow2 --socket /run/web.sock --checkpoint c1
  nbdcopy 'nbd+unix:///vda?socket=/run/web.sock' vda.img
  imgbackup export web --disk vda=/vm/web.qcow2,format=qcow2 --socket /run/web.sock --incremental c1 --checkpoint c2
  imgbackup export --domain-xml web.xml --backup-xml pull.xml --checkpoint-xml checkpoint.xml
  nbdinfo --map=qemu:dirty-bitmap:backup-vda 'nbd+unix:///vda?socket=/run/web.sock'`,
		Args: maxArgs(1, "at most one DOMAIN"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := xml.conflicts(cmd.Flags(), args); err != nil {
				return err
			}
			in, err := a.readXML(xml)
			if err != nil {
				return err
			}
			if job.req.Domain, err = domainName(args, in); err != nil {
				return err
			}
			if cmd.Flags().Changed("checkpoint") && job.req.Checkpoint == "" {
				return usageError{errors.New("--checkpoint: the name is empty")}
			}
			if cmd.Flags().Changed("incremental") && job.req.Since == "" {
				return usageError{errors.New("--incremental: the checkpoint's name is empty")}
			}
			flags := make([]diskFlag, len(disks))
			for i, d := range disks {
				if flags[i], err = job.parseDisk(d, in.domain != nil); err != nil {
					return err
				}
			}
			if err := a.describeExport(&job, &in, flags); err != nil {
				return err
			}
			return a.runExport(cmd.Context(), job)
		},
	}
	f := cmd.Flags()
	f.StringArrayVar(&disks, "disk", nil, "`DISK`: TARGET=PATH,format=FORMAT…; may be repeated")
	f.StringVar(&job.req.Since, "incremental", "", "tell what changed since this `CHECKPOINT` in each disk that says nothing else")
	f.StringVar(&job.req.Checkpoint, "checkpoint", "", "make a checkpoint of this `NAME`")
	f.StringVar(&job.req.Description, "description", "", "`TEXT` to keep with the checkpoint")
	xml.addFiles(f)
	job.listen.add(f)
	f.BoolVar(&job.req.NoLock, "no-lock", false, "do not take QEMU's image locks, where the file system has none; recorded in the manifest")
	f.BoolVar(&job.req.Adopt, "adopt", false, "go on with a domain that another host began")
	f.StringArrayVar(&job.req.AllowDirs, "allow-dir", nil, "allow backing and data files in this `DIR`, besides each image's own folder")
	return cmd
}

// exportJob is what one run of export is to do.
type exportJob struct {
	req    backup.Request // an empty mode of a disk: incremental if it or the request names a checkpoint
	names  []pull.Names
	listen listenFlags
}

// parseDisk reads a value of --disk, and keeps what only export wants to know.
func (j *exportJob) parseDisk(value string, defined bool) (diskFlag, error) {
	var n pull.Names
	var none bool
	name := func(to *string) func(string) error {
		return func(val string) error {
			if *to = val; val == "" {
				return errors.New("the name is empty")
			}
			return nil
		}
	}
	f, err := parseDiskFlag(value, defined, diskKey{"exportname", name(&n.Export)}, diskKey{"exportbitmap", name(&n.Bitmap)},
		diskKey{"checkpoint", func(val string) error {
			if none = val == "no"; !none {
				return fmt.Errorf("%q: want no", val)
			}
			return nil
		}})
	n.Target, f.NoCheckpoint = f.Disk, none
	if err == nil && !f.leaveOut {
		j.names = append(j.names, n)
	}
	return f, err
}

// runExport serves the disks until a signal ends it.
func (a *app) runExport(ctx context.Context, j exportJob) error {
	j.req.Mode, j.req.Tool, j.req.TempDir = backup.Auto, "imgbackup "+version(), tempDir()
	if j.req.Checkpoint == "" && (j.req.Description != "" || j.req.Adopt) {
		return usageError{errors.New("--description and --adopt belong to a checkpoint: name it with --checkpoint")}
	}
	if err := pull.Check(j.names); err != nil {
		return err
	}
	repo, err := a.pushRepo(ctx, j.req)
	if err != nil {
		return err
	}
	// Before a checkpoint is made that nobody could pull.
	service, err := a.listenNBD(ctx, j.listen)
	if err != nil {
		return err
	}
	defer service.close()
	served := false
	_, err = backup.Pull(ctx, repo, j.req, backup.Hooks{Note: a.note, Step: a.step}, func(ctx context.Context, disks []backup.Source) error {
		offers, err := pull.New(ctx, disks, j.names, j.req.TempDir)
		if err != nil {
			return err
		}
		defer offers.Close()
		if !service.inherited {
			if err := a.printOffers(j.req, offers, service); err != nil {
				return err
			}
		}
		served = true
		return service.serve(ctx, offers.Exports())
	})
	if err != nil && served && exitCode(ctx, err) == exitInUse {
		return fmt.Errorf("what clients have read is not to be relied on: %w", err)
	}
	return err
}

// offerJSON is one export as export --json shows it. Sizes are in bytes.
type offerJSON struct {
	Target          string       `json:"target"`
	Export          string       `json:"export"`
	URI             string       `json:"uri"`
	VirtualSize     int64        `json:"virtual_size"`
	Mode            backup.Mode  `json:"mode"`
	ReasonCode      trust.Reason `json:"reason_code"`
	Reason          string       `json:"reason"`
	IncrementalFrom string       `json:"incremental_from,omitempty"`
	Context         string       `json:"context,omitempty"` // of what changed
	ChangedBytes    int64        `json:"changed_bytes"`     // of a full disk its size
}

// printOffers tells what is served from now on, and where.
func (a *app) printOffers(req backup.Request, offers pull.Offers, s *nbdService) error {
	if a.json {
		out := struct {
			Domain     string      `json:"domain"`
			Checkpoint string      `json:"checkpoint,omitempty"` // that was made
			Exports    []offerJSON `json:"exports"`
		}{Domain: req.Domain, Checkpoint: req.Checkpoint}
		for _, o := range offers {
			p := o.Source.Plan
			e := offerJSON{
				Target: p.Disk, Export: o.Export.Name, URI: s.uri(o.Export.Name), VirtualSize: o.Export.Size,
				Mode: p.Mode, ReasonCode: p.Code, Reason: p.Reason, Context: o.Context, ChangedBytes: o.Changed,
			}
			if p.Since != nil {
				e.IncrementalFrom = p.Since.Name
			}
			out.Exports = append(out.Exports, e)
		}
		return a.printJSON(out)
	}
	w := &checkedWriter{w: a.out}
	if req.Checkpoint != "" {
		w.printf("checkpoint %s of %s created\n", req.Checkpoint, req.Domain)
	}
	for _, o := range offers {
		p := o.Source.Plan
		w.printf("serving %s  %s, %s, %s", s.uri(o.Export.Name), p.Disk, size(o.Export.Size), describeMode(p))
		if o.Context != "" {
			w.printf(": %s dirty in %s", size(o.Changed), o.Context)
		}
		w.printf("\n")
	}
	return w.err
}
