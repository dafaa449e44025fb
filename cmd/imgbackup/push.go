// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"time"

	"github.com/imgbackup/imgbackup/backup"
	"github.com/imgbackup/imgbackup/backup/push"
	"github.com/imgbackup/imgbackup/backup/trust"
	"github.com/imgbackup/imgbackup/internal/spool"
	"github.com/imgbackup/imgbackup/qcow2"
	"github.com/imgbackup/imgbackup/request"
)

// push writes the disks to files rather than into the repository.
func (a *app) push(ctx context.Context, job request.Job, o backupOptions) error {
	req := job.Request
	repo, err := a.repoIfNeeded(ctx, &req)
	if err != nil {
		return err
	}
	for _, t := range job.Targets {
		if err := a.checkOutside("the target of disk "+t.Disk, t.Path); err != nil {
			return err
		}
	}
	bar := a.newBar("pushing " + req.Domain)
	req.Tool, req.TempDir = tool(), spool.TempDir()
	hooks := a.hooks(bar)
	options := push.Options{Force: o.force}
	if o.dryRun {
		plan, err := push.DryRun(ctx, repo, req, hooks, job.Targets, options)
		if err != nil {
			return sayCheckpoints(ctx, repo, req.Domain, err)
		}
		return a.printPushPlan(plan, job.Targets)
	}
	a.expect(req)
	result, err := push.Run(ctx, repo, req, hooks, job.Targets, options)
	bar.clear()
	if err != nil {
		return sayCheckpoints(ctx, repo, req.Domain, err)
	}
	return a.printPush(req.Domain, result)
}

// pushPlanJSON is what backup --target --dry-run --json prints.
type pushPlanJSON struct {
	*planJSON
	Targets []pushTargetJSON `json:"targets"`
}

type pushTargetJSON struct {
	Target string       `json:"target"` // the disk: relied on as it is
	Path   string       `json:"path"`
	Driver qcow2.Format `json:"driver"`
}

func (a *app) printPushPlan(plan *backup.Plan, targets []push.Target) error {
	if a.json {
		out := pushPlanJSON{planJSON: viewPlan(plan, nil)}
		for _, t := range targets {
			out.Targets = append(out.Targets, pushTargetJSON{t.Disk, t.Path, t.Format})
		}
		return a.printJSON(out)
	}
	w := &checkedWriter{w: a.out}
	w.printf("Plan for %s (nothing has been written)\n", plan.Domain)
	if err := printDiskPlans(w, plan); err != nil {
		return err
	}
	for _, t := range targets {
		w.printf("  %s goes to %s (%s)\n", t.Disk, t.Path, t.Format)
	}
	return w.err
}

// pushJSON is what backup --target --json prints. Sizes are in bytes.
type pushJSON struct {
	Domain     string         `json:"domain"`
	Checkpoint string         `json:"checkpoint,omitempty"` // that was made
	UUID       string         `json:"uuid,omitempty"`
	Parent     string         `json:"parent,omitempty"`
	Disks      []pushDiskJSON `json:"disks"`
	Seconds    float64        `json:"seconds"`
	Notes      []string       `json:"notes,omitempty"`
}

type pushDiskJSON struct {
	diskNames
	Source          string       `json:"source"`
	Format          qcow2.Format `json:"format"`
	VirtualSize     int64        `json:"virtual_size"`
	BackupMode      backup.Mode  `json:"backupmode"` // what was asked for
	Mode            backup.Mode  `json:"mode"`       // what was done: full or incremental
	ReasonCode      trust.Reason `json:"reason_code"`
	Reason          string       `json:"reason"`
	IncrementalFrom string       `json:"incremental_from,omitempty"`
	Bitmap          string       `json:"incremental_bitmap,omitempty"`
	DirtyBytes      int64        `json:"dirty_bytes"`
	Path            string       `json:"path"`   // what was written
	Driver          qcow2.Format `json:"driver"` // its format
	InPlace         bool         `json:"in_place"`
	ClusterSize     int64        `json:"cluster_size,omitempty"`
	DataBytes       int64        `json:"data_bytes"` // of the disk that went there as data
	ZeroBytes       int64        `json:"zero_bytes"` // and as zeros
}

func (a *app) printPush(domain string, r *push.Result) error {
	if a.json {
		return a.printJSON(viewPush(domain, r))
	}
	w := &checkedWriter{w: a.out}
	if m := r.Manifest; m != nil {
		w.printf("checkpoint %s of %s", m.Checkpoint, m.Domain)
		if m.Parent != nil {
			w.printf(" (after %s)", m.Parent.Name)
		}
		w.printf("; the disks went to files\n")
	} else {
		w.printf("disks of %s\n", domain)
	}
	t := &table{out: a.out, indent: "  "}
	var data int64
	for i, d := range r.Disks {
		t.row(d.Disk, describeMode(r.Plan.Disks[i]), size(d.Data)+" data", fmt.Sprintf("%s (%s)", d.Path, d.Format))
		data += d.Data
	}
	if w.err == nil {
		w.err = t.print()
	}
	for _, p := range r.Plan.Disks {
		w.printf("  %s: %s\n", p.Disk, p.Reason)
	}
	w.printf("done in %s: %s of data\n", r.Elapsed.Round(10*time.Millisecond), size(data))
	return w.err
}

func viewPush(domain string, r *push.Result) pushJSON {
	out := pushJSON{Domain: domain, Seconds: r.Elapsed.Seconds(), Notes: r.Notes}
	if m := r.Manifest; m != nil {
		out.Checkpoint, out.UUID = m.Checkpoint, m.UUID
		if m.Parent != nil {
			out.Parent = m.Parent.Name
		}
	}
	for i, d := range r.Disks {
		p := r.Plan.Disks[i]
		disk := pushDiskJSON{
			diskNames: diskNamed(d.Disk), Source: p.Path, Format: p.Format, VirtualSize: p.VirtualSize, BackupMode: p.Requested, Mode: p.Mode,
			ReasonCode: p.Code, Reason: p.Reason, DirtyBytes: p.DirtyBytes, Bitmap: p.Bitmap, Path: d.Path, Driver: d.Format, InPlace: d.InPlace,
			ClusterSize: d.ClusterSize, DataBytes: d.Data, ZeroBytes: d.Zero,
		}
		if p.Since != nil {
			disk.IncrementalFrom = p.Since.Name
		}
		out.Disks = append(out.Disks, disk)
	}
	return out
}
