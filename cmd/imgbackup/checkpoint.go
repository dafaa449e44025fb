// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/imgbackup/imgbackup/chain"
)

func (a *app) checkpointCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "checkpoint",
		Short: "Create, list, delete and redefine checkpoints",
		Long: `A checkpoint is a named point in time of a domain: in each of its disks a
persistent dirty bitmap records what is written from then on. A backup makes
one; these commands make and manage those that hold no data. They follow
libvirt's checkpoints, for domains that are shut down.`,
		Annotations: exits(),
		Example: `  imgbackup checkpoint create web monday --disk vda=/vm/web.qcow2,format=qcow2
  imgbackup checkpoint list web --size
  imgbackup checkpoint delete web monday`,
	}
	cmd.AddCommand(
		a.checkpointCreateCommand(),
		a.checkpointListCommand(),
		a.checkpointDumpXMLCommand(),
		a.checkpointDeleteCommand(),
		a.checkpointRedefineCommand(),
	)
	return group(cmd)
}

func (a *app) printCheckpoint(m *chain.Manifest, what string) error {
	if a.json {
		return a.printJSON(viewCheckpoint(m))
	}
	w := &checkedWriter{w: a.out}
	w.printf("checkpoint %s of %s %s", m.Checkpoint, m.Domain, what)
	if m.Parent != nil {
		w.printf(" (after %s)", m.Parent.Name)
	}
	w.printf("\n")
	for i := range m.Disks {
		d := &m.Disks[i]
		name := "bitmap " + oneLine(d.Bitmap)
		if d.LibvirtBitmap != "" {
			name = fmt.Sprintf("bitmaps %s and %s", d.LibvirtBitmap, d.Bitmap)
		}
		w.printf("  %s  %s in %s\n", d.Name, name, oneLine(d.Source.Path))
	}
	return w.err
}
