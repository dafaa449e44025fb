// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/confine"
	"github.com/imgbackup/imgbackup/internal/usage"
	"github.com/imgbackup/imgbackup/nbd"
	"github.com/imgbackup/imgbackup/objstore"
	"github.com/imgbackup/imgbackup/request"
	"github.com/imgbackup/imgbackup/serve"
	"github.com/imgbackup/imgbackup/view"
)

// serveRequest is the command line of serve.
type serveRequest struct {
	domain     string
	checkpoint string
	disks      []string
	since      []string
	cow        []string
	fill       bool
	limitRate  string
	listen     listenFlags
}

const serveManual = `Clients are told what is data and what is zero (base:allocation), and what changed against older checkpoints
(qemu:dirty-bitmap:NAME): the parent, or those that --changes-since names.

What is written with --cow goes into a scratch file per disk, FILE and FILE.map. A server that is started again with
the same file goes on from the last flush at least. The scratch file is of use together with the checkpoint only.

With --fill all the rest is copied into it, too, beside the guest, whose requests go first; when it is complete and
durable, which is told, FILE is the disk, a raw image that needs nothing else. A server that is started again goes on
with it, and without room it waits. Clients are served as before, until it is stopped.`

func (a *app) serveCommand() *cobra.Command {
	var r serveRequest
	cmd := &cobra.Command{
		Use:        "serve DOMAIN [CHECKPOINT] {--socket PATH | --listen ADDRESS | --http ADDRESS}",
		Short:      "Offer an archived checkpoint over NBD or HTTP, at once",
		SuggestFor: []string{"mount", "nbd"},
		Long: `serve offers the disks of a checkpoint (the newest by default) over NBD, straight
out of the repository: nothing is restored first. Each disk is an export named by
its target. What is read is proven by its digest; what is damaged is an I/O error
of the request that needs it, and of no other.

--cow makes the disks writable, for example to boot a virtual machine from the archive, which stays as it
is; --fill copies everything into FILE beside the guest, until FILE is the disk.

` + listenHelp + `
If clients were refused what is damaged, it is 3; if other requests failed, 1.`,
		Annotations: exits(exitDamage, exitInUse, exitInterrupted),
		Example: `  imgbackup serve web --socket /run/web.sock
  qemu-img convert -f raw -O qcow2 'nbd+unix:///vda?socket=/run/web.sock' web.qcow2
  nbdcopy -- [ imgbackup serve web --checkpoint monday --disk vda ] web.raw
  imgbackup serve web --http localhost:8080 & curl -r 0-511 http://localhost:8080/web/monday/vda
  imgbackup serve web --cow vda=/vm/web.raw --fill --limit-rate 100M --socket /run/web.sock
  qemu-system-x86_64 -m 2G -drive file='nbd+unix:///vda?socket=/run/web.sock',format=raw`,
		Args: takes(cobra.RangeArgs(1, 2), "a DOMAIN and perhaps a CHECKPOINT"),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			r.domain = args[0]
			if r.checkpoint, err = checkpointArg(args, 1, r.checkpoint); err != nil {
				return err
			}
			if err := notEmpty(cmd.Flags(), "checkpoint"); err != nil {
				return err
			}
			r.listen.given(cmd.Flags())
			return a.serve(cmd, r)
		},
	}
	f := cmd.Flags()
	f.StringVar(&r.checkpoint, "checkpoint", "", checkpointUsage)
	f.StringArrayVar(&r.disks, "disk", nil, "offer only this disk `TARGET`; may be repeated")
	f.StringArrayVar(&r.since, "changes-since", nil, "tell what changed since this older `CHECKPOINT` (default: the parent); may be repeated")
	f.StringArrayVar(&r.cow, "cow", nil, "writable: `TARGET=FILE`, may be repeated, or a folder for TARGET.cow of each disk")
	f.BoolVar(&r.fill, "fill", false, "copy everything into the files of --cow, beside the guest, until they are the disks")
	f.StringVar(&r.limitRate, "limit-rate", "", "let --fill copy at most this many `BYTES` of data per second, as 50M")
	section(f, whichDisks, "checkpoint", "disk", "changes-since", "cow")
	section(f, whatIsDone, "fill")
	section(f, howItRuns, "limit-rate")
	r.listen.add(f)
	addManual(cmd, serveManual)
	return a.addProgress(cmd)
}

// readPatience is how long a client waits for bytes that the store refuses to give, for
// having too much to do, before it is told of an error: as long as in an outage.
const readPatience = 5 * time.Minute

func (a *app) serve(cmd *cobra.Command, r serveRequest) (err error) {
	ctx := cmd.Context()
	if err := chain.CheckDomain(r.domain); err != nil {
		return usage.Wrap(err)
	}
	if r.listen.http != "" && len(r.cow) > 0 {
		return usage.Errorf("--cow needs NBD: over HTTP disks are only read")
	}
	filler, err := a.newFiller(r)
	if err != nil {
		return err
	}
	a.retry.BusyPatience = readPatience
	repo, err := a.openReading(ctx)
	if err == nil {
		err = checkReadsData(repo, "serve")
	}
	if err != nil {
		return err
	}
	m, err := find(ctx, repo, r.domain, r.checkpoint, withData)
	if err != nil {
		return err
	}
	older := olderStates{repo: repo, m: m}
	if older.others, err = a.olderThan(cmd, repo, m, r.since); err != nil {
		return err
	}
	c, err := view.Open(ctx, repo, m, r.disks, view.Options{})
	if err != nil {
		return err
	}
	defer c.Close()
	files, err := cowFiles(c, r.cow)
	if err != nil {
		return err
	}
	var exports []nbd.Export
	var cows []*serve.Cow
	for _, d := range c.Disks {
		var cow *serve.Cow
		if path := files[d.Name]; path != "" {
			if err := a.checkOutside("--cow", path); err != nil {
				return err
			}
			if cow, err = serve.OpenCow(c, d, path, a.note); err != nil {
				return err
			}
			defer func() { err = errors.Join(err, cow.Close()) }()
			cows = append(cows, cow)
		}
		states, err := older.of(ctx, d.Name)
		if err != nil {
			return err
		}
		e, err := serve.Export(ctx, c, d, cow, states)
		if err != nil {
			return err
		}
		exports = append(exports, e)
	}
	service, err := a.listenNBD(ctx, r.listen)
	if err != nil {
		return err
	}
	defer service.close()
	service.under(m.UUID, m.Domain, m.Checkpoint)
	if service.http && (r.checkpoint == "" || r.checkpoint == request.Latest) {
		service.latest = m.Domain + "/" + request.Latest + "/"
	}
	err = service.announce(
		func() error { return a.restrict(service.needs(confine.Self{}), reads(repo)) },
		func() error { return a.printServed(m, exports, files, service) })
	if err != nil {
		return err
	}
	filled := filler.start(ctx, repo, m, cows, service)
	return errors.Join(service.serve(ctx, exports), filled())
}

// servedJSON is one export as serve --json shows it. Sizes are in bytes.
type servedJSON struct {
	diskNames
	URI         string   `json:"uri"`
	VirtualSize int64    `json:"virtual_size"`
	Contexts    []string `json:"contexts"`
	Cow         string   `json:"cow,omitempty"` // the scratch file of a writable disk
}

// printServed tells what is served from now on, and where.
func (a *app) printServed(m *chain.Manifest, exports []nbd.Export, cow map[string]string, s *nbdService) error {
	if a.json {
		out := struct {
			Domain     string       `json:"domain"`
			Checkpoint string       `json:"checkpoint"`
			Exports    []servedJSON `json:"exports"`
		}{Domain: m.Domain, Checkpoint: m.Checkpoint}
		for _, e := range exports {
			d := servedJSON{diskNames: diskNamed(e.Name), URI: s.uri(e.Name), VirtualSize: e.Size, Cow: cow[e.Name]}
			for _, c := range e.Contexts {
				d.Contexts = append(d.Contexts, c.Name)
			}
			out.Exports = append(out.Exports, d)
		}
		return a.printJSON(out)
	}
	w := &checkedWriter{w: a.out}
	for _, e := range exports {
		how := "read-only"
		if file := cow[e.Name]; file != "" {
			how = "writable, into " + file
		}
		w.printf("serving %s  %s of %s at %s, %s, %s\n", s.uri(e.Name), e.Name, m.Domain, m.Checkpoint, size(e.Size), how)
	}
	return w.err
}

// olderThan are the checkpoints that changes are told against: those named, or the
// parent, if it is there and holds data.
func (a *app) olderThan(cmd *cobra.Command, repo *chain.Repository, m *chain.Manifest, names []string) ([]*chain.Manifest, error) {
	var all []*chain.Manifest
	seen := make(map[string]bool)
	for _, name := range names {
		o, err := find(cmd.Context(), repo, m.Domain, name, withData)
		if err != nil {
			return nil, err
		}
		switch {
		case seen[name]:
			return nil, usage.Errorf("--changes-since %s is given twice", name)
		case o.Sequence >= m.Sequence:
			return nil, usage.Errorf("--changes-since %s: it is not older than %s", name, m.Checkpoint)
		case o.Kind != chain.KindArchive:
			return nil, fmt.Errorf("--changes-since %s: it holds no data to compare with, it is only in the images", name)
		}
		seen[name] = true
		all = append(all, o)
	}
	if len(names) > 0 || m.Parent == nil {
		return all, nil
	}
	parent, err := repo.Manifest(cmd.Context(), m.Domain, m.Parent.Name)
	switch {
	case errors.Is(err, objstore.ErrNotFound):
		a.note(fmt.Sprintf("its parent %s was forgotten: what changed since is not offered (--changes-since names another)", m.Parent.Name))
	case err != nil:
		a.note(fmt.Sprintf("what changed since the parent %s cannot be determined: %v", m.Parent.Name, err))
	case parent.UUID != m.Parent.UUID || parent.Kind != chain.KindArchive:
		a.note(fmt.Sprintf("what changed since the parent %s cannot be determined: its data are not in the repository", m.Parent.Name))
	default:
		all = append(all, parent)
	}
	return all, nil
}

// olderStates finds the states of a checkpoint's disks at other checkpoints.
type olderStates struct {
	repo   *chain.Repository
	m      *chain.Manifest
	others []*chain.Manifest

	history []*chain.Manifest // of the domain, read when a disk may have been renamed
}

// of returns the states that have data of a disk: one that came later has nothing to
// be compared with there.
func (o *olderStates) of(ctx context.Context, disk string) ([]chain.DiskState, error) {
	var all []chain.DiskState
	for _, other := range o.others {
		st, has, err := o.at(ctx, other, disk)
		if err != nil {
			return nil, err
		}
		if has && st.HasData() {
			all = append(all, st)
		}
	}
	return all, nil
}

// at is the disk at another checkpoint, under whatever name, if it was there.
func (o *olderStates) at(ctx context.Context, other *chain.Manifest, disk string) (chain.DiskState, bool, error) {
	if d, has := other.Disk(disk); has {
		return chain.DiskState{Manifest: other, Disk: d}, true, nil
	}
	if o.history == nil {
		var err error
		if o.history, _, err = o.repo.Manifests(ctx, o.m.Domain); err != nil {
			return chain.DiskState{}, false, err
		}
	}
	states, both := chain.StatesOfBoth(o.history, o.m, disk, other)
	if !both {
		return chain.DiskState{}, false, nil
	}
	st, has := states.WithUUID(other.UUID)
	return st, has, nil
}

// cowFiles says which scratch file each disk has.
func cowFiles(c *view.Checkpoint, values []string) (map[string]string, error) {
	files := make(map[string]string)
	for _, v := range values {
		if fi, err := os.Stat(v); err == nil && fi.IsDir() {
			if len(values) > 1 {
				return nil, usage.Errorf("--cow %s is a folder for all disks: it goes alone", v)
			}
			for _, d := range c.Disks {
				if err := chain.CheckName(d.Name); err != nil {
					return nil, usage.Errorf("disk %.80q cannot name a file: %w", d.Name, err)
				}
				files[d.Name] = filepath.Join(v, d.Name+".cow")
			}
			return files, nil
		}
		target, path, ok := strings.Cut(v, "=")
		if !ok || target == "" || path == "" {
			return nil, usage.Errorf("--cow %q: want TARGET=FILE, or a folder that is there", v)
		}
		known := false
		for _, d := range c.Disks {
			known = known || d.Name == target
		}
		if !known || files[target] != "" {
			return nil, usage.Errorf("--cow %q: no such disk is served, or it is given twice", v)
		}
		files[target] = path
	}
	return files, nil
}
