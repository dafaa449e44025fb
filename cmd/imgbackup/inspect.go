// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/imgbackup/imgbackup/backup/owner"
	"github.com/imgbackup/imgbackup/backup/trust"
	"github.com/imgbackup/imgbackup/foreign"
	"github.com/imgbackup/imgbackup/internal/usage"
	"github.com/imgbackup/imgbackup/qcow2"
	"github.com/imgbackup/imgbackup/qemu"
	"github.com/imgbackup/imgbackup/request"
)

func (a *app) inspectCommand() *cobra.Command {
	var (
		format  string
		keyFile string
		dirs    []string
		owners  ownerFlags
	)
	cmd := &cobra.Command{
		Use:   "inspect IMAGE",
		Short: "Show an image's header, backing chain and bitmaps",
		Long: `inspect reads an image natively and shows its header, its backing chain, its
internal snapshots and its persistent dirty bitmaps with their dirty bytes, and
whether the image is fit for incremental backups, or why not. An image that is
not read natively (vmdk, vhdx, vdi, qed, LUKS) is read through qemu-nbd; it says so.

Of each bitmap it says whose it is: of a checkpoint of the repository, if there is one, or a forgotten
one, of libvirt's on this host, virtnbdbackup's by its name, or nobody's known here.

It changes nothing, takes no locks itself, and needs no repository.`,
		Annotations: exits(),
		Example: `  imgbackup inspect /vm/web.qcow2
  imgbackup inspect --json /vm/web.qcow2
  imgbackup inspect --format vmdk /vm/old.vmdk`,
		Args: takes(cobra.ExactArgs(1), "one IMAGE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			f, err := request.ParseFormat(format)
			if err != nil {
				return usage.Errorf("--format: %w", err)
			}
			return a.inspect(cmd.Context(), args[0], owners, f, qcow2.OpenOptions{
				AllowDirs: dirs, Foreign: foreign.Opener(cmd.Context(), foreign.Options{KeyFile: keyFile}),
			})
		},
	}
	cmd.Flags().StringVar(&format, "format", "qcow2", "`FORMAT` of the image: "+strings.Join(request.Formats(), ", ")+"; it is never guessed")
	cmd.Flags().StringVar(&keyFile, "keyfile", "", "the passphrase of an encrypted image is in this `FILE`")
	cmd.Flags().StringArrayVar(&dirs, "allow-dir", nil, "allow backing and data files in this `DIR`, besides the image's own folder")
	owners.add(cmd.Flags())
	return cmd
}

// inspectJSON is what inspect --json prints. Sizes are in bytes.
type inspectJSON struct {
	Path        string       `json:"path"`
	Format      qcow2.Format `json:"format"`
	VirtualSize int64        `json:"virtual_size"`
	InUse       string       `json:"in_use,omitempty"`   // by whom, when a writer holds the image
	OpenNow     *bool        `json:"open_now,omitempty"` // for writing, by QEMU's locks; absent: they don't tell
	Incremental bool         `json:"fit_for_incremental"`
	Why         string       `json:"why"`
	Chain       []layerJSON  `json:"chain"` // active layer first
}

type layerJSON struct {
	Path         string         `json:"path"`
	Format       qcow2.Format   `json:"format"`
	ReadBy       string         `json:"read_by,omitempty"` // and why, if not natively
	VirtualSize  int64          `json:"virtual_size"`
	FileSize     int64          `json:"file_size"`
	Version      int            `json:"version,omitempty"`
	ClusterSize  int64          `json:"cluster_size,omitempty"`
	Compression  string         `json:"compression,omitempty"`
	ExtendedL2   bool           `json:"extended_l2,omitempty"`
	Dirty        bool           `json:"dirty,omitempty"`
	Corrupt      bool           `json:"corrupt,omitempty"`
	DataFile     string         `json:"data_file,omitempty"`
	Snapshots    []snapshotJSON `json:"snapshots,omitempty"`
	Bitmaps      []bitmapJSON   `json:"bitmaps,omitempty"`
	BitmapsError string         `json:"bitmaps_error,omitempty"`
}

type snapshotJSON struct {
	ID   string `json:"id"`
	Name string `json:"name"`
}

type bitmapJSON struct {
	Name        string       `json:"name"`
	Granularity int64        `json:"granularity"`
	Enabled     bool         `json:"enabled"`
	InUse       bool         `json:"in_use"`
	DirtyBytes  *int64       `json:"dirty_bytes,omitempty"` // absent when it cannot be read
	Problem     string       `json:"problem,omitempty"`
	Owner       *owner.Owner `json:"owner,omitempty"`
}

func (a *app) inspect(ctx context.Context, path string, owners ownerFlags, format qcow2.Format, options qcow2.OpenOptions) error {
	c, err := qcow2.Open(path, format, options)
	if err != nil {
		// What it says of itself may tell how to go on.
		return errors.Join(a.inspectTop(path, format, err), err)
	}
	defer func() { _ = c.Close() }() // opened for reading only
	out := inspectJSON{Path: path, Format: format, VirtualSize: c.Size()}
	out.probe()
	out.Incremental, out.Why = trust.Fit(c)
	for _, l := range c.Layers {
		out.Chain = append(out.Chain, viewLayer(l))
	}
	asked := a.askOwners(ctx, &out, owners)
	if a.json {
		return errors.Join(a.printJSON(out), asked)
	}
	return errors.Join(a.printInspect(out), asked)
}

// askOwners finds out whose the bitmaps are, where there are any.
func (a *app) askOwners(ctx context.Context, i *inspectJSON, o ownerFlags) error {
	if !slices.ContainsFunc(i.Chain, func(l layerJSON) bool { return len(l.Bitmaps) > 0 }) {
		return nil
	}
	k, asked, err := a.ownersToShow(ctx, o)
	if err != nil {
		return fmt.Errorf("whose the bitmaps are can't be said: %w", err)
	}
	doubted := false
	for _, l := range i.Chain {
		for j := range l.Bitmaps {
			of := k.Of(l.Bitmaps[j].Name)
			if of.Kind == owner.Nobody && !asked {
				continue // nobody was asked
			}
			l.Bitmaps[j].Owner, doubted = &of, doubted || !of.Claims()
		}
	}
	for _, doubt := range k.Doubts {
		if doubted {
			a.note("not all can be read that might need a bitmap: " + doubt.Error())
		}
	}
	return nil
}

// probe finds out by QEMU's locks whether a program has the image open for writing.
func (i *inspectJSON) probe() {
	var inUse *qemu.InUseError
	err := qemu.ProbeWriter(i.Path)
	open := errors.As(err, &inUse)
	switch {
	case open:
		i.InUse, i.OpenNow = inUse.Why, &open
	case err == nil:
		i.OpenNow = &open
	}
}

// unclosed says what it means that a bitmap, or the image, is in use.
func (i *inspectJSON) unclosed() string {
	switch {
	case i.OpenNow == nil:
		return "not closed cleanly, or open now"
	case *i.OpenNow:
		return "open now"
	}
	return "not closed cleanly: no program has the image open for writing"
}

// inspectTop shows an image that cannot be opened with all that it needs, by
// itself, if that can be done.
func (a *app) inspectTop(path string, format qcow2.Format, cause error) error {
	if format != qcow2.Qcow2 {
		return nil
	}
	out := inspectJSON{Path: path, Format: format, Why: cause.Error()}
	out.probe()
	err := qcow2.WithTopLayer(path, func(l *qcow2.Layer) error {
		out.VirtualSize = l.Size
		out.Chain = append(out.Chain, viewLayer(l))
		return nil
	})
	switch {
	case err != nil:
		return nil // the cause says it
	case a.json:
		return a.printJSON(out)
	}
	return a.printInspect(out)
}

func viewLayer(l *qcow2.Layer) layerJSON {
	out := layerJSON{Path: l.Path, Format: l.Format, ReadBy: l.ReadBy(), VirtualSize: l.Size, DataFile: l.DataFile}
	if id, err := l.Stat(); err == nil {
		out.FileSize = id.Size
	}
	if h := l.Header; h != nil {
		out.Version, out.ClusterSize = h.Version, h.ClusterSize()
		out.ExtendedL2 = h.Has(qcow2.IncompatExtendedL2)
		out.Dirty, out.Corrupt = h.Has(qcow2.IncompatDirty), h.Has(qcow2.IncompatCorrupt)
		out.Compression = "zlib"
		if h.Compression == qcow2.Zstd {
			out.Compression = "zstd"
		}
	}
	for _, s := range l.Snapshots {
		out.Snapshots = append(out.Snapshots, snapshotJSON{s.ID, s.Name})
	}
	if l.BitmapsErr != nil {
		out.BitmapsError = l.BitmapsErr.Error()
	}
	for _, b := range l.Bitmaps {
		j := bitmapJSON{Name: b.Name, Granularity: b.Granularity, Enabled: b.Enabled, InUse: b.InUse}
		dirty, err := b.DirtyBytes()
		switch {
		case b.Problem != nil:
			j.Problem = b.Problem.Error()
		case err != nil:
			j.Problem = err.Error()
		default:
			j.DirtyBytes = &dirty
		}
		out.Bitmaps = append(out.Bitmaps, j)
	}
	return out
}

func (a *app) printInspect(i inspectJSON) error {
	w := &checkedWriter{w: a.out}
	w.printf("image         %s\n", i.Path)
	w.printf("virtual size  %s (%d bytes)\n", size(i.VirtualSize), i.VirtualSize)
	if i.InUse != "" {
		w.printf("in use        %s\n", oneLine(i.InUse))
	}
	fit := "yes"
	if !i.Incremental {
		fit = "no"
	}
	w.printf("incremental   %s: %s\n", fit, oneLine(i.Why))
	for n, l := range i.Chain {
		role := "active layer"
		if n > 0 {
			role = fmt.Sprintf("backing file %d", n)
		}
		w.printf("\n%s: %s\n", role, oneLine(l.Path))
		w.printf("  format        %s\n", describeFormat(l))
		w.printf("  virtual size  %s, file %s\n", size(l.VirtualSize), size(l.FileSize))
		if l.DataFile != "" {
			w.printf("  data file     %s\n", oneLine(l.DataFile))
		}
		for _, s := range l.Snapshots {
			w.printf("  snapshot      %s %s\n", oneLine(s.ID), oneLine(s.Name))
		}
		if l.BitmapsError != "" {
			w.printf("  bitmaps       none usable: %s\n", oneLine(l.BitmapsError))
		}
		for _, b := range l.Bitmaps {
			w.printf("  bitmap        %s\n", describeBitmap(b, i.unclosed()))
		}
	}
	return w.err
}

func describeFormat(l layerJSON) string {
	if l.ReadBy != "" {
		return fmt.Sprintf("%s, read by %s", l.Format, l.ReadBy)
	}
	if l.Format != qcow2.Qcow2 {
		return string(l.Format)
	}
	s := fmt.Sprintf("qcow2 version %d, clusters of %s, %s", l.Version, size(l.ClusterSize), l.Compression)
	for _, f := range []struct {
		on   bool
		name string
	}{{l.ExtendedL2, "extended L2"}, {l.Dirty, "DIRTY"}, {l.Corrupt, "CORRUPT"}} {
		if f.on {
			s += ", " + f.name
		}
	}
	return s
}

func describeBitmap(b bitmapJSON, unclosed string) string {
	s := fmt.Sprintf("%s, granularity %s", oneLine(b.Name), size(b.Granularity))
	switch {
	case b.InUse:
		s += ", IN USE (" + unclosed + ")"
	case b.Problem != "":
		s += ", BROKEN: " + oneLine(b.Problem)
	case b.DirtyBytes != nil:
		s += ", dirty " + size(*b.DirtyBytes)
	}
	if !b.Enabled {
		s += ", disabled"
	}
	if b.Owner != nil {
		s += "; " + oneLine(b.Owner.String())
	}
	return s
}
