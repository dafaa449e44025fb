// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/imgbackup/imgbackup/internal/sys"
)

// pageTemp begins the names of pages that are being written.
const pageTemp = ".imgbackup-report."

// writePage writes a page of a report, which appears whole, in the place of an older one.
func writePage(path string, write func(io.Writer) error) error {
	if err := checkOlderPage(path); err != nil {
		return err
	}
	if err := sys.WriteWhole(path, pageTemp, 0o644, write); err != nil {
		return fmt.Errorf("--html: %w", err)
	}
	return nil
}

// checkOlderPage refuses to replace what is not a report.
func checkOlderPage(path string) error {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("--html: %w", err)
	case !info.Mode().IsRegular():
		return fmt.Errorf("--html: %s is there and is no file: it is not replaced", path)
	}
	f, err := os.Open(path)
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
