// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/spf13/cobra"
	"golang.org/x/time/rate"

	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/internal/sys"
	"github.com/imgbackup/imgbackup/internal/usage"
	"github.com/imgbackup/imgbackup/nbd"
	"github.com/imgbackup/imgbackup/recovery"
	"github.com/imgbackup/imgbackup/virsh"
)

// recoverRequest is the command line of recover.
type recoverRequest struct {
	domain     string
	checkpoint string
	dir        string
	name       string
	identity   bool
	noStart    bool
	noDefine   bool
	space      bool
	connect    string
	limitRate  string
	all        recoverAllOptions
}

const recoverHelp = `recover brings a domain back at once: libvirt gets its definition and starts it, with its disks served
straight out of the repository. Meanwhile they are copied into DIR/TARGET.raw; when all is there and durable
the definition names these files, and as soon as the VM has been shut down (or at once where it is off)
nothing of this is needed any more, and recover ends.

Until then recover has to run: its end stops the VM at its next request to a disk. Killed or ended anywhere,
it goes on where it was when it is given the same DIR again, and so does the VM.

A domain that libvirt has already, and a file that is there, are never touched. docs/recover.md.`

const recoverManual = `The checkpoint needs the domain's definition (backup --domain-xml). --no-define leaves libvirt alone: the disks
are served at DIR/nbd/sock, for a QEMU that you start, until they are copied and its last connection has ended.

--name and --new-identity are as restore has them: so the domain can stand beside the one that it was.

What the guest writes is in DIR from the first moment. What it had flushed survives everything that a disk's content does;
the rest survives an end of recover, also by kill -9, but for a power cut, after which the guest is reset.

--all is for a host that is gone: every domain of the repository runs from it at once, each in DIR/DOMAIN, and they are copied side by
side. First all is looked at, as by restore --all-domains: whether there is room, whether names are free, what libvirt has;
if anything is in the way nothing is done. Those are started first, one after the other, that started with their host; --start
autostart starts no others, and --start none none. The state of a TPM is put where libvirt looks for it. One that fails keeps
no other from being recovered: it is told, and the exit status is the worst. It ends when all are complete, and were shut
down since. docs/disaster.md.`

func (a *app) recoverCommand() *cobra.Command {
	var r recoverRequest
	cmd := &cobra.Command{
		Use:         "recover {DOMAIN [CHECKPOINT] | --all} --dir DIR",
		Short:       "Run a domain from the archive at once, and copy its disks meanwhile",
		Long:        recoverHelp,
		Annotations: exits(exitDamage, exitInUse, exitInterrupted),
		Example: `  imgbackup recover web --dir /vm/web
  imgbackup recover web --checkpoint monday --dir /vm/web2 --name web2 --new-identity
  imgbackup recover web --dir /vm/web --limit-rate 100M --no-start
  systemd-run --unit recover-web imgbackup recover web --dir /vm/web
  imgbackup recover --all --dir /vm --before '2026-11-28 03:00' --start autostart
  imgbackup recover web --dir /vm/web --no-define &
  qemu-system-x86_64 -m 2G -drive file='nbd+unix:///vda?socket=/vm/web/nbd/sock',format=raw`,
		Args: takes(cobra.MaximumNArgs(2), "a DOMAIN and perhaps a CHECKPOINT"),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if err := errors.Join(r.all.complete(cmd.Flags(), args), notEmpty(cmd.Flags(), "connect")); err != nil {
				return err
			}
			if r.all.all {
				return a.recoverAll(cmd.Context(), r)
			}
			if len(args) == 0 {
				return usage.Errorf("recover takes a DOMAIN and perhaps a CHECKPOINT, or --all")
			}
			r.domain = args[0]
			if r.checkpoint, err = checkpointArg(args, 1, r.checkpoint); err != nil {
				return err
			}
			if err := notEmpty(cmd.Flags(), "checkpoint", "name", "connect"); err != nil {
				return err
			}
			if r.noDefine {
				if err := exclude(cmd.Flags(), "no-define", "name", "new-identity", "no-start", "connect"); err != nil {
					return err
				}
			}
			return a.recover(cmd, r)
		},
	}
	f := cmd.Flags()
	f.StringVar(&r.checkpoint, "checkpoint", "", checkpointUsage)
	f.StringVar(&r.dir, "dir", "", "the disks' files, and all else of the domain, go to `DIR`, which is made if it is not there")
	f.StringVar(&r.name, "name", "", "give the domain this `NAME`")
	f.BoolVar(&r.identity, "new-identity", false, "give it another UUID and other MAC addresses")
	f.BoolVar(&r.noStart, "no-start", false, "define it, and do not start it")
	f.BoolVar(&r.noDefine, "no-define", false, "without libvirt: serve the disks, and copy them")
	f.BoolVar(&r.space, "ignore-space", false, "go on where there seems to be no room for all of the disks")
	f.StringVar(&r.connect, "connect", virsh.DefaultURI, "libvirt is at this `URI`; a recovery that goes on has that of its beginning (with --all: give it again)")
	f.StringVar(&r.limitRate, "limit-rate", "", "copy at most this many `BYTES` of data per second, as 50M")
	section(f, whichDisks, "checkpoint")
	section(f, whereTo, "dir", "connect", "ignore-space")
	section(f, whatIsDone, "name", "new-identity", "no-start", "no-define")
	r.all.addFlags(f)
	section(f, howItRuns, "limit-rate")
	addManual(cmd, recoverManual)
	return a.addProgress(cmd)
}

func (a *app) recover(cmd *cobra.Command, r recoverRequest) (err error) {
	ctx := cmd.Context()
	for _, name := range []string{r.domain, cmp.Or(r.name, r.domain)} {
		if err := chain.CheckDomain(name); err != nil {
			return usage.Wrap(err)
		}
	}
	repo, limit, err := a.beginRecovery(ctx, &r)
	if err != nil {
		return err
	}
	// One that was begun goes on with its own checkpoint, also if there is a newer one by now, and in its own libvirt.
	if was, err := recovery.ReadRecord(r.dir); err == nil && was.Domain == r.domain {
		r.checkpoint = cmp.Or(r.checkpoint, was.Checkpoint)
		if !cmd.Flags().Changed("connect") {
			r.connect = cmp.Or(was.Connect, r.connect)
		}
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	m, err := find(ctx, repo, r.domain, r.checkpoint, withData)
	if err != nil {
		return err
	}
	work := a.newRecovery(r, m, limit)
	rec, err := recovery.Open(ctx, repo, m, work.req)
	if err != nil {
		return err
	}
	defer func() { _ = rec.Close() }() // all that matters is durable
	a.serving.Store(true)
	return work.run(ctx, rec)
}

// beginRecovery opens what recoveries read, and finds out where they go.
func (a *app) beginRecovery(ctx context.Context, r *recoverRequest) (repo *chain.Repository, limit *rate.Limiter, err error) {
	if r.dir == "" {
		return nil, nil, usage.Errorf("no destination: give --dir DIR")
	}
	if r.dir, err = sys.Locate(r.dir); err != nil {
		return nil, nil, fmt.Errorf("--dir: %w", err)
	}
	if limit, err = rateLimiter(r.limitRate); err != nil {
		return nil, nil, err
	}
	a.retry.BusyPatience = readPatience
	repo, err = a.openReading(ctx)
	return repo, limit, err
}

// recoveryWork is a recovery, and how it is told of.
type recoveryWork struct {
	a        *app
	r        recoverRequest
	m        *chain.Manifest
	req      recovery.Request
	bar      *bar
	failures requestFailures
	printed  error // why what has come about could not be told
}

func (a *app) newRecovery(r recoverRequest, m *chain.Manifest, limit *rate.Limiter) *recoveryWork {
	w := &recoveryWork{a: a, r: r, m: m, bar: a.newBar("copying"), failures: requestFailures{told: make(map[string]bool)}}
	service := &nbdService{a: a}
	w.req = recovery.Request{
		Dir: r.dir, Name: r.name, NewIdentity: r.identity, NoStart: r.noStart, IgnoreSpace: r.space, Limit: limit,
		Server: nbd.ServerOptions{
			Memory: a.memory.Part(nbd.ServerMemory, 32<<20),
			Notify: func(err error) { service.tell(err, &w.failures) },
		},
		Note: func(msg string) {
			w.bar.clear()
			a.note(oneLine(msg))
		},
		Progress: func(disk string, done, total int64) {
			w.bar.set(done, total)
			a.beside.set(done, total)
			a.events.setDisk(disk, "filling", done, total)
		},
		Tell: func(e recovery.Event) {
			w.bar.clear()
			if err := a.tellRecovery(m, r, e); w.printed == nil {
				w.printed = err
			}
		},
		Step: a.step,
	}
	if !r.noDefine {
		w.req.Libvirt = &virsh.Connection{URI: r.connect}
		if os.Geteuid() == 0 { // else that is told, and a person's to do
			w.req.TPMs = tpmsOf(r.connect)
		}
	}
	return w
}

// run goes through all that is left of it.
func (w *recoveryWork) run(ctx context.Context, rec *recovery.Recovery) error {
	var disks []string
	for i := range w.m.Disks {
		disks = append(disks, w.m.Disks[i].Name)
	}
	w.a.events.expect(w.m.Domain, disks...)
	err := rec.Run(ctx)
	w.bar.clear()
	return errors.Join(w.a.hintRecover(ctx, w.r, err), w.failures.err(), w.printed)
}

// hintRecover tells how a recovery that was ended goes on.
func (a *app) hintRecover(ctx context.Context, r recoverRequest, err error) error {
	if err != nil && ctx.Err() != nil {
		a.note(fmt.Sprintf("run the same command again, with --dir %s, to go on: until then a VM that runs is stopped at its next request to a disk", r.dir))
	}
	return err
}

// recoveredJSON is an event as recover --json shows it.
type recoveredJSON struct {
	Event      string `json:"event"`
	Domain     string `json:"domain"`
	Checkpoint string `json:"checkpoint"`
	Name       string `json:"name"`
	*diskNames
	Path string `json:"path,omitempty"`
}

func (a *app) tellRecovery(m *chain.Manifest, r recoverRequest, e recovery.Event) error {
	name := cmp.Or(r.name, m.Domain)
	a.events.tell(event{Event: "step", Step: e.Kind, Disk: e.Disk})
	if e.Kind == recovery.EventFilled {
		a.events.diskDone(e.Disk)
	}
	if a.json {
		out := recoveredJSON{Event: e.Kind, Domain: m.Domain, Checkpoint: m.Checkpoint, Name: name, Path: e.Path}
		if e.Disk != "" {
			names := diskNamed(e.Disk)
			out.diskNames = &names
		}
		return a.printJSON(out)
	}
	w := &checkedWriter{w: a.out}
	switch e.Kind {
	case recovery.EventServing:
		w.printf("serving nbd+unix:///%s?socket=%s  %s of %s at %s\n", escapeURI(e.Disk), escapeURI(e.Path), e.Disk, m.Domain, m.Checkpoint)
	case recovery.EventDefined:
		w.printf("defined %s, with disks that are served\n", name)
	case recovery.EventRunning:
		w.printf("running %s\n", name)
	case recovery.EventFilled:
		w.printf("filled %s: it is all of disk %s\n", e.Path, e.Disk)
	case recovery.EventComplete:
		if r.noDefine {
			w.printf("complete: the files in %s are the disks; they may be used once the last client has gone\n", e.Path)
		} else {
			w.printf("complete: the definition of %s names the files in %s from its next start on; shut it down when it suits\n", name, e.Path)
		}
	case recovery.EventRecovered:
		w.printf("recovered %s at checkpoint %s: it is in %s, and nothing else is needed\n", name, m.Checkpoint, e.Path)
	}
	return w.err
}
