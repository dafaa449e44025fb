// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/backup"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/crypt"
	"github.com/imgbackup/imgbackup/internal/usage"
	"github.com/imgbackup/imgbackup/keys"
	"github.com/imgbackup/imgbackup/nbd"
	"github.com/imgbackup/imgbackup/qemu"
	"github.com/imgbackup/imgbackup/restore"
	"github.com/imgbackup/imgbackup/serve"
)

// The exit statuses; programs rely on them.
const (
	exitDone        = 0
	exitFailed      = 1   // nothing half-written is left under a final name
	exitUsage       = 2   // wrong usage
	exitDamage      = 3   // damage found
	exitNotTrusted  = 4   // an incremental was asked for and cannot be trusted
	exitInUse       = 5   // an image is in use
	exitTaken       = 6   // the name is taken, or somebody else was first
	exitKey         = 7   // the key does not open this
	exitInterrupted = 130 // by a signal
)

// exitTable explains the statuses: those that every command has, and those of codes.
func exitTable(codes []int) string {
	var b strings.Builder
	for _, s := range []struct {
		code  int
		means string
	}{
		{exitDone, "done"},
		{exitFailed, "failed; nothing half-written is left under a final name"},
		{exitUsage, "wrong usage"},
		{exitDamage, "damage found"},
		{exitNotTrusted, "an incremental was asked for and cannot be trusted"},
		{exitInUse, "an image, the target of a restore, a socket or a scratch file is in use"},
		{exitTaken, "the name is taken, someone else committed first, or the domain belongs to another host"},
		{exitKey, "the key does not open this: it is missing, or another one's"},
		{exitInterrupted, "interrupted"},
	} {
		// Whatever can be damaged can be encrypted.
		key := s.code == exitKey && slices.Contains(codes, exitDamage)
		if s.code <= exitUsage || key || slices.Contains(codes, s.code) {
			// Indented so that it is a block of its own in man pages.
			fmt.Fprintf(&b, "    %-3d  %s\n", s.code, s.means)
		}
	}
	return strings.TrimSuffix(b.String(), "\n")
}

var errInterrupted = errors.New("interrupted")

// damageFound is returned by check, which has told the findings already.
type damageFound struct{ error }

func exitCode(ctx context.Context, err error) int {
	var (
		found   damageFound
		damage  *archive.DamageError
		trust   *backup.NotTrustedError
		taken   *chain.TakenError
		owned   *backup.OwnedError
		differs *restore.VerifyError
		lost    *chain.LostError
		unknown *chain.UnknownOutcomeError
		several domainsFailed
		drilled drillFailed
	)
	switch {
	case errors.As(err, &several):
		return several.code
	case errors.As(err, &drilled):
		return drilled.code
	case errors.As(err, &unknown):
		return exitFailed // and not interrupted, after which nothing is there
	case errors.Is(err, usage.ErrWrong):
		return exitUsage
	case somethingInUse(err):
		return exitInUse
	case errors.As(err, &trust):
		return exitNotTrusted
	case errors.As(err, &taken), errors.As(err, &owned):
		return exitTaken
	case errors.As(err, &found), errors.As(err, &damage), errors.As(err, &differs), errors.As(err, &lost):
		return exitDamage
	case wrongKey(err):
		return exitKey
	case errors.Is(err, errInterrupted), errors.Is(err, context.Canceled) && errors.Is(context.Cause(ctx), errInterrupted):
		return exitInterrupted
	}
	return exitFailed
}

// wrongKey reports whether a key is missing, or is another one's.
func wrongKey(err error) bool {
	var (
		wrong  *keys.Error
		unable *crypt.KeyError
		other  *chain.NotYoursError
		role   *chain.RoleError
	)
	return errors.As(err, &role) || errors.As(err, &wrong) || errors.As(err, &other) || errors.As(err, &unable) || errors.Is(err, chain.ErrEncrypted)
}

// somethingInUse reports whether another program or run has what err is about.
func somethingInUse(err error) bool {
	var (
		image   *qemu.InUseError
		busy    *qemu.BusyError
		scratch *serve.InUseError
		alive   *backup.AliveError
		writers *chain.WritersError
		rotates *chain.RotatingError
	)
	return errors.As(err, &image) || errors.As(err, &busy) || errors.As(err, &scratch) || errors.As(err, &alive) || errors.As(err, &writers) || errors.As(err, &rotates) || errors.Is(err, nbd.ErrSocketInUse) || errors.Is(err, syscall.EADDRINUSE)
}

// explain is what a person is told, in one line.
func explain(ctx context.Context, err error) string {
	text := strings.ReplaceAll(err.Error(), "\n", "; ") // of several errors
	if exitCode(ctx, err) != exitInterrupted {
		return text
	}
	// What is unfinished, such as a block device, is in the error's text.
	// The reason is said once, however deep it was met.
	said := errInterrupted.Error()
	text = strings.TrimSuffix(strings.TrimPrefix(text, said+": "), ": "+said)
	if text == said {
		return said
	}
	return said + ": " + text
}
