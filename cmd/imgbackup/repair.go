// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/chain/check"
	"github.com/imgbackup/imgbackup/chain/repair"
	"github.com/imgbackup/imgbackup/confine"
	"github.com/imgbackup/imgbackup/foreign"
	"github.com/imgbackup/imgbackup/internal/spool"
	"github.com/imgbackup/imgbackup/internal/usage"
	"github.com/imgbackup/imgbackup/keys"
	"github.com/imgbackup/imgbackup/objstore"
	"github.com/imgbackup/imgbackup/objstore/open"
	"github.com/imgbackup/imgbackup/qcow2"
	"github.com/imgbackup/imgbackup/request"
)

// repairOptions are the command line of repair.
type repairOptions struct {
	from     []string
	fromKeys keyFlags
	images   []string
	// rosterKey proves the keys of a repository that has lost its configuration.
	rosterKey string
	dryRun    bool
}

func (a *app) repairCommand() *cobra.Command {
	var o repairOptions
	cmd := &cobra.Command{
		Use:        "repair [--from REPO2 …] [--image TARGET=PATH,format=FORMAT …] [--dry-run]",
		Short:      "Mend a damaged repository",
		SuggestFor: []string{"fix", "heal", "mend", "rebuild"},
		Long: `repair reads the whole repository, as check --read-data does, says what it is going to do, and does it.
What is damaged or missing it fetches from other repositories, whole or chunk by chunk, or takes from images
whose bytes still are what they were: everything is proven by its digest. Indexes and a lost imgbackup.json
are rebuilt. In a bucket with versions, what lies below something that was put on top of it, or
below a marker, is put on top again.

What nobody has any more is recorded as lost: such a checkpoint is marked wherever it is shown, restores with
--skip-damaged, and the next backup reads these ranges again and stores them. Then the exit status is 3.`,
		Annotations: exits(exitDamage, exitKey, exitInterrupted),
		Example: `  imgbackup repair --dry-run
  imgbackup repair --from /mnt/usb/backup
  imgbackup repair --from s3://vm-backups/host1 --image vda=/vm/web.qcow2,format=qcow2`,
		Args: takes(cobra.NoArgs, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error { return a.repair(cmd.Context(), o) },
	}
	f := cmd.Flags()
	f.StringArrayVar(&o.from, "from", nil, "fetch from this repository, a `REPO2` like --repo; may be repeated")
	o.fromKeys.add(f, "from-", "--from")
	f.StringVar(&o.rosterKey, "roster-key", "", "the `KEY` that the key kit shows, if imgbackup.json of an encrypted repository\nis lost and --identity is not one that key add has written")
	f.StringArrayVar(&o.images, "image", nil, "take from this image of a disk: `TARGET=PATH`,format=FORMAT; may be repeated")
	f.BoolVar(&o.dryRun, "dry-run", false, "say what would be done, and write nothing")
	addManual(cmd, `A pack of which only some chunks can be had stays as it is, until a prune removes it: its good chunks, and those
that are found elsewhere, go into new packs, and the next revisions of the manifests name new maps, which do
without it. A checkpoint that lost something earlier gets it back from a repository that has it.

Images are only read. One that a VM has open may be given: a chunk that is being written has another digest. No
image can give back a map, a bitmap or a manifest.

Of an encrypted repository, --from must have the same keys (init --encrypt --keys-of); of one with others, imgbackup copy
brings back what checkpoints lack. What the repository has itself in damaged packs takes the data key to see; images
and whole objects do not. Nothing in it proves its imgbackup.json: an identity file that key add or init --out has
written does, or the roster's key.

Objects of another repository need not be trusted: their digests are known. A manifest is believed, for a
checkpoint whose own is damaged, or whose disk is whole only there: so name no repository that others may write to.

A repair that was cut off is completed by running it again. It waits for nobody, and is refused while a prune has
its mark in the repository.`)
	return a.addProgress(cmd)
}

func (a *app) repair(ctx context.Context, o repairOptions) error {
	store, err := a.store(open.Options{})
	if err != nil {
		return err
	}
	repo, config, err := a.openDamaged(ctx, store, &o)
	if err != nil || repo == nil {
		return err
	}
	if repo, err = a.identify(repo); err != nil {
		return err
	}
	bar := a.newBar("repairing")
	opts := repair.Options{TempDir: spool.TempDir(), Progress: func(e check.Event) {
		bar.set(e.Done, e.Total)
		a.events.set(e.Phase, e.Done, e.Total)
	}}
	for _, place := range o.from {
		from, err := a.openOther(ctx, place, o.fromKeys)
		if err != nil {
			return fmt.Errorf("--from: %w", err)
		}
		opts.From = append(opts.From, repair.Source{Name: place, Repo: from})
	}
	images, err := openImages(ctx, o.images)
	defer func() {
		for _, im := range images {
			_ = im.Close() // it was only read
		}
	}()
	if err != nil {
		return err
	}
	for i, im := range images {
		disk := im.disk
		opts.Images = append(opts.Images, repair.Image{Disk: disk, Name: o.images[i], Size: im.Size(), Reader: im})
	}
	if err := a.restrictRepair(repo, &opts, images); err != nil {
		return err
	}
	plan, err := repair.Make(ctx, repo, opts)
	if err != nil {
		bar.clear()
		return err
	}
	var result *repair.Result
	if !o.dryRun && !plan.Nothing() {
		if !a.json {
			bar.clear()
			if err := a.printRepairPlan(plan); err != nil {
				return err
			}
		}
		result, err = plan.Execute(ctx)
		var stands *chain.MarkStandsError
		if errors.As(err, &stands) && !stands.Mark.Released {
			err = fmt.Errorf("%w (once it has ended, imgbackup prune goes on with what it left)", err)
		}
	}
	bar.clear()
	if err != nil {
		return err
	}
	return a.printRepair(o, config, plan, result)
}

// openDamaged opens a repository, and rebuilds its configuration if that is lost. In a dry
// run it only says so, and there is no repository.
func (a *app) openDamaged(ctx context.Context, store objstore.Store, o *repairOptions) (*chain.Repository, bool, error) {
	repo, err := chain.OpenWith(ctx, store, a.unlock)
	if err == nil || !errors.Is(err, chain.ErrNotRepository) && !archive.IsDamage(err) {
		return repo, false, err
	}
	config, ferr := chain.FindConfig(ctx, store)
	proof := "all manifests name it"
	if errors.Is(ferr, chain.ErrWasEncrypted) {
		config, proof, ferr = a.encryptedConfig(ctx, store, o.rosterKey)
	}
	if ferr != nil {
		return nil, false, fmt.Errorf("%s: %w", a.place(), errors.Join(err, ferr))
	}
	if o.dryRun {
		if a.json {
			return nil, true, a.printJSON(repairJSON{DryRun: true, Config: config.ID})
		}
		w := &checkedWriter{w: a.out}
		w.printf("would rebuild %s of repository %s, as %s; what else is wrong is looked for then\n", chain.ConfigKey, config.ID, proof)
		return nil, true, w.err
	}
	repo, err = chain.RestoreConfig(ctx, store, config, a.unlock)
	if err == nil {
		a.note(fmt.Sprintf("rebuilt %s: this is repository %s, as %s", chain.ConfigKey, config.ID, proof))
	}
	return repo, true, err
}

// encryptedConfig finds out what the configuration of an encrypted repository was, which only what
// is kept elsewhere can prove: a pinned identity, or the roster's key. All keys are tried before
// it is believed. proof says what it was.
func (a *app) encryptedConfig(ctx context.Context, store objstore.Store, rosterKey string) (c *chain.Config, proof string, err error) {
	id, err := keys.RosterOf(ctx, store)
	if err != nil {
		return nil, "", err
	}
	proof = "the key that was given signs its roster"
	if rosterKey == "" {
		pin, err := a.onePin()
		if err != nil {
			return nil, "", err
		}
		if pin.Repository != id {
			return nil, "", &keys.Error{What: fmt.Sprintf("the identity of %s is pinned to repository %s, and the roster here says that it is of %.36q", pin.Name, pin.Repository, id)}
		}
		rosterKey, proof = pin.RosterKey, "the identity of "+pin.Name+" pins it"
	} else if err := keys.CheckRosterKey(rosterKey); err != nil {
		return nil, "", usage.Errorf("--roster-key: %w", err)
	}
	roster, err := keys.ReadRoster(ctx, keys.Place{Store: store, Repository: id, RosterKey: rosterKey})
	if err != nil {
		return nil, "", err
	}
	c = chain.EncryptedConfig(roster.RepositoryID, rosterKey, roster.Generations[0].Created)
	_, err = a.unlock(ctx, store, c)
	return c, proof, err
}

// onePin is what the identity that was given pins.
func (a *app) onePin() (*keys.Pin, error) {
	if _, err := a.identity(""); err != nil { // reads them
		return nil, err
	}
	var pin *keys.Pin
	for _, ids := range a.opened.all {
		if pin != nil && ids.Pin != nil && ids.Pin.Repository != pin.Repository {
			return nil, &keys.Error{What: "the identities that were given are pinned to several repositories: give the one of this repository"}
		}
		if ids.Pin != nil {
			pin = ids.Pin
		}
	}
	if pin == nil {
		return nil, &keys.Error{What: "the repository was encrypted and has lost " + chain.ConfigKey + ", which nothing in it proves: give an identity file that key add or init --out has written, which pins it, or --roster-key, which the key kit has; or put the " + chain.ConfigKey + " of the key kit there"}
	}
	return pin, nil
}

// restrictRepair restricts this process to the repositories, and to images that are open.
func (a *app) restrictRepair(repo *chain.Repository, o *repair.Options, images []openedImage) error {
	all := []used{writes(repo)}
	for _, from := range o.From {
		all = append(all, reads(from.Repo))
	}
	var s confine.Self
	for _, im := range images {
		addImage(&s, im.Image, false)
	}
	return a.restrict(s, all...)
}

// openImage is an image that chunks may be taken from.
type openedImage struct {
	*qcow2.Image
	disk string
}

// openImages opens the images that --image names.
func openImages(ctx context.Context, values []string) (images []openedImage, err error) {
	for _, v := range values {
		reqs, err := request.Images([]string{v})
		if err != nil {
			return images, usage.Errorf("--image: %w", err)
		}
		for _, r := range reqs {
			im, err := qcow2.Open(r.Path, r.Format, qcow2.OpenOptions{
				AllowDirs: r.AllowDirs, Salvage: true, Foreign: foreign.Opener(ctx, foreign.Options{KeyFile: r.KeyFile}),
			})
			if err != nil {
				return images, fmt.Errorf("--image %s: %w", v, err)
			}
			images = append(images, openedImage{im, r.Disk})
		}
	}
	return images, nil
}

// repairJSON is what repair --json prints.
type repairJSON struct {
	DryRun bool           `json:"dry_run"`
	Config string         `json:"rebuilt_config,omitempty"` // the repository's id, if its configuration was lost
	Plan   *repair.Plan   `json:"plan,omitempty"`
	Result *repair.Result `json:"result,omitempty"`
	Whole  bool           `json:"whole"` // nothing is lost or left
}

func (a *app) printRepair(o repairOptions, config bool, plan *repair.Plan, result *repair.Result) error {
	var err error
	switch {
	case a.json:
		out := repairJSON{DryRun: o.dryRun, Plan: plan, Result: result, Whole: plan.Whole()}
		if config {
			out.Config = plan.RepositoryID()
		}
		err = a.printJSON(out)
	case o.dryRun || plan.Nothing():
		err = a.printRepairPlan(plan)
	default:
		w := &checkedWriter{w: a.out}
		w.printf("done: %s fetched (%s), %s and %s written, %s brought up to date, %s\n", count(result.Fetched, "object"), size(result.Bytes),
			count(int(result.Packs), "pack"), count(result.Maps, "map"), count(result.Manifests, "checkpoint"), plural(result.Indexes, "new index", "new indexes"))
		err = w.err
	}
	if err != nil || plan.Whole() {
		return err
	}
	return damageFound{errors.New("not everything can be repaired: what is lost or left is listed")}
}

func (a *app) printRepairPlan(p *repair.Plan) error {
	w := &checkedWriter{w: a.out}
	for _, act := range p.Actions {
		w.printf("%s: %s\n  %s\n", act.Object, oneLine(act.Wrong), describeAction(&act))
	}
	for _, r := range p.Regained {
		w.printf("%s/%s/%s gets back %s that are lost or damaged here, from %s\n", r.Domain, r.Checkpoint, r.Disk, size(r.Bytes), r.From)
	}
	for _, l := range p.Lost {
		for i := range l.Ranges {
			w.printf("%s\n", lostLine(l.Domain+"/"+l.Checkpoint+"/"+l.Disk, &l.Ranges[i]))
		}
	}
	if p.Indexed > 0 {
		w.printf("%s that no index lists will be indexed\n", count(p.Indexed, "pack"))
	}
	if p.Nothing() {
		w.printf("nothing is to be repaired\n")
	}
	return w.err
}

func describeAction(act *repair.Action) string {
	switch act.Do {
	case repair.Fetch:
		return "is fetched from " + act.From
	case repair.Uncover:
		return "is put on top again as it counts"
	case repair.Rebuild:
		return "is rebuilt"
	case repair.Drop:
		return "is taken out: no repository has it. All disks restore; what it told is lost, and the next backup reads everything"
	case repair.Rewrite:
		if act.Kind == check.KindPack {
			return fmt.Sprintf("is done without: %s of it found, %s lost (a prune removes it)", count(act.Found, "chunk"), count(act.Lost, "chunk"))
		}
		return "is done without"
	}
	return "stays as it is: " + act.Why
}
