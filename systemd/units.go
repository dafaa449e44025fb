// SPDX-License-Identifier: Apache-2.0

// Package systemd makes units of a configuration's jobs: a service for each, and a timer for
// those that have a schedule.
package systemd

import (
	"fmt"
	"io"
	"iter"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/unit"

	"github.com/imgbackup/imgbackup/config"
)

// Mark is how files begin that [Units] has made.
const Mark = "# Made by imgbackup systemd install; changes belong into the configuration, or a drop-in."

// File is a unit.
type File struct {
	Name string // as imgbackup@nightly.timer
	Text string
}

// Units are those of all jobs, sorted by name. program and path are the absolute paths of
// this program and of the configuration.
func Units(c *config.Config, program, path string) ([]File, error) {
	var files []File
	for _, name := range slices.Sorted(maps.Keys(c.Jobs)) {
		j := c.Jobs[name]
		text, err := write(service(c, name, program, path))
		if err != nil {
			return nil, err
		}
		files = append(files, File{UnitName(name) + ".service", text})
		if j.Schedule.IsZero() {
			continue
		}
		options, err := timer(name, j)
		if err != nil {
			return nil, fmt.Errorf("job %s: %w", name, err)
		}
		if text, err = write(options); err != nil {
			return nil, err
		}
		files = append(files, File{UnitName(name) + ".timer", text})
	}
	return files, nil
}

// UnitName is that of a job, without its kind. Names of jobs have no character that systemd
// would want to be escaped.
func UnitName(job string) string { return "imgbackup@" + job }

func write(options []*unit.UnitOption) (string, error) {
	text, err := io.ReadAll(unit.Serialize(options))
	return Mark + "\n" + string(text), err
}

// section makes a unit's options of lines, each a name and a value.
func section(name string, lines ...string) (all []*unit.UnitOption) {
	for _, l := range lines {
		key, value, _ := strings.Cut(l, "=")
		all = append(all, unit.NewUnitOption(name, key, value))
	}
	return all
}

func timer(name string, j config.Job) ([]*unit.UnitOption, error) {
	when, err := calendar(j.Schedule.Cron())
	if err != nil {
		return nil, err
	}
	lines := []string{}
	for _, w := range when {
		lines = append(lines, "OnCalendar="+w)
	}
	lines = append(lines, "Persistent=true", "AccuracySec=1min")
	if j.RandomDelay > 0 {
		lines = append(lines, fmt.Sprintf("RandomizedDelaySec=%d", int(time.Duration(j.RandomDelay)/time.Second)))
	}
	return slices.Concat(
		section("Unit", "Description=imgbackup job "+escape(name)+", "+escape(j.Schedule.String()), "Documentation=man:imgbackup-systemd(1)"),
		section("Timer", lines...),
		section("Install", "WantedBy=timers.target")), nil
}

func service(c *config.Config, name, program, path string) []*unit.UnitOption {
	lines := []string{
		"Type=notify",
		"NotifyAccess=main",
		"ExecStart=" + words(program, "run", "--config", path, name),
		// What writes into images is waited for.
		"KillMode=mixed",
		"TimeoutStopSec=30min",
		"StateDirectory=imgbackup",
		"CacheDirectory=imgbackup",
		"Environment=IMGBACKUP_CACHE=/var/cache/imgbackup",
		"Nice=10",
		"IOSchedulingClass=idle",
	}
	for _, credential := range credentials(c, name) {
		lines = append(lines, "LoadCredential="+credential)
	}
	return slices.Concat(
		section("Unit", "Description=imgbackup job "+escape(name), "Documentation=man:imgbackup-run(1)",
			"Wants=network-online.target", "After=network-online.target libvirtd.service virtqemud.service"),
		section("Service", append(lines, hardening(c.Jobs[name])...)...))
}

// hardening is what the service may not do. It reads images wherever they lie, writes
// bitmaps into them, and opens block devices, so that files and devices are not kept from
// it; drills start virtual machines, and libguestfs in namespaces of its own.
func hardening(j config.Job) []string {
	lines := []string{
		"NoNewPrivileges=true",
		"ProtectSystem=full",
		"ProtectKernelTunables=true",
		"ProtectKernelModules=true",
		"ProtectKernelLogs=true",
		"ProtectControlGroups=true",
		"ProtectClock=true",
		"ProtectHostname=true",
		"PrivateTmp=true",
		"RestrictRealtime=true",
		"RestrictSUIDSGID=true",
		"LockPersonality=true",
		"RemoveIPC=true",
		"SystemCallArchitectures=native",
		"SystemCallFilter=~@clock @cpu-emulation @debug @module @obsolete @raw-io @reboot @swap",
		"SystemCallErrorNumber=EPERM",
		"RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6",
		"UMask=0077",
	}
	if j.Drill == nil {
		lines = append(lines,
			"RestrictNamespaces=true",
			"MemoryDenyWriteExecute=true",
			"CapabilityBoundingSet=CAP_DAC_OVERRIDE CAP_DAC_READ_SEARCH CAP_CHOWN CAP_FOWNER CAP_KILL CAP_SETUID CAP_SETGID CAP_LEASE",
		)
	} else {
		lines = append(lines,
			"CapabilityBoundingSet=CAP_DAC_OVERRIDE CAP_DAC_READ_SEARCH CAP_CHOWN CAP_FOWNER CAP_KILL CAP_SETUID CAP_SETGID CAP_LEASE CAP_SYS_ADMIN CAP_SYS_CHROOT CAP_MKNOD CAP_SETPCAP")
	}
	return lines
}

// credentials are those of systemd that a job's secrets name, sorted.
func credentials(c *config.Config, job string) []string {
	found := make(map[string]bool)
	add := func(settings iter.Seq2[[]string, config.Setting]) {
		for _, s := range settings {
			if s.Secret != nil && s.Secret.Credential != "" {
				found[s.Secret.Credential] = true
			}
		}
	}
	j := c.Jobs[job]
	repositories := []string{j.Repository}
	if j.Copy != nil {
		repositories = append(repositories, j.Copy.To...)
	}
	for _, name := range repositories {
		r := c.Repositories[name]
		add(r.Settings())
	}
	for _, name := range j.Notices {
		n := c.Notices[name]
		add(n.Settings())
	}
	return slices.Sorted(maps.Keys(found))
}

// escape makes text of what systemd would take for a specifier.
func escape(text string) string { return strings.ReplaceAll(text, "%", "%%") }

// words are a command line as ExecStart= reads it.
func words(args ...string) string {
	var all []string
	for _, a := range args {
		a = strings.NewReplacer(`\`, `\\`, `"`, `\"`, "%", "%%", "$", "$$", "\n", `\n`).Replace(a)
		if strings.ContainsAny(a, " \t'\"\\;") {
			a = `"` + a + `"`
		}
		all = append(all, a)
	}
	return strings.Join(all, " ")
}
