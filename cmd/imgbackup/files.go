// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"path"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/crypt"
	"github.com/imgbackup/imgbackup/files"
	"github.com/imgbackup/imgbackup/guestfs"
	"github.com/imgbackup/imgbackup/internal/spool"
	"github.com/imgbackup/imgbackup/internal/usage"
)

const filesHelp = `files looks at the files in archived disks as their guest has them: nothing is restored, nothing is mounted on
this host, and no root is needed. An appliance of libguestfs reads the disks from the repository; a hostile file
system harms only that. It takes seconds to start with KVM, and half a minute without.

Paths are those of the guest: its root file system with all that it mounts, found by inspection, or the disks' only
file system. Where there is a choice it is told, and --volume makes it.`

const filesManual = `Partitions, logical volumes, RAIDs and LUKS volumes (--luks-key) are looked into, with ext2 to ext4, XFS (package
libguestfs-xfs in Debian), Btrfs, NTFS, FAT and what else the appliance's kernel knows. --volume names one as libguestfs does: /dev/sda is the
first disk of the checkpoint, /dev/sda1 its first partition, /dev/vg0/root a logical volume, btrfsvol:/dev/sda2/home a
subvolume; files volumes lists them. File systems that were not unmounted are shown with their journal replayed, in
scratch space.

Names are shown with what is not printable escaped (\n, \x1b), and \ doubled; --json has them as they are, and in
path_base64 where they are no UTF-8.

The checkpoint may be forgotten meanwhile: then this ends with an error that says so. Where the repository is damaged
in what was not asked for, the result is right, and the exit status 3.`

func (a *app) filesCommand() *cobra.Command {
	cmd := group(&cobra.Command{
		Use:         "files",
		Short:       "Look at files in archived disks, and take them out",
		SuggestFor:  []string{"file", "guestfs", "browse"},
		Long:        filesHelp,
		Annotations: exits(exitDamage, exitInterrupted),
		Example: `  imgbackup files ls web /etc
  imgbackup files cat web --checkpoint monday /etc/fstab`,
	})
	addManual(cmd, filesManual)
	for _, c := range filesCommands() {
		cmd.AddCommand(a.fileCommand(c, nil))
	}
	cmd.AddCommand(a.filesDiffCommand(), a.filesShellCommand())
	return cmd
}

// filesCommands are those that look into one checkpoint.
func filesCommands() []fileCommand {
	return []fileCommand{filesLs(), filesStat(), filesCat(), filesFind(), filesGet(), filesTar(), filesVolumes()}
}

// fileCommand is a command that looks into one checkpoint: by itself, of a domain that is its
// first argument, or as a line of a shell.
type fileCommand struct {
	name, takes, short, long string
	example                  string // of the command by itself
	suggest                  []string
	paths                    string // what its paths are called, for messages
	least, most              int    // paths; most < 0: any number
	here                     bool   // where none is given it is the folder that one is in, or /
	make                     func(a *app, f *pflag.FlagSet) fileWork
}

// fileWork is what a command does.
type fileWork struct {
	before func() error // looks at the flags, before an appliance is started; may be nil
	run    func(ctx context.Context, l *files.Look, paths []string) error
}

// looking is where files are looked for.
type looking struct {
	checkpoint string
	place      guestfs.Place
	keys       []string
	emulate    bool
}

func (r *looking) add(f *pflag.FlagSet) {
	f.StringVar(&r.checkpoint, "checkpoint", "", checkpointUsage)
	r.addWhere(f)
}

// addWhere adds all flags but that of the checkpoint.
func (r *looking) addWhere(f *pflag.FlagSet) {
	f.StringVar(&r.place.Disk, "disk", "", "the file systems on this disk `TARGET`")
	f.StringVar(&r.place.Device, "volume", "", "the file system on this `VOLUME`, as /dev/sda1 or /dev/vg0/root")
	f.StringArrayVar(&r.keys, "luks-key", nil, "the key of an encrypted volume: `[DISK:]DEVICE=FILE`; may be repeated")
	f.BoolVar(&r.emulate, "emulate", false, "go without KVM")
}

// fileCommand makes a command of it; within a shell, if there is one.
func (a *app) fileCommand(c fileCommand, s *filesShell) *cobra.Command {
	var r looking
	cmd := &cobra.Command{Use: c.name, Short: c.short, Long: c.long, SuggestFor: c.suggest, Annotations: exits(exitDamage, exitInterrupted)}
	work := c.make(a, cmd.Flags())
	names := 1
	if s == nil {
		cmd.Use += " DOMAIN"
		cmd.Example = c.example
		r.add(cmd.Flags())
	} else {
		names = 0
	}
	if c.takes != "" {
		cmd.Use += " " + c.takes
	}
	check := cobra.MinimumNArgs(names + c.least)
	if c.most >= 0 {
		check = cobra.RangeArgs(names+c.least, names+c.most)
	}
	what := c.paths
	if s == nil {
		what = "a DOMAIN"
		if c.paths != "" {
			what += " and " + c.paths
		}
	}
	cmd.Args = takes(check, what)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if work.before != nil {
			if err := work.before(); err != nil {
				return err
			}
		}
		if s != nil {
			return work.run(cmd.Context(), s.look, c.pathsFrom(s.at, args))
		}
		return a.lookInto(cmd, args[0], &r, func(ctx context.Context, l *files.Look) error {
			return work.run(ctx, l, c.pathsFrom("/", args[1:]))
		})
	}
	return cmd
}

// pathsFrom are the paths that a command is about.
func (c *fileCommand) pathsFrom(folder string, args []string) []string {
	if len(args) == 0 && c.here {
		return []string{folder}
	}
	return absolute(folder, args)
}

// absolute are paths of the guest as they are from a folder of it.
func absolute(folder string, paths []string) []string {
	all := make([]string, len(paths))
	for i, p := range paths {
		if all[i] = path.Clean(p); !path.IsAbs(p) {
			all[i] = path.Join(folder, p)
		}
	}
	return all
}

// lookInto opens a checkpoint, and looks into it.
func (a *app) lookInto(cmd *cobra.Command, domain string, r *looking, do func(context.Context, *files.Look) error) (err error) {
	ctx := cmd.Context()
	if err := notEmpty(cmd.Flags(), "checkpoint", "disk", "volume"); err != nil {
		return err
	}
	repo, o, err := a.openForFiles(ctx, domain, r)
	if err != nil {
		return err
	}
	l, err := a.openLook(ctx, repo, domain, r, o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	return do(ctx, l)
}

// openForFiles opens the repository, if its data can be read by the keys that are here.
func (a *app) openForFiles(ctx context.Context, domain string, r *looking) (*chain.Repository, files.Options, error) {
	o := files.Options{Place: r.place, Emulate: r.emulate, TempDir: spool.TempDir(), Note: a.note}
	if err := chain.CheckDomain(domain); err != nil {
		return nil, o, usage.Wrap(err)
	}
	if d := r.place.Device; d != "" {
		if err := guestfs.CheckDevice(guestfs.Base(d)); err != nil {
			return nil, o, usage.Errorf("--volume: %w", err)
		}
	}
	var err error
	if o.Keys, err = guestfs.ParseKeys(r.keys); err != nil {
		return nil, o, err
	}
	a.retry.BusyPatience = readPatience
	repo, err := a.openReading(ctx)
	if err != nil {
		return nil, o, err
	}
	if !archive.OpensChunks(repo.Store) {
		return nil, o, &crypt.KeyError{Half: crypt.Data, What: "is needed to look at files (roles drill and admin have it)"}
	}
	o.Cache = a.keptFolder()
	return repo, o, nil
}

// openLook opens one checkpoint.
func (a *app) openLook(ctx context.Context, repo *chain.Repository, domain string, r *looking, o files.Options) (*files.Look, error) {
	m, err := find(ctx, repo, domain, r.checkpoint, withData)
	if err != nil {
		return nil, err
	}
	if d := r.place.Disk; d != "" {
		if _, ok := m.Disk(d); !ok {
			return nil, usage.Errorf("checkpoint %s has no disk %.80q", m.Checkpoint, d)
		}
	}
	return files.Open(ctx, repo, m, o)
}
