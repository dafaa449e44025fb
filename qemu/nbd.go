// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"time"

	"github.com/imgbackup/imgbackup/confine"
)

// NBD is a qemu-nbd, which only reads and has nothing to lose.
type NBD struct {
	cmd    *exec.Cmd
	stderr head
	ended  chan struct{}
}

// StartNBD runs qemu-nbd with the arguments, which may open what a names, and make sockets
// there; name, if any, is run in its place. It runs until [NBD.Kill], or until we end.
func StartNBD(name string, a confine.Access, args ...string) (*NBD, error) {
	if name == "" {
		name = "qemu-nbd"
	}
	a.Listens = true
	cmd, err := program{name: name, args: args}.command(false)
	if err != nil {
		return nil, err
	}
	n := &NBD{cmd: cmd, ended: make(chan struct{})}
	cmd.Stderr = &n.stderr
	cmd.WaitDelay = time.Second
	started, ended := confine.Start(cmd, a)
	if err := <-started; err != nil {
		return nil, err
	}
	go func() {
		for range ended { // State has how
		}
		close(n.ended)
	}()
	return n, nil
}

// Ended is closed when the process has ended.
func (n *NBD) Ended() <-chan struct{} { return n.ended }

// State is how the process ended, once it has.
func (n *NBD) State() *os.ProcessState { return n.cmd.ProcessState }

// Kill ends the process and waits for its end.
func (n *NBD) Kill() {
	_ = n.cmd.Process.Kill() // it may have ended already
	<-n.ended
}

// Explain adds what the process has said to an error.
func (n *NBD) Explain(err error) error {
	if said := n.stderr.String(); said != "" {
		return fmt.Errorf("qemu-nbd: %w: %s", err, said)
	}
	return fmt.Errorf("qemu-nbd: %w", err)
}

// head keeps the first bytes of what a process says.
type head struct {
	mu sync.Mutex
	b  bytes.Buffer
}

const maxHead = 2 << 10

func (h *head) Write(p []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.b.Write(p[:min(len(p), max(0, maxHead-h.b.Len()))])
	return len(p), nil
}

func (h *head) String() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return strings.Join(strings.FieldsFunc(h.b.String(), func(r rune) bool { return r == '\n' || r == '\r' }), "; ")
}
