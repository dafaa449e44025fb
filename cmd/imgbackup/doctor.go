// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/config"
	"github.com/imgbackup/imgbackup/doctor"
	"github.com/imgbackup/imgbackup/internal/spool"
	"github.com/imgbackup/imgbackup/internal/usage"
	"github.com/imgbackup/imgbackup/jobs"
	"github.com/imgbackup/imgbackup/objstore"
	"github.com/imgbackup/imgbackup/objstore/open"
	"github.com/imgbackup/imgbackup/request"
)

const doctorHelp = `doctor looks at all that this host needs, and says what to do about what is wrong: QEMU's programs and their
versions, what drills need, the kernel, folders of images and their locks, the configuration, its secrets and
what starts its jobs; and its repositories (or that of --repo): keys, credentials, clock, room.

It changes nothing. The exit status is 1 if something has failed; warnings leave it 0.`

const doctorManual = `The folders of images are those of the domains that jobs back up; without a configuration those of libvirt's
definitions. --images names others. Repositories are read; only --write stores objects in them, under probe/, and removes them
again, which a store with object lock, or credentials that may not delete, may not let it do.

Each thing has --timeout for its answer, all of them side by side; what hangs has failed, and keeps nothing else waiting.`

type doctorOptions struct {
	images  []string
	write   bool
	timeout time.Duration
}

// doctorJSON is what doctor --json prints.
type doctorJSON struct {
	Level    doctor.Level     `json:"level"`
	OK       int              `json:"ok"`
	Warning  int              `json:"warning"`
	Failed   int              `json:"failed"`
	Findings []doctor.Finding `json:"findings"`
}

func (a *app) doctorCommand() *cobra.Command {
	var o doctorOptions
	cmd := &cobra.Command{
		Use:         "doctor",
		Short:       "Look at all that this host needs, and say what to do",
		SuggestFor:  []string{"diagnose", "selftest", "verify"},
		Long:        doctorHelp,
		Annotations: exits(exitInterrupted),
		Example:     "  imgbackup doctor\n  imgbackup doctor -r s3://vm-backups/site1 --write\n  imgbackup doctor --images /srv/vm --json",
		Args:        takes(cobra.NoArgs, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.timeout <= 0 {
				return usage.Errorf("--timeout %s: want a time as 20s", o.timeout)
			}
			return a.doctor(cmd.Context(), o)
		},
	}
	f := cmd.Flags()
	f.StringArrayVar(&o.images, "images", nil, "a folder with images (`DIR`); may be repeated")
	f.BoolVar(&o.write, "write", false, "also store objects in repositories, and remove them again")
	f.DurationVar(&o.timeout, "timeout", 20*time.Second, "what has not answered after this `TIME` has failed")
	addManual(cmd, doctorManual)
	cmd.Annotations[resolvesItself] = "yes"
	return cmd
}

// resolvesItself marks a command that goes on where the configuration, or what it says of the
// repository, is wrong.
const resolvesItself = "resolves"

func (a *app) doctor(ctx context.Context, o doctorOptions) error {
	checks := a.doctorChecks(o)
	found := doctor.Run(ctx, checks, o.timeout)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return a.printDoctor(found)
}

func (a *app) doctorChecks(o doctorOptions) []doctor.Check {
	path, given := a.configPath()
	c, warnings, err := config.Load(path)
	there := err == nil
	var ofJobs []doctor.Check
	switch {
	case err == nil:
		ofJobs = doctor.Jobs{Config: c, Path: path, Warnings: warnings, Getenv: os.Getenv}.Checks()
	case errors.Is(err, fs.ErrNotExist) && !given:
		c = nil
	default:
		c = nil
		ofJobs = []doctor.Check{doctor.Unreachable("configuration", err, "imgbackup config check says where")}
	}
	drills := false
	if there {
		for _, j := range c.Jobs {
			drills = drills || j.Drill != nil
		}
	}
	checks := doctor.Host{Drills: drills, Memory: a.memory}.Checks()
	checks = append(checks, a.folderChecks(c, o)...)
	checks = append(checks, ofJobs...)
	return append(checks, a.repositoryChecks(c, o)...)
}

// folderChecks are those of folders with images, and of folders of our own.
func (a *app) folderChecks(c *config.Config, o doctorOptions) (checks []doctor.Check) {
	for _, f := range imageFolders(c, o.images) {
		checks = append(checks, f.Check("images"))
	}
	checks = append(checks, doctor.Folder{Path: spool.TempDir()}.Check("temporary files"))
	if dir := cachePath(a.cache); dir != "" {
		checks = append(checks, doctor.Folder{Path: dir, Made: true}.Check("cache"))
	}
	return checks
}

// cachePath is the folder of what this host remembers of repositories; empty: there is none.
func cachePath(path string) string {
	if path == "" {
		path = os.Getenv(cacheVar)
	}
	if path == "off" {
		return ""
	}
	if path == "" {
		base, err := os.UserCacheDir()
		if err != nil {
			return ""
		}
		path = filepath.Join(base, "imgbackup")
	}
	return path
}

// imageFolders are those that were named, or those that images of domains lie in, each once.
func imageFolders(c *config.Config, named []string) (all []doctor.Folder) {
	for _, dir := range named {
		all = append(all, doctor.Folder{Path: dir, Images: true})
	}
	if len(named) > 0 {
		return all
	}
	var disks, definitions []string
	if c == nil {
		definitions, _ = filepath.Glob(filepath.Join(config.DefaultDefinitions, "*.xml")) // whose form is right
	} else {
		for name := range c.Jobs {
			d, x := backedUp(c, name)
			disks, definitions = append(disks, d...), append(definitions, x...)
		}
	}
	paths := request.ImagePaths(disks, definitions)
	folders := make(map[string][]string)
	for _, p := range paths {
		if strings.HasPrefix(p, "/dev/") {
			continue
		}
		folders[filepath.Dir(p)] = append(folders[filepath.Dir(p)], p)
	}
	for _, dir := range slices.Sorted(maps.Keys(folders)) {
		files := folders[dir]
		slices.Sort(files)
		all = append(all, doctor.Folder{Path: dir, Images: true, Files: slices.Compact(files)})
	}
	return all
}

// backedUp are the disks, and the files of the definitions, of a job's domains.
func backedUp(c *config.Config, job string) (disks, definitions []string) {
	p, err := jobs.Make(c, job)
	if err != nil {
		return nil, nil // which is told by who looks at the configuration
	}
	for _, t := range p.Domains {
		switch d := c.Domains[t.Name]; {
		case len(d.Disks) > 0:
			disks = append(disks, d.Disks...)
		case d.Definition != "":
			definitions = append(definitions, d.Definition)
		default:
			definitions = append(definitions, filepath.Join(c.Definitions, t.Name+".xml"))
		}
	}
	return disks, definitions
}

// repositoryChecks are those of the repository of --repo, or of all that the configuration has.
func (a *app) repositoryChecks(c *config.Config, o doctorOptions) (checks []doctor.Check) {
	var names []string
	if place := a.place(); place != "" {
		names = []string{place}
	} else if c != nil {
		names = slices.Sorted(maps.Keys(c.Repositories))
	}
	for _, name := range names {
		checks = append(checks, a.repositoryCheck(name, o))
	}
	return checks
}

func (a *app) repositoryCheck(name string, o doctorOptions) doctor.Check {
	title := "repository " + name
	own := *a
	own.quiet, own.opened = true, &opened{} // several are opened at once
	other, err := own.at(name)
	if err != nil {
		return doctor.Unreachable(title, err, "see imgbackup config check, and what it says of this repository")
	}
	other.retry.Patience = o.timeout / 2
	// A person is perhaps asked for a passphrase, who is given the time that it takes.
	if _, err := other.identity(""); err != nil {
		return doctor.Unreachable(title, err, "see that the key is there, and who may read it")
	}
	r := doctor.Repository{Write: o.write, Advice: adviceOf}
	if other.repoFlag != name {
		r.Place = other.repoFlag
	}
	r.Open = func(ctx context.Context) (objstore.Store, *chain.Repository, error) {
		store, err := other.store(open.Options{})
		if err != nil {
			return nil, nil, err
		}
		repo, err := chain.OpenWith(ctx, store, other.unlockAhead(ctx, store))
		return store, repo, err
	}
	return r.Check(title)
}

// adviceOf is what to do about errors that keys make.
func adviceOf(err error) string {
	if wrongKey(err) {
		return "name its key by --identity, IMGBACKUP_IDENTITY or the configuration; imgbackup key list says whose there are"
	}
	return ""
}

func (a *app) printDoctor(found []doctor.Finding) error {
	v := doctorJSON{Level: doctor.Worst(found), Findings: found}
	for _, f := range found {
		switch f.Level {
		case doctor.OK:
			v.OK++
		case doctor.Warning:
			v.Warning++
		default:
			v.Failed++
		}
	}
	var err error
	if a.json {
		err = a.printJSON(v)
	} else {
		w := &checkedWriter{w: a.out}
		for _, f := range found {
			w.printf("%-8s %s: %s\n", f.Level, f.Check, oneLine(f.Text))
			if f.Level != doctor.OK {
				w.printf("%-8s → %s\n", "", oneLine(f.Advice))
			}
		}
		err = w.err
	}
	if err == nil && v.Level == doctor.Failed {
		err = fmt.Errorf("doctor: %d failed, %s, %d ok", v.Failed, count(v.Warning, "warning"), v.OK)
	}
	return err
}
