// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/imgbackup/imgbackup/config"
	"github.com/imgbackup/imgbackup/jobs"
	"github.com/imgbackup/imgbackup/systemd"
	"github.com/imgbackup/imgbackup/virsh"
)

// Jobs are those of a configuration that could be read.
type Jobs struct {
	Config   *config.Config
	Path     string // of its file
	Warnings config.Problems
	Getenv   func(string) string // os.Getenv
	// Crontabs are where cron reads lines from, as patterns; nil: the usual ones.
	Crontabs []string
	// Booted is a folder that is there where systemd has started the machine; empty: the usual one.
	Booted string
}

// Checks are those of the configuration, its secrets, its folder of state, and what starts its jobs.
func (j Jobs) Checks() []Check {
	return []Check{
		{"configuration", j.valid},
		{"secrets", j.secrets},
		{"state", j.state},
		{"timers", j.timers},
		{"virsh", j.virsh},
	}
}

func (j Jobs) valid(context.Context) (all []Finding) {
	for _, w := range j.Warnings {
		all = append(all, warning("see imgbackup-config(5)", "%v", w))
	}
	for name := range j.Config.Jobs {
		p, err := jobs.Make(j.Config, name)
		if err != nil {
			all = append(all, failed("see imgbackup run --dry-run", "job %s: %v", name, err))
			continue
		}
		for _, note := range p.Notes {
			all = append(all, warning("see imgbackup run --dry-run", "job %s: %s", name, note))
		}
		for _, t := range p.Domains {
			if t.Missing != nil {
				all = append(all, failed("define it, or take it out of the job", "job %s: %v", name, t.Missing))
			}
		}
	}
	slices.SortStableFunc(all, func(a, b Finding) int { return strings.Compare(a.Text, b.Text) })
	if len(all) == 0 {
		all = append(all, ok("%s: jobs: %d, repositories: %d", j.Path, len(j.Config.Jobs), len(j.Config.Repositories)))
	}
	return all
}

// named is a secret, and where the configuration names it.
type named struct {
	where  string
	secret *config.Secret
}

func (j Jobs) namedSecrets() (all []named) {
	for path, s := range j.Config.Settings() {
		if s.Secret != nil {
			all = append(all, named{strings.Join(path, "."), s.Secret})
		}
	}
	for _, name := range slices.Sorted(maps.Keys(j.Config.Repositories)) {
		if file := j.Config.Repositories[name].Identity; file != "" {
			all = append(all, named{"repositories." + name + ".identity", &config.Secret{File: file}})
		}
	}
	return all
}

// credentialStores are where systemd looks for credentials that a unit does not place.
var credentialStores = []string{"/etc/credstore", "/etc/credstore.encrypted", "/run/credstore", "/run/credstore.encrypted", "/usr/lib/credstore", "/usr/lib/credstore.encrypted"}

func (j Jobs) secrets(context.Context) (all []Finding) {
	secrets := j.namedSecrets()
	for _, s := range secrets {
		if s.secret.Credential != "" && j.Getenv("CREDENTIALS_DIRECTORY") == "" {
			if f := inStore(s); f != nil {
				all = append(all, *f)
			}
			continue
		}
		if _, err := s.secret.Read(j.Getenv); err != nil {
			all = append(all, failed("write the secret there, or name where it is", "%s: %v", s.where, err))
			continue
		}
		if info, err := os.Stat(s.secret.File); err == nil && info.Mode().Perm()&0o077 != 0 {
			all = append(all, warning("chmod 600 "+s.secret.File, "%s: %s can be read by others than its owner (mode %o)", s.where, s.secret.File, info.Mode().Perm()))
		}
	}
	if len(all) == 0 {
		all = append(all, ok("%d, and all of them can be had", len(secrets)))
	}
	return all
}

// inStore looks for a credential that systemd is to hand over, which it has not done here.
func inStore(s named) *Finding {
	for _, dir := range credentialStores {
		_, err := os.Stat(filepath.Join(dir, s.secret.Credential))
		if err == nil || errors.Is(err, fs.ErrPermission) {
			return nil
		}
	}
	f := warning("put it there, or into the unit (LoadCredential=); systemd-creds encrypts it",
		"%s: the credential %s is in none of systemd's folders, as /etc/credstore", s.where, s.secret.Credential)
	return &f
}

func (j Jobs) state(ctx context.Context) []Finding {
	all := Folder{Path: j.Config.State, Made: true}.look(ctx)
	stopped, err := jobs.LeftStopped(j.Config)
	if err != nil {
		all = append(all, failed("see who may read the folder", "%v", err))
	}
	for _, domain := range slices.Sorted(maps.Keys(stopped)) {
		all = append(all, warning("imgbackup run --due starts it, unless a job is at work on it now", "the VM %s was shut down for a backup, and is not started again yet", domain))
	}
	return all
}

// timers sees that whatever has a schedule is started by somebody.
func (j Jobs) timers(ctx context.Context) (all []Finding) {
	var scheduled []string
	for _, name := range slices.Sorted(maps.Keys(j.Config.Jobs)) {
		if !j.Config.Jobs[name].Schedule.IsZero() {
			scheduled = append(scheduled, name)
		}
	}
	if len(scheduled) == 0 {
		return []Finding{ok("no job has a schedule")}
	}
	if path := j.crontab(); path != "" {
		return []Finding{ok("%s runs imgbackup", path)}
	}
	units := []string{dueTimer}
	for _, name := range scheduled {
		units = append(units, systemd.UnitName(name)+".timer")
	}
	active, err := j.activeUnits(ctx, units)
	if err != nil {
		return []Finding{warning("imgbackup systemd install, or a line for cron (docs/jobs.md)", "whether somebody starts %s is not known: %v", strings.Join(scheduled, ", "), err)}
	}
	if active[0] {
		return []Finding{ok("%s starts what is due", dueTimer)}
	}
	for i, name := range scheduled {
		if !active[i+1] {
			all = append(all, failed("imgbackup systemd install, or systemctl enable --now "+dueTimer, "job %s has a schedule, and nobody starts it: %s is not active", name, units[i+1]))
		}
	}
	if len(all) == 0 {
		all = append(all, ok("%d, all active", len(scheduled)))
	}
	return all
}

// dueTimer is the one of the packages, for all jobs.
const dueTimer = "imgbackup-due.timer"

func (j Jobs) crontab() string {
	patterns := j.Crontabs
	if patterns == nil {
		patterns = []string{"/etc/crontab", "/etc/cron.d/*", "/var/spool/cron/crontabs/*", "/var/spool/cron/*"}
	}
	for _, p := range patterns {
		paths, _ := filepath.Glob(p) // whose form is right
		for _, path := range paths {
			text, err := os.ReadFile(path)
			if err != nil {
				continue
			}
			for line := range bytes.Lines(text) {
				if line = bytes.TrimSpace(line); !bytes.HasPrefix(line, []byte("#")) && bytes.Contains(line, []byte("imgbackup run")) {
					return path
				}
			}
		}
	}
	return ""
}

// activeUnits asks systemd which units are active.
func (j Jobs) activeUnits(ctx context.Context, units []string) ([]bool, error) {
	if _, err := os.Stat(cmp.Or(j.Booted, "/run/systemd/system")); err != nil {
		return nil, errors.New("this machine was not booted by systemd, and no crontab runs imgbackup")
	}
	out, err := exec.CommandContext(ctx, "systemctl", append([]string{"is-active"}, units...)...).Output()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return nil, err
	}
	lines := strings.Fields(string(out))
	if len(lines) != len(units) {
		return nil, fmt.Errorf("systemctl is-active says %.200q", out)
	}
	active := make([]bool, len(units))
	for i, l := range lines {
		active[i] = l == "active"
	}
	return active, nil
}

// virsh is what shuts VMs down for their backup, where jobs do so through libvirt.
func (j Jobs) virsh(ctx context.Context) (all []Finding) {
	asked := make(map[string]bool)
	for _, job := range j.Config.Jobs {
		if job.OnRunning.What == config.Stop && job.Shutdown.By != "command" {
			asked[job.Shutdown.Connect] = true
		}
	}
	if len(asked) == 0 {
		return []Finding{ok("no job shuts VMs down through libvirt")}
	}
	path, err := exec.LookPath("virsh")
	if err != nil {
		return []Finding{failed("install libvirt-clients (Debian, Ubuntu) or libvirt-client (Fedora)", "jobs shut VMs down by it (on_running: shutdown): %v", err)}
	}
	for _, connect := range slices.Sorted(maps.Keys(asked)) {
		if _, err := (virsh.Connection{URI: connect}).Domains(ctx); err != nil {
			all = append(all, failed("see whether libvirtd runs, and whether this user may use it", "%s: %v", connect, err))
		}
	}
	if len(all) == 0 {
		all = append(all, ok("%s reaches libvirt", path))
	}
	return all
}
