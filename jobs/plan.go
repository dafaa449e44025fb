// SPDX-License-Identifier: Apache-2.0

// Package jobs does what a configuration's jobs say: their steps in order, each a run of
// this program, with a history of what came of them.
package jobs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/imgbackup/imgbackup/config"
	"github.com/imgbackup/imgbackup/domain/manager"
	"github.com/imgbackup/imgbackup/retention"
)

// What steps do.
const (
	StepPlan     = "plan"
	StepBackup   = "backup"
	StepCopy     = "copy"
	StepForget   = "forget"
	StepPrune    = "prune"
	StepCheck    = "check"
	StepDrill    = "drill"
	StepBefore   = "before"
	StepAfter    = "after"
	StepFailure  = "on_failure"
	StepShutdown = "shutdown"
	StepStart    = "start"
)

// Plan is what a job would do on this host now.
type Plan struct {
	Job     string
	Domains []Target
	Notes   []string // as of patterns that match nothing
	job     config.Job
}

// Target is a domain that is to be backed up.
type Target struct {
	Name string
	Args []string // of the backup
	// Missing says why it cannot be backed up; nil: it can be tried.
	Missing error
}

// Make plans a job of the configuration.
func Make(c *config.Config, name string) (*Plan, error) {
	j, ok := c.Jobs[name]
	if !ok {
		return nil, fmt.Errorf("there is no job %s", name)
	}
	p := &Plan{Job: name, job: j}
	defined, err := definitions(c.Definitions)
	if err != nil {
		return nil, err
	}
	vms, err := managersVMs(j)
	if err != nil {
		return nil, err
	}
	for _, domain := range p.choose(c, defined, vms) {
		t := Target{Name: domain}
		t.Args, t.Missing = backupArgs(c, j, domain, defined)
		p.Domains = append(p.Domains, t)
	}
	return p, nil
}

// definitions are the domains that libvirt's folder defines, sorted; a folder that is not
// there has none.
func definitions(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if name, ok := strings.CutSuffix(e.Name(), ".xml"); ok && !e.IsDir() && !strings.HasPrefix(name, ".") {
			names = append(names, name)
		}
	}
	return names, nil
}

// managersVMs are the VMs of those managers that a pattern of the job names, as pve:*.
func managersVMs(j config.Job) (all []string, err error) {
	for _, of := range manager.All() {
		asks := func(pattern string) bool { return strings.HasPrefix(pattern, of+":") && isPattern(pattern) }
		if !slices.ContainsFunc(j.Domains, asks) {
			continue
		}
		vms, err := manager.Places{}.Domains(of)
		if err != nil {
			return nil, err
		}
		all = append(all, vms...)
	}
	return all, nil
}

func isPattern(name string) bool { return strings.ContainsAny(name, `*?[\`) }

// choose resolves the job's names and patterns, each domain once, in the job's order. Managers'
// VMs are only those of a pattern that names their manager.
func (p *Plan) choose(c *config.Config, defined, vms []string) []string {
	known := slices.Clone(defined)
	for name := range c.Domains {
		if !slices.Contains(known, name) {
			known = append(known, name)
		}
	}
	slices.Sort(known)
	var all []string
	seen := make(map[string]bool)
	for _, pattern := range p.job.Domains {
		found := []string{pattern}
		if isPattern(pattern) {
			found = matching(pattern, known)
			if managed(pattern) {
				found = append(found, matching(pattern, vms)...)
			}
			if len(found) == 0 {
				p.Notes = append(p.Notes, fmt.Sprintf("no domain matches %s", pattern))
			}
		}
		for _, name := range found {
			if !seen[name] && !p.excepted(name) {
				all = append(all, name)
			}
			seen[name] = true
		}
	}
	return all
}

func matching(pattern string, names []string) (found []string) {
	for _, name := range names {
		// The configuration was checked: there is no wrong pattern in it.
		if ok, _ := path.Match(pattern, name); ok {
			found = append(found, name)
		}
	}
	return found
}

func (p *Plan) excepted(name string) bool {
	return slices.ContainsFunc(p.job.Except, func(pattern string) bool { return len(matching(pattern, []string{name})) > 0 })
}

// backupArgs are those of a domain's backup.
func backupArgs(c *config.Config, j config.Job, name string, defined []string) ([]string, error) {
	if strings.HasPrefix(name, "-") { // which would be a flag of this step, and of those that follow
		return nil, fmt.Errorf("%s: a job takes no domain whose name begins with a dash", name)
	}
	d := c.Domains[name]
	args := []string{StepBackup, "--repo", j.Repository, "--json"}
	switch {
	case len(d.Disks) > 0:
		args = append(args, name)
		for _, disk := range d.Disks {
			args = append(args, "--disk", disk)
		}
	case d.Definition != "":
		args = append(args, name, "--domain-xml", d.Definition)
	case managed(name):
		args = append(args, name)
	case slices.Contains(defined, name):
		args = append(args, name, "--domain-xml", filepath.Join(c.Definitions, name+".xml"))
	default:
		return nil, fmt.Errorf("%s is not defined: there is no %s, and no such domain in the configuration", name, filepath.Join(c.Definitions, name+".xml"))
	}
	for _, file := range withFiles(j.Backup.WithFiles, d.WithFiles) {
		args = append(args, "--with-file", file)
	}
	for _, dir := range d.AllowDirs {
		args = append(args, "--allow-dir", dir)
	}
	mode := d.Mode
	if mode == "" {
		mode = j.Backup.Mode
	}
	args = append(args, "--mode", mode, "--compression", j.Backup.Compression)
	for _, flag := range []struct {
		name  string
		given bool
	}{
		{"--skip-unchanged", j.Backup.SkipUnchanged}, {"--audit", j.Backup.Audit}, {"--adopt", d.Adopt},
		{"--no-checkpoint", j.Backup.Checkpoint != nil && !*j.Backup.Checkpoint},
	} {
		if flag.given {
			args = append(args, flag.name)
		}
	}
	if j.Backup.Clone != "" {
		args = append(args, "--clone", j.Backup.Clone)
	}
	for _, tag := range j.Backup.Tags {
		args = append(args, "--tag", tag)
	}
	if j.Limits.Rate != "" {
		args = append(args, "--limit-rate", j.Limits.Rate)
	}
	if j.Limits.LockTime != 0 {
		// Not as it is written here: the flag's times have no days.
		args = append(args, "--max-lock", time.Duration(j.Limits.LockTime).String())
	}
	return args, nil
}

// managed reports whether a domain is a VM of another manager than libvirt, which the backup
// asks.
func managed(domain string) bool {
	_, _, ok := manager.Split(domain)
	return ok
}

// withFiles are the files of a domain, and those of its job that have other names.
func withFiles(job, domain []string) []string {
	all := slices.Clone(domain)
	for _, f := range job {
		name, _, _ := strings.Cut(f, "=")
		if !slices.ContainsFunc(domain, func(d string) bool { return strings.HasPrefix(d, name+"=") }) {
			all = append(all, f)
		}
	}
	return all
}

// Step is what is done after the backups, for all domains together.
type Step struct {
	What string
	Args []string
}

// After are the steps that follow the backups of domains; names are those that went well.
func (p *Plan) After(c *config.Config, names []string) (steps []Step) {
	j := p.job
	add := func(what string, args ...string) {
		steps = append(steps, Step{what, append([]string{what, "--repo", j.Repository, "--json"}, args...)})
	}
	if j.Copy != nil && len(names) > 0 {
		for _, to := range j.Copy.To {
			args := append([]string{"--to", to}, names...)
			if j.Copy.Newest > 0 {
				args = append(args, "--newest", strconv.Itoa(j.Copy.Newest))
			}
			if j.Copy.Rules {
				args = append(args, rules(j.Forget)...)
			}
			add(StepCopy, args...)
		}
	}
	if j.Forget != nil && len(names) > 0 {
		add(StepForget, append(slices.Clone(names), rules(j.Forget)...)...)
	}
	if j.Prune != nil {
		var args []string
		if j.Prune.MaxUnused != "" {
			args = append(args, "--max-unused", j.Prune.MaxUnused)
		}
		if j.Prune.RepackMax != "" {
			args = append(args, "--repack-max", j.Prune.RepackMax)
		}
		add(StepPrune, args...)
	}
	if j.Check != nil {
		var args []string
		switch {
		case j.Check.UnprovenSince != 0:
			args = append(args, "--unproven-since", j.Check.UnprovenSince.String())
		case j.Check.ReadData == config.All:
			args = append(args, "--read-data")
		case j.Check.ReadData != "":
			args = append(args, "--read-data-subset", string(j.Check.ReadData))
		}
		add(StepCheck, args...)
	}
	return append(steps, p.drills(c, names)...)
}

// drills are one step for each plan that domains have.
func (p *Plan) drills(c *config.Config, names []string) (steps []Step) {
	d := p.job.Drill
	if d == nil {
		return nil
	}
	byPlan := make(map[string][]string)
	var plans []string
	for _, name := range names {
		plan := d.Plan
		if own := c.Domains[name].DrillPlan; own != "" {
			plan = own
		}
		if _, ok := byPlan[plan]; !ok {
			plans = append(plans, plan)
		}
		byPlan[plan] = append(byPlan[plan], name)
	}
	for _, plan := range plans {
		args := append([]string{StepDrill, "--repo", p.job.Repository, "--json"}, byPlan[plan]...)
		args = append(args, "--checkpoint", d.Checkpoint)
		if plan != "" {
			args = append(args, "--plan", plan)
		}
		if len(d.Skip) > 0 {
			args = append(args, "--skip", strings.Join(d.Skip, ","))
		}
		switch d.Scratch {
		case "":
		case "none":
			args = append(args, "--no-scratch")
		default:
			args = append(args, "--scratch", d.Scratch)
		}
		if d.SignKey != "" {
			args = append(args, "--sign-key", d.SignKey)
		}
		steps = append(steps, Step{StepDrill, args})
	}
	return steps
}

// rules are the flags of rules about what stays.
func rules(f *config.Forget) (args []string) {
	for _, r := range []struct {
		name   string
		number config.Number
	}{
		{"last", f.Last}, {"hourly", f.Hourly}, {"daily", f.Daily}, {"weekly", f.Weekly}, {"monthly", f.Monthly}, {"yearly", f.Yearly}, {"drilled", f.Drilled},
	} {
		switch {
		case int(r.number) == retention.Unlimited:
			args = append(args, "--keep-"+r.name, "unlimited")
		case r.number > 0:
			args = append(args, "--keep-"+r.name, strconv.Itoa(int(r.number)))
		}
	}
	for _, r := range []struct {
		name string
		time config.Within
	}{
		{"", f.Within}, {"-hourly", f.WithinHourly}, {"-daily", f.WithinDaily}, {"-weekly", f.WithinWeekly}, {"-monthly", f.WithinMonthly}, {"-yearly", f.WithinYearly},
	} {
		if !r.time.IsZero() {
			args = append(args, "--keep-within"+r.name, r.time.String())
		}
	}
	for _, tag := range f.Tags {
		args = append(args, "--keep-tag", tag)
	}
	if f.Timezone != "" {
		args = append(args, "--timezone", f.Timezone)
	}
	return args
}
