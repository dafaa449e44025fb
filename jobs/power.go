// SPDX-License-Identifier: Apache-2.0

package jobs

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"time"

	"github.com/imgbackup/imgbackup/config"
	"github.com/imgbackup/imgbackup/internal/sys"
	"github.com/imgbackup/imgbackup/virsh"
)

// power shuts a VM down and starts it, by virsh or by commands of the user's.
type power struct {
	r      *runner
	s      config.Shutdown
	domain string
}

// powerState is whether a VM runs.
type powerState int

const (
	isOn powerState = iota + 1 // also paused, crashed, or shutting down
	isOff
)

// answer is how long virsh, or a command, may take to answer.
const answer = time.Minute

var (
	// errGone says that there is no such domain any more.
	errGone = errors.New("libvirt has no such domain")
	errRuns = errors.New("it runs")
)

// state asks whether the VM runs.
func (p *power) state(ctx context.Context) (powerState, error) {
	if p.s.By == "command" {
		d, _ := p.r.ask(ctx, p.r.hook(p.s.Running, p.domain), answer)
		switch d.Status {
		case 0:
			return isOn, nil
		case 1:
			return isOff, nil
		}
		return 0, fmt.Errorf("find out whether %s runs: %s", p.domain, d.Error)
	}
	id, err := p.id(ctx)
	if err != nil {
		return 0, err
	}
	d, said := p.r.ask(ctx, p.virsh("domstate", "--domain", id), answer)
	switch {
	case d.Status != 0:
		return 0, fmt.Errorf("ask libvirt for the state of %s: %s", p.domain, d.Error)
	case said == virsh.ShutOff:
		return isOff, nil
	}
	return isOn, nil
}

// id is the domain's UUID: virsh takes a name that is a number for another domain's.
func (p *power) id(ctx context.Context) (string, error) {
	d, said := p.r.ask(ctx, p.virsh(virsh.List()...), answer)
	if d.Status != 0 {
		return "", fmt.Errorf("ask libvirt for its domains: %s", d.Error)
	}
	for _, d := range virsh.Listed(said) {
		if d.Name == p.domain {
			return d.UUID, nil
		}
	}
	return "", fmt.Errorf("%s: %w", p.domain, errGone)
}

// stop shuts the VM down, and waits until it is. told: it was, so that it may end later
// where it has not.
func (p *power) stop(ctx context.Context) (told bool, err error) {
	limit := time.Duration(p.s.Timeout)
	begun := time.Now()
	cmd, err := p.command(ctx, p.s.Stop, "shutdown", "--mode", p.s.By)
	if err != nil {
		return false, err
	}
	// One that takes all the time may have told the VM, which then may still be off later.
	if d, _ := p.r.ask(ctx, cmd, limit); d.Status != 0 && d.Error != ErrTimeout.Error() {
		state, err := p.state(context.WithoutCancel(ctx))
		return err != nil || state == isOff || ctx.Err() != nil, fmt.Errorf("shut %s down: %s", p.domain, d.Error)
	}
	// Who interrupts us wants the VM to run again, for which it has to be off first.
	ctx = context.WithoutCancel(ctx)
	err = sys.Retry(ctx, limit-time.Since(begun), func(err error) bool { return !errors.Is(err, errGone) }, func() error {
		state, err := p.state(ctx)
		if err == nil && state == isOn {
			return errRuns
		}
		return err
	})
	if errors.Is(err, errRuns) {
		err = fmt.Errorf("%s was told to shut down, and still runs after %s", p.domain, p.s.Timeout)
	}
	return true, err
}

// start starts the VM, unless it runs.
func (p *power) start(ctx context.Context) error {
	return sys.Retry(ctx, p.r.Patience, func(err error) bool { return !errors.Is(err, errGone) }, func() error {
		if state, err := p.state(ctx); err != nil || state == isOn {
			return err
		}
		cmd, err := p.command(ctx, p.s.Start, "start")
		if err != nil {
			return err
		}
		if d, _ := p.r.ask(ctx, cmd, max(answer, time.Duration(p.s.Timeout))); d.Status != 0 {
			return fmt.Errorf("start %s: %s", p.domain, d.Error)
		}
		return nil
	})
}

// command is the user's own, or a command of virsh's about the domain.
func (p *power) command(ctx context.Context, own []string, does string, args ...string) (*exec.Cmd, error) {
	if p.s.By == "command" {
		return p.r.hook(own, p.domain), nil
	}
	id, err := p.id(ctx)
	if err != nil {
		return nil, err
	}
	return p.virsh(append([]string{does, "--domain", id}, args...)...), nil
}

// virsh is one that has no end of its own: who asks ends it.
func (p *power) virsh(args ...string) *exec.Cmd {
	return virsh.Connection{URI: p.s.Connect}.Command(context.Background(), args...)
}
