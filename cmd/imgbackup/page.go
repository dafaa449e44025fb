// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"github.com/imgbackup/imgbackup/internal/sys"
)

// pageTemp begins the names of pages that are being written.
const pageTemp = ".imgbackup-report."

// writePage writes a page of a report, which appears whole, in the place of an older one.
func writePage(path string, write func(io.Writer) error) error {
	if err := checkOlderPage(path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return fmt.Errorf("--html: %w", err)
	}
	defer func() { _ = dir.Close() }() // only read
	_ = sys.Sweep(dir, func(name string, folder bool) bool { return !folder && strings.HasPrefix(name, pageTemp) })
	f, name, err := sys.CreateLocked(dir, func() string { return pageTemp + uuid.NewString()[:8] }, 0o644)
	if err != nil {
		return fmt.Errorf("--html: %w", err)
	}
	err = write(f)
	if err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = unix.Renameat(int(dir.Fd()), name, int(dir.Fd()), filepath.Base(path))
	}
	if err != nil {
		err = errors.Join(fmt.Errorf("--html: %s: %w", path, err), sys.UnlinkAt(dir, name))
	}
	return errors.Join(err, f.Close(), (&sys.FolderSyncer{}).Sync(dir))
}

// checkOlderPage refuses to replace what is not a report.
func checkOlderPage(path string) error {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("--html: %w", err)
	}
	defer func() { _ = f.Close() }() // only read
	head := make([]byte, 1024)
	n, err := io.ReadFull(f, head)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return fmt.Errorf("--html: %w", err)
	}
	head = head[:n]
	if bytes.Contains(head, []byte(`<meta name="generator" content="imgbackup">`)) || bytes.Contains(head, []byte(`"format": "imgbackup-report"`)) {
		return nil
	}
	return fmt.Errorf("--html: %s is there and is no report of ours: it is not replaced", path)
}
