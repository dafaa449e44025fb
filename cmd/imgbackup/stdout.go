// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"os"

	"golang.org/x/term"

	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/internal/usage"
	"github.com/imgbackup/imgbackup/qcow2"
	"github.com/imgbackup/imgbackup/restore"
	"github.com/imgbackup/imgbackup/view"
)

// stdoutPath is the path that means standard output.
const stdoutPath = "-"

// restoreToStdout writes one disk, raw, to standard output. Nothing else goes there.
func (a *app) restoreToStdout(ctx context.Context, repo *chain.Repository, m *chain.Manifest, targets []restore.Target, r restoreRequest) error {
	f, _ := a.data.(*os.File)
	switch {
	case len(targets) > 1:
		return usage.Errorf("--to TARGET=-: one disk at a time goes to stdout")
	case targets[0].Format != qcow2.Raw:
		return usage.Errorf("--to TARGET=-: only raw can be written in order")
	case r.options.Continue || r.options.Verify || r.options.Force || a.json:
		return usage.Errorf("--to TARGET=- has no --continue, --verify, --force or --json")
	case f != nil && term.IsTerminal(int(f.Fd())):
		return usage.Errorf("--to TARGET=-: stdout is a terminal")
	}
	c, err := view.Open(ctx, repo, m, []string{targets[0].Disk}, view.Options{})
	if err != nil {
		return err
	}
	defer c.Close()
	d := c.Disks[0]
	bar := a.newBar("restoring " + m.Checkpoint)
	a.events.expect(m.Domain, d.Name)
	err = d.Stream(ctx, a.data, func(done int64) {
		bar.set(done, d.Size())
		a.events.setDisk(d.Name, string(restore.Writing), done, d.Size())
		a.events.set("", done, d.Size())
	})
	bar.clear()
	if err != nil {
		return fmt.Errorf("what was written to stdout is not complete: %w", err)
	}
	return nil
}
