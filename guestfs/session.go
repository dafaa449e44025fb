// SPDX-License-Identifier: Apache-2.0

package guestfs

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/imgbackup/imgbackup/confine"
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
	Cache   string           // a folder of this host in which is kept, for a day, that KVM does not work; empty: nowhere
	Keys    []Key            // of encrypted volumes, in an order in which they can be opened
	Note    func(msg string) // is told what a person should know; may be nil

	kvm      string        // for tests: the device; empty: [confine.KVM]
	patience time.Duration // for tests: instead of [kvmPatience]
}

func (o *Options) note(format string, args ...any) {
	if o.Note != nil {
		o.Note(fmt.Sprintf(format, args...))
	}
}

// Session is one appliance, started. Its methods must not be called at the same time.
type Session struct {
	Version  string // of libguestfs
	Emulated bool   // the appliance runs without KVM

	disks   []Disk
	devices []string // of the disks, in their order, as the appliance names them
	os      []OS     // what inspection found, once it was asked
	asked   bool
	volumes []Volume
	mounted bool     // something may be
	entered *Mounted // what is, by Enter; nil: something else
	place   Place    // where that is
	pipes   int      // that were made

	opened   map[string][]string // encrypted volumes that are open → the disks they lie on
	unlocked map[string]bool     // the devices of these

	dir     string   // the session's own folder
	seen    string   // as the appliance's programs see it
	uid     int      // whose it is; 0: ours
	sockets []string // of the disks, each once
	returns []func() error

	process *confine.Process
	in      io.WriteCloser
	out     *replies
	err     *replies
	mark    string
	dead    chan struct{}
	closed  bool
}

// Start starts an appliance and gives it the disks. The session lives until Close, or
// until ctx ends. A volume that its key does not open is a [LockedError].
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
	appliance, err := findAppliance(ctx, &o)
	if err != nil {
		return nil, err
	}
	s, err := startEither(ctx, o, appliance)
	if err == nil && len(o.Keys) > 0 {
		if err = s.unlock(ctx, o.Keys); err != nil {
			return nil, errors.Join(err, s.Close())
		}
	}
	return s, err
}

// startEither starts an appliance, with KVM if that works.
func startEither(ctx context.Context, o Options, appliance string) (*Session, error) {
	if o.Emulate || !confine.KVMOpens(cmp.Or(o.kvm, confine.KVM)) || emulationAsked() {
		return launch(ctx, o, appliance, true)
	}
	work := kvmWork{folder: o.Cache, bootID: bootID}
	if work.failed() {
		o.note("libguestfs runs emulated, since with KVM it did not start here today (without %s it is tried again)", work.file())
		return launch(ctx, o, appliance, true)
	}
	s, err := launchKVM(ctx, o, appliance)
	if err == nil || ctx.Err() != nil {
		return s, err
	}
	o.note("libguestfs does not start with KVM here, and runs emulated: %v", err)
	if s, err = launch(ctx, o, appliance, true); err == nil {
		work.remember()
	}
	return s, err
}

var errSlow = errors.New("it was not there in time")

// launchKVM is launch with KVM, if that does not take too long.
func launchKVM(ctx context.Context, o Options, appliance string) (*Session, error) {
	// No deadline, which would bound what the appliance may do later.
	tried, cancel := context.WithCancelCause(ctx)
	timer := time.AfterFunc(cmp.Or(o.patience, kvmPatience), func() { cancel(errSlow) })
	s, err := launch(tried, o, appliance, false)
	if !timer.Stop() && err == nil { // it may have been ended by that
		err = errors.Join(errSlow, s.Close())
	}
	if err != nil {
		cancel(nil)
		return nil, err
	}
	s.follow(ctx, func() { cancel(nil) }) // the time was for the start; it lives as long as ctx
	return s, nil
}

// bootID is where the kernel tells which boot of the host this is.
const bootID = "/proc/sys/kernel/random/boot_id"

// emulationAsked reports whether the user has told libguestfs to go without KVM.
func emulationAsked() bool {
	return strings.Contains(os.Getenv("LIBGUESTFS_BACKEND_SETTINGS"), "force_tcg")
}

// launch starts an appliance, kept apart as well as that is possible here.
func launch(ctx context.Context, o Options, appliance string, emulate bool) (s *Session, err error) {
	for _, way := range ways(emulate) {
		if way.note != "" {
			o.note("%s", way.note)
		}
		if s, err = launchApart(ctx, o, appliance, emulate, way); !errors.Is(err, errApart) {
			break
		}
	}
	return s, err
}

func launchApart(ctx context.Context, o Options, appliance string, emulate bool, way apart) (_ *Session, err error) {
	dir, err := os.MkdirTemp(o.TempDir, "guestfs-")
	if err != nil {
		return nil, err
	}
	s := &Session{Emulated: emulate, disks: o.Disks, dir: dir, uid: int(way.UID), mark: newMark(), dead: make(chan struct{})}
	for _, d := range o.Disks {
		if !slices.Contains(s.sockets, d.Socket) {
			s.sockets = append(s.sockets, d.Socket)
		}
	}
	if s.seen, err = s.furnish(appliance, way); err == nil {
		err = s.startProgram(ctx, &o, appliance, way)
	}
	if err != nil {
		return nil, errors.Join(err, s.leave())
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
			if s.process.Cmd.ProcessState.ExitCode() == notApart {
				err = fmt.Errorf("%w: %w", errApart, err)
			}
		}
	}()
	return s, s.prepare(ctx, way)
}

// sandbox is what QEMU denies itself by seccomp filters.
const sandbox = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"

// prepare gives the appliance its disks, and starts it.
func (s *Session) prepare(ctx context.Context, way apart) (err error) {
	if s.Version, err = s.version(ctx); err != nil {
		return err
	}
	if _, err := s.call(ctx, "config", "-sandbox", sandbox); err != nil {
		return fmt.Errorf("libguestfs: %w", err)
	}
	for _, d := range s.disks {
		socket := d.Socket
		if way.alone {
			socket = s.socketAt(s.seen, slices.Index(s.sockets, socket))
		}
		if strings.Contains(socket, "'") {
			return fmt.Errorf("libguestfs: disk %s: it cannot take a socket with a quote in its path: %s", d.Name, socket)
		}
		// Quoted once more: it is a list, which spaces would part.
		if _, err := s.call(ctx, "add-drive", d.Name, "readonly:true", "format:raw", "protocol:nbd", "server:'unix:"+socket+"'"); err != nil {
			return fmt.Errorf("libguestfs: disk %s: %w", d.Name, err)
		}
	}
	if _, err := s.call(ctx, "run"); err != nil {
		return fmt.Errorf("libguestfs: start the appliance: %w", err)
	}
	if s.devices, err = s.lines(ctx, "list-devices"); err != nil {
		return fmt.Errorf("libguestfs: %w", err)
	}
	if len(s.devices) != len(s.disks) {
		return fmt.Errorf("libguestfs: it was given %d disks, and sees %q", len(s.disks), s.devices)
	}
	return nil
}

func newMark() string {
	var r [16]byte
	_, _ = rand.Read(r[:]) // never fails
	return "mark-" + hex.EncodeToString(r[:])
}

// startProgram starts guestfish in a session of its own, which is also that of QEMU.
func (s *Session) startProgram(ctx context.Context, o *Options, appliance string, way apart) error {
	cmd, err := s.command(ctx, o, appliance, way)
	if err != nil {
		return err
	}
	pipes, err := newPipes()
	if err != nil {
		return err
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = pipes[0].r, pipes[1].w, pipes[2].w
	how := confine.Apart{Namespaces: way.Namespaces} // it changes its user by itself
	s.process, _, err = confine.StartApart(func(confine.Apart) *exec.Cmd { return cmd }, []confine.Apart{how})
	_, _, _ = pipes[0].r.Close(), pipes[1].w.Close(), pipes[2].w.Close() // the child has its own
	if err != nil {
		_, _, _ = pipes[0].w.Close(), pipes[1].r.Close(), pipes[2].r.Close()
		if confine.Refused(err) {
			err = fmt.Errorf("%w: %w", errApart, err)
		}
		return err
	}
	s.in = pipes[0].w
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

func (s *Session) version(ctx context.Context) (string, error) {
	fields, err := s.fields(ctx, "version")
	if err != nil {
		return "", fmt.Errorf("libguestfs: %w", err)
	}
	return strings.TrimSuffix(fields["major"]+"."+fields["minor"]+"."+fields["release"], "."), nil
}

// follow lets another context end the session than the one it was started with.
func (s *Session) follow(ctx context.Context, done func()) {
	stop := context.AfterFunc(ctx, s.kill)
	go func() {
		<-s.dead
		stop()
		done()
	}()
}

// kill ends every process of the session at once.
func (s *Session) kill() {
	_ = unix.Kill(-s.process.Cmd.Process.Pid, unix.SIGKILL) // they may have ended already
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
	<-s.process.Ended // how it ended does not matter: nothing was written
	// What is left of its process group has nobody any more whom it would serve.
	s.kill()
	s.out.wait()
	s.err.wait()
	close(s.dead)
	return s.leave()
}

// leave gives back what was lent, and removes the folder.
func (s *Session) leave() error {
	var err error
	for _, back := range s.returns {
		err = errors.Join(err, back())
	}
	return errors.Join(err, os.RemoveAll(s.dir))
}
