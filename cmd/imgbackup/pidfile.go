// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/imgbackup/imgbackup/internal/usage"
)

// maxPIDFile bounds what can be a pid file, bytes.
const maxPIDFile = 32

// writePIDFile writes this process's id to a file, in the place of what another server
// left there, and of nothing else.
func writePIDFile(path string) error {
	switch _, err := readPIDFile(path); {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return err
	default:
		if err := os.Remove(path); err != nil {
			return err
		}
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(f, os.Getpid())
	return errors.Join(err, f.Close())
}

// removePIDFile removes the file, if it is ours still.
func removePIDFile(path string) {
	if pid, err := readPIDFile(path); err == nil && pid == os.Getpid() {
		_ = os.Remove(path) // the process it names ends in any case
	}
}

// readPIDFile returns the process id in a file; 0: the file is empty. Any other file is an
// error of usage.
func readPIDFile(path string) (pid int, err error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, unix.ELOOP) {
		return 0, usage.Errorf("%s is a symbolic link, which is not followed", path)
	}
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	text := make([]byte, maxPIDFile+1)
	n, err := io.ReadFull(f, text)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return 0, err
	}
	if n > 0 {
		pid, err = strconv.Atoi(strings.TrimSuffix(string(text[:n]), "\n"))
	} else {
		err = nil
	}
	if err != nil || !info.Mode().IsRegular() || n > maxPIDFile || pid < 0 {
		return 0, usage.Errorf("%s is there, and no file that holds a process's id: it is not replaced", path)
	}
	return pid, nil
}
