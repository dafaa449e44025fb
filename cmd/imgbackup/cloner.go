// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/imgbackup/imgbackup/backup"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/config"
	"github.com/imgbackup/imgbackup/confine"
	"github.com/imgbackup/imgbackup/internal/sys"
)

// commandCloner makes clones by the configuration's commands. docs/clone.md has the contract.
type commandCloner struct {
	commands config.Clone
	secrets  []string // variables that the commands do not get
}

// cloner is the one of the configuration; nil: it has none. That there is no configuration, or a
// wrong one, matters only to who wants clones.
func (a *app) cloner(clone backup.Clone) (backup.Cloner, error) {
	path, given := a.configPath()
	if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) && !given {
		return nil, nil
	}
	c, _, err := config.Load(path)
	switch {
	case err != nil && (clone == "" || clone == backup.CloneNever):
		return nil, nil
	case err != nil:
		return nil, wrongConfig(err)
	case c.Clone == nil:
		return nil, nil
	}
	return &commandCloner{*c.Clone, c.SecretVariables()}, nil
}

func wantsClone(req *backup.Request) bool {
	return req.Clone == backup.CloneAuto || req.Clone == backup.CloneAlways
}

// Clone is [backup.Cloner]'s.
func (c *commandCloner) Clone(ctx context.Context, domain string, k chain.IntentClone) (*os.File, error) {
	said, err := c.run(ctx, "clone_command", c.commands.CloneCommand, domain, k)
	if err != nil {
		return nil, err
	}
	path := strings.TrimSuffix(said, "\n")
	if !filepath.IsAbs(path) || strings.ContainsRune(path, '\n') {
		return nil, fmt.Errorf("clone_command: it printed %.80q, and not one line with an absolute path", said)
	}
	return os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
}

// Release is [backup.Cloner]'s.
func (c *commandCloner) Release(ctx context.Context, domain string, k chain.IntentClone) error {
	_, err := c.run(ctx, "release_command", c.commands.ReleaseCommand, domain, k)
	return err
}

// run runs a command of the user's to its end, or that of its time.
func (c *commandCloner) run(ctx context.Context, what string, argv []string, domain string, k chain.IntentClone) (said string, err error) {
	limit := time.Duration(c.commands.Timeout)
	limited, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	out, complaint := &sys.Head{Most: maxPrinted}, &sys.Head{Most: maxPrinted}
	cmd := exec.CommandContext(limited, argv[0], argv[1:]...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = "/", out, complaint
	cmd.Env = append(confine.Environment(c.secrets...),
		"IMGBACKUP_CLONE="+k.Name, "IMGBACKUP_SOURCE="+k.Path, "IMGBACKUP_DISK="+k.Disk, "IMGBACKUP_DOMAIN="+domain)
	// A group of its own, which no Ctrl-C reaches, and which ends when its time is up.
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	cmd.WaitDelay = time.Second
	err = cmd.Run()
	switch {
	case ctx.Err() != nil:
		return "", context.Cause(ctx)
	case limited.Err() != nil:
		return "", fmt.Errorf("%s: %s did not end within %s", what, argv[0], limit)
	case err != nil && !errors.Is(err, exec.ErrWaitDelay):
		return "", fmt.Errorf("%s: %s: %w: %s", what, argv[0], err, oneLine(strings.TrimSpace(complaint.String())))
	}
	return out.String(), nil
}

const maxPrinted = 8 << 10 // bytes that are kept of what a clone command prints
