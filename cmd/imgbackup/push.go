// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"github.com/imgbackup/imgbackup/backup"
	"github.com/imgbackup/imgbackup/backup/push"
	"github.com/imgbackup/imgbackup/backup/trust"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/objstore"
	"github.com/imgbackup/imgbackup/qcow2"
)

const targetForm = "TARGET=PATH[,driver=qcow2|raw][,backing=FILE,backingformat=qcow2|raw][,cluster_size=SIZE][,reuse=yes]"

// parseTarget reads the value of backup's --target.
func parseTarget(value string) (push.Target, error) {
	t := push.Target{Format: qcow2.Qcow2}
	fail := func(format string, args ...any) (push.Target, error) {
		return t, usageError{fmt.Errorf("--target %q: %s", value, fmt.Sprintf(format, args...))}
	}
	parts := splitOptions(value)
	disk, path, ok := strings.Cut(parts[0], "=")
	if !ok || disk == "" || path == "" {
		return fail("want %s", targetForm)
	}
	t.Disk, t.Path = disk, path
	var backing qcow2.CreateBacking
	seen := make(map[string]bool)
	for _, part := range parts[1:] {
		key, val, ok := strings.Cut(part, "=")
		if !ok {
			return fail("%q is no key=value (a comma in a path is doubled)", part)
		}
		if seen[key] {
			return fail("%s is given twice", key)
		}
		seen[key] = true
		switch key {
		case "driver", "backingformat":
			f := qcow2.Format(val)
			if f != qcow2.Raw && f != qcow2.Qcow2 {
				return fail("%s %q: want qcow2 or raw", key, val)
			}
			if key == "driver" {
				t.Format = f
			} else {
				backing.Format = f
			}
		case "backing":
			if val == "" {
				return fail("backing= names no file")
			}
			backing.File = val
		case "cluster_size":
			n, err := humanize.ParseBytes(binarySize(val))
			if err != nil || n < 512 || n > 2<<20 || n&(n-1) != 0 {
				return fail("cluster_size %q: want a power of two from 512 to 2M", val)
			}
			t.ClusterSize = int64(n)
		case "reuse":
			if val != "yes" && val != "no" {
				return fail("reuse %q: want yes or no", val)
			}
			t.Reuse = val == "yes"
		default:
			return fail("unknown key %q: want driver, backing, backingformat, cluster_size or reuse", key)
		}
	}
	switch {
	case seen["backing"] != seen["backingformat"]:
		return fail("backing and backingformat go together: formats are never guessed")
	case seen["backing"]:
		t.Backing = &backing
	}
	return t, nil
}

// binarySize makes QEMU's 64k of what would be 64000 bytes elsewhere.
func binarySize(s string) string {
	if s != "" && strings.ContainsAny(s[len(s)-1:], "kKmM") {
		return s + "iB"
	}
	return s
}

// pushTargets reads all values of --target, adds them to those of a backup's XML,
// and refuses what only an archive has use for.
func pushTargets(cmd *cobra.Command, values []string, targets []push.Target, req backup.Request) ([]push.Target, error) {
	for _, v := range values {
		t, err := parseTarget(v)
		if err != nil {
			return nil, err
		}
		targets = append(targets, t)
	}
	for _, d := range req.Disks {
		if !slices.ContainsFunc(targets, func(t push.Target) bool { return t.Disk == d.Disk }) {
			return nil, usageError{fmt.Errorf("disk %s has no --target, and no <target> in the backup XML: either every disk of a backup goes to a file of its own, or all go into the repository (two runs can do both)", d.Disk)}
		}
	}
	if req.Checkpoint == "" {
		for _, name := range []string{"description", "adopt"} {
			if cmd.Flags().Changed(name) {
				return nil, usageError{fmt.Errorf("--%s with --target belongs to a checkpoint: name it with --checkpoint", name)}
			}
		}
	}
	if req.NoCheckpoint && req.Checkpoint != "" {
		return nil, usageError{errors.New("--checkpoint and --no-checkpoint exclude each other")}
	}
	return targets, nil
}

// push writes the disks to files rather than into the repository.
func (a *app) push(cmd *cobra.Command, req backup.Request, targets []push.Target, force, dryRun bool) error {
	repo, err := a.pushRepo(cmd.Context(), req)
	if err != nil {
		return err
	}
	for _, t := range targets {
		if err := a.checkOutside("the target of disk "+t.Disk, t.Path); err != nil {
			return err
		}
	}
	bar := a.newBar("pushing " + req.Domain)
	req.Tool, req.TempDir = "imgbackup "+version(), tempDir()
	hooks := a.hooks(bar)
	options := push.Options{Force: force}
	if dryRun {
		plan, err := push.DryRun(cmd.Context(), repo, req, hooks, targets, options)
		if err != nil {
			return err
		}
		return a.printPushPlan(plan, targets)
	}
	a.expect(req)
	result, err := push.Run(cmd.Context(), repo, req, hooks, targets, options)
	bar.clear()
	if err != nil {
		return err
	}
	return a.printPush(req.Domain, result)
}

// pushRepo opens the repository where one is needed: to judge an incremental,
// and for a checkpoint. Else an empty one stands in for it.
func (a *app) pushRepo(ctx context.Context, req backup.Request) (*chain.Repository, error) {
	incremental := req.Mode == backup.Incremental || req.Since != ""
	for _, d := range req.Disks {
		incremental = incremental || d.Mode == backup.Incremental || d.Since != ""
	}
	if incremental || req.Checkpoint != "" {
		return a.openRepo(ctx)
	}
	return chain.Init(ctx, objstore.NewMem(), chain.InitOptions{})
}

func (a *app) printPushPlan(plan *backup.Plan, targets []push.Target) error {
	if a.json {
		type target struct {
			Target string       `json:"target"`
			Path   string       `json:"path"`
			Driver qcow2.Format `json:"driver"`
		}
		out := struct {
			*backup.Plan
			Targets []target `json:"targets"`
		}{Plan: plan}
		for _, t := range targets {
			out.Targets = append(out.Targets, target{t.Disk, t.Path, t.Format})
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
	Target          string       `json:"target"`
	Source          string       `json:"source"`
	Format          qcow2.Format `json:"format"`
	VirtualSize     int64        `json:"virtual_size"`
	BackupMode      backup.Mode  `json:"backupmode"` // what was asked for
	Mode            backup.Mode  `json:"mode"`       // what was done: full or incremental
	ReasonCode      trust.Reason `json:"reason_code"`
	Reason          string       `json:"reason"`
	IncrementalFrom string       `json:"incremental_from,omitempty"`
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
		return a.printJSON(describePush(domain, r))
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
	tab := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
	t := &checkedWriter{w: tab}
	var data int64
	for i, d := range r.Disks {
		t.printf("  %s\t%s\t%s data\t%s (%s)\n", d.Disk, describeMode(r.Plan.Disks[i]), size(d.Data), d.Path, d.Format)
		data += d.Data
	}
	if t.err == nil {
		t.err = tab.Flush()
	}
	if t.err != nil {
		return t.err
	}
	for _, p := range r.Plan.Disks {
		w.printf("  %s: %s\n", p.Disk, p.Reason)
	}
	w.printf("done in %s: %s of data\n", r.Elapsed.Round(10*time.Millisecond), size(data))
	return w.err
}

func describePush(domain string, r *push.Result) pushJSON {
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
			Target: d.Disk, Source: p.Path, Format: p.Format, VirtualSize: p.VirtualSize, BackupMode: p.Requested, Mode: p.Mode,
			ReasonCode: p.Code, Reason: p.Reason, DirtyBytes: p.DirtyBytes, Path: d.Path, Driver: d.Format, InPlace: d.InPlace,
			ClusterSize: d.ClusterSize, DataBytes: d.Data, ZeroBytes: d.Zero,
		}
		if p.Since != nil {
			disk.IncrementalFrom = p.Since.Name
		}
		out.Disks = append(out.Disks, disk)
	}
	return out
}
