// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/confine"
	"github.com/imgbackup/imgbackup/drill/record"
	"github.com/imgbackup/imgbackup/habit"
)

func (a *app) showCommand() *cobra.Command {
	var checkpoint string
	cmd := &cobra.Command{
		Use:        "show DOMAIN [CHECKPOINT]",
		Short:      "Show one checkpoint",
		SuggestFor: []string{"info", "cat"},
		Long: `show prints what a checkpoint (the newest by default) holds and why each disk was
backed up as it was. With --json it prints the manifest.`,
		Annotations: exits(exitDamage, exitInterrupted),
		Example:     "  imgbackup show web\n  imgbackup show web monday --json",
		Args:        takes(cobra.RangeArgs(1, 2), "a DOMAIN and perhaps a CHECKPOINT"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := notEmpty(cmd.Flags(), "checkpoint"); err != nil {
				return err
			}
			name, err := checkpointArg(args, 1, checkpoint)
			if err != nil {
				return err
			}
			repo, m, err := a.openCheckpoint(cmd.Context(), args[0], name)
			if err == nil {
				err = a.restrict(confine.Self{}, reads(repo))
			}
			if err != nil {
				return err
			}
			seen, err := a.seen(cmd.Context(), repo, m.Domain)
			if err != nil {
				return err
			}
			if seen != nil && seen.Checkpoint.UUID != m.UUID {
				seen = nil
			}
			names, err := record.List(cmd.Context(), repo, m.Domain)
			if err != nil {
				return err
			}
			names[m.Domain] = slices.DeleteFunc(names[m.Domain], func(n record.Name) bool { return !n.Of(m.UUID) })
			if names, err = record.Proven(cmd.Context(), repo, names); err != nil {
				return err
			}
			drilled := lastDrill(names[m.Domain], m.UUID)
			safe, err := a.safeUntil(cmd.Context(), repo, m)
			if err != nil {
				return err
			}
			if a.json {
				v := a.viewManifest(m, seen, drilled)
				v.Locked = safe
				return a.printJSON(v)
			}
			return a.showManifest(m, seen, drilled, safe)
		},
	}
	addUnusual(cmd.Flags(), &a.unusual)
	addManual(cmd, unusualManual)
	cmd.Flags().StringVar(&checkpoint, "checkpoint", "", checkpointUsage)
	return cmd
}

// manifestJSON is what show --json prints: the manifest, with the names that other
// commands use.
type manifestJSON struct {
	*chain.Manifest
	Name  string             `json:"name"`
	Disks []manifestDiskJSON `json:"disks"`
	// Unchanged is when the domain was last seen to be as the checkpoint has it.
	Unchanged *time.Time `json:"unchanged_until,omitempty"`
	// Drill is the last one of it.
	Drill *lastDrillJSON `json:"last_drill,omitempty"`
	signedJSON
	// Locked is until when nobody can remove it.
	Locked *time.Time `json:"locked_until,omitempty"`
}

// safeUntil is until when object lock keeps a checkpoint; nil: it does not. Where it is not
// kept on, that is told.
func (a *app) safeUntil(ctx context.Context, repo *chain.Repository, m *chain.Manifest) (*time.Time, error) {
	if repo.Config.ObjectLock == nil {
		return nil, nil
	}
	s, err := viewLockStatus(ctx, repo)
	if err != nil {
		return nil, err
	}
	until := m.Created.AddDate(0, 0, s.Days)
	if s.Overdue && time.Now().Before(until) {
		a.note("lock is overdue since " + shortTime(*s.Due) + ": objects that are older than the checkpoint may be kept for less time than it")
	}
	return &until, nil
}

type manifestDiskJSON struct {
	Called string `json:"disk"`
	*chain.Disk
	Unusual []habit.Finding `json:"unusual,omitempty"`
}

func (a *app) viewManifest(m *chain.Manifest, seen *chain.Seen, drilled *lastDrillJSON) manifestJSON {
	out := manifestJSON{Manifest: m, Name: m.Checkpoint, Drill: drilled, signedJSON: viewSigned(m), Disks: []manifestDiskJSON{}}
	for i := range m.Disks {
		out.Disks = append(out.Disks, manifestDiskJSON{m.Disks[i].Name, &m.Disks[i], m.Unusual(&m.Disks[i], a.unusual)})
	}
	if seen != nil {
		out.Unchanged = &seen.Time
	}
	return out
}

func (a *app) showManifest(m *chain.Manifest, seen *chain.Seen, drilled *lastDrillJSON, safe *time.Time) error {
	w := &checkedWriter{w: a.out}
	w.printf("checkpoint   %s\n", m.Checkpoint)
	if m.Kind == chain.KindCheckpoint {
		w.printf("kind         checkpoint without data: only bitmaps in the images\n")
	}
	w.printf("domain       %s\n", m.Domain)
	if m.DomainUUID != "" {
		w.printf("domain uuid  %s\n", m.DomainUUID)
	}
	if m.Autostart {
		w.printf("autostart    yes\n")
	}
	w.printf("uuid         %s\n", m.UUID)
	if m.Parent != nil {
		w.printf("parent       %s\n", m.Parent.Name)
	}
	w.printf("created      %s on %s by %s\n", shortTime(m.Created), oneLine(m.Host.Name), oneLine(m.Tool))
	if m.Imported != nil {
		w.printf("imported     %s\n", oneLine(m.Imported.String()))
	}
	if s := viewSigned(m); s.By != "" {
		w.printf("signed       %s\n", s)
		if s.Doubt != "" {
			w.printf("time         IN DOUBT: %s\n", s.Doubt)
		}
	}
	if safe != nil {
		w.printf("locked       until %s: nobody can remove it before\n", shortTime(*safe))
	}
	if seen != nil {
		w.printf("unchanged    until %s\n", shortTime(seen.Time))
	}
	if drilled != nil {
		w.printf("drilled      %s: %s\n", shortTime(drilled.Begun), drilled.Verdict)
	}
	if m.Description != "" {
		w.printf("description  %s\n", oneLine(m.Description))
	}
	if len(m.Tags) > 0 {
		w.printf("tags         %s\n", strings.Join(m.Tags, ", "))
	}
	if m.Locking != chain.LockingQEMU {
		w.printf("locking      %s: nothing kept a VM from writing meanwhile\n", m.Locking)
	}
	for _, f := range m.Files {
		w.printf("%-12s %s", f.Called(), size(f.Size))
		if f.Path != "" {
			w.printf(" from %s", oneLine(f.Path))
		}
		w.printf("\n")
	}
	for _, l := range m.LeftOut {
		w.printf("left out     %s: %s\n", l.Disk, oneLine(l.Reason))
	}
	printUnusual(w, m, a.unusual)
	for i := range m.Disks {
		showDisk(w, m.Kind, &m.Disks[i])
	}
	return w.err
}

func showDisk(w *checkedWriter, kind string, d *chain.Disk) {
	w.printf("\ndisk %s\n", d.Name)
	if d.RenamedFrom != "" {
		w.printf("  renamed from  %s\n", d.RenamedFrom)
	}
	w.printf("  source        %s (%s)\n", oneLine(d.Source.Path), d.Source.Format)
	if data := d.TrustedData; data != nil {
		w.printf("  data file     %s (raw; trusted: nothing but QEMU is said to write to it)\n", oneLine(data.Path))
	}
	for _, b := range d.Backing {
		w.printf("  backed by     %s (%s)\n", oneLine(b.Path), b.Format)
	}
	w.printf("  virtual size  %s (%d bytes)\n", size(d.Size), d.Size)
	if kind == chain.KindCheckpoint {
		w.printf("  bitmap        %s\n", describeRecorded(d))
		return
	}
	mode := d.Mode
	if d.IncrementalFrom != nil {
		mode += " since " + d.IncrementalFrom.Name
	}
	w.printf("  mode          %s (asked for: %s; detection: %s)\n", mode, d.Requested, d.Detection)
	w.printf("  reason        %s [%s]\n", oneLine(d.Reason), d.ReasonCode)
	w.printf("  dirty         %s, data %s, stored %s, reused %s\n", size(d.DirtyBytes), size(d.DataBytes), size(d.StoredBytes), size(d.ReusedBytes))
	switch {
	case d.Bitmap != "":
		w.printf("  bitmap        %s\n", describeRecorded(d))
	case d.NoBitmapReason != "":
		w.printf("  bitmap        none: %s\n", oneLine(d.NoBitmapReason))
	}
	w.printf("  restore       reads %s\n", count(len(d.Maps), "map"))
	if d.RecordsLost {
		w.printf("  %s: what testified for bitmaps was damaged and is lost: no bitmap of this checkpoint or an older one is believed\n", d.Name)
	}
	for i := range d.Lost {
		w.printf("  %s\n", lostLine(d.Name, &d.Lost[i]))
	}
}
