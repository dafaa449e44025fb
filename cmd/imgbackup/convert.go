// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/internal/usage"
	"github.com/imgbackup/imgbackup/qcow2"
	"github.com/imgbackup/imgbackup/restore"
	"github.com/imgbackup/imgbackup/view"
)

// byQemuImg tells whether what is asked for is written by qemu-img.
func (r *restoreRequest) byQemuImg() (bool, error) {
	plain := !r.convert.Compressed && r.convert.SecretFile == "" && len(r.convert.Settings) == 0
	if plain && (r.format == "" || r.format == string(qcow2.Raw) || r.format == string(qcow2.Qcow2)) {
		return false, nil
	}
	r.convert.Format, r.convert.Verify = r.format, r.options.Verify
	if err := r.convert.Check(); err != nil {
		return false, usage.Errorf("--format: %w", err)
	}
	if r.options.Force || r.options.Continue || r.adjust {
		return false, usage.Errorf("what qemu-img writes has no --force, --continue or --adjust-xml")
	}
	return true, nil
}

// restoreByQemuImg writes the disks in a format that is qemu-img's.
func (a *app) restoreByQemuImg(ctx context.Context, repo *chain.Repository, m *chain.Manifest, targets []restore.Target, r restoreRequest) (err error) {
	var names []string
	for i, t := range targets {
		names = append(names, t.Disk)
		for _, u := range targets[:i] {
			if t.Disk == u.Disk || t.Path == u.Path {
				return usage.Errorf("--to: %s and %s are one disk or one file", t.Disk, u.Disk)
			}
		}
		if err := a.checkOutside("--to", t.Path); err != nil {
			return err
		}
		if t.Path == stdoutPath {
			return usage.Errorf("--to TARGET=-: only raw can be written in order")
		}
	}
	c, err := view.Open(ctx, repo, m, names, view.Options{})
	if err != nil {
		return err
	}
	defer c.Close()
	if r.output != "" {
		if len(r.disks) == 0 && len(m.Files) > 0 {
			a.note("the domain's definition and its firmware's files are restored with raw and qcow2 only")
		}
		switch mkdir := os.Mkdir(r.output, 0o777); {
		case mkdir == nil:
			defer func() {
				if err != nil {
					_ = os.Remove(r.output) // if it is empty
				}
			}()
		case !errors.Is(mkdir, fs.ErrExist):
			return fmt.Errorf("make the targets' folder: %w", mkdir)
		}
	}
	a.events.expect(m.Domain, names...)
	var jobs []restore.QemuImgTarget
	for i, t := range targets {
		jobs = append(jobs, restore.QemuImgTarget{Disk: c.Disks[i], Path: t.Path})
	}
	written, err := restore.RunQemuImg(ctx, jobs, r.convert)
	if err != nil {
		return err
	}
	result := &restore.Result{}
	for i, w := range written {
		d := restore.DiskResult{Disk: names[i], Path: w.Path, Format: r.format, Size: w.Size, Verified: r.convert.Verify}
		if d.Zero, err = c.Disks[i].Zeros(ctx, 0, c.Disks[i].Size()).Bytes(); err != nil {
			return err
		}
		d.Data = c.Disks[i].Size() - d.Zero
		result.Disks = append(result.Disks, d)
		if size := c.Disks[i].Size(); w.Size != size {
			a.note(fmt.Sprintf("disk %s: %s has rounded its size up from %d to %d bytes", names[i], r.format, size, w.Size))
		}
	}
	return a.printRestore(m, result)
}
