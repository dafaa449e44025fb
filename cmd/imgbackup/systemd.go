// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"

	"github.com/imgbackup/imgbackup/internal/sys"
	"github.com/imgbackup/imgbackup/systemd"
)

const unitFolder = "/etc/systemd/system"

type systemdOptions struct {
	dir    string
	enable bool
}

func (a *app) systemdCommand() *cobra.Command {
	cmd := group(&cobra.Command{
		Use:   "systemd",
		Short: "Have jobs run by systemd",
		Long: `systemd makes a service for each job of the configuration, imgbackup@JOB.service, and a timer for those with a
schedule. They are hardened as far as reading images wherever they lie allows. Secrets that the configuration
calls credentials are handed over by systemd, from /etc/credstore and its like.`,
		Annotations: exits(),
		Example:     "  imgbackup systemd install\n  imgbackup systemd list\n  imgbackup systemd install --dir ./units\n  systemctl start imgbackup@nightly",
	})
	add := func(use, short, long string, do func(ctx context.Context, o systemdOptions) error) {
		var o systemdOptions
		sub := &cobra.Command{
			Use: use, Short: short, Long: long, Annotations: exits(), Example: "  imgbackup systemd " + use,
			Args: takes(cobra.NoArgs, "no arguments"),
			RunE: func(cmd *cobra.Command, _ []string) error {
				o.enable = !cmd.Flags().Changed("dir")
				return do(cmd.Context(), o)
			},
		}
		sub.Flags().StringVar(&o.dir, "dir", unitFolder, "the `DIR` of units; with another than the usual one, systemd is told nothing")
		cmd.AddCommand(sub)
	}
	add("install", "Write the units, and start the timers",
		`install writes the units of all jobs, removes those of jobs that are no more, and has systemd start the timers. It is to
be run again when the configuration has changed. Other files are left alone.`, a.installUnits)
	add("remove", "Stop the timers, and remove the units", "remove stops the timers and removes what install has written.", a.removeUnits)
	add("list", "List the units that install has written", "list shows which units are there.", a.listUnits)
	return cmd
}

func (a *app) installUnits(ctx context.Context, o systemdOptions) error {
	c, err := a.configuration()
	if err != nil {
		return err
	}
	program, err := os.Executable()
	if err != nil {
		return err
	}
	path, _ := a.configPath()
	if path, err = filepath.Abs(path); err != nil {
		return err
	}
	units, err := systemd.Units(c, program, path)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(o.dir, 0o755); err != nil {
		return err
	}
	before, err := ourUnits(o.dir)
	if err != nil {
		return err
	}
	var timers []string
	for _, u := range units {
		file := filepath.Join(o.dir, u.Name)
		if there, err := ours(file); err != nil || !there {
			if err == nil {
				err = fmt.Errorf("%s is there, and was not made by imgbackup: it is not replaced", file)
			}
			if !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
		if err := sys.WriteWhole(file, ".imgbackup-unit-", 0o644, func(w io.Writer) error {
			_, err := io.WriteString(w, u.Text)
			return err
		}); err != nil {
			return err
		}
		if strings.HasSuffix(u.Name, ".timer") {
			timers = append(timers, u.Name)
		}
		before = slices.DeleteFunc(before, func(name string) bool { return name == u.Name })
	}
	if err := a.dropUnits(ctx, o, before); err != nil {
		return err
	}
	if o.enable {
		if err := a.systemctl(ctx, "daemon-reload"); err != nil {
			return err
		}
		if len(timers) > 0 {
			if err := a.systemctl(ctx, append([]string{"enable", "--now"}, timers...)...); err != nil {
				return err
			}
		}
	}
	return a.listUnits(ctx, o)
}

func (a *app) removeUnits(ctx context.Context, o systemdOptions) error {
	names, err := ourUnits(o.dir)
	if err != nil {
		return err
	}
	if err := a.dropUnits(ctx, o, names); err != nil {
		return err
	}
	if o.enable && len(names) > 0 {
		return a.systemctl(ctx, "daemon-reload")
	}
	return nil
}

// dropUnits stops timers, and removes units. A service that is at work is left to end.
func (a *app) dropUnits(ctx context.Context, o systemdOptions, names []string) error {
	for _, name := range names {
		if o.enable && strings.HasSuffix(name, ".timer") {
			if err := a.systemctl(ctx, "disable", "--now", name); err != nil {
				return err
			}
		}
		if err := os.Remove(filepath.Join(o.dir, name)); err != nil {
			return err
		}
	}
	return nil
}

func (a *app) systemctl(ctx context.Context, args ...string) error {
	cmd := exec.CommandContext(ctx, "systemctl", args...)
	cmd.Stdout, cmd.Stderr = a.err, a.err
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("systemctl %s: %w", strings.Join(args, " "), err)
	}
	return nil
}

// ourUnits are the names of the units in a folder that install has written, sorted.
func ourUnits(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), "imgbackup@") || e.IsDir() {
			continue
		}
		if is, err := ours(filepath.Join(dir, e.Name())); err != nil {
			return nil, err
		} else if is {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// ours reports whether a file was written by install.
func ours(path string) (bool, error) {
	f, err := os.Open(path)
	if err != nil {
		return false, err
	}
	defer func() { _ = f.Close() }() // only read
	begin := make([]byte, len(systemd.Mark))
	if _, err := io.ReadFull(f, begin); err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return false, err
	}
	return string(begin) == systemd.Mark, nil
}

func (a *app) listUnits(_ context.Context, o systemdOptions) error {
	names, err := ourUnits(o.dir)
	if err != nil {
		return err
	}
	if a.json {
		if names == nil {
			names = []string{}
		}
		return a.printJSON(map[string]any{"dir": o.dir, "units": names})
	}
	w := &checkedWriter{w: a.out}
	for _, name := range names {
		w.printf("%s\n", filepath.Join(o.dir, name))
	}
	return w.err
}

// tellSystemd tells the service manager, if there is one that wants to know, how it goes.
func tellSystemd(state string) {
	// That it is not heard is no matter: it is about what systemctl status shows.
	_, _ = daemon.SdNotify(false, state)
}
