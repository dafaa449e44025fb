// SPDX-License-Identifier: Apache-2.0

package outfile

import (
	"crypto/rand"
	"encoding/hex"
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
	f, name, err := sys.CreateLocked(d.f, func() string { return partialName(target) }, 0o600)
	if err != nil {
		return nil, fmt.Errorf("create a partial file: %w", err)
	}
	return &partial{dir: d, name: name, f: f}, nil
}

// path is where the file is now.
func (p *partial) path() string { return filepath.Join(p.dir.path, p.name) }

// remove closes the file and, unless it has got its final name, removes it.
func (p *partial) remove() error {
	if p.named {
		return p.f.Close()
	}
	err := sys.UnlinkAt(p.dir.f, p.name)
	_ = p.f.Close()
	return err
}

// sweep removes partial files that no living run has locked. It does what it
// can: a folder that cannot be listed keeps them.
func (d *folder) sweep() {
	_ = sys.Sweep(d.f, func(name string, folder bool) bool { return !folder && isPartialName(name) })
}
