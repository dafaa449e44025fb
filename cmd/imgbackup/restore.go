// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/confine"
	dom "github.com/imgbackup/imgbackup/domain"
	"github.com/imgbackup/imgbackup/internal/sys"
	"github.com/imgbackup/imgbackup/internal/usage"
	"github.com/imgbackup/imgbackup/objstore"
	"github.com/imgbackup/imgbackup/qcow2"
	"github.com/imgbackup/imgbackup/restore"
)

// restoreRequest is the command line of restore.
type restoreRequest struct {
	domain     string
	checkpoint string
	revision   string // a version of its manifest; empty: what counts
	disks      []string
	output     string
	to         []string
	inPlace    bool // where the disks were
	format     string
	adjust     bool
	identity   bool   // a new one
	name       string // of the restored domain; empty: as it was
	limitRate  string
	all        allOptions
	options    restore.Options
}

const restoreHelp = `restore writes the disks of a checkpoint (the newest by default), every byte proven by its digest.
Files appear under their final names only when all of them are complete and durable.

What is written is raw unless --format says otherwise. --output DIR writes DIR/TARGET.FORMAT and, of a
backup with --domain-xml, the domain's definition, its firmware's files and what --with-file named. --to names a file, or with
--force a block device; --to TARGET=- writes the raw disk to stdout: look at the exit status, too.`

const restoreManual = `The definition is DIR/DOMAIN.xml, the firmware's files have their own names; with --disk there are none of them.
With --adjust-xml that definition names the files where they are restored; else it is byte by byte what it was.

--name NAME gives the restored domain another name, and --new-identity another UUID and other MAC addresses (and what goes
with them: the generation id, the ids of ports), so that it can stand beside the old one. What the definition still names
that two domains cannot use at once (disks that are not in the backup, devices of the host, ports) is told.

--in-place puts the disks back where they were on this host, in the formats that they had. The old images are kept until
the new ones are complete and durable; then they change places, one right after the other. What is there has to look like what
the checkpoint says of it, and the domain's definition, if this host has it, has to agree; else it is refused, and --force does
it all the same. Devices are overwritten where they are, and always need --force. The firmware's variables, the TPM's state and a
saved memory are not touched: the result says which, and how to put them back.

--all-domains brings every domain of the repository back on a new host: DIR/DOMAIN has its disks, as raw or qcow2 as they were,
its firmware's files, and its definition, which names them there. With --before all are taken back to one instant: each
domain to its newest checkpoint that is not younger. First all is looked at: what the repository holds of each, whether
there is room for all, whether names are free, and with --define what libvirt has. If anything is in the way nothing is
restored, and all that is in the way is told. A domain appears under its name when it is whole and durable, some at once
(--parallel). One that fails keeps no other from being restored: it is told, and the exit status is the worst. A run that was
interrupted goes on when it is started again: what was restored stays as it is, whatever was written to it since. --continue is of
those disks that can. --define has libvirt define each domain once it is restored, puts the state of its TPM where libvirt looks
for it, and has those start with the host that did (as far as the backup saw libvirt's folder autostart beside the definition); it
starts none now. What libvirt has already is never replaced. Definitions are taken from the repository as they are: who
can write to a repository that is not encrypted decides what libvirt will run.

--continue gives a restored qcow2 image the checkpoint's bitmap, so that its next backup is incremental from there.

raw and qcow2 are written natively. Formats that only qemu-img writes, and compressed and encrypted images, are
written by it, which reads from a server as that of serve, over a socket that nobody else can reach; such an image
goes into a file, and has no --continue.

--skip-damaged saves what can be saved of a checkpoint that is damaged, or has lost ranges (a backup with --salvage,
or a repair, found that they could not be had): zeros stand in their place, each range is listed, files that are
damaged are left out, and the exit status is 3. Such a disk has no --continue.

--revision gives back what a checkpoint was before it was forgotten, described anew or put on top of, as long as the bucket keeps
that. Nobody answers for it but who looks at it: list --revisions tells who signed it, and which one counts.

--no-lock goes on where a file system cannot tell whether the target that --force replaces is in use: nobody must
have it open.`

func (a *app) restoreCommand() *cobra.Command {
	var r restoreRequest
	cmd := &cobra.Command{
		Use:         "restore {DOMAIN [CHECKPOINT] {--output DIR | --to TARGET=PATH … | --in-place} | --all-domains --dir DIR}",
		Short:       "Restore disks at any checkpoint",
		SuggestFor:  []string{"extract"},
		Long:        restoreHelp,
		Annotations: exits(exitDamage, exitInUse, exitInterrupted),
		Example: `  imgbackup restore web --output /restored
  imgbackup restore web --checkpoint monday --disk vda --output /restored --format qcow2
  imgbackup restore web --output /restored --format qcow2 --adjust-xml
  imgbackup restore web --output /vm/web2 --format qcow2 --name web2 --new-identity
  imgbackup restore web --to vda=/vm/web.qcow2 --format qcow2 --continue --verify
  imgbackup restore web monday --in-place --continue
  imgbackup restore web --to vda=/dev/vg/web --force
  imgbackup restore web --to vda=web.vmdk --format vmdk --format-option subformat=streamOptimized
  imgbackup restore web --to vda=- | ssh host 'cat >web.raw'
  imgbackup restore --all-domains --dir /vm --parallel 4
  imgbackup restore --all-domains --dir /vm --before '2026-11-28 03:00' --dry-run`,
		Args: takes(cobra.MaximumNArgs(2), "a DOMAIN and perhaps a CHECKPOINT"),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if err := r.all.complete(cmd.Flags(), args); err != nil {
				return err
			}
			if r.all.all {
				return a.restoreAll(cmd.Context(), r)
			}
			if len(args) == 0 {
				return usage.Errorf("restore takes a DOMAIN and perhaps a CHECKPOINT, or --all-domains --dir DIR")
			}
			r.domain = args[0]
			if r.checkpoint, err = checkpointArg(args, 1, r.checkpoint); err != nil {
				return err
			}
			if err := notEmpty(cmd.Flags(), "checkpoint", "name", "revision"); err != nil {
				return err
			}
			if r.revision != "" && r.checkpoint == "" {
				return usage.Errorf("--revision is of a CHECKPOINT that is named")
			}
			if err := exclude(cmd.Flags(), "in-place", "output", "to", "format", "compressed", "secret-file", "format-option", "skip-damaged"); err != nil {
				return err
			}
			return a.restore(cmd, r)
		},
	}
	f := cmd.Flags()
	f.StringVar(&r.checkpoint, "checkpoint", "", checkpointUsage)
	f.StringVar(&r.revision, "revision", "", "in a bucket with versions, the checkpoint as this `ID` of list --revisions has it")
	f.StringArrayVar(&r.disks, "disk", nil, "restore only this disk `TARGET`; may be repeated")
	f.StringVarP(&r.output, "output", "o", "", "write to `DIR`/TARGET.FORMAT; the folder is made if it is not there")
	f.StringArrayVar(&r.to, "to", nil, "write one disk to a file, block device or stdout (-): `TARGET=PATH`; may be repeated")
	f.StringVar(&r.format, "format", "", "`FORMAT`: raw or qcow2 (default: raw; with --continue: qcow2); by qemu-img: vmdk, vhdx, vdi, qed")
	f.BoolVar(&r.options.QemuImg.Compressed, "compressed", false, "compress each cluster of a qcow2 or vmdk, by qemu-img (not with --secret-file)")
	f.StringVar(&r.options.QemuImg.SecretFile, "secret-file", "", "encrypt a qcow2 (LUKS) with the passphrase that is in `FILE`, to its last byte, by qemu-img")
	f.StringArrayVar(&r.options.QemuImg.Settings, "format-option", nil, "`KEY=VALUE` for qemu-img's -o, as subformat=streamOptimized; may be repeated")
	f.BoolVar(&r.adjust, "adjust-xml", false, "let the restored definition of the domain name the restored files")
	f.BoolVar(&r.inPlace, "in-place", false, "replace the images where the disks were, in their own formats")
	f.BoolVar(&r.identity, "new-identity", false, "--adjust-xml, with another UUID and other MAC addresses")
	f.StringVar(&r.name, "name", "", "--adjust-xml, with this `NAME` of the domain")
	f.BoolVar(&r.options.Force, "force", false, "replace a target that exists; write to a block device")
	f.BoolVar(&r.options.Continue, "continue", false, "give the restored qcow2 images the checkpoint's bitmap, so that the next backup is incremental")
	f.BoolVar(&r.options.NoLock, "no-lock", false, "do without locks where a file system has none: nobody else must use the target")
	f.BoolVar(&r.options.Verify, "verify", false, "read what was written again and compare")
	f.BoolVar(&r.options.SkipDamaged, "skip-damaged", false, "write zeros for what is damaged or lost, list it, and end with exit status 3")
	f.StringVar(&r.limitRate, "limit-rate", "", "restore at most this many `BYTES` of data per second, as 50M")
	section(f, whichDisks, "checkpoint", "disk")
	section(f, whereTo, "output", "to", "in-place", "force")
	section(f, whatIsDone, "format", "continue", "adjust-xml", "new-identity", "name", "verify", "skip-damaged")
	r.all.addFlags(f)
	section(f, howItRuns, "limit-rate")
	addManual(cmd, restoreManual)
	return a.addProgress(cmd)
}

// rereads is how often a restore begins anew because its checkpoint was repacked meanwhile.
const rereads = 5

// restoreNow restores a checkpoint, also where a prune repacks it meanwhile.
func (a *app) restoreNow(
	ctx context.Context, repo *chain.Repository, m *chain.Manifest, targets []restore.Target, o restore.Options,
) (*restore.Result, error) {
	for try := 0; ; try++ {
		result, err := restore.Run(ctx, repo, m, targets, o)
		if err == nil {
			return result, nil
		}
		var damage *archive.DamageError
		if errors.As(err, &damage) && o.Stdout == nil && try < rereads && objstore.Doubted(ctx, repo.Store, damage.Object) {
			continue // another version of it is right
		}
		newer, err := repo.Reread(ctx, m, err)
		switch {
		case newer == nil:
			return nil, err
		case o.Stdout != nil || try == rereads:
			return nil, fmt.Errorf("checkpoint %s was repacked by a prune meanwhile: restore it once more", m.Checkpoint)
		}
		a.note("the checkpoint was repacked by a prune meanwhile: its restore begins anew")
		m = newer
	}
}

func (a *app) restore(cmd *cobra.Command, r restoreRequest) error {
	switch {
	case r.output == "" && len(r.to) == 0 && !r.inPlace:
		return usage.Errorf("no destination: give --output DIR, --to TARGET=PATH or --in-place")
	case r.output != "" && len(r.to) > 0:
		return usage.Errorf("--output and --to exclude each other")
	case r.defines() && (r.output == "" || len(r.disks) > 0):
		return usage.Errorf("--adjust-xml, --new-identity and --name go with --output and all disks, where the definition is restored")
	}
	if r.output != "" {
		at, err := sys.Locate(r.output)
		if err != nil {
			return fmt.Errorf("--output: %w", err)
		}
		r.output = at
	}
	format := r.imageFormat()
	if err := r.checkImage(format); err != nil {
		return err
	}
	if err := r.setLimit(); err != nil {
		return err
	}
	for _, name := range []string{r.domain, cmp.Or(r.name, r.domain)} {
		if err := chain.CheckDomain(name); err != nil {
			return usage.Wrap(err)
		}
	}
	repo, err := a.openReading(cmd.Context())
	if err == nil {
		err = checkReadsData(repo, "restore")
	}
	if err != nil {
		return err
	}
	var m *chain.Manifest
	if r.revision != "" {
		m, err = repo.Revision(cmd.Context(), r.domain, r.checkpoint, r.revision)
	} else {
		m, err = find(cmd.Context(), repo, r.domain, r.checkpoint, withData)
	}
	if err != nil {
		return err
	}
	targets, err := a.restoreTargets(cmd.Context(), repo, m, &r, format)
	if err != nil {
		return err
	}
	var adjusted *dom.Adjusted // set when the definition is
	if r.output != "" && len(r.disks) == 0 {
		if r.options.Files, err = restoreFiles(m, r, targets, func(a *dom.Adjusted) { adjusted = a }); err != nil {
			return err
		}
	}
	if err := a.restrict(r.needs(targets), reads(repo)); err != nil {
		return err
	}
	stdout := slices.ContainsFunc(targets, func(t restore.Target) bool { return t.Path == restore.Stdout })
	if stdout {
		if err := a.checkStdout(); err != nil {
			return err
		}
		r.options.Stdout = a.data
	}
	bar := a.newBar("restoring " + m.Checkpoint)
	var disks []string
	for _, t := range targets {
		disks = append(disks, t.Disk)
	}
	a.events.expect(m.Domain, disks...)
	r.options.Progress, r.options.MakeDir = a.restoring(bar), r.output
	result, err := a.restoreNow(cmd.Context(), repo, m, targets, r.options)
	bar.clear()
	if err != nil {
		return hintSkip(err)
	}
	if stdout { // where nothing but the disk goes
		a.noteLost(result)
		return lostSome(result)
	}
	if adjusted != nil {
		a.noteAdjusted(r, adjusted, result)
	} else {
		a.noteDefinition(m, result)
	}
	return errors.Join(a.printRestore(m, result, adjusted), lostSome(result))
}

// needs are the places where files are to appear, whatever the checkpoint calls them.
func (r *restoreRequest) needs(targets []restore.Target) (s confine.Self) {
	if r.output != "" {
		s.Write = append(s.Write, existing(r.output))
	}
	for _, t := range targets {
		if t.Path != restore.Stdout {
			addTarget(&s, t.Path)
		}
	}
	if file := r.options.QemuImg.SecretFile; file != "" {
		s.Read = append(s.Read, file)
	}
	return s
}

// restoring tells of a restore's progress in every way that was asked for.
func (a *app) restoring(bar *bar) func(restore.Event) {
	return func(e restore.Event) {
		if e.Warning != "" {
			bar.clear()
			a.note(e.Warning)
		}
		bar.set(e.Done, e.Total)
		a.beside.set(e.Done, e.Total)
		if e.Disk != "" {
			a.events.setDisk(e.Disk, string(e.Phase), e.DiskDone, e.DiskTotal)
			a.events.set("", e.Done, e.Total)
		}
	}
}

// imageFormat is the one that was named, or the default.
func (r *restoreRequest) imageFormat() qcow2.Format {
	switch {
	case r.format != "":
		return qcow2.Format(r.format)
	case r.options.Continue:
		return qcow2.Qcow2
	}
	return qcow2.Raw
}

// checkImage refuses an image that cannot be made, or not be named in a definition.
func (r *restoreRequest) checkImage(format qcow2.Format) error {
	if err := r.options.QemuImg.Check(format); err != nil {
		return fmt.Errorf("--format: %w", err)
	}
	if r.defines() && (format == "vhdx" || r.options.QemuImg.SecretFile != "") {
		return usage.Errorf("--adjust-xml: libvirt's definitions know no vhdx, and this one not the secret of an encrypted disk")
	}
	return nil
}

// setLimit reads --limit-rate.
func (r *restoreRequest) setLimit() error {
	limit, err := rateLimiter(r.limitRate)
	r.options.Limit = limit
	return err
}

// toTerminal reports whether stdout is a terminal.
func (a *app) toTerminal() bool {
	f, ok := a.data.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// checkStdout refuses to write a disk where it would be mixed with something else, or
// shown to a person.
func (a *app) checkStdout() error {
	if a.toTerminal() {
		return usage.Errorf("--to TARGET=-: stdout is a terminal")
	}
	if a.json {
		return usage.Errorf("--to TARGET=- has no --json")
	}
	return nil
}

func (a *app) restoreTargets(ctx context.Context, repo *chain.Repository, m *chain.Manifest, r *restoreRequest, format qcow2.Format) ([]restore.Target, error) {
	switch {
	case r.inPlace:
		return a.targetsInPlace(ctx, repo, m, r)
	case r.output != "":
		return restore.TargetsIn(m, r.disks, r.output, format)
	}
	var targets []restore.Target
	for _, to := range r.to {
		disk, path, ok := strings.Cut(to, "=")
		if !ok || disk == "" || path == "" {
			return nil, usage.Errorf("--to %q: want TARGET=PATH", to)
		}
		if err := checkToWords(to, path); err != nil {
			return nil, err
		}
		if len(r.disks) > 0 && !slices.Contains(r.disks, disk) {
			return nil, usage.Errorf("--to %q: --disk does not name %s", to, disk)
		}
		t := restore.Target{Disk: disk, Path: path, Format: format}
		if r.format == "" {
			if err := checkToName(t); err != nil {
				return nil, err
			}
		}
		targets = append(targets, t)
	}
	for _, disk := range r.disks {
		if !slices.ContainsFunc(targets, func(t restore.Target) bool { return t.Disk == disk }) {
			return nil, usage.Errorf("--disk %s: no --to says where it goes", disk)
		}
	}
	return targets, nil
}

// restoreJSON is what restore --json prints.
type restoreJSON struct {
	Domain     string `json:"domain"`
	Checkpoint string `json:"checkpoint"`
	*restore.Result
	Disks      []restoredDiskJSON `json:"disks"`
	Definition *adjustedJSON      `json:"definition,omitempty"`
	Untouched  []untouchedJSON    `json:"untouched,omitempty"`
	signedJSON
}

type restoredDiskJSON struct {
	restore.DiskResult
	Target string `json:"target"`
}

func viewRestore(m *chain.Manifest, r *restore.Result, adjusted *dom.Adjusted, untouched []untouchedJSON) restoreJSON {
	out := restoreJSON{Domain: m.Domain, Checkpoint: m.Checkpoint, Result: r, Disks: []restoredDiskJSON{}, Definition: viewAdjusted(adjusted), Untouched: untouched, signedJSON: viewSigned(m)}
	for _, d := range r.Disks {
		out.Disks = append(out.Disks, restoredDiskJSON{d, d.Disk})
	}
	return out
}

func (a *app) printRestore(m *chain.Manifest, r *restore.Result, adjusted *dom.Adjusted) error {
	var untouched []untouchedJSON
	if len(r.Files) == 0 {
		untouched = untouchedBy(m)
	}
	if a.json {
		return a.printJSON(viewRestore(m, r, adjusted, untouched))
	}
	w := &checkedWriter{w: a.out}
	signed := ""
	if s := viewSigned(m); s.By != "" {
		signed = ", signed " + s.String()
	}
	w.printf("restored %s at checkpoint %s%s\n", m.Domain, m.Checkpoint, signed)
	for _, d := range r.Disks {
		how := "written"
		if d.Verified {
			how = "written and read back"
		}
		w.printf("  %s  %s  %s, %s, %s of data %s\n", d.Disk, d.Path, d.Format, size(d.Size), size(d.Data), how)
	}
	a.printLost(w, r)
	for _, f := range r.Files {
		how := ""
		if f.Damage != "" {
			w.printf("  %s  left out: %s\n", f.Called(), oneLine(f.Damage))
			continue
		}
		if f.Adjusted {
			how = ", adjusted" + whoseDefinition(adjusted)
		}
		w.printf("  %s  %s  %s%s\n", f.Called(), f.Path, size(f.Size), how)
	}
	for _, u := range untouched {
		w.printf("  %s  not touched: %s (restore %s %s --output DIR writes that of the checkpoint)\n", (&chain.File{Role: u.Role, Name: u.Name}).Called(), oneLine(u.Path), m.Domain, m.Checkpoint)
	}
	for _, l := range m.LeftOut {
		if l.Code == chain.LeftOutByRequest {
			w.printf("  %s  not in the backup: %s\n", l.Disk, oneLine(l.Reason))
		}
	}
	return w.err
}
