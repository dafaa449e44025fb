// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/drill/guest"
	"github.com/imgbackup/imgbackup/drill/plan"
	"github.com/imgbackup/imgbackup/drill/record"
	"github.com/imgbackup/imgbackup/guestfs"
	"github.com/imgbackup/imgbackup/internal/usage"
)

// drillRequest is the command line of drill.
type drillRequest struct {
	domains    []string
	checkpoint string
	flags      plan.Plan // what flags say, of all domains
	set        *pflag.FlagSet
	noScratch  bool
	each       bool
	planFile   string
	command    string
	timeouts   struct{ step, boot, command string }
	looks      map[string]*guest.Look // what is looked for in the guests of a domain

	report, state, signKey, askedBy string
	noRecord                        bool
	allowDirs                       []string

	plans *plan.File // nil: there is no file
}

const drillHelp = `drill rehearses restores: it takes checkpoints (the newest of each domain by default) through steps that
each pass, fail or are skipped, and says why, and what to do. A step that could not be done is no pass.

    chunks       every chunk of the checkpoint is fetched and proven by its digest
    restore      the disks are written to scratch space and read back (--no-scratch: proven in flight)
    source       the newest: compared with its images, where nothing has written to them since
    image        qemu-img checks what was restored, and compares it with the disks as they are served
    filesystems  they are found and checked, in an appliance of libguestfs; the operating system is recognised
    files        --expect, --expect-newer: files of the guest are as they should be
    boot         --boot-pattern, --boot-agent, --boot-screen: the guest comes up in QEMU, without any network
    command      --command: a program of yours, with the disks over NBD; its exit status counts

The record of a drill is kept in the repository (imgbackup drills). Nothing else changes: no image, and
nothing on this host. The exit status is 0 if all required steps passed, 3 if one failed, and 1 if it could not be
done.`

const drillManual = `Of several checkpoints of a domain the newest goes through all steps, and the others through chunks and restore, in
flight: a chunk is fetched and proven once, however many have it, so that all of them take little longer than one.
--each takes each of them through all steps. A drill that was cut off is gone on with by the same command, if it was
given --state FILE: no chunk is proven again, and no checkpoint drilled twice. Without, --checkpoint undrilled:1d
drills those that have no record of a day.

Required is what --require names; else all steps that are done, but boot, and but source where there is nothing to
compare with. A step that fails is never overlooked, required or not.

--plan FILE is YAML; all of it may be left out, and flags come before it:

    require: [chunks, restore, image, command]
    disks: [vda]
    scratch: /var/tmp          # or none
    timeout: 10m
    skip: [source]
    expect: ["vda:/etc/hostname=~^web$", "vda:/etc/machine-id=sha256:…", "vdb:/dev/sdb1:/data/ok=~yes"]
    expect_newer: ["/var/log=24h"]
    luks_keys: ["vda:/dev/sda2=/etc/imgbackup/web.key"]
    boot:
      pattern: "login: $"
      timeout: 10m
      memory: 1G
    command:
      run: [/usr/local/bin/check-web, --fast]
      expect: all tables are there
      timeout: 30m
    domains:
      web:
        require: [chunks, restore]

A file that is expected lies in the root file system of the operating system that is on its disk, with all that it
mounts, or in the disk's only file system; DISK:DEVICE:/PATH names another, as libguestfs does (/dev/sda is the first
disk of the checkpoint, /dev/vg0/root a logical volume). --expect-newer is about a file, or the newest of all files
below a folder: it has been written to within that time before the checkpoint.

--luks-key opens an encrypted volume (LUKS) for the steps filesystems and files: FILE is the key to its last byte, or a
passphrase and the end of its line. Volumes are opened in the order in which they are named, so that one may lie in
another, and a volume group in them is there afterwards. The key is in no argument, log or record.

A guest is booted with the archived definition, as far as that goes (type of machine, processors and memory up to
bounds, buses, firmware with a copy of its variables, TPM with a copy of its state), under KVM where that works, with
another UUID and other MAC addresses. What it writes goes into scratch space. QEMU has no network, no path of this
host, seccomp filters, and if root runs the drill a user id of its own. The screen is the weakest of the three signs:
it has to be something else than what the firmware shows of a machine without disks.

A program (--command by /bin/sh, or command: run: as it is) has in its environment IMGBACKUP_DRILL_DOMAIN,
IMGBACKUP_DRILL_CHECKPOINT, IMGBACKUP_DRILL_CHECKPOINT_UUID, IMGBACKUP_DRILL_DISKS (their names),
IMGBACKUP_DRILL_SOCKET (of the NBD server), and for each disk IMGBACKUP_DRILL_URI_vda and, if it was restored,
IMGBACKUP_DRILL_PATH_vda, a qcow2 file to be read only. It is ended when it takes too long. What opens a repository is
taken out of its environment: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN,
AWS_CONTAINER_AUTHORIZATION_TOKEN and IMGBACKUP_IDENTITY.

--report DIR writes drill.json, drill.xml (JUnit), drill.html (a page to look at), the records, and what steps have kept: consoles, screens, output.
--sign-key FILE signs each record by ssh-keygen, for the namespace imgbackup-drill:

    ssh-keygen -Y verify -f allowed_signers -I you@example.org -n imgbackup-drill -s UUID.sig <UUID.json`

func (a *app) drillCommand() *cobra.Command {
	var r drillRequest
	cmd := &cobra.Command{
		Use:         "drill [DOMAIN…]",
		Short:       "Rehearse restores, and keep the evidence",
		SuggestFor:  []string{"rehearse", "test", "verify-restore"},
		Long:        drillHelp,
		Annotations: exits(exitDamage, exitInterrupted),
		Example: `  imgbackup drill web
  imgbackup drill --checkpoint all --no-scratch
  imgbackup drill web --checkpoint undrilled:90d --report /var/reports/web --sign-key ~/.ssh/id_ed25519
  imgbackup drill web --expect 'vda:/etc/hostname=~^web$' --expect-newer /var/log=24h --boot-pattern 'login: $'
  imgbackup drill web --command 'nbdinfo "$IMGBACKUP_DRILL_URI_vda"' --command-expect ext4`,
		RunE: func(cmd *cobra.Command, args []string) error {
			r.domains, r.set = args, cmd.Flags()
			if err := notEmpty(r.set, "checkpoint", "plan", "report", "state", "sign-key", "command", "scratch"); err != nil {
				return err
			}
			if err := exclude(r.set, "no-scratch", "scratch"); err != nil {
				return err
			}
			if err := r.complete(); err != nil {
				return err
			}
			return a.drill(cmd.Context(), &r)
		},
	}
	r.addFlags(cmd.Flags())
	addManual(cmd, drillManual)
	return a.addProgress(cmd)
}

func (r *drillRequest) addFlags(f *pflag.FlagSet) {
	f.StringVar(&r.checkpoint, "checkpoint", "latest", "`NAME`, latest, all, random:N, or undrilled:90d")
	f.StringArrayVar(&r.flags.Disks, "disk", nil, "drill only this disk `TARGET`; may be repeated")
	section(f, whichDisks, "checkpoint", "disk")
	f.StringSliceVar(&r.flags.Require, "require", nil, "these `STEPS` must pass (default: all that are done, but boot)")
	f.StringSliceVar(&r.flags.Skip, "skip", nil, "leave these `STEPS` out, as filesystems")
	f.StringArrayVar(&r.flags.Expect, "expect", nil, "a guest's file: `DISK:/PATH=…` sha256:DIGITS or ~REGEX; repeatable")
	f.StringArrayVar(&r.flags.ExpectNewer, "expect-newer", nil, "something below `PATH=24h` was written that late")
	f.StringArrayVar(&r.flags.LUKSKeys, "luks-key", nil, "the key of an encrypted volume: `DISK:DEVICE=FILE`")
	f.StringVar(&r.flags.Boot.Pattern, "boot-pattern", "", "boot the guest until a line of its console has this `REGEX`")
	f.BoolVar(&r.flags.Boot.Agent, "boot-agent", false, "boot the guest until its guest agent answers")
	f.BoolVar(&r.flags.Boot.Screen, "boot-screen", false, "boot the guest until its screen has settled (weaker)")
	f.StringVar(&r.timeouts.boot, "boot-timeout", "", "give the guest this `TIME` (default: 5m, without KVM 15m)")
	f.StringVar(&r.flags.Boot.Memory, "boot-memory", "", "give the guest at most this `SIZE` of memory (default: 2G)")
	f.BoolVar(&r.flags.Emulate, "emulate", false, "go without KVM")
	f.StringVar(&r.planFile, "plan", "", "what is expected of each domain, in a YAML `FILE`")
	f.BoolVar(&r.each, "each", false, "take every checkpoint through all steps, not only the newest")
	f.StringVar(&r.command, "command", "", "run this `COMMAND` on the disks; its exit status counts")
	f.StringVar(&r.flags.Command.Expect, "command-expect", "", "what the command writes must match this `REGEX`")
	f.StringVar(&r.timeouts.command, "command-timeout", "", "end the command after this `TIME` (default: 10m)")
	f.StringArrayVar(&r.allowDirs, "allow-dir", nil, "for the step source: backing files may lie in this `DIR`; may be repeated")
	section(f, whatIsDone, "require", "skip", "plan", "each", "expect", "expect-newer", "luks-key", "boot-pattern", "boot-agent", "boot-screen", "command", "command-expect")
	f.StringVar(&r.flags.Scratch, "scratch", "", "restore to this `DIR` (default: that for temporary files)")
	f.BoolVar(&r.noScratch, "no-scratch", false, "restore nowhere: prove in flight")
	f.StringVar(&r.report, "report", "", "write a report, with what steps kept, into this new `DIR`")
	f.StringVar(&r.state, "state", "", "if the drill is cut off: the same command goes on with this `FILE`")
	f.StringVar(&r.signKey, "sign-key", "", "sign the records with this SSH key `FILE`")
	f.StringVar(&r.askedBy, "asked-by", "", "who asks for the drill, for its record: a `TEXT` (default: this user)")
	f.BoolVar(&r.noRecord, "no-record", false, "leave no record in the repository")
	f.StringVar(&r.timeouts.step, "step-timeout", "", "end a step that runs programs or a guest after this `TIME`")
	section(f, whereTo, "scratch", "no-scratch", "report", "state", "sign-key", "no-record")
}

// complete refuses what makes no sense before anything is opened.
func (r *drillRequest) complete() error {
	for _, d := range r.domains {
		if err := chain.CheckDomain(d); err != nil {
			return usage.Wrap(err)
		}
	}
	if len(r.askedBy) > record.MaxText || !utf8.ValidString(r.askedBy) {
		return usage.Errorf("--asked-by: want at most %d bytes of UTF-8", record.MaxText)
	}
	if r.noScratch {
		r.flags.Scratch = plan.NoScratch
	}
	if r.command != "" {
		r.flags.Command.Run = []string{"/bin/sh", "-c", r.command}
	}
	for name, to := range map[string]struct {
		text string
		at   *plan.Duration
	}{
		"step-timeout": {r.timeouts.step, &r.flags.Timeout}, "boot-timeout": {r.timeouts.boot, &r.flags.Boot.Timeout},
		"command-timeout": {r.timeouts.command, &r.flags.Command.Timeout},
	} {
		if to.text == "" {
			continue
		}
		t, err := plan.ParseDuration(to.text)
		if err != nil {
			return usage.Errorf("--%s %w", name, err)
		}
		*to.at = plan.Duration(t)
	}
	if err := r.readPlans(); err != nil {
		return err
	}
	r.looks = make(map[string]*guest.Look)
	for _, name := range append([]string{""}, r.plans.Names()...) {
		p := r.planOf(name)
		if err := p.Check(); err != nil {
			return usage.Wrap(err)
		}
		expected, err := guest.Parse(p.Expect, p.ExpectNewer)
		if err != nil {
			return usage.Wrap(err)
		}
		if _, err := bootMemory(&p); err != nil {
			return err
		}
		look := &guest.Look{Expect: expected, Emulate: p.Emulate}
		if r.meant(name) {
			if look.Keys, err = guestfs.ParseKeys(p.LUKSKeys); err != nil {
				return err
			}
		}
		r.looks[name] = look
	}
	return nil
}

// meant reports whether the plan of that name may be used. A key that lies elsewhere need
// not be had for another domain.
func (r *drillRequest) meant(name string) bool {
	if len(r.domains) == 0 {
		return true
	}
	return slices.Contains(r.domains, name) || name == "" && slices.ContainsFunc(r.domains, func(d string) bool {
		return !slices.Contains(r.plans.Names(), d)
	})
}

// readPlans reads the file of plans.
func (r *drillRequest) readPlans() error {
	r.plans = new(plan.File)
	if r.planFile == "" {
		return nil
	}
	data, err := readSmall(r.planFile, plan.MaxFile)
	if err != nil {
		return fmt.Errorf("--plan: %w", err)
	}
	if r.plans, err = plan.Parse(data); err != nil {
		return usage.Errorf("--plan %s: %w", r.planFile, err)
	}
	return nil
}

// readSmall reads a file of at most limit bytes, which may be a pipe.
func readSmall(path string, limit int64) (data []byte, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	data, err = io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(data)) > limit {
		err = fmt.Errorf("%s has more than %d bytes: that is too large", path, limit)
	}
	return data, err
}

// planOf is a domain's plan: what flags say comes before the file.
func (r *drillRequest) planOf(domain string) plan.Plan {
	p, f := r.plans.Of(domain), &r.flags
	given := func(names ...string) bool { return slices.ContainsFunc(names, r.set.Changed) }
	if given("disk") {
		p.Disks = f.Disks
	}
	if given("require") {
		p.Require = f.Require
	}
	if given("skip") {
		p.Skip = f.Skip
	}
	if given("expect") {
		p.Expect = f.Expect
	}
	if given("expect-newer") {
		p.ExpectNewer = f.ExpectNewer
	}
	if given("luks-key") {
		p.LUKSKeys = f.LUKSKeys
	}
	if given("emulate") {
		p.Emulate = f.Emulate
	}
	if given("boot-pattern", "boot-agent", "boot-screen") {
		p.Boot.Pattern, p.Boot.Agent, p.Boot.Screen = f.Boot.Pattern, f.Boot.Agent, f.Boot.Screen
	}
	if given("boot-timeout") {
		p.Boot.Timeout = f.Boot.Timeout
	}
	if given("boot-memory") {
		p.Boot.Memory = f.Boot.Memory
	}
	if given("scratch", "no-scratch") {
		p.Scratch = f.Scratch
	}
	if given("step-timeout") {
		p.Timeout = f.Timeout
	}
	if given("command") {
		p.Command.Run = f.Command.Run
	}
	if given("command-expect") {
		p.Command.Expect = f.Command.Expect
	}
	if given("command-timeout") {
		p.Command.Timeout = f.Command.Timeout
	}
	return p
}

// asker is who asks for a drill where nobody says it.
func asker() string {
	name := os.Getenv("SUDO_USER")
	if name == "" {
		name = os.Getenv("USER")
	}
	if name == "" {
		name = fmt.Sprintf("uid %d", os.Getuid())
	}
	return strings.ToValidUTF8(name[:min(len(name), 255)], "?")
}

// roundMS is a duration of so many milliseconds, for people.
func roundMS(ms int64) time.Duration {
	d := time.Duration(ms) * time.Millisecond
	if d > time.Minute {
		return d.Round(time.Second)
	}
	return d
}
