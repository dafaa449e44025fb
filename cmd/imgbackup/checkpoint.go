// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/imgbackup/imgbackup/backup"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/qcow2"
)

func (a *app) checkpointCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "checkpoint",
		Short: "Create, list, delete and redefine checkpoints",
		Long: `A checkpoint is a named point in time of a domain: in each of its disks a
persistent dirty bitmap records what is written from then on. A backup makes
one; these commands make and manage those that hold no data. They follow
libvirt's checkpoints, for domains that are shut down.` + exitHelp(),
		Example: `  imgbackup checkpoint create web monday --disk vda=/vm/web.qcow2,format=qcow2
  imgbackup checkpoint list web --size
  imgbackup checkpoint delete web monday`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usageError{fmt.Errorf("unknown command %q of %s", args[0], cmd.CommandPath())}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(
		a.checkpointCreateCommand(),
		a.checkpointListCommand(),
		a.checkpointDumpXMLCommand(),
		a.checkpointDeleteCommand(),
		a.checkpointRedefineCommand(),
	)
	return cmd
}

// imageFlags are those of commands that open images of a domain.
type imageFlags struct {
	disks []string
	req   backup.Request
}

func (i *imageFlags) add(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringArrayVar(&i.disks, "disk", nil, "a disk: `TARGET=PATH,format=qcow2`; may be repeated")
	f.BoolVar(&i.req.NoLock, "no-lock", false, "do not take QEMU's image locks, where the file system has none")
	f.StringArrayVar(&i.req.AllowDirs, "allow-dir", nil, "allow backing and data files in this `DIR`, besides each image's own folder")
}

// request returns the request for the disks that were named.
func (i *imageFlags) request(domain string) (backup.Request, error) {
	req := i.base()
	req.Domain = domain
	for _, d := range i.disks {
		r, err := parseDiskFlag(d, false)
		if err != nil {
			return req, err
		}
		if err := r.noBackupKeys(d); err != nil {
			return req, err
		}
		req.Disks = append(req.Disks, r.DiskRequest)
	}
	return req, nil
}

// open returns the request for the disks that were named, the repository, and the
// checkpoint of these names.
func (i *imageFlags) open(a *app, cmd *cobra.Command, domain, checkpoint string) (backup.Request, *chain.Repository, *chain.Manifest, error) {
	req, err := i.request(domain)
	if err != nil {
		return req, nil, nil, err
	}
	repo, err := a.openRepo(cmd.Context())
	if err != nil {
		return req, nil, nil, err
	}
	m, err := a.manifest(cmd, repo, domain, checkpoint)
	return req, repo, m, err
}

// base is a request without disks.
func (i *imageFlags) base() backup.Request {
	req := i.req
	req.Tool, req.TempDir = "imgbackup "+version(), tempDir()
	return req
}

// noBackupKeys refuses what only a backup can do with a disk.
func (f *diskFlag) noBackupKeys(value string) error {
	if f.Mode != "" || f.Since != "" {
		return usageError{fmt.Errorf("--disk %q: backupmode and incremental are for backups", value)}
	}
	return nil
}

// recordedDisks are a domain's disks as its checkpoints found them last.
func recordedDisks(ms []*chain.Manifest) []backup.DiskRequest {
	var all []backup.DiskRequest
	for _, m := range slices.Backward(ms) {
		for i := range m.Disks {
			d := &m.Disks[i]
			if !slices.ContainsFunc(all, func(r backup.DiskRequest) bool { return r.Disk == d.Name }) {
				all = append(all, backup.DiskRequest{Disk: d.Name, Path: d.Source.Path, Format: qcow2.Format(d.Source.Format)})
			}
		}
	}
	slices.SortFunc(all, func(a, b backup.DiskRequest) int { return strings.Compare(a.Disk, b.Disk) })
	return all
}

func (a *app) checkpointCreateCommand() *cobra.Command {
	var images imageFlags
	var xml xmlFlags
	var name, description string
	cmd := &cobra.Command{
		Use:   "create [DOMAIN] [NAME] --disk TARGET=PATH,format=qcow2 …",
		Short: "Create a checkpoint without data",
		Long: `create adds a bitmap to every disk, all of them for the same instant, and
records the checkpoint in the repository. Nothing of the disks is stored:
backups to files and over NBD can be incremental since it.

A disk that can hold no bitmap fails it.

--domain-xml and --checkpoint-xml take libvirt's XML: the disks are then those of
the definition that can be written to, as far as the checkpoint's XML lists them;
--disk vdb,backup=no leaves one out.` + exitHelp(exitDamage, exitInUse, exitTaken, exitInterrupted),
		Example: `  imgbackup checkpoint create web monday --disk vda=/vm/web.qcow2,format=qcow2
  imgbackup checkpoint create --domain-xml web.xml --checkpoint-xml monday.xml`,
		Args: maxArgs(2, "a DOMAIN and perhaps a NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			in, err := a.readXML(xml)
			if err != nil {
				return err
			}
			if len(args) == 2 {
				if name != "" && name != args[1] {
					return usageError{fmt.Errorf("the checkpoint is named twice: %s and %s", args[1], name)}
				}
				name = args[1]
			}
			if name == "" && (len(args) == 2 || cmd.Flags().Changed("checkpoint")) {
				return usageError{fmt.Errorf("the checkpoint's name is empty")}
			}
			req := images.base()
			if req.Domain, err = domainName(args[:min(1, len(args))], in); err != nil {
				return err
			}
			req.Checkpoint, req.Description = name, description
			flags := make([]diskFlag, len(images.disks))
			for i, d := range images.disks {
				if flags[i], err = parseDiskFlag(d, in.domain != nil); err != nil {
					return err
				}
				if err := flags[i].noBackupKeys(d); err != nil {
					return err
				}
			}
			if _, err := a.describe(&req, &in, flags); err != nil {
				return err
			}
			repo, err := a.openRepo(cmd.Context())
			if err != nil {
				return err
			}
			result, err := backup.CreateCheckpoint(cmd.Context(), repo, req, backup.Hooks{Note: a.note, Step: a.step})
			if err != nil {
				return err
			}
			return a.printCheckpoint(result.Manifest, "created")
		},
	}
	images.add(cmd)
	cmd.Flags().StringVar(&xml.domain, "domain-xml", "", "the domain's definition is in this `FILE` (-: standard input)")
	cmd.Flags().StringVar(&xml.checkpoint, "checkpoint-xml", "", "the checkpoint is described in this `FILE`, as a domaincheckpoint (-: standard input)")
	cmd.Flags().StringVar(&name, "checkpoint", "", "`NAME` of the checkpoint (default: made from the time)")
	cmd.Flags().StringVar(&description, "description", "", "`TEXT` to keep with the checkpoint")
	cmd.Flags().BoolVar(&images.req.Adopt, "adopt", false, "go on with a domain that another host began")
	return cmd
}

func (a *app) printCheckpoint(m *chain.Manifest, what string) error {
	if a.json {
		return a.printJSON(describeCheckpoint(m))
	}
	w := &checkedWriter{w: a.out}
	w.printf("checkpoint %s of %s %s", m.Checkpoint, m.Domain, what)
	if m.Parent != nil {
		w.printf(" (after %s)", m.Parent.Name)
	}
	w.printf("\n")
	for i := range m.Disks {
		w.printf("  %s  bitmap %s in %s\n", m.Disks[i].Name, m.Disks[i].Bitmap, oneLine(m.Disks[i].Source.Path))
	}
	return w.err
}

// listedCheckpoint is one checkpoint as checkpoint list --json shows it.
type listedCheckpoint struct {
	Name        string       `json:"name"`
	UUID        string       `json:"uuid"`
	Kind        string       `json:"kind"`
	Parent      string       `json:"parent,omitempty"` // the nearest that is still there
	Created     time.Time    `json:"created"`
	Current     bool         `json:"current"` // the newest
	Description string       `json:"description,omitempty"`
	Disks       []listedDisk `json:"disks"`
}

// listedDisk is one disk of it. Size is in bytes.
type listedDisk struct {
	Target string `json:"target"`
	Bitmap string `json:"bitmap,omitempty"`
	Size   *int64 `json:"size,omitempty"` // what changed since
	// Problem says why the size cannot be told.
	Problem string `json:"problem,omitempty"`
}

func (a *app) checkpointListCommand() *cobra.Command {
	var images imageFlags
	var tree, size bool
	cmd := &cobra.Command{
		Use:   "list DOMAIN",
		Short: "List checkpoints and how much changed since",
		Long: `list shows the checkpoints of a domain, oldest first; the current one, which the
next will follow, is marked. With --size it looks into the images and tells, disk
by disk, how much was written since each checkpoint, as an incremental backup
would take it. The images are those of --disk, or else where the checkpoints
found them.` + exitHelp(exitDamage, exitInUse, exitInterrupted),
		Example: `  imgbackup checkpoint list web
  imgbackup checkpoint list web --tree
  imgbackup checkpoint list web --size`,
		Args: exactArgs(1, "one DOMAIN"),
		RunE: func(cmd *cobra.Command, args []string) error {
			req, err := images.request(args[0])
			if err != nil {
				return err
			}
			repo, err := a.openRepo(cmd.Context())
			if err != nil {
				return err
			}
			ms, err := a.allManifests(cmd, repo, args[0])
			if err != nil {
				return err
			}
			var sizes []backup.CheckpointSize
			if size || len(images.disks) > 0 {
				if len(req.Disks) == 0 {
					req.Disks = recordedDisks(ms)
				}
				if sizes, err = backup.Sizes(cmd.Context(), repo, req, backup.Hooks{Note: a.note}); err != nil {
					return err
				}
			}
			return a.listCheckpoints(ms, sizes, tree)
		},
	}
	images.add(cmd)
	cmd.Flags().BoolVar(&tree, "tree", false, "show how checkpoints follow one another")
	cmd.Flags().BoolVar(&size, "size", false, "show how much changed since each checkpoint")
	return cmd
}

// allManifests returns those of a domain, oldest first, at least one.
func (a *app) allManifests(cmd *cobra.Command, repo *chain.Repository, domain string) ([]*chain.Manifest, error) {
	if err := chain.CheckDomain(domain); err != nil {
		return nil, usageError{err}
	}
	ms, damaged, err := repo.Manifests(cmd.Context(), domain)
	if err != nil {
		return nil, err
	}
	for _, err := range damaged {
		return nil, err
	}
	if len(ms) == 0 {
		return nil, fmt.Errorf("the repository holds no domain %s", domain)
	}
	return ms, nil
}

func (a *app) listCheckpoints(ms []*chain.Manifest, sizes []backup.CheckpointSize, tree bool) error {
	parents := make(map[string]string)
	forest := chain.BuildTree(ms)
	forest.Walk(func(n *chain.Node, _ int) {
		if n.Parent != nil {
			parents[n.Manifest.UUID] = n.Parent.Manifest.Checkpoint
		}
	})
	w := &checkedWriter{w: a.out}
	if tree && !a.json {
		printTree(w, forest)
		return w.err
	}
	all := []listedCheckpoint{}
	current := chain.Newest(ms)
	for _, m := range ms {
		c := listedCheckpoint{
			Name: m.Checkpoint, UUID: m.UUID, Kind: m.Kind, Parent: parents[m.UUID], Created: m.Created,
			Current: m == current, Description: m.Description,
		}
		for i := range m.Disks {
			d := listedDisk{Target: m.Disks[i].Name, Bitmap: m.Disks[i].Bitmap}
			for _, s := range sizes {
				if s.Checkpoint.UUID == m.UUID && s.Disk == d.Target {
					if d.Problem = s.Problem; s.Problem == "" {
						d.Size = &s.Bytes
					}
				}
			}
			c.Disks = append(c.Disks, d)
		}
		all = append(all, c)
	}
	if a.json {
		return a.printJSON(map[string]any{"checkpoints": all})
	}
	tab := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
	t := &checkedWriter{w: tab}
	t.printf("\tCHECKPOINT\tPARENT\tCREATED\tKIND\tDISKS\tDESCRIPTION\n")
	for _, c := range all {
		mark, parent := " ", "-"
		if c.Current {
			mark = "*"
		}
		if c.Parent != "" {
			parent = c.Parent
		}
		var disks []string
		for _, d := range c.Disks {
			text := d.Target
			switch {
			case d.Size != nil:
				text += ":" + strings.ReplaceAll(size(*d.Size), " ", "")
			case d.Problem != "":
				text += ":?"
			}
			disks = append(disks, text)
		}
		t.printf("%s\t%s\t%s\t%s\t%s\t%s\t%s\n", mark, c.Name, parent, c.Created.Local().Format("2006-01-02 15:04:05"), c.Kind,
			strings.Join(disks, " "), oneLine(c.Description))
	}
	if t.err == nil {
		t.err = tab.Flush()
	}
	for _, c := range all {
		for _, d := range c.Disks {
			if d.Problem != "" {
				a.note(fmt.Sprintf("what changed in %s since %s cannot be told: %s", d.Target, c.Name, d.Problem))
			}
		}
	}
	return t.err
}
