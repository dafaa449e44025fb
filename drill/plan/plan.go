// SPDX-License-Identifier: Apache-2.0

// Package plan is what is expected of a domain's checkpoints when they are drilled, as
// flags or a file in YAML say it.
package plan

import "time"

// NoScratch is the scratch folder of a plan that restores nowhere.
const NoScratch = "none"

// Plan is what is expected of one domain.
type Plan struct {
	Disks   []string `yaml:"disks"`   // only these
	Require []string `yaml:"require"` // steps that must pass; empty: all that are done but boot
	Skip    []string `yaml:"skip"`    // steps that are left out
	// Scratch is where disks are restored to; empty: the usual folder for temporary
	// files; none: nowhere.
	Scratch string `yaml:"scratch"`

	Expect      []string `yaml:"expect"`       // DISK:[DEVICE:]/PATH=sha256:HEX or =~REGEX
	ExpectNewer []string `yaml:"expect_newer"` // [DISK:[DEVICE:]]/PATH=24h
	LUKSKeys    []string `yaml:"luks_keys"`    // [DISK:]DEVICE=FILE, of encrypted volumes

	Boot    Boot    `yaml:"boot"`
	Emulate bool    `yaml:"emulate"` // go without KVM
	Command Command `yaml:"command"`

	Timeout Duration `yaml:"timeout"` // of each step that runs programs or a guest
}

// Boot is how the guest is booted, and what shows that it is up.
type Boot struct {
	Pattern string   `yaml:"pattern"` // shows on the serial console
	Agent   bool     `yaml:"agent"`   // the guest agent answers
	Screen  bool     `yaml:"screen"`  // the screen settles on something that is no firmware prompt
	Timeout Duration `yaml:"timeout"`
	Memory  string   `yaml:"memory"` // of the guest, as 1G
}

// Wanted reports whether the guest is to be booted.
func (b Boot) Wanted() bool { return b.Pattern != "" || b.Agent || b.Screen }

// Command is a program of the user's.
type Command struct {
	Run     []string `yaml:"run"` // program and arguments
	Expect  string   `yaml:"expect"`
	Timeout Duration `yaml:"timeout"`
}

// Duration is a time span in YAML: 90s, 5m, 24h, 90d.
type Duration time.Duration
