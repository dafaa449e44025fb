// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/imgbackup/imgbackup/confine"
	"github.com/imgbackup/imgbackup/mount"
)

// mountRequest is the command line of mount.
type mountRequest struct {
	dir        string
	allowOther bool
}

func (a *app) mountCommand() *cobra.Command {
	var r mountRequest
	cmd := &cobra.Command{
		Use:        "mount DIR",
		Short:      "Mount the repository: every checkpoint's disks as raw files",
		SuggestFor: []string{"fuse", "browse"},
		Long: `mount makes the repository a file system at DIR, a folder that is there, for any
program that reads a raw image, read-only:

    DIR/DOMAIN/CHECKPOINT/vda.raw
    DIR/DOMAIN/latest              a link to the newest checkpoint with data

Nothing is restored first. What is read is proven by its digest; what is damaged is
an I/O error of the read that needs it, and of no other. Zeros are holes (SEEK_HOLE).
A checkpoint that is forgotten while a file of it is open is an error from then on.
New checkpoints are seen ten seconds later at most.

It serves until it gets a signal, or somebody unmounts it (fusermount3 -u DIR), and
unmounts then, also where a file is still open. It needs no root, but the package
fuse3. Only the user who mounts can read it, not even root, without --allow-other.
If damage was refused, the exit status is 3; if other requests failed, 1.`,
		Annotations: exits(exitDamage, exitInterrupted),
		Example: `  imgbackup mount /mnt/backups
  cmp /mnt/backups/web/monday/vda.raw /mnt/backups/web/latest/vda.raw
  dd if=/mnt/backups/web/latest/vda.raw of=/dev/vg0/web iflag=direct oflag=direct bs=1M   # the fastest
  losetup --read-only --partscan --show -f /mnt/backups/web/latest/vda.raw   # --allow-other
  qemu-img convert -f raw -O qcow2 /mnt/backups/web/latest/vda.raw web.qcow2`,
		Args: takes(cobra.ExactArgs(1), "a DIR"),
		RunE: func(cmd *cobra.Command, args []string) error {
			r.dir = args[0]
			return a.mount(cmd.Context(), r)
		},
	}
	cmd.Flags().BoolVar(&r.allowOther, "allow-other", false, "let other users read it, too (for users: if /etc/fuse.conf allows it)")
	return cmd
}

func (a *app) mount(ctx context.Context, r mountRequest) error {
	if err := a.checkOutside("DIR", r.dir); err != nil {
		return err
	}
	a.retry.BusyPatience = readPatience
	repo, err := a.openReading(ctx)
	if err == nil {
		err = checkReadsData(repo, "mount")
	}
	if err != nil {
		return err
	}
	failures := requestFailures{told: make(map[string]bool)}
	m, err := mount.Mount(ctx, repo, r.dir, mount.Options{
		Name: a.place(), AllowOther: r.allowOther, Note: a.note,
		Failed: func(path string, err error) {
			if path != "" {
				err = fmt.Errorf("%s: %w", path, err)
			}
			if failures.add(err) {
				fmt.Fprintf(a.err, "imgbackup: %s\n", oneLine(err.Error()))
			}
		},
	})
	if err != nil {
		return err
	}
	if err := a.restrict(confine.Self{}, reads(repo)); err != nil {
		return errors.Join(err, m.Unmount())
	}
	a.serving.Store(true)
	if err := a.printMounted(r.dir); err != nil {
		return errors.Join(err, m.Unmount())
	}
	if err := m.Wait(ctx); err != nil {
		return err
	}
	if err := failures.err(); err != nil {
		return err
	}
	if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, errInterrupted) {
		return cause
	}
	return nil
}

// printMounted tells that the repository can be read from now on.
func (a *app) printMounted(dir string) error {
	if a.json {
		return a.printJSON(struct {
			Repository string `json:"repository"`
			Mounted    string `json:"mounted"`
		}{a.place(), dir})
	}
	w := &checkedWriter{w: a.out}
	w.printf("mounted %s at %s\n", a.place(), dir)
	return w.err
}
