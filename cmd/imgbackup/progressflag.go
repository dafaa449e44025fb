// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/imgbackup/imgbackup/internal/usage"
)

// The values of --progress.
const (
	progressAuto  = "auto"
	progressBar   = "bar"
	progressPlain = "plain"
	progressJSON  = "json"
	progressNone  = "none"
)

// progressManual is a part of the man pages of commands that take long.
const progressManual = `--progress json writes a stream of events, one JSON object a line, to stderr,
which then has nothing else, or to --progress-to. Each has "event" and "time":

    begin        "command"
    disk         "disk" of "domain" is in "state" waiting or started, and at
                 the end done, failed (with "error"), abandoned (unfinished,
                 and not at fault) or unknown (it may have been committed)
    progress     "done" of "total" in "phase", of "disk" or of all; at least
                 once a second, moved or not
    step         "step" of the backup begins
    damage       check found "damage"
    error        "domain" failed by "error"; --all-domains goes on
    retry        the store fails ("error"); again in "wait_seconds"
    note         "message"
    interrupted  by "signal"; tidying up
    end          the last one: "exit" status and "error"

Only a program that was killed leaves a stream without end.`

// addProgress gives a command that takes long its flags. Args must be set.
func (a *app) addProgress(cmd *cobra.Command) *cobra.Command {
	var to string
	f := cmd.Flags()
	f.StringVar(&a.progress, "progress", progressAuto, "show progress as `WAY`: auto (a bar on a terminal), bar, plain, json or none")
	f.StringVar(&to, "progress-to", "", "the events of --progress json to this new `FILE` or FIFO, or fd:N")
	section(f, howItRuns, "progress", "progress-to")
	addManual(cmd, progressManual)
	args := cmd.Args
	if args == nil {
		args = cobra.ArbitraryArgs
	}
	// Before anything else can fail, so that the stream tells of it.
	cmd.Args = func(c *cobra.Command, list []string) error {
		if err := a.startProgress(c, to); err != nil {
			return err
		}
		return args(c, list)
	}
	return cmd
}

func (a *app) startProgress(cmd *cobra.Command, to string) error {
	if !slices.Contains([]string{progressAuto, progressBar, progressPlain, progressJSON, progressNone}, a.progress) {
		return usage.Errorf("--progress %q: want auto, bar, plain, json or none", a.progress)
	}
	if to != "" {
		if a.progress != progressJSON && cmd.Flags().Changed("progress") {
			return usage.Errorf("--progress-to is for --progress json")
		}
		a.progress = progressJSON
	}
	if a.progress != progressJSON || a.events == nil {
		return nil
	}
	if to == "" {
		a.events.start(a.err, nil, true, cmd.Name())
		return nil
	}
	if !strings.HasPrefix(to, "fd:") {
		if err := a.checkOutside("--progress-to", to); err != nil {
			return err
		}
	}
	f, err := openProgress(to)
	if err != nil {
		return usage.Errorf("--progress-to %s: %w", to, err)
	}
	a.events.start(f, f, false, cmd.Name())
	return nil
}

// openProgress opens what --progress-to names. It does not write into a file that
// holds anything.
func openProgress(to string) (io.WriteCloser, error) {
	if text, ok := strings.CutPrefix(to, "fd:"); ok {
		n, err := strconv.ParseUint(text, 10, 16)
		if err != nil {
			return nil, errors.New("want fd: and the number of a descriptor")
		}
		f := os.NewFile(uintptr(n), to)
		if f == nil {
			return nil, errors.New("there is no such descriptor")
		}
		if _, err := f.Stat(); err != nil {
			return nil, fmt.Errorf("there is no such descriptor: %w", err)
		}
		return f, nil
	}
	f, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o666)
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err == nil && (st.Mode().IsRegular() && st.Size() > 0 || st.Mode().Type() == os.ModeDevice) {
		err = errors.New("it exists and is not empty, or is a block device")
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}
