// SPDX-License-Identifier: Apache-2.0

package outfile

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// folder is an open directory that targets go into. Everything is done relative
// to the descriptor, so that it stays one folder whatever happens to its path.
type folder struct {
	path string
	f    *os.File
}

func openFolder(path string) (*folder, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, fmt.Errorf("open the target's folder: %w", err)
	}
	return &folder{path: path, f: f}, nil
}

// partial is a file that has not yet got its final name.
type partial struct {
	dir   *folder
	name  string
	f     *os.File
	named bool // it has its final name, for good
}

// Partial files are called .NAME.imgbackup-<16 hex digits>.partial, with as
// much of the target's name as fits.
const (
	partialInfix   = ".imgbackup-"
	partialSuffix  = ".partial"
	partialRandLen = 16
	maxFileName    = 255
)

func partialName(target string) string {
	var r [partialRandLen / 2]byte
	rand.Read(r[:]) // never fails
	keep := maxFileName - 1 - len(partialInfix) - partialRandLen - len(partialSuffix)
	return "." + target[:min(len(target), keep)] + partialInfix + hex.EncodeToString(r[:]) + partialSuffix
}

func isPartialName(name string) bool {
	rest, ok := strings.CutSuffix(name, partialSuffix)
	if !ok || !strings.HasPrefix(name, ".") || len(rest) < 2+len(partialInfix)+partialRandLen {
		return false
	}
	r := rest[len(rest)-partialRandLen:]
	_, err := hex.DecodeString(r)
	return err == nil && strings.ToLower(r) == r && strings.HasSuffix(rest[:len(rest)-partialRandLen], partialInfix)
}

// createPartial makes a new, empty, locked file that only its owner may read.
func (d *folder) createPartial(target string) (*partial, error) {
	for range 100 {
		name := partialName(target)
		fd, err := unix.Openat(int(d.f.Fd()), name, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
		if errors.Is(err, unix.EEXIST) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("create a partial file in %s: %w", d.path, err)
		}
		p := &partial{dir: d, name: name, f: os.NewFile(uintptr(fd), filepath.Join(d.path, name))}
		err = flock(p.f)
		if err == nil {
			// A sweep may have taken the file for stale before it was locked.
			var mine, there unix.Stat_t
			if err := unix.Fstat(fd, &mine); err != nil {
				_ = p.remove()
				return nil, fmt.Errorf("%s: %w", p.f.Name(), err)
			}
			if unix.Fstatat(int(d.f.Fd()), name, &there, unix.AT_SYMLINK_NOFOLLOW) == nil && mine.Ino == there.Ino && mine.Dev == there.Dev {
				return p, nil
			}
		}
		_ = p.f.Close()
		if err != nil && !errors.Is(err, unix.EWOULDBLOCK) {
			_ = unix.Unlinkat(int(d.f.Fd()), name, 0)
			return nil, err
		}
	}
	return nil, fmt.Errorf("create a partial file in %s: every name is taken", d.path)
}

// path is where the file is now.
func (p *partial) path() string { return filepath.Join(p.dir.path, p.name) }

// remove closes the file and, unless it has got its final name, removes it.
func (p *partial) remove() error {
	if p.named {
		return p.f.Close()
	}
	err := unix.Unlinkat(int(p.dir.f.Fd()), p.name, 0)
	if err != nil {
		err = fmt.Errorf("remove %s: %w", p.path(), err)
	}
	_ = p.f.Close()
	return err
}

// sweep removes partial files that no living run has locked. It does what it
// can: a file that it may not touch is left.
func (d *folder) sweep() {
	fd, err := unix.Openat(int(d.f.Fd()), ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	list := os.NewFile(uintptr(fd), d.path)
	defer func() { _ = list.Close() }()
	for {
		entries, err := list.ReadDir(512)
		for _, e := range entries {
			if e.Type()&fs.ModeType == 0 && isPartialName(e.Name()) {
				d.removeStale(e.Name())
			}
		}
		if err != nil { // the end, or a folder that cannot be listed
			return
		}
	}
}

func (d *folder) removeStale(name string) {
	fd, err := unix.Openat(int(d.f.Fd()), name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	defer func() { _ = unix.Close(fd) }()
	// Only a lock that was really had proves that nobody works on the file.
	if unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB) != nil {
		return
	}
	var mine, there unix.Stat_t
	if unix.Fstat(fd, &mine) == nil && unix.Fstatat(int(d.f.Fd()), name, &there, unix.AT_SYMLINK_NOFOLLOW) == nil &&
		mine.Ino == there.Ino && mine.Dev == there.Dev && mine.Mode&unix.S_IFMT == unix.S_IFREG {
		_ = unix.Unlinkat(int(d.f.Fd()), name, 0)
	}
}

func (d *folder) sync() error {
	if err := d.f.Sync(); err != nil && !Unsupported(err) {
		return fmt.Errorf("sync the folder %s: %w", d.path, err)
	}
	return nil
}

// SyncFolder makes durable what was created in a folder or removed from it.
func SyncFolder(path string) error {
	d, err := openFolder(path)
	if err != nil {
		return err
	}
	defer func() { _ = d.f.Close() }()
	return d.sync()
}
