// SPDX-License-Identifier: Apache-2.0

package main

import (
	"regexp"
	"slices"
	"time"

	"github.com/imgbackup/imgbackup/drill"
	"github.com/imgbackup/imgbackup/drill/guest"
	"github.com/imgbackup/imgbackup/drill/plan"
	"github.com/imgbackup/imgbackup/drill/record"
	"github.com/imgbackup/imgbackup/internal/usage"
	"github.com/imgbackup/imgbackup/machine"
	"github.com/imgbackup/imgbackup/request"
)

// guestSteps are the steps that look at a checkpoint as its guest would. An appliance
// takes its time, so that it is not started where what is required is said, and it is not.
func (d *drilling) guestSteps(domain string, p *plan.Plan) (steps []drill.Step) {
	look := d.r.looks[domain]
	if look == nil {
		look = d.r.looks[""]
	}
	if len(p.Require) == 0 || slices.Contains(p.Require, record.StepFilesystems) {
		steps = append(steps, look.Filesystems())
	}
	if len(look.Expect) > 0 {
		steps = append(steps, look.Files())
	}
	if !p.Boot.Wanted() {
		return steps
	}
	b := guest.Boot{Agent: p.Boot.Agent, Screen: p.Boot.Screen, Timeout: time.Duration(p.Boot.Timeout)}
	b.Memory, _ = bootMemory(p) // it was checked
	if p.Boot.Pattern != "" {
		b.Pattern = regexp.MustCompile(p.Boot.Pattern) // it was checked
	}
	if p.Emulate {
		b.Accel = machine.TCG
	}
	return append(steps, b.Step())
}

// bootMemory is how much memory a guest gets at most, bytes; 0: as usual.
func bootMemory(p *plan.Plan) (int64, error) {
	if p.Boot.Memory == "" {
		return 0, nil
	}
	n, err := request.ParseSize(p.Boot.Memory)
	if err != nil || n < 64<<20 {
		return 0, usage.Errorf("boot memory %.40q: want a size of at least 64M", p.Boot.Memory)
	}
	return n, nil
}
