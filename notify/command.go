// SPDX-License-Identifier: Apache-2.0

package notify

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os/exec"
	"time"

	"github.com/imgbackup/imgbackup/confine"
)

// command runs a command of the user's with the event on its standard input.
func (s *Sender) command(ctx context.Context, argv []string, e *Event) error {
	text, err := json.Marshal(e)
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Dir, cmd.Stdin, cmd.Stdout = "/", bytes.NewReader(append(text, '\n')), io.Discard
	cmd.Env = append(confine.Environment(s.Secrets...), "IMGBACKUP_EVENT="+e.Event, "IMGBACKUP_JOB="+e.Job, "IMGBACKUP_RUN="+e.Run)
	cmd.WaitDelay = time.Second
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w", argv[0], err)
	}
	return nil
}
