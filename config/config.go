// SPDX-License-Identifier: Apache-2.0

// Package config is what an operator has written down: repositories, domains, jobs, and
// who is told. schema.json specifies it; a test compares that with the types here.
package config

import "time"

// Config is all of it. The names of what it holds are the keys of its maps.
type Config struct {
	State        string                `yaml:"state,omitempty"`
	Definitions  string                `yaml:"definitions,omitempty"`
	History      Duration              `yaml:"history,omitempty"`
	Repositories map[string]Repository `yaml:"repositories,omitempty"`
	Domains      map[string]Domain     `yaml:"domains,omitempty"`
	Jobs         map[string]Job        `yaml:"jobs,omitempty"`
	Notices      map[string]Notice     `yaml:"notices,omitempty"`
	Metrics      *Metrics              `yaml:"metrics,omitempty"`
	Clone        *Clone                `yaml:"clone,omitempty"`
}

// Repository is where a repository is, and how it is opened.
type Repository struct {
	Place       string             `yaml:"place"`
	Identity    string             `yaml:"identity,omitempty"`
	Passphrase  *Secret            `yaml:"passphrase,omitempty"`
	Credentials map[string]Setting `yaml:"credentials,omitempty"`
	Connections int                `yaml:"connections,omitempty"`
	HostID      string             `yaml:"host_id,omitempty"`
}

// Domain is what is not as for other domains.
type Domain struct {
	Definition string   `yaml:"definition,omitempty"`
	Disks      []string `yaml:"disks,omitempty"`
	WithFiles  []string `yaml:"with_files,omitempty"`
	AllowDirs  []string `yaml:"allow_dirs,omitempty"`
	Mode       string   `yaml:"mode,omitempty"`
	Objective  Duration `yaml:"objective,omitempty"`
	DrillPlan  string   `yaml:"drill_plan,omitempty"`
	Adopt      bool     `yaml:"adopt,omitempty"`
}

// Job is steps on domains; a step that is nil is not done.
type Job struct {
	Repository  string   `yaml:"repository"`
	Domains     []string `yaml:"domains"`
	Except      []string `yaml:"except,omitempty"`
	Schedule    Schedule `yaml:"schedule,omitempty"`
	RandomDelay Duration `yaml:"random_delay,omitempty"`
	Objective   Duration `yaml:"objective,omitempty"`
	Backup      Backup   `yaml:"backup,omitempty"`
	Copy        *Copy    `yaml:"copy,omitempty"`
	Forget      *Forget  `yaml:"forget,omitempty"`
	Prune       *Prune   `yaml:"prune,omitempty"`
	Check       *Check   `yaml:"check,omitempty"`
	Drill       *Drill   `yaml:"drill,omitempty"`
	Limits      Limits   `yaml:"limits,omitempty"`
	OnRunning   Running  `yaml:"on_running,omitempty"`
	Shutdown    Shutdown `yaml:"shutdown,omitempty"`
	Hooks       Hooks    `yaml:"hooks,omitempty"`
	Notices     []string `yaml:"notices,omitempty"`
}

// Backup is how domains are backed up.
type Backup struct {
	Mode          string   `yaml:"mode,omitempty"`
	Clone         string   `yaml:"clone,omitempty"`
	Compression   string   `yaml:"compression,omitempty"`
	SkipUnchanged bool     `yaml:"skip_unchanged,omitempty"`
	Audit         bool     `yaml:"audit,omitempty"`
	Tags          []string `yaml:"tags,omitempty"`
	WithFiles     []string `yaml:"with_files,omitempty"`
	Checkpoint    *bool    `yaml:"checkpoint,omitempty"`
}

// Copy is what goes to other repositories.
type Copy struct {
	To     []string `yaml:"to"`
	Newest int      `yaml:"newest,omitempty"`
	Rules  bool     `yaml:"rules,omitempty"`
}

// Forget is what stays.
type Forget struct {
	Last          Number   `yaml:"keep_last,omitempty"`
	Hourly        Number   `yaml:"keep_hourly,omitempty"`
	Daily         Number   `yaml:"keep_daily,omitempty"`
	Weekly        Number   `yaml:"keep_weekly,omitempty"`
	Monthly       Number   `yaml:"keep_monthly,omitempty"`
	Yearly        Number   `yaml:"keep_yearly,omitempty"`
	Drilled       Number   `yaml:"keep_drilled,omitempty"`
	Within        Within   `yaml:"keep_within,omitempty"`
	WithinHourly  Within   `yaml:"keep_within_hourly,omitempty"`
	WithinDaily   Within   `yaml:"keep_within_daily,omitempty"`
	WithinWeekly  Within   `yaml:"keep_within_weekly,omitempty"`
	WithinMonthly Within   `yaml:"keep_within_monthly,omitempty"`
	WithinYearly  Within   `yaml:"keep_within_yearly,omitempty"`
	Tags          []string `yaml:"keep_tag,omitempty"`
	Timezone      string   `yaml:"timezone,omitempty"`
}

// Prune is how much is pruned.
type Prune struct {
	MaxUnused string `yaml:"max_unused,omitempty"`
	RepackMax string `yaml:"repack_max,omitempty"`
}

// Check is how much is proven.
type Check struct {
	ReadData      Part     `yaml:"read_data,omitempty"`
	UnprovenSince Duration `yaml:"unproven_since,omitempty"`
}

// Drill is how restores are rehearsed.
type Drill struct {
	Checkpoint string   `yaml:"checkpoint,omitempty"`
	Plan       string   `yaml:"plan,omitempty"`
	Skip       []string `yaml:"skip,omitempty"`
	Scratch    string   `yaml:"scratch,omitempty"`
	Report     string   `yaml:"report,omitempty"`
	SignKey    string   `yaml:"sign_key,omitempty"`
}

// Limits are those of a job.
type Limits struct {
	Rate     string   `yaml:"rate,omitempty"`
	LockTime Duration `yaml:"lock_time,omitempty"`
	Parallel int      `yaml:"parallel,omitempty"`
	Timeout  Duration `yaml:"timeout,omitempty"`
}

// Shutdown is how a VM is shut down and started again.
type Shutdown struct {
	By      string   `yaml:"by,omitempty"`
	Timeout Duration `yaml:"timeout,omitempty"`
	Connect string   `yaml:"connect,omitempty"`
	Stop    []string `yaml:"stop,omitempty"`
	Start   []string `yaml:"start,omitempty"`
	Running []string `yaml:"running,omitempty"`
}

// Hooks are commands of the user's.
type Hooks struct {
	Before    []string `yaml:"before,omitempty"`
	After     []string `yaml:"after,omitempty"`
	OnFailure []string `yaml:"on_failure,omitempty"`
	Timeout   Duration `yaml:"timeout,omitempty"`
}

// Notice is somebody who is told.
type Notice struct {
	On      []string `yaml:"on,omitempty"`
	Email   *Email   `yaml:"email,omitempty"`
	Webhook *Webhook `yaml:"webhook,omitempty"`
	Ping    *Ping    `yaml:"ping,omitempty"`
	Command []string `yaml:"command,omitempty"`
	Timeout Duration `yaml:"timeout,omitempty"`
}

// Email is a mail by SMTP.
type Email struct {
	Server   string   `yaml:"server"`
	TLS      string   `yaml:"tls,omitempty"`
	CAFile   string   `yaml:"ca_file,omitempty"`
	User     string   `yaml:"user,omitempty"`
	Password *Secret  `yaml:"password,omitempty"`
	From     string   `yaml:"from"`
	To       []string `yaml:"to"`
}

// Webhook is a request with JSON.
type Webhook struct {
	URL      Secret             `yaml:"url"`
	Headers  map[string]Setting `yaml:"headers,omitempty"`
	Template string             `yaml:"template,omitempty"`
}

// Ping is a request that says that a run began, went well, or failed.
type Ping struct {
	URL Secret `yaml:"url"`
}

// Metrics are figures for Prometheus.
type Metrics struct {
	File string `yaml:"file"`
}

// Clone are commands of the user's that copy what the kernel does not clone.
type Clone struct {
	CloneCommand   []string `yaml:"clone_command"`
	ReleaseCommand []string `yaml:"release_command"`
	Timeout        Duration `yaml:"timeout,omitempty"`
}

// What holds where nothing is said.
const (
	DefaultState       = "/var/lib/imgbackup"
	DefaultDefinitions = "/etc/libvirt/qemu"
	DefaultHistory     = Duration(90 * 24 * time.Hour)
	DefaultConnect     = "qemu:///system"
	DefaultShutdown    = Duration(5 * time.Minute)
	DefaultHook        = Duration(10 * time.Minute)
	DefaultNotice      = Duration(30 * time.Second)
	DefaultClone       = Duration(30 * time.Second)
)

// complete puts the defaults in.
func (c *Config) complete() {
	orElse(&c.State, DefaultState)
	orElse(&c.Definitions, DefaultDefinitions)
	orElse(&c.History, DefaultHistory)
	if c.Clone != nil {
		orElse(&c.Clone.Timeout, DefaultClone)
	}
	for name, j := range c.Jobs {
		orElse(&j.Backup.Mode, "auto")
		orElse(&j.Backup.Compression, "fastest")
		orElse(&j.OnRunning, Running{What: Fail})
		orElse(&j.Shutdown.By, "acpi")
		orElse(&j.Shutdown.Timeout, DefaultShutdown)
		orElse(&j.Shutdown.Connect, DefaultConnect)
		orElse(&j.Hooks.Timeout, DefaultHook)
		if j.Drill != nil {
			orElse(&j.Drill.Checkpoint, "latest")
		}
		c.Jobs[name] = j
	}
	for name, n := range c.Notices {
		if len(n.On) == 0 {
			n.On = []string{"failure", "recovery", "overdue"}
		}
		if n.Email != nil {
			orElse(&n.Email.TLS, "starttls")
		}
		orElse(&n.Timeout, DefaultNotice)
		c.Notices[name] = n
	}
}

func orElse[T comparable](v *T, usual T) {
	var none T
	if *v == none {
		*v = usual
	}
}
