// SPDX-License-Identifier: Apache-2.0

package outfile

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/imgbackup/imgbackup/internal/sys"
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
	name  string // relative to dir
	f     *os.File
	named bool // it has its final name, for good

	// The folder of its own that the file is in, open and locked, and that one's name
	// in dir; nil: it is in dir itself.
	room     *os.File
	roomName string
}

// Partial files are called .NAME.imgbackup-<16 hex digits>.partial, with as
// much of the target's name as fits; and so are the folders of those that another
// program writes, which have their final names in there: some formats record it.
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
	f, name, err := sys.CreateLocked(d.f, func() string { return partialName(target) }, 0o600)
	if err != nil {
		return nil, fmt.Errorf("create a partial file: %w", err)
	}
	return &partial{dir: d, name: name, f: f}, nil
}

// createForeign makes one that another program is to write, in a locked folder of its
// own: that program may lock the file itself as it likes.
func (d *folder) createForeign(target string) (*partial, error) {
	room, name, err := sys.MkdirLocked(d.f, func() string { return partialName(target) }, 0o700)
	if err != nil {
		return nil, fmt.Errorf("create a folder for a partial file: %w", err)
	}
	p := &partial{dir: d, name: filepath.Join(name, target), room: room, roomName: name}
	if p.f, err = sys.OpenAt(room, target, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL, 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("create a partial file: %w", err), p.remove())
	}
	return p, nil
}

// renew opens the file in a folder of its own anew, empty, and makes it if it is gone.
func (p *partial) renew() error {
	f, err := sys.OpenAt(p.room, filepath.Base(p.name), unix.O_RDWR|unix.O_CREAT|unix.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("create a partial file: %w", err)
	}
	_ = p.f.Close() // nothing of it is wanted any more
	p.f = f
	return nil
}

// path is where the file is now.
func (p *partial) path() string { return filepath.Join(p.dir.path, p.name) }

// remove closes the file and, unless it has got its final name, removes it.
func (p *partial) remove() error {
	if p.room != nil {
		return p.removeRoom()
	}
	if p.named {
		return p.f.Close()
	}
	err := sys.UnlinkAt(p.dir.f, p.name)
	_ = p.f.Close()
	return err
}

// removeRoom is remove where the file has a folder of its own. What else may be in
// there after the file got its name is the one that it replaced, and not settled.
func (p *partial) removeRoom() (err error) {
	if p.named {
		_ = sys.Control(p.dir.f, func(fd int) error { return unix.Unlinkat(fd, p.roomName, unix.AT_REMOVEDIR) })
	} else {
		err = sys.RemoveLocked(p.dir.f, p.roomName)
	}
	if p.f != nil {
		_ = p.f.Close() // it is durable, or gone
	}
	_ = p.room.Close() // only locked
	return err
}

// sweep removes partial files, and folders of such, that no living run has locked. It does what it
// can: a folder that cannot be listed keeps them.
func (d *folder) sweep() {
	_ = sys.Sweep(d.f, func(name string, _ bool) bool { return isPartialName(name) })
}
