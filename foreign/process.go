// SPDX-License-Identifier: Apache-2.0

package foreign

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"
	"unicode/utf8"

	"github.com/imgbackup/imgbackup/nbd"
	"github.com/imgbackup/imgbackup/qcow2"
)

// Options say how images are opened.
type Options struct {
	// KeyFile holds the passphrase of an encrypted image: all of its bytes, a line
	// end at its end included.
	KeyFile string
	// Program is run in place of qemu-nbd; empty: qemu-nbd.
	Program string
}

// startTime bounds how long qemu-nbd may take until it serves.
const startTime = time.Minute

// process is a qemu-nbd.
type process struct {
	cmd    *exec.Cmd
	stderr tail
	ended  chan struct{}
	err    error // of Wait, once it has ended
}

// node is the image as QEMU's -blockdev describes it.
func node(path string, format qcow2.Format, key bool) (string, error) {
	if !utf8.ValidString(path) {
		return "", errors.New("the path is no UTF-8 text, and cannot be given to qemu-nbd")
	}
	n := map[string]any{
		"driver": string(format), "read-only": true,
		"file": map[string]any{"driver": "file", "filename": path, "read-only": true},
	}
	switch format {
	case LUKS:
		n["key-secret"] = "key"
	case qcow2.Qcow2:
		n["encrypt"] = map[string]any{"format": "luks", "key-secret": "key"}
		n["backing"] = nil
	case VMDK, QED:
		n["backing"] = nil
	}
	if needs := format == LUKS || format == qcow2.Qcow2; needs != key {
		if needs {
			return "", &qcow2.UnsupportedError{Path: path, What: "the image is encrypted: its passphrase has to be in a file (keyfile=PATH)"}
		}
		return "", &qcow2.UnsupportedError{Path: path, What: fmt.Sprintf("an image of format %s has no passphrase: leave keyfile= out", format)}
	}
	text, err := json.Marshal(n)
	return "json:" + string(text), err
}

// start runs qemu-nbd on a socket.
func start(path, socket string, format qcow2.Format, o Options) (*process, error) {
	image, err := node(path, format, o.KeyFile != "")
	if err != nil {
		return nil, err
	}
	args := []string{"--read-only", "--shared=1", "--socket", socket}
	if o.KeyFile != "" {
		key, err := filepath.Abs(o.KeyFile)
		if err != nil {
			return nil, err
		}
		// QEMU would say it in its own words, and later.
		f, err := os.Open(key)
		if err != nil {
			return nil, fmt.Errorf("keyfile: %w", err)
		}
		_ = f.Close()
		args = append(args, "--object", "secret,id=key,format=raw,file="+strings.ReplaceAll(key, ",", ",,"))
	}
	if o.Program == "" {
		o.Program = "qemu-nbd"
	}
	p := &process{cmd: exec.Command(o.Program, append(args, image)...), ended: make(chan struct{})}
	p.cmd.Stderr = &p.stderr
	p.cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C"}
	// Ctrl-C is for us, and we end it. It dies with us, too.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	p.cmd.WaitDelay = time.Second
	started := make(chan error)
	go func() {
		// The signal comes when the thread ends that started the process.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		if err := p.cmd.Start(); err != nil {
			started <- err
			return
		}
		started <- nil
		p.err = p.cmd.Wait()
		close(p.ended)
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	return p, nil
}

// connect waits until the process serves.
func (p *process) connect(ctx context.Context, socket string) (*nbd.Client, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, startTime, errors.New("it does not begin to serve"))
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		c, err := nbd.Dial(ctx, "unix", socket, nbd.ClientOptions{Contexts: []string{nbd.BaseAllocation}})
		if err == nil {
			return c, nil
		}
		if !errors.Is(err, syscall.ENOENT) && !errors.Is(err, syscall.ECONNREFUSED) {
			return nil, p.explain(err)
		}
		select {
		case <-tick.C:
		case <-p.ended:
			return nil, p.explain(fmt.Errorf("it ended: %v", p.cmd.ProcessState))
		case <-ctx.Done():
			return nil, p.explain(context.Cause(ctx))
		}
	}
}

// explain adds what the process has said.
func (p *process) explain(err error) error {
	if said := p.stderr.String(); said != "" {
		return fmt.Errorf("qemu-nbd: %w: %s", err, said)
	}
	return fmt.Errorf("qemu-nbd: %w", err)
}

// end kills the process, which has nothing to lose, and waits for it.
func (p *process) end() {
	_ = p.cmd.Process.Kill() // it may have ended already
	<-p.ended
}

// tail keeps the first bytes of what a process says.
type tail struct {
	mu sync.Mutex
	b  bytes.Buffer
}

const maxTail = 2 << 10

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b.Write(p[:min(len(p), max(0, maxTail-t.b.Len()))])
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.Join(strings.FieldsFunc(t.b.String(), func(r rune) bool { return r == '\n' || r == '\r' }), "; ")
}
