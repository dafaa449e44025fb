// SPDX-License-Identifier: Apache-2.0

package foreign

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
	"unicode/utf8"

	"github.com/imgbackup/imgbackup/confine"
	"github.com/imgbackup/imgbackup/nbd"
	"github.com/imgbackup/imgbackup/qcow2"
	"github.com/imgbackup/imgbackup/qemu"
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
func start(path, socket string, format qcow2.Format, o Options) (*qemu.NBD, error) {
	image, err := node(path, format, o.KeyFile != "")
	if err != nil {
		return nil, err
	}
	access := confine.Access{Read: []string{path}, Make: []string{filepath.Dir(socket)}}
	if info, err := os.Stat(path); err == nil {
		access.Memory = qemu.ReadMemory(info.Size())
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
		access.Read = append(access.Read, key)
		args = append(args, "--object", "secret,id=key,format=raw,file="+strings.ReplaceAll(key, ",", ",,"))
	}
	return qemu.StartNBD(o.Program, access, append(args, image)...)
}

// notYet are the errors of a connection to a process that has not begun to serve. The last ones: it listens already,
// and ends since it cannot open the image; why, it says before it has ended.
var notYet = []error{syscall.ENOENT, syscall.ECONNREFUSED, syscall.ECONNRESET, syscall.EPIPE, io.ErrUnexpectedEOF}

// connect waits until the process serves.
func connect(ctx context.Context, p *qemu.NBD, socket string) (*nbd.Client, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, startTime, errors.New("it does not begin to serve"))
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		c, err := nbd.Dial(ctx, "unix", socket, nbd.ClientOptions{Contexts: []string{nbd.BaseAllocation}})
		if err == nil {
			return c, nil
		}
		if !slices.ContainsFunc(notYet, func(is error) bool { return errors.Is(err, is) }) {
			return nil, p.Explain(err)
		}
		select {
		case <-tick.C:
		case <-p.Ended:
			return nil, p.Explain(fmt.Errorf("it ended: %v", p.Cmd.ProcessState))
		case <-ctx.Done():
			return nil, p.Explain(context.Cause(ctx))
		}
	}
}
