// SPDX-License-Identifier: Apache-2.0

package guestfs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/imgbackup/imgbackup/confine"
	"github.com/imgbackup/imgbackup/internal/sys"
)

// applianceFiles are what an appliance consists of, as guestfs(3) describes a fixed one.
var applianceFiles = []string{"kernel", "initrd", "root"}

// fixedMark is the file that makes a folder one with a fixed appliance.
const fixedMark = "README.fixed"

// findAppliance returns the folder with the appliance. libguestfs builds it of programs and
// the kernel of this host, if it is not there already or these are newer; for that it needs
// to be who we are, and sees nothing of a guest.
func findAppliance(ctx context.Context, o *Options) (_ string, err error) {
	dir, err := os.MkdirTemp(o.TempDir, "guestfs-")
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	path, said, err := build(ctx, o.Program, dir)
	if err != nil {
		return "", err
	}
	for _, at := range filepath.SplitList(path) {
		if exists(filepath.Join(at, "supermin.d")) {
			break
		}
		if exists(filepath.Join(at, fixedMark)) {
			return at, nil
		}
	}
	at := filepath.Join(cacheDir(), ".guestfs-"+strconv.Itoa(os.Geteuid()), "appliance.d")
	if strings.Contains(said, "supermin") || !exists(filepath.Join(at, "root")) {
		return "", fmt.Errorf("libguestfs has built no appliance in %s: %s", at, complaint(said))
	}
	return at, nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// build lets libguestfs build its appliance, by a start in which the place of QEMU has a
// program that does nothing; and returns where it looks for one, and what it says.
func build(ctx context.Context, program, dir string) (path, said string, err error) {
	nothing, err := exec.LookPath("false")
	if err != nil {
		return "", "", err
	}
	// Only what its own settings say: where they are, and which kernel is taken.
	env := append(environment(dir, cacheDir(), false), "LIBGUESTFS_HV="+nothing)
	env = append(env, settings("LIBGUESTFS_PATH", "SUPERMIN_KERNEL", "SUPERMIN_MODULES", "SUPERMIN_KERNEL_VERSION")...)
	out, text := &sys.Head{Most: maxPrinted}, &sys.Head{Most: maxPrinted}
	p, _, err := confine.StartApart(func(confine.Apart) *exec.Cmd {
		cmd := exec.Command(program)
		cmd.Dir, cmd.Env = dir, env
		cmd.Stdin = strings.NewReader("-get-path\n-add-drive /dev/null readonly:true\n-run\n")
		cmd.Stdout, cmd.Stderr = out, text
		return cmd
	}, []confine.Apart{{}})
	if err != nil {
		return "", "", err
	}
	stop := context.AfterFunc(ctx, func() { _ = unix.Kill(-p.Cmd.Process.Pid, unix.SIGKILL) })
	<-p.Ended
	stop()
	_ = unix.Kill(-p.Cmd.Process.Pid, unix.SIGKILL) // what it has left has nobody to serve
	return strings.TrimSpace(out.String()), text.String(), context.Cause(ctx)
}

const maxPrinted = 64 << 10 // bytes that are kept of what libguestfs prints

// environment is what libguestfs may know of ours. Everything temporary goes into the
// session's folder.
func environment(dir, cache string, emulated bool) []string {
	env := []string{"LC_ALL=C", "PATH=" + os.Getenv("PATH"), "HOME=" + dir, "TMPDIR=" + dir, "LIBGUESTFS_TMPDIR=" + dir,
		"XDG_RUNTIME_DIR=" + dir, "LIBGUESTFS_BACKEND=direct", "LIBGUESTFS_CACHEDIR=" + cache}
	if emulated {
		env = append(env, "LIBGUESTFS_BACKEND_SETTINGS=force_tcg")
	}
	return env
}

// settings are those of libguestfs's settings that the user has made, of these.
func settings(names ...string) (all []string) {
	for _, name := range names {
		if v, ok := os.LookupEnv(name); ok {
			all = append(all, name+"="+v)
		}
	}
	return all
}

// cacheDir is where libguestfs keeps its appliance, to be built once.
func cacheDir() string {
	for _, name := range []string{"LIBGUESTFS_CACHEDIR", "TMPDIR"} {
		if v := os.Getenv(name); filepath.IsAbs(v) {
			return v
		}
	}
	return "/var/tmp"
}

// memory is how much the appliance has, bytes: what the user says, or more than libguestfs
// gives it where a key has to be derived, which may take 1 GiB by itself.
func memory(o *Options) int64 {
	mib := int64(1280)
	if len(o.Keys) > 0 {
		mib = 2560
	}
	if v, err := strconv.ParseInt(os.Getenv("LIBGUESTFS_MEMSIZE"), 10, 32); err == nil && v > 0 {
		mib = v
	}
	return mib << 20
}
