// SPDX-License-Identifier: Apache-2.0

package guestfs

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/imgbackup/imgbackup/internal/sys"
)

// Packages tells a person where libguestfs is.
const Packages = "libguestfs-tools (Debian, Ubuntu; with libguestfs-xfs for XFS) or guestfs-tools (Fedora, RHEL, SUSE)"

// ErrNotInstalled says that there is no libguestfs here.
var ErrNotInstalled = errors.New("libguestfs is not installed; it is in the package " + Packages)

// ErrEnded says that the appliance has died: what it was asked has no answer.
var ErrEnded = errors.New("the appliance of libguestfs has ended")

// Disk is a disk that an NBD server offers on a socket of this host.
type Disk struct {
	Name   string // of the export, and in [Volume.Disks]
	Socket string // its path
}

// Options are what a session is started with.
type Options struct {
	Disks   []Disk // at least one; /dev/sda is the first
	TempDir string // where the session's own folder is made; empty: as [os.MkdirTemp]
	Program string // guestfish, by name or path; empty: guestfish
	// Emulate goes without KVM. Otherwise it is tried where /dev/kvm can be opened, and
	// left if no appliance starts with it within [kvmPatience].
	Emulate bool
	Note    func(msg string) // is told what a person should know; may be nil
}

// kvmPatience is how long an appliance may take to start with KVM, which needs seconds:
// where KVM is there and can't run a guest, it hangs. The first one on a host is built.
const kvmPatience = 2 * time.Minute

// Session is one appliance, started. Its methods must not be called at the same time.
type Session struct {
	Version  string // of libguestfs
	Emulated bool   // the appliance runs without KVM

	disks   []Disk
	devices []string // of the disks, in their order, as the appliance names them
	os      []OS     // what inspection found, once it was asked
	asked   bool
	volumes []Volume
	mounted bool // something may be

	dir    string // the session's own folder
	cmd    *exec.Cmd
	in     io.WriteCloser
	out    *replies
	err    *replies
	mark   string
	ended  <-chan error
	dead   chan struct{}
	closed bool
}

// Start starts an appliance and gives it the disks. The session lives until Close, or
// until ctx ends.
func Start(ctx context.Context, o Options) (*Session, error) {
	if o.Program == "" {
		o.Program = "guestfish"
	}
	if len(o.Disks) == 0 {
		return nil, errors.New("libguestfs: no disk")
	}
	path, err := exec.LookPath(o.Program)
	if err != nil {
		return nil, fmt.Errorf("%w (%w)", ErrNotInstalled, err)
	}
	o.Program = path
	if o.Emulate || !kvmOpens() || emulationAsked() {
		return launch(ctx, o, true)
	}
	tried, cancel := context.WithTimeout(ctx, kvmPatience)
	s, err := launch(tried, o, false)
	if err == nil {
		// The time was for the start; the session lives as long as ctx.
		s.follow(ctx, cancel)
		return s, nil
	}
	cancel()
	if ctx.Err() != nil {
		return nil, err
	}
	if o.Note != nil {
		o.Note(fmt.Sprintf("libguestfs does not start with KVM here, and runs emulated: %v", err))
	}
	return launch(ctx, o, true)
}

func kvmOpens() bool {
	fd, err := unix.Open("/dev/kvm", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	_ = unix.Close(fd)
	return true
}

// emulationAsked reports whether the user has told libguestfs to go without KVM.
func emulationAsked() bool {
	return strings.Contains(os.Getenv("LIBGUESTFS_BACKEND_SETTINGS"), "force_tcg")
}

func launch(ctx context.Context, o Options, emulate bool) (_ *Session, err error) {
	dir, err := os.MkdirTemp(o.TempDir, "guestfs-")
	if err != nil {
		return nil, err
	}
	s := &Session{Emulated: emulate, disks: o.Disks, dir: dir, mark: newMark(), dead: make(chan struct{})}
	if err := s.startProgram(o.Program); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	if s.Version, err = s.version(ctx); err != nil {
		return nil, err
	}
	for _, d := range o.Disks {
		if strings.Contains(d.Socket, "'") {
			return nil, fmt.Errorf("libguestfs: disk %s: it cannot take a socket with a quote in its path: %s", d.Name, d.Socket)
		}
		// Quoted once more: it is a list, which spaces would part.
		if _, err := s.call(ctx, "add-drive", d.Name, "readonly:true", "format:raw", "protocol:nbd", "server:'unix:"+d.Socket+"'"); err != nil {
			return nil, fmt.Errorf("libguestfs: disk %s: %w", d.Name, err)
		}
	}
	if _, err := s.call(ctx, "run"); err != nil {
		return nil, fmt.Errorf("libguestfs: start the appliance: %w", err)
	}
	list, err := s.lines(ctx, "list-devices")
	if err != nil {
		return nil, fmt.Errorf("libguestfs: %w", err)
	}
	if len(list) != len(o.Disks) {
		return nil, fmt.Errorf("libguestfs: it was given %d disks, and sees %q", len(o.Disks), list)
	}
	s.devices = list
	return s, nil
}

func newMark() string {
	var r [16]byte
	_, _ = rand.Read(r[:]) // never fails
	return "mark-" + hex.EncodeToString(r[:])
}

// startProgram starts guestfish in a session of its own, which is also that of QEMU.
func (s *Session) startProgram(path string) error {
	cmd := exec.Command(path)
	cmd.Dir = s.dir
	cmd.Env = s.environment()
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL}
	pipes, err := newPipes()
	if err != nil {
		return err
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = pipes[0].r, pipes[1].w, pipes[2].w
	started, ended := sys.StartChild(cmd)
	err = <-started
	_, _, _ = pipes[0].r.Close(), pipes[1].w.Close(), pipes[2].w.Close() // the child has its own
	if err != nil {
		_, _, _ = pipes[0].w.Close(), pipes[1].r.Close(), pipes[2].r.Close()
		return err
	}
	s.cmd, s.ended, s.in = cmd, ended, pipes[0].w
	s.out = readReplies(pipes[1].r, s.mark+"\n")
	s.err = readReplies(pipes[2].r, s.mark+": unknown command\n")
	return nil
}

type pipe struct{ r, w *os.File }

func newPipes() (all [3]pipe, err error) {
	for i := range all {
		if all[i].r, all[i].w, err = os.Pipe(); err != nil {
			for _, p := range all[:i] {
				_, _ = p.r.Close(), p.w.Close()
			}
			return all, err
		}
	}
	return all, nil
}

// environment is what libguestfs may know of ours: its own settings. Everything
// temporary goes into the session's folder; the appliance itself is kept where
// libguestfs keeps it, to be built once.
func (s *Session) environment() []string {
	env := []string{"LC_ALL=C", "PATH=" + os.Getenv("PATH"), "HOME=" + s.dir, "TMPDIR=" + s.dir, "LIBGUESTFS_TMPDIR=" + s.dir,
		"XDG_RUNTIME_DIR=" + s.dir, "LIBGUESTFS_BACKEND=direct", "LIBGUESTFS_CACHEDIR=" + cacheDir()}
	if s.Emulated {
		env = append(env, "LIBGUESTFS_BACKEND_SETTINGS=force_tcg")
	}
	for _, name := range []string{"LIBGUESTFS_PATH", "LIBGUESTFS_HV", "LIBGUESTFS_MEMSIZE", "SUPERMIN_KERNEL", "SUPERMIN_MODULES", "SUPERMIN_KERNEL_VERSION"} {
		if v, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+v)
		}
	}
	return env
}

func cacheDir() string {
	for _, name := range []string{"LIBGUESTFS_CACHEDIR", "TMPDIR"} {
		if v := os.Getenv(name); filepath.IsAbs(v) {
			return v
		}
	}
	return "/var/tmp"
}

func (s *Session) version(ctx context.Context) (string, error) {
	fields, err := s.fields(ctx, "version")
	if err != nil {
		return "", fmt.Errorf("libguestfs: %w", err)
	}
	return strings.TrimSuffix(fields["major"]+"."+fields["minor"]+"."+fields["release"], "."), nil
}

// follow lets another context end the session than the one it was started with.
func (s *Session) follow(ctx context.Context, done context.CancelFunc) {
	stop := context.AfterFunc(ctx, s.kill)
	go func() {
		<-s.dead
		stop()
		done()
	}()
}

// kill ends every process of the session at once.
func (s *Session) kill() {
	_ = unix.Kill(-s.cmd.Process.Pid, unix.SIGKILL) // they may have ended already
}

// endPatience is how long the appliance may take to end by itself.
const endPatience = 10 * time.Second

// Close ends the appliance and removes all that it has left. Once more is no harm.
func (s *Session) Close() error {
	if s.closed {
		return nil
	}
	s.closed = true
	_ = s.in.Close() // that it is to end; it may have already
	timer := time.AfterFunc(endPatience, s.kill)
	defer timer.Stop()
	for range s.ended { // how it ended does not matter: nothing was written
	}
	// What is left of its process group has nobody any more whom it would serve.
	s.kill()
	s.out.wait()
	s.err.wait()
	close(s.dead)
	return os.RemoveAll(s.dir)
}
