// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/domain"
	"github.com/imgbackup/imgbackup/drill"
	"github.com/imgbackup/imgbackup/drill/record"
	"github.com/imgbackup/imgbackup/machine"
)

// Boot is how a guest is booted, and what shows that it is up: one of Pattern, Agent and
// Screen at least.
type Boot struct {
	Pattern *regexp.Regexp
	Agent   bool
	Screen  bool
	Timeout time.Duration // 0: as in package machine
	Memory  int64         // at most, bytes; 0: as in package machine
	Accel   string        // machine.KVM or machine.TCG; empty: what works
}

// Step is the step that boots the guest.
func (b Boot) Step() drill.Step { return boot{b} }

type boot struct{ Boot }

func (boot) Name() string { return record.StepBoot }

const todoFirmware = "see to what the reason says, and drill again: nothing is known to be wrong with the checkpoint"

func (b boot) Run(ctx context.Context, s *drill.Subject) (drill.Result, error) {
	o := machine.Options{
		Pattern: b.Pattern, Agent: b.Agent, Screen: b.Screen, Timeout: b.Timeout, Memory: b.Memory, Accel: b.Accel,
		Dir: s.Scratch, Note: s.Note,
	}
	if o.Timeout == 0 {
		o.Timeout = s.Limits.Timeout
	}
	if o.Memory == 0 {
		o.Memory = s.Limits.Memory
	}
	if err := b.files(ctx, s, &o); err != nil {
		if archive.IsDamage(err) {
			return s.Damage(ctx, err)
		}
		return drill.Result{}, err
	}
	// What a read of a disk fails with is the repository's, whatever the guest makes of it.
	var fault error
	o.Disks = func() ([]machine.Disk, func() error, error) { return disksOf(ctx, s, s.Scratch) }
	o.Fault = func(err error) { fault = err }
	res, err := machine.Boot(ctx, o)
	if ctx.Err() != nil {
		return drill.Result{}, context.Cause(ctx)
	}
	if res != nil {
		err = errors.Join(err, keep(s.Keep, res))
	}
	if fault != nil && (archive.IsDamage(fault) || res == nil || !res.Up) {
		return s.Damage(ctx, fault) // which an outage is not
	}
	if err != nil {
		return cannot(err)
	}
	return judge(res), nil
}

// cannot is the result of a machine that could not be started.
func cannot(err error) (drill.Result, error) {
	var unfit *machine.UnfitError
	switch {
	case errors.Is(err, machine.ErrNotInstalled):
		return drill.Skip(err.Error(), "install "+machine.Package+"; or leave the step out"), nil
	case errors.As(err, &unfit):
		return drill.Skip(unfit.Why, unfit.WhatToDo), nil
	}
	return drill.Skip(err.Error(), todoFirmware), nil
}

// judge makes a result of what became of the guest.
func judge(m *machine.Result) drill.Result {
	res := drill.Fail(m.Why, m.ToDo)
	switch {
	case m.Up:
		res = drill.Pass(m.Why)
		res.Boot = m.After
	case m.Broken:
		res = drill.Skip(m.Why, m.ToDo)
	}
	d := &details{m: map[string]string{"accelerator": m.Accel, "resets": fmt.Sprint(m.Resets)}}
	if m.FirstLine > 0 {
		d.m["first_console_ms"] = fmt.Sprint(m.FirstLine.Milliseconds())
	}
	if m.Agent != "" {
		d.m["agent"] = m.Agent
	}
	for _, left := range m.Left {
		d.add("left_out", "%s", left)
	}
	res.Details, res.Bytes = d.m, m.Read
	res.Programs = map[string]string{"qemu-system": m.Version + " (" + m.Accel + ")"}
	return res
}

// keep leaves the console and the screen behind.
func keep(dir string, m *machine.Result) error {
	if err := os.WriteFile(filepath.Join(dir, "console.log"), m.Console, 0o600); err != nil {
		return err
	}
	if m.Screen == nil {
		return nil
	}
	return os.WriteFile(filepath.Join(dir, "screen.png"), m.Screen, 0o600)
}

// files takes what was archived beside the disks: the definition, the firmware and its
// variables, and the state of a TPM.
func (b boot) files(ctx context.Context, s *drill.Subject, o *machine.Options) error {
	m := s.Manifest
	for i := range m.Files {
		f := &m.Files[i]
		switch f.Role {
		case chain.RoleDomainXML:
			text, err := content(ctx, s.Repo, f, chain.MaxDomainXML)
			if err != nil {
				return err
			}
			if o.Definition, err = domain.ParseMachine(text); err != nil {
				s.Note(fmt.Sprintf("the archived definition is not understood, and a small machine takes its place: %v", err))
				o.Definition = nil
			}
		case chain.RoleLoader, chain.RoleNVRAM:
			bytes, err := content(ctx, s.Repo, f, maxFirmware)
			if err != nil {
				return err
			}
			if f.Role == chain.RoleLoader {
				o.Loader = bytes
			} else {
				o.NVRAM = bytes
			}
		case chain.RoleTPM:
			if err := state(ctx, s, f, o); err != nil {
				return err
			}
		}
	}
	return nil
}

// maxFirmware bounds a file of the firmware, bytes.
const maxFirmware = 64 << 20

func content(ctx context.Context, repo *chain.Repository, f *chain.File, limit int64) ([]byte, error) {
	if f.Size > limit {
		return nil, fmt.Errorf("the archived %s has %d bytes, and at most %d are possible", f.Role, f.Size, limit)
	}
	var b bytes.Buffer
	err := archive.CopyFile(ctx, repo.Store, f.FileRef, &b)
	return b.Bytes(), err
}

// state copies a file of a TPM's state into a folder for swtpm, in the layout that it
// has: libvirt's has a folder named by the version above it.
func state(ctx context.Context, s *drill.Subject, f *chain.File, o *machine.Options) error {
	if f.Size > maxFirmware {
		return fmt.Errorf("the archived state of the TPM has %d bytes", f.Size)
	}
	b, err := content(ctx, s.Repo, f, maxFirmware)
	if err != nil {
		return err
	}
	name := f.Name[strings.LastIndexByte(f.Name, '/')+1:]
	o.TPM = filepath.Join(s.Scratch, "tpm-state")
	if err := os.MkdirAll(o.TPM, 0o700); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(o.TPM, name), b, 0o600)
}
