// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"fmt"
	"time"

	"github.com/imgbackup/imgbackup/confine"
)

// NBD is a qemu-nbd, which only reads and has nothing to lose.
type NBD struct {
	*confine.Process
	stderr confine.Said
}

// StartNBD runs qemu-nbd with the arguments, which may open what a names, and make sockets
// there; name, if any, is run in its place. It runs until [confine.Process.Kill], or until we end.
func StartNBD(name string, a confine.Access, args ...string) (*NBD, error) {
	if name == "" {
		name = "qemu-nbd"
	}
	a.Listens = true
	cmd, err := program{name: name, args: args}.command(false)
	if err != nil {
		return nil, err
	}
	n := new(NBD)
	cmd.Stderr = &n.stderr
	cmd.WaitDelay = time.Second
	if n.Process, err = confine.Start(cmd, a); err != nil {
		return nil, err
	}
	return n, nil
}

// Explain adds what the process has said to an error.
func (n *NBD) Explain(err error) error {
	if said := n.stderr.String(); said != "" {
		return fmt.Errorf("qemu-nbd: %w: %s", err, said)
	}
	return fmt.Errorf("qemu-nbd: %w", err)
}
