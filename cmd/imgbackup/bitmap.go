// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"slices"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/imgbackup/imgbackup/backup/owner"
	"github.com/imgbackup/imgbackup/internal/usage"
)

// ownerFlags say who is asked whose a bitmap is, beside the repository.
type ownerFlags struct {
	also    []string // other repositories
	libvirt string
}

func (o *ownerFlags) add(f *pflag.FlagSet) {
	f.StringArrayVar(&o.also, "also", nil, "ask this `REPO`, too, whose bitmaps are, as --repo; may be repeated")
	f.StringVar(&o.libvirt, "libvirt-checkpoints", owner.LibvirtFolder, "libvirt's checkpoints are in this `DIR`")
}

// places are the repositories that are named.
func (a *app) places(o ownerFlags) []string {
	var all []string
	if place := a.place(); place != "" {
		all = append(all, place)
	}
	return append(all, o.also...)
}

// owners asks all that are named whose bitmaps are.
func (a *app) owners(ctx context.Context, o ownerFlags) (*owner.Known, error) {
	var places []owner.Place
	for _, name := range a.places(o) {
		other, err := a.at(name)
		if err != nil {
			return nil, err
		}
		other.second = true
		repo, err := other.openCached(ctx)
		if err != nil {
			return nil, err
		}
		places = append(places, owner.Place{Name: name, Repo: repo})
	}
	return owner.Read(ctx, places, o.libvirt)
}

func (a *app) bitmapCommand() *cobra.Command {
	cmd := group(&cobra.Command{
		Use:        "bitmap",
		Short:      "Remove bitmaps from images that nobody needs",
		SuggestFor: []string{"bitmaps"},
		Long: `Each dirty bitmap in an image slows every write of its guest, also those of repositories that
were given up, of other programs, and of hosts that are gone. inspect says whose they are.`,
		Annotations: exits(exitDamage, exitInUse, exitInterrupted),
		Example:     "  imgbackup bitmap remove /vm/web.qcow2 --unclaimed --dry-run",
	})
	cmd.AddCommand(a.bitmapRemoveCommand())
	return cmd
}

// bitmapRemoveOptions are the command line of bitmap remove.
type bitmapRemoveOptions struct {
	owner.Request
	owners ownerFlags
	dryRun bool
}

func (a *app) bitmapRemoveCommand() *cobra.Command {
	var o bitmapRemoveOptions
	cmd := &cobra.Command{
		Use:        "remove IMAGE {NAME… | --unclaimed}",
		Short:      "Remove bitmaps from an image",
		SuggestFor: []string{"rm", "delete", "del"},
		Long: `remove takes dirty bitmaps out of a qcow2 image, under the same locks and checks as a backup does: the
named ones, or with --unclaimed all that nobody claims: those of forgotten checkpoints, and those that
neither the repository (nor --also) nor libvirt on this host knows. A bitmap that a checkpoint needs, or
a run that has not ended, stays, and so does any while not all can be read that might need it; --force
removes what is named all the same.`,
		Annotations: exits(exitDamage, exitInUse, exitInterrupted),
		Example: `  imgbackup bitmap remove /vm/web.qcow2 --unclaimed --dry-run
  imgbackup bitmap remove /vm/web.qcow2 virtnbdbackup.0 virtnbdbackup.1
  imgbackup bitmap remove -r /backup --also s3://old/site1 /vm/web.qcow2 --unclaimed`,
		Args: takes(cobra.MinimumNArgs(1), "an IMAGE and NAMEs"),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.Image, o.Names = args[0], args[1:]
			if err := o.check(a.places(o.owners)); err != nil {
				return err
			}
			return a.removeBitmaps(cmd.Context(), o)
		},
	}
	f := cmd.Flags()
	f.BoolVar(&o.Unclaimed, "unclaimed", false, "all that nobody claims who is known here")
	f.BoolVar(&o.dryRun, "dry-run", false, "say what would be removed, and remove nothing")
	f.BoolVar(&o.Force, "force", false, "remove also what a checkpoint needs, or may need")
	f.BoolVar(&o.NoLock, "no-lock", false, "go without QEMU's image locks, where the file system has none")
	o.owners.add(f)
	return cmd
}

func (o *bitmapRemoveOptions) check(places []string) error {
	switch {
	case o.Image == "" || slices.Contains(o.Names, ""):
		return usage.Errorf("a name is empty, as by a variable that is not set")
	case o.Unclaimed && len(o.Names) > 0:
		return usage.Errorf("--unclaimed takes all that nobody claims: no bitmap can be named")
	case !o.Unclaimed && len(o.Names) == 0:
		return usage.Errorf("which bitmaps? give their names, or --unclaimed (imgbackup inspect %s shows them)", o.Image)
	case o.Unclaimed && o.Force:
		return usage.Errorf("--force is for bitmaps that are named")
	case o.Unclaimed && len(places) == 0:
		return usage.Errorf("no repository: give --repo PATH or set IMGBACKUP_REPO, so that it can say what its checkpoints need")
	}
	return nil
}

func (a *app) removeBitmaps(ctx context.Context, o bitmapRemoveOptions) error {
	if len(a.places(o.owners)) == 0 {
		a.note("no repository is named (--repo), so that none was asked whether it needs these bitmaps")
	}
	plan, err := owner.Plan(ctx, o.Request, func(ctx context.Context) (*owner.Known, error) {
		return a.owners(ctx, o.owners)
	})
	var needed *owner.NeededError
	if errors.As(err, &needed) && !o.Unclaimed {
		return errors.Join(err, errors.New("--force removes it all the same"))
	}
	if err != nil {
		return err
	}
	defer plan.Close()
	if o.dryRun {
		return a.printBitmaps(plan, plan.Remove, true)
	}
	names, err := plan.Run(ctx)
	gone := slices.DeleteFunc(slices.Clone(plan.Remove), func(b owner.Bitmap) bool { return !slices.Contains(names, b.Name) })
	return errors.Join(a.printBitmaps(plan, gone, false), err)
}

// removedBitmapsJSON is what bitmap remove --json prints.
type removedBitmapsJSON struct {
	Path   string            `json:"path"`
	DryRun bool              `json:"dry_run"`
	Remove []ownedBitmapJSON `json:"remove"` // that are gone, or would go
	Keep   []ownedBitmapJSON `json:"keep"`
}

type ownedBitmapJSON struct {
	Bitmap string      `json:"bitmap"`
	Owner  owner.Owner `json:"owner"`
}

func viewBitmaps(all []owner.Bitmap) []ownedBitmapJSON {
	out := []ownedBitmapJSON{}
	for _, b := range all {
		out = append(out, ownedBitmapJSON{b.Name, b.Owner})
	}
	return out
}

func (a *app) printBitmaps(p *owner.Removal, gone []owner.Bitmap, dry bool) error {
	if a.json {
		return a.printJSON(removedBitmapsJSON{Path: p.Image, DryRun: dry, Remove: viewBitmaps(gone), Keep: viewBitmaps(p.Keep)})
	}
	verb := "removed"
	if dry {
		verb = "would remove"
	}
	w := &checkedWriter{w: a.out}
	for _, b := range gone {
		w.printf("%s %s (%s)\n", verb, oneLine(b.Name), oneLine(b.Owner.String()))
	}
	for _, b := range p.Keep {
		w.printf("left %s (%s)\n", oneLine(b.Name), oneLine(b.Owner.String()))
	}
	w.printf("%s: %s %s; %d stay\n", oneLine(p.Image), verb, count(len(gone), "bitmap"), len(p.Keep))
	return w.err
}

// ownersToShow are the owners of bitmaps for inspect, which needs no repository: one that
// was not named on the command line and can't be read is only noted. asked: one was.
func (a *app) ownersToShow(ctx context.Context, o ownerFlags) (k *owner.Known, asked bool, err error) {
	byHand := a.repoFlag != "" || len(o.also) > 0
	asked = len(a.places(o)) > 0
	k, err = a.owners(ctx, o)
	if err != nil && !byHand && ctx.Err() == nil {
		a.note("no repository was asked whose the bitmaps are: " + err.Error())
		asked = false
		k, err = owner.Read(ctx, nil, o.libvirt)
	}
	return k, asked, err
}
