// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"

	"github.com/imgbackup/imgbackup/backup"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/confine"
	"github.com/imgbackup/imgbackup/internal/spool"
	"github.com/imgbackup/imgbackup/objstore"
	"github.com/imgbackup/imgbackup/qcow2"
)

// used is a repository that the rest of a command uses.
type used struct {
	repo   *chain.Repository
	writes bool
}

func reads(repo *chain.Repository) used  { return used{repo, false} }
func writes(repo *chain.Repository) used { return used{repo, true} }

// restrict takes from this process all files but those that the rest of a command may need:
// whatever it reads, or whoever talks to it, makes it open no others. docs/security.md has which
// commands do so. From then on the kernel also shows this process no other's open files and
// namespaces.
func (a *app) restrict(s confine.Self, all ...used) error {
	if !a.alone || a.reach.restricted {
		return nil // several commands run in one process, one after the other
	}
	for _, u := range all {
		if p, ok := objstore.As[objstore.Placed](u.repo.Store); ok && u.writes {
			s.Write = append(s.Write, p.Dir())
		} else if ok {
			s.Read = append(s.Read, p.Dir())
		}
	}
	if a.reach.program {
		a.detail("this process reads what it likes: credential_process of the AWS tools' files runs a program, of which nobody knows what it needs")
		return nil
	}
	s.Read = append(s.Read, a.reach.files...)
	s.Write = append(s.Write, spool.TempDir(), os.TempDir())
	if a.cached != nil {
		s.Write = append(s.Write, a.cached.dir.Path())
	}
	for _, name := range []string{"qemu-img", "qemu-nbd"} { // where they are not in the system's folders
		if path, err := exec.LookPath(name); err == nil {
			s.Run = append(s.Run, path)
		}
	}
	if err := confine.Restrict(s); err != nil {
		return fmt.Errorf("restrict this process: %w (IMGBACKUP_CONFINE=off goes without)", err)
	}
	a.reach.restricted = true
	return nil
}

// reach is what the stores that a command has opened read beside their objects. Several
// goroutines may add to it, as doctor's do.
type reach struct {
	mu         sync.Mutex
	files      []string
	program    bool // they run a program for their credentials
	restricted bool // no more can be added
}

// add adds what a store in a bucket may read: how names are resolved is in files that
// others replace, and so are credentials.
func (r *reach) add(getenv func(string) string) {
	if getenv == nil {
		getenv = os.Getenv
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.files = append(r.files, "/etc", "/run/systemd/resolve", "/run/resolvconf", "/run/NetworkManager", "/run/nscd")
	files := []string{getenv("AWS_CA_BUNDLE"), getenv("AWS_WEB_IDENTITY_TOKEN_FILE"), getenv("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"),
		getenv("AWS_SHARED_CREDENTIALS_FILE"), getenv("AWS_CONFIG_FILE"), getenv("SSL_CERT_FILE")}
	if home := getenv("HOME"); home != "" {
		files = append(files, filepath.Join(home, ".aws", "credentials"), filepath.Join(home, ".aws", "config"))
	}
	for _, path := range files {
		if path != "" {
			r.program = r.program || runsProgram(path)
			r.files = append(r.files, filepath.Dir(path))
		}
	}
	if dir := getenv("SSL_CERT_DIR"); dir != "" {
		r.files = append(r.files, filepath.SplitList(dir)...)
	}
}

// runsProgram reports whether one of the AWS tools' files names a program that gives credentials.
func runsProgram(path string) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer func() { _ = f.Close() }()                // only read
	data, _ := io.ReadAll(io.LimitReader(f, 1<<20)) // what can't be read, nobody runs
	return bytes.Contains(data, []byte("credential_process"))
}

// addImage adds an image that is open, and what its chain names. changes: bitmaps are added to it
// and removed, and room is tried in its folder.
func addImage(s *confine.Self, image *qcow2.Image, changes bool) {
	for i, l := range image.Layers {
		switch {
		case i > 0 || !changes:
			s.Read = append(s.Read, l.Path)
		case isDevice(l.Path):
			s.Write = append(s.Write, l.Path)
		default:
			s.Write = append(s.Write, filepath.Dir(l.Path))
		}
		if l.DataFile != "" {
			s.Read = append(s.Read, l.DataFile)
		}
	}
}

// addClones adds the folders in which the files of an image are cloned.
func addClones(s *confine.Self, image *qcow2.Image) {
	for _, l := range image.Layers {
		for _, f := range l.Files() {
			if !f.Device() {
				s.Write = append(s.Write, filepath.Dir(f.Path()))
			}
		}
	}
}

// backupNeeds are the files of a backup whose images are open.
func backupNeeds(req *backup.Request, images []*qcow2.Image) (s confine.Self) {
	for _, image := range images {
		addImage(&s, image, !req.NoCheckpoint)
		if wantsClone(req) {
			addClones(&s, image)
		}
	}
	for _, d := range req.Disks { // qemu-nbd may be started anew
		s.Read = append(s.Read, d.Path)
		if d.KeyFile != "" {
			s.Read = append(s.Read, d.KeyFile)
		}
	}
	for _, f := range req.Files {
		if f.Data == nil {
			s.Read = append(s.Read, f.Path)
		}
	}
	return s
}

// addTarget adds a place where a file is to appear, or a device that is written over.
func addTarget(s *confine.Self, path string) {
	if isDevice(path) {
		// What lies on it is looked up there.
		s.Write, s.Read = append(s.Write, path), append(s.Read, "/sys")
		return
	}
	s.Write = append(s.Write, existing(filepath.Dir(path)))
}

// existing is the folder, or the nearest above it that there is.
func existing(dir string) string {
	for {
		if info, err := os.Stat(dir); err == nil && info.IsDir() || dir == filepath.Dir(dir) {
			return dir
		}
		dir = filepath.Dir(dir)
	}
}

func isDevice(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode()&os.ModeDevice != 0
}

// noteKernel tells what this kernel can't keep from anybody.
func (a *app) noteKernel() {
	k := confine.ThisKernel()
	if k.Landlock == 0 {
		a.detail("this kernel has no Landlock: neither imgbackup nor the programs of QEMU that it runs are kept from other files")
	} else if !k.Signals {
		a.detail("this kernel's Landlock does not keep programs from signalling others of the same user")
	}
	if !k.Seccomp {
		a.detail("this kernel has no filters of system calls: QEMU's programs are not kept from the network")
	}
}

// detail is a note for who wants to know how it runs.
func (a *app) detail(msg string) {
	if a.verbose {
		a.note(msg)
	}
}
