// SPDX-License-Identifier: Apache-2.0

// Package virsh asks libvirt about its domains, and has it define and start some, through virsh.
//
// Invariants:
//
//   - A domain is named to virsh by its UUID: it takes a name that is a number for another domain's.
//   - What virsh may take has a limit in time, and what it says one in bytes.
//   - virsh has none of our credentials in its environment.
package virsh

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"time"

	"github.com/imgbackup/imgbackup/confine"
	"github.com/imgbackup/imgbackup/internal/sys"
)

// DefaultURI is where libvirt's system daemon is.
const DefaultURI = "qemu:///system"

const (
	// answer is how long virsh may take to answer; it starts VMs in that time, too.
	answer  = 2 * time.Minute
	maxSaid = 64 << 20 // bytes
)

// Connection is how libvirt is reached.
type Connection struct {
	URI string // empty: DefaultURI
}

// At is where libvirt is.
func (c Connection) At() string { return cmp.Or(c.URI, DefaultURI) }

// Domain is a domain that libvirt knows.
type Domain struct {
	Name, UUID string
	Active     bool // it runs, or is paused
}

// Domains are all that libvirt knows.
func (c Connection) Domains(ctx context.Context) ([]Domain, error) {
	said, err := c.run(ctx, List()...)
	if err != nil {
		return nil, fmt.Errorf("ask libvirt for its domains: %w", err)
	}
	active, err := c.run(ctx, "list", "--uuid")
	if err != nil {
		return nil, fmt.Errorf("ask libvirt for domains that run: %w", err)
	}
	all := Listed(said)
	for i := range all {
		all[i].Active = strings.Contains(active, all[i].UUID)
	}
	return all, nil
}

// List are the arguments by which virsh prints its domains, as [Listed] reads them.
func List() []string { return []string{"list", "--all", "--uuid", "--name"} }

// Listed are the domains that virsh has printed; whether they are active it does not say.
func Listed(said string) (all []Domain) {
	for line := range strings.Lines(said) {
		id, name, _ := strings.Cut(strings.TrimSpace(line), " ")
		if id != "" {
			all = append(all, Domain{Name: strings.TrimSpace(name), UUID: id})
		}
	}
	return all
}

// Definition is what libvirt would start the domain by, with its passwords.
func (c Connection) Definition(ctx context.Context, uuid string) ([]byte, error) {
	said, err := c.run(ctx, "dumpxml", "--inactive", "--security-info", "--domain", uuid)
	if err != nil {
		return nil, fmt.Errorf("ask libvirt for the definition of %s: %w", uuid, err)
	}
	return []byte(said), nil
}

// Define has libvirt take a domain in whose definition is in a file. It replaces one of the same name and
// UUID.
func (c Connection) Define(ctx context.Context, file string) error {
	if _, err := c.run(ctx, "define", "--file", file); err != nil {
		return fmt.Errorf("define the domain in %s: %w", file, err)
	}
	return nil
}

// Autostart has libvirt start a domain with the host.
func (c Connection) Autostart(ctx context.Context, uuid string) error {
	if _, err := c.run(ctx, "autostart", "--domain", uuid); err != nil {
		return fmt.Errorf("have %s start with the host: %w", uuid, err)
	}
	return nil
}

// Start starts a domain that is not active.
func (c Connection) Start(ctx context.Context, uuid string) error {
	if _, err := c.run(ctx, "start", "--domain", uuid); err != nil {
		return fmt.Errorf("start %s: %w", uuid, err)
	}
	return nil
}

// State is what a domain does and why, in libvirt's words: running, [Paused], [ShutOff], …
func (c Connection) State(ctx context.Context, uuid string) (state, reason string, err error) {
	said, err := c.run(ctx, "domstate", "--reason", "--domain", uuid)
	if err != nil {
		return "", "", fmt.Errorf("ask libvirt for the state of %s: %w", uuid, err)
	}
	state, reason, _ = strings.Cut(strings.TrimSpace(said), " (")
	return state, strings.TrimSuffix(reason, ")"), nil
}

// The states of a domain that are of interest, and the reason why one is paused that its disks have
// failed.
const (
	ShutOff = "shut off"
	Paused  = "paused"
	IOError = "I/O error"
)

// Running is the definition that an active domain runs by; of one that is off it is that of Definition.
func (c Connection) Running(ctx context.Context, uuid string) ([]byte, error) {
	said, err := c.run(ctx, "dumpxml", "--domain", uuid)
	if err != nil {
		return nil, fmt.Errorf("ask libvirt what %s runs by: %w", uuid, err)
	}
	return []byte(said), nil
}

// Resume lets a domain that is paused run on.
func (c Connection) Resume(ctx context.Context, uuid string) error {
	if _, err := c.run(ctx, "resume", "--domain", uuid); err != nil {
		return fmt.Errorf("let %s run on: %w", uuid, err)
	}
	return nil
}

// PowerOff ends a domain at once, as pulling the plug does.
func (c Connection) PowerOff(ctx context.Context, uuid string) error {
	if _, err := c.run(ctx, "destroy", "--domain", uuid); err != nil {
		return fmt.Errorf("power %s off: %w", uuid, err)
	}
	return nil
}

// Command is a virsh that the caller runs.
func (c Connection) Command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "virsh", append([]string{"--quiet", "--connect", c.At()}, args...)...)
	cmd.Env = append(confine.Environment(), "LC_ALL=C")
	return cmd
}

// run runs virsh to its end, and returns what it printed.
func (c Connection) run(ctx context.Context, args ...string) (string, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, answer, errors.New("virsh did not answer in time"))
	defer cancel()
	cmd := c.Command(ctx, args...)
	cmd.WaitDelay = time.Second
	out, said := &sys.Head{Most: maxSaid}, &sys.Head{} // of a complaint the beginning is enough
	cmd.Stdout, cmd.Stderr = out, said
	err := cmd.Run()
	switch {
	case errors.Is(err, exec.ErrNotFound):
		return "", errors.New("there is no virsh (Debian's package libvirt-clients has it)")
	case err != nil && ctx.Err() != nil:
		return "", context.Cause(ctx)
	case err != nil:
		text := strings.TrimPrefix(strings.TrimSpace(said.String()), "error: ")
		if text == "" {
			return "", err
		}
		return "", errors.New(strings.ReplaceAll(strings.ReplaceAll(text, "\nerror: ", ": "), "\n", " "))
	case out.Cut():
		return "", errors.New("virsh says too much")
	}
	return out.String(), nil
}
