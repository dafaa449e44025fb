// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/imgbackup/imgbackup/backup"
	"github.com/imgbackup/imgbackup/backup/pull"
	"github.com/imgbackup/imgbackup/backup/trust"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/confine"
	"github.com/imgbackup/imgbackup/internal/spool"
	"github.com/imgbackup/imgbackup/request"
)

const exportHelp = `export offers the disks of a shut-down domain as read-only NBD exports, straight from the images, each
named by its disk: libvirt's backup in pull mode. The images stay locked: no VM can be started on them.

Where no disk is named, they are found as backup finds them.

With --incremental, or incremental= for one disk, the context qemu:dirty-bitmap:backup-TARGET tells what
may have changed since that checkpoint; one that cannot be trusted ends with exit status 4. With
--checkpoint, a checkpoint without data is made for the same instant, for the next export to go on from.

` + listenHelp

const exportManual = `A --disk is that of backup, and may have exportname=NAME (in place of TARGET), exportbitmap=NAME (in place of
backup-TARGET), bitmap=NAME (incremental since that bitmap of the image) and checkpoint=no. What was not asked to be incremental is full and has no context of changes.

The dirty bitmap of an export is told over the whole backing chain. A checkpoint is made before the first byte is
served, and stays whatever becomes of the client.

The images are locked as QEMU locks them for as long as they are served, and no scratch file is needed. Had
something written to them all the same, the exit status is 5: what was read is not to be relied on. The
repository is needed for an incremental or a checkpoint only.

--domain-xml names a domain's definition, whose writable disks are then served; --disk only says what differs.
--backup-xml and --checkpoint-xml say all of it as libvirt's domainbackup, with mode='pull', and domaincheckpoint
do; scratch files in it are not used. A FILE of - is standard input.`

const exportExamples = `  imgbackup export web --disk vda=/vm/web.qcow2,format=qcow2 --socket /run/web.sock --checkpoint c1
  nbdcopy 'nbd+unix:///vda?socket=/run/web.sock' vda.img
  imgbackup export web --disk vda=/vm/web.qcow2,format=qcow2 --socket /run/web.sock --incremental c1 --checkpoint c2
  imgbackup export --domain-xml web.xml --backup-xml pull.xml --checkpoint-xml checkpoint.xml
  nbdinfo --map=qemu:dirty-bitmap:backup-vda 'nbd+unix:///vda?socket=/run/web.sock'`

// exportOptions are the command line of export.
type exportOptions struct {
	request.Export
	listen listenFlags
}

func (a *app) exportCommand() *cobra.Command {
	var o exportOptions
	cmd := &cobra.Command{
		Use:         "export [DOMAIN] [--disk TARGET=PATH,format=FORMAT … | --domain-xml FILE] {--socket PATH | --listen ADDRESS | --http ADDRESS}",
		Short:       "Offer a shut-down domain's disks over NBD or HTTP, for a client to pull",
		SuggestFor:  []string{"pull"},
		Long:        exportHelp,
		Annotations: exits(exitDamage, exitNotTrusted, exitInUse, exitTaken, exitInterrupted),
		Example:     exportExamples,
		Args:        takes(cobra.MaximumNArgs(1), "at most one DOMAIN"),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			err = errors.Join(
				exclude(cmd.Flags(), "backup-xml", "disk", "incremental", "bitmap", "socket", "listen", "http"),
				exclude(cmd.Flags(), "bitmap", "incremental"),
				notEmpty(cmd.Flags(), "checkpoint", "incremental", "bitmap"),
			)
			if err != nil {
				return err
			}
			if o.Domain, err = givenDomain(args); err != nil {
				return err
			}
			o.listen.given(cmd.Flags())
			return a.runExport(cmd.Context(), o)
		},
	}
	o.addFlags(cmd.Flags())
	addManual(cmd, exportManual)
	return cmd
}

func (o *exportOptions) addFlags(f *pflag.FlagSet) {
	f.StringArrayVar(&o.Disks, "disk", nil, "`TARGET=PATH`,format=qcow2|raw, and more (man page); may be repeated")
	f.StringVar(&o.Engine.Since, "incremental", "", "tell what changed since this `CHECKPOINT`")
	f.StringVar(&o.Engine.Bitmap, "bitmap", "", "tell what changed since the bitmap of this `NAME` in the images, be it a checkpoint's or not")
	f.StringVar(&o.Engine.Checkpoint, "checkpoint", "", "make a checkpoint of this `NAME`")
	f.StringVar(&o.Engine.Description, "description", "", "`TEXT` to keep with the checkpoint")
	addXMLFlags(f, &o.XML)
	o.listen.add(f)
	f.BoolVar(&o.Engine.LibvirtNames, "libvirt-names", false, "add bitmaps, too, of the checkpoint's name alone, for libvirt")
	addImageFlags(f, &o.Engine)
	addAdoptFlag(f, &o.Engine)
	section(f, whichDisks, "disk", "domain-xml", "allow-dir", "no-lock")
	section(f, whatIsDone, "incremental", "checkpoint", "description", "adopt")
	section(f, byXML, "backup-xml", "checkpoint-xml")
}

// exportJob makes the request, and tells a person what it leaves out.
func (a *app) exportJob(o *exportOptions) (request.ExportJob, error) {
	o.TLS = o.listen.cert != ""
	o.XML.Managers.Root = a.managersRoot
	job, err := o.Job(a.in)
	a.noteAll(job.Notes)
	if err != nil {
		return job, err
	}
	for _, s := range job.Scratch {
		a.note(fmt.Sprintf("disk %s: the scratch file %s is not used: the images are locked while they are served, and need none", s.Disk, s.Path))
	}
	if s := job.Server; s != nil {
		o.listen.socket, o.listen.address = s.Socket, s.Address
	}
	return job, nil
}

// runExport serves the disks until a signal ends it.
func (a *app) runExport(ctx context.Context, o exportOptions) error {
	if err := a.takeLast(ctx, &o.Export, o.Domain); err != nil {
		return err
	}
	job, err := a.exportJob(&o)
	if err != nil {
		return err
	}
	req := job.Request
	req.Mode, req.Tool, req.TempDir = backup.Auto, tool(), spool.TempDir()
	repo, err := a.repoIfNeeded(ctx, &req)
	if err != nil {
		return err
	}
	// Before a checkpoint is made that nobody could pull.
	service, err := a.listenNBD(ctx, o.listen)
	if err != nil {
		return err
	}
	defer service.close()
	served := false
	_, err = backup.Pull(ctx, repo, req, backup.Hooks{Note: a.note, Step: a.step}, func(ctx context.Context, disks []backup.OpenDisk) error {
		offers, err := pull.New(ctx, disks, job.Names, req.TempDir)
		if err != nil {
			return err
		}
		defer offers.Close()
		service.under(chain.NewUUID(), req.Domain)
		err = service.announce(
			func() error {
				var s confine.Self
				for _, d := range disks {
					addImage(&s, d.Image, true)
				}
				return a.restrict(service.needs(s), writes(repo))
			},
			func() error { return a.printOffers(req, offers, service) })
		if err != nil {
			return err
		}
		served = true
		return service.serve(ctx, offers.Exports())
	})
	err = sayCheckpoints(ctx, repo, req.Domain, err)
	if err != nil && served && exitCode(ctx, err) == exitInUse {
		return fmt.Errorf("what clients have read is not to be relied on: %w", err)
	}
	return err
}

// offerJSON is one export as export --json shows it. Sizes are in bytes.
type offerJSON struct {
	diskNames
	Export          string       `json:"export"`
	URI             string       `json:"uri"`
	VirtualSize     int64        `json:"virtual_size"`
	Mode            backup.Mode  `json:"mode"`
	ReasonCode      trust.Reason `json:"reason_code"`
	Reason          string       `json:"reason"`
	IncrementalFrom string       `json:"incremental_from,omitempty"`
	Bitmap          string       `json:"incremental_bitmap,omitempty"`
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
				diskNames: diskNamed(p.Disk), Export: o.Export.Name, URI: s.uri(o.Export.Name), VirtualSize: o.Export.Size,
				Mode: p.Mode, ReasonCode: p.Code, Reason: p.Reason, Context: o.Context, ChangedBytes: o.Changed, Bitmap: p.Bitmap,
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
