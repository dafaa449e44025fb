// SPDX-License-Identifier: Apache-2.0

package guestfs

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/imgbackup/imgbackup/confine"
	"github.com/imgbackup/imgbackup/internal/sys"
)

// How the appliance, and the programs that drive it, are kept apart.
type apart struct {
	confine.Apart
	// alone: as a user that nobody else is, in a mount namespace in which the session's
	// folder has another place, and all is hidden that people keep on a host.
	alone bool
	note  string // what a person should know of it
}

// ways are those ways that may be possible, the tightest first.
func ways(emulate bool) []apart {
	if os.Geteuid() != 0 {
		// A user namespace of its own takes with it nothing but the right to the others.
		all := apart{note: "libguestfs's appliance runs without namespaces of its own, which this host does not allow"}
		own := apart{Apart: confine.Apart{Namespaces: unix.CLONE_NEWUSER | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWPID}}
		return []apart{own, all}
	}
	c := confine.WaysApart(nil)[0]
	if !emulate {
		c.Groups = confine.KVMGroup(confine.KVM)
	}
	c.Namespaces |= unix.CLONE_NEWNS | unix.CLONE_NEWPID
	root := "libguestfs's appliance runs as root, %s, since this host does not allow it to be kept apart; run the drill as an ordinary user, or with --skip filesystems,files"
	return []apart{
		{Apart: c, alone: true},
		{Apart: confine.Apart{Namespaces: unix.CLONE_NEWNET | unix.CLONE_NEWIPC}, note: fmt.Sprintf(root, "without a network")},
		{note: fmt.Sprintf(root, "in the network of this host")},
	}
}

// errApart says that the appliance can't be kept apart in a way.
var errApart = errors.New("it cannot be kept apart so")

const (
	aloneIn = "/mnt" // where the session's folder is then
	// notApart is the exit status that says so.
	notApart = 97
)

// hidden are folders in which people keep what is theirs, and sockets of services.
var hidden = []string{"/home", "/root", "/srv", "/media", "/run", "/var", "/boot"}

// furnish makes what the session's programs need in its folder, and returns how the
// folder is called there.
func (s *Session) furnish(appliance string, way apart) (string, error) {
	in := filepath.Join(s.dir, "appliance")
	err := errors.Join(os.Mkdir(in, 0o700), os.WriteFile(filepath.Join(in, fixedMark), nil, 0o600))
	for _, name := range applianceFiles {
		if way.alone { // something to be mounted on
			err = errors.Join(err, os.WriteFile(filepath.Join(in, name), nil, 0o600))
		} else {
			err = errors.Join(err, os.Symlink(filepath.Join(appliance, name), filepath.Join(in, name)))
		}
	}
	if err != nil || !way.alone {
		return s.dir, err
	}
	for i := range s.sockets {
		err = errors.Join(err, os.WriteFile(s.socketAt(s.dir, i), nil, 0o600))
	}
	return aloneIn, errors.Join(err, s.give(int(way.UID)))
}

func (s *Session) socketAt(dir string, i int) string {
	return filepath.Join(dir, "nbd."+strconv.Itoa(i))
}

// give makes the folder, with all in it, and the sockets of the disks a user's, until
// [Session.Close]. Who may come to the sockets is for the folder to say that they are in.
func (s *Session) give(uid int) error {
	err := filepath.WalkDir(s.dir, func(path string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(path, uid, uid)
	})
	for _, socket := range s.sockets {
		var st unix.Stat_t
		if serr := unix.Lstat(socket, &st); serr != nil {
			return &os.PathError{Op: "lstat", Path: socket, Err: serr}
		}
		err = errors.Join(err, os.Lchown(socket, uid, uid))
		s.returns = append(s.returns, func() error {
			if err := os.Lchown(socket, int(st.Uid), int(st.Gid)); !errors.Is(err, os.ErrNotExist) {
				return err
			}
			return nil // its server has ended
		})
	}
	return err
}

// command is the program, with all that keeps it apart.
func (s *Session) command(ctx context.Context, o *Options, appliance string, way apart) (*exec.Cmd, error) {
	l, err := s.limits(ctx, o)
	if err != nil {
		return nil, err
	}
	args := l.Shell()
	switch privs, err := exec.LookPath("setpriv"); {
	case way.alone:
		args = append(args, "/bin/sh", "-c", s.script(o.Program, appliance, way))
	case err == nil:
		args = append(args, privs, "--no-new-privs", "--", o.Program)
	default:
		args = append(args, o.Program)
	}
	cmd := exec.Command("/bin/sh", args...)
	cmd.Dir = s.dir
	cmd.Env = append(environment(s.seen, s.seen, s.Emulated), "LIBGUESTFS_PATH="+filepath.Join(s.seen, "appliance"),
		"LIBGUESTFS_MEMSIZE="+strconv.FormatInt(memory(o)>>20, 10))
	cmd.Env = append(cmd.Env, settings("LIBGUESTFS_HV")...)
	return cmd, nil
}

const (
	overhead   = 8 << 30  // of QEMU's address space, beside the appliance's memory, bytes
	maxScratch = 32 << 30 // of a file in which is kept what a check writes, bytes
	maxTasks   = 256
)

// limits are those of each of the session's programs.
func (s *Session) limits(ctx context.Context, o *Options) (l confine.Limits, err error) {
	f, err := os.Open(s.dir)
	if err != nil {
		return l, err
	}
	free, err := sys.FreeSpace(f)
	l = confine.Limits{Memory: memory(o) + overhead, File: min(maxScratch, free/2), CPU: 24 * time.Hour}
	if at, ok := ctx.Deadline(); ok {
		l.CPU = max(time.Until(at), 0) + time.Minute
		l.CPU *= time.Duration(runtime.NumCPU())
	}
	return l, errors.Join(err, f.Close())
}

// script is what root does before it becomes who it is to be: it makes a world in which
// there is the session's folder, the programs of this host, and little else.
func (s *Session) script(program, appliance string, way apart) string {
	var b strings.Builder
	do := func(words ...string) {
		for i, w := range words {
			words[i] = shellQuote(w)
		}
		fmt.Fprintf(&b, "%s || exit %d\n", strings.Join(words, " "), notApart)
	}
	do("mount", "--make-rprivate", "/")
	for i, socket := range s.sockets {
		do("mount", "--bind", socket, s.socketAt(s.dir, i))
	}
	for _, name := range applianceFiles {
		do("mount", "--bind", "-o", "ro", filepath.Join(appliance, name), filepath.Join(s.dir, "appliance", name))
	}
	do("mount", "--rbind", s.dir, aloneIn)
	for _, folder := range hidden {
		if hides(folder, program) {
			do("mount", "-t", "tmpfs", "-o", "ro,mode=755,size=4k", "none", folder)
		}
	}
	do("mount", "-o", "remount,bind,ro", "/")
	b.WriteString("mount -t proc proc /proc 2>/dev/null\n") // some containers do not allow it
	do("cd", aloneIn)
	groups := "--clear-groups"
	if len(way.Groups) > 0 {
		groups = fmt.Sprintf("--groups=%d", way.Groups[0])
	}
	id := strconv.FormatUint(uint64(way.UID), 10)
	b.WriteString("exec ")
	do("prlimit", fmt.Sprintf("--nproc=%d", maxTasks), "setpriv", "--reuid="+id, "--regid="+id, groups, "--no-new-privs", "--pdeathsig=KILL",
		"--bounding-set=-all", "--inh-caps=-all", "--", program)
	return b.String()
}

// hides reports whether a folder can be hidden: it is there, and no program that is
// needed lies in it.
func hides(folder, program string) bool {
	st, err := os.Lstat(folder)
	if err != nil || !st.IsDir() {
		return false
	}
	needed := []string{program, os.Getenv("LIBGUESTFS_HV")}
	return !slices.ContainsFunc(needed, func(path string) bool {
		real, err := filepath.EvalSymlinks(path)
		return strings.HasPrefix(cmp.Or(real, path), folder+"/") || err == nil && strings.HasPrefix(path, folder+"/")
	})
}

func shellQuote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
