// SPDX-License-Identifier: Apache-2.0

package request

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/imgbackup/imgbackup/backup"
	dom "github.com/imgbackup/imgbackup/domain"
	"github.com/imgbackup/imgbackup/domain/manager"
	"github.com/imgbackup/imgbackup/internal/sys"
	"github.com/imgbackup/imgbackup/internal/usage"
)

// VMs of other programs than libvirt. Each has a file here that finds a VM of it: with a
// domain made of that all else goes as if libvirt had defined it.

// finder finds the VMs of a manager on this host.
type finder interface {
	// find finds one by the manager's name for it. A VM that runs, or that its manager is
	// at work on, is a [qemu.InUseError].
	find(name string) (*vm, error)
}

// vm is a VM of a manager's.
type vm struct {
	domain *dom.Domain          // its disks; a name that is given later
	files  []backup.FileRequest // its definition, and what belongs to it
	dirs   map[string][]string  // of a disk: folders that its backing files may be in, too
	except map[string]string    // of a disk: why it is left out, unless it is asked for
	still  bool                 // nothing is written to its disks: they get no bitmaps
	notes  []string             // that a person should read
}

func (v *vm) note(format string, args ...any) {
	v.notes = append(v.notes, fmt.Sprintf(format, args...))
}

// managed finds the VM that a domain's name is that of.
func managed(at manager.Places, domain string) (*vm, error) {
	of, name, _ := manager.Split(domain)
	var f finder = &limaVMs{home: at.LimaHome()}
	if of == manager.PVE {
		f = &pveVMs{root: at.Root, dir: at.PVE()}
	}
	v, err := f.find(name)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", domain, err)
	}
	v.domain.Name = domain
	return v, nil
}

// readBounded is [sys.ReadBounded] of a file of a manager's, which a person has named.
func readBounded(path string, most int64) ([]byte, error) {
	data, err := sys.ReadBounded(path, most)
	if errors.As(err, new(*sys.UnfitError)) {
		err = usage.Wrap(err)
	}
	return data, err
}

// process is that whose number a file has, if it lives and its command line has a word in it;
// 0: it does not. One of which that can't be told counts as it.
func process(pidFile string, is func(words []string) bool) (pid int, err error) {
	text, err := readBounded(pidFile, 64)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	if n, err := fmt.Sscanf(strings.TrimSpace(string(text)), "%d", &pid); n != 1 || err != nil || pid <= 0 {
		return 0, nil // it was killed while it wrote it; QEMU's locks tell the rest
	}
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ESRCH):
		return 0, nil
	case err == nil && !is(strings.Split(strings.TrimRight(string(line), "\x00"), "\x00")):
		return 0, nil
	}
	return pid, nil
}
