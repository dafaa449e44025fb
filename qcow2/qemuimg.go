// SPDX-License-Identifier: Apache-2.0

package qcow2

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/imgbackup/imgbackup/internal/sys"
)

// qemuImg runs qemu-img. A qemu-img that has an image open for writing must never be interrupted: all bitmaps of the
// image, others' as well, would stay marked in use and be lost. So it runs in a session of its own, which no Ctrl-C
// reaches, is never sent a signal, and is waited for even when our own work is cancelled.
type qemuImg struct {
	program string        // a name to look up in PATH, or a path
	wait    time.Duration // for which conflicts of locks are retried
	flock   *ImageFlock   // that a writer holds as long as it runs; may be nil
}

// lockWait is how long a QEMU that is just ending, such as a qemu-img whose starter was killed, is waited for.
const lockWait = 10 * time.Second

func defaultQemuImg() qemuImg { return qemuImg{program: "qemu-img", wait: lockWait} }

// BitmapAdd adds an enabled, empty persistent bitmap of that granularity (bytes, 512 to 2 GiB, a power of two) to the
// qcow2 image at path. ctx can prevent it and end the waiting for another program to close the image ([*InUseError]); once
// begun it is seen through.
//
// Success proves nothing, nor does failure: look with [VerifyBitmapAdded] afterwards. Look before whether it can be done
// without harm: [Layer.CheckAddBitmap], [FreeSpaceFor], [CheckRefcounts].
func BitmapAdd(ctx context.Context, path, name string, granularity int64) error {
	return defaultQemuImg().bitmapAdd(ctx, path, name, granularity)
}

// BitmapRemove removes a persistent bitmap, under the same rules as [BitmapAdd]; [VerifyBitmapRemoved] looks afterwards.
// One that is not there is an error.
func BitmapRemove(ctx context.Context, path, name string) error {
	return defaultQemuImg().bitmapRemove(ctx, path, name)
}

// CheckRefcounts lets qemu-img check the image's refcounts. It only reads, and ends when ctx does.
func CheckRefcounts(ctx context.Context, path string) (CheckResult, error) {
	return defaultQemuImg().checkRefcounts(ctx, path)
}

func (q qemuImg) bitmapAdd(ctx context.Context, path, name string, granularity int64) error {
	if granularity < 1<<minGranularityBits || granularity > 1<<maxGranularityBits || granularity&(granularity-1) != 0 {
		return fmt.Errorf("add a bitmap to %s: granularity %d is not a power of two from 512 to 2147483648", path, granularity)
	}
	if err := checkBitmapName(name); err != nil {
		return fmt.Errorf("add a bitmap to %s: %w", path, err)
	}
	return q.write(ctx, "add bitmap "+quote(name)+" to", path, "bitmap", "--add", "-g", strconv.FormatInt(granularity, 10), "--image-opts", "--", imageFile, name)
}

func (q qemuImg) bitmapRemove(ctx context.Context, path, name string) error {
	if err := checkBitmapName(name); err != nil {
		return fmt.Errorf("remove a bitmap from %s: %w", path, err)
	}
	return q.write(ctx, "remove bitmap "+quote(name)+" from", path, "bitmap", "--remove", "--image-opts", "--", imageFile, name)
}

func checkBitmapName(name string) error {
	if name == "" || len(name) > maxBitmapName || strings.IndexByte(name, 0) >= 0 {
		return fmt.Errorf("%s is no name of a bitmap", quote(name))
	}
	return nil
}

// CheckResult is what qemu-img found. Leaked clusters are a waste of space; everything else means that a writer may
// overwrite guest data.
type CheckResult struct {
	Leaks       int64 // clusters that nothing uses
	Corruptions int64 // clusters whose refcount is too low, or references that are wrong
	Errors      int64 // what could not be checked
	ImageEnd    int64 // offset behind the last cluster in use, bytes; 0: not told
}

// Err is nil when the refcounts can be relied on.
func (r CheckResult) Err() error {
	if r.Corruptions != 0 || r.Errors != 0 {
		return fmt.Errorf("its refcounts are wrong: %d corruptions, %d errors found by qemu-img check", r.Corruptions, r.Errors)
	}
	return nil
}

// Exit statuses of qemu-img check.
const (
	checkClean       = 0
	checkCorruptions = 2
	checkLeaks       = 3
)

func (q qemuImg) checkRefcounts(ctx context.Context, path string) (CheckResult, error) {
	var result CheckResult
	what := "check " + path
	err := sys.Retry(ctx, q.wait, conflict, func() error {
		run, err := q.run(ctx, false, path, "check", "--output", "json", "--image-opts", "--", imageFile)
		if err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		switch run.status {
		case checkClean, checkCorruptions, checkLeaks:
			result, err = parseCheck(run.stdout, run.status)
			if err != nil {
				return fmt.Errorf("%s: %w%s", what, err, run.said())
			}
			return nil
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		return run.failure(what, path)
	})
	return result, err
}

// parseCheck reads the report of qemu-img check. What it does not name is 0.
func parseCheck(report []byte, status int) (CheckResult, error) {
	var r struct {
		ImageEnd    int64  `json:"image-end-offset"`
		Errors      *int64 `json:"check-errors"`
		Corruptions int64  `json:"corruptions"`
		Leaks       int64  `json:"leaks"`
	}
	if err := json.Unmarshal(report, &r); err != nil {
		return CheckResult{}, fmt.Errorf("qemu-img's report cannot be understood: %w", err)
	}
	if r.Errors == nil || *r.Errors < 0 || r.Corruptions < 0 || r.Leaks < 0 || r.ImageEnd < 0 {
		return CheckResult{}, errors.New("qemu-img's report cannot be understood")
	}
	result := CheckResult{Leaks: r.Leaks, Corruptions: r.Corruptions, Errors: *r.Errors, ImageEnd: r.ImageEnd}
	if status == checkCorruptions && result.Err() == nil {
		return CheckResult{}, errors.New("qemu-img's report does not agree with its exit status")
	}
	return result, nil
}

// write runs a qemu-img that opens the image for writing.
func (q qemuImg) write(ctx context.Context, what, path string, args ...string) error {
	what += " " + path
	return sys.Retry(ctx, q.wait, conflict, func() error {
		run, err := q.run(ctx, true, path, args...)
		if err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		if run.status != 0 || strings.Contains(run.stderr, "Lost persistent bitmaps") {
			return run.failure(what, path)
		}
		return nil
	})
}

// imageFile stands for the image among the arguments of qemu-img.
const imageFile = "\x00image"

// qemuRun is a qemu-img that has ended.
type qemuRun struct {
	status int            // exit status; -1: ended by a signal
	signal syscall.Signal // the one that ended it
	stdout []byte
	stderr string
}

// maxOutput bounds what is read of a program's output.
const maxOutput = 64 << 10

// run runs qemu-img with the arguments. A writer is not ended with ctx. Its output goes into files in memory: a pipe would
// break when we are killed.
func (q qemuImg) run(ctx context.Context, writer bool, path string, args ...string) (run qemuRun, err error) {
	program, err := exec.LookPath(q.program)
	if err != nil {
		if errors.Is(err, exec.ErrNotFound) || errors.Is(err, fs.ErrNotExist) {
			return run, fmt.Errorf("%s is not installed; it is in the package qemu-utils (Debian, Ubuntu), qemu-img (Fedora, RHEL, Arch) or qemu-tools (SUSE): %w", q.program, err)
		}
		return run, err
	}
	options, err := imageOptions(path)
	if err != nil {
		return run, err
	}
	args = append([]string(nil), args...)
	for i := range args {
		if args[i] == imageFile {
			args[i] = options
		}
	}
	stdout, err := memoryFile("stdout")
	if err != nil {
		return run, err
	}
	defer closeRead(stdout)
	stderr, err := memoryFile("stderr")
	if err != nil {
		return run, err
	}
	defer closeRead(stderr)
	if err := ctx.Err(); err != nil {
		return run, err
	}
	runCtx := ctx
	if writer {
		runCtx = context.WithoutCancel(ctx)
	}
	cmd := exec.CommandContext(runCtx, program, args...)
	cmd.Env = []string{"LC_ALL=C", "PATH=" + os.Getenv("PATH")}
	// QEMU looks for an external data file with a relative name in the working directory, we beside the image.
	cmd.Dir = filepath.Dir(path)
	cmd.Stdout, cmd.Stderr = stdout, stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if writer && q.flock != nil {
		cmd.ExtraFiles = []*os.File{q.flock.file}
	}
	var exit *exec.ExitError
	if err := cmd.Run(); err != nil && !errors.As(err, &exit) {
		return run, err
	}
	run.status = cmd.ProcessState.ExitCode()
	if ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		run.signal = ws.Signal()
	}
	if run.stdout, err = readOutput(stdout); err != nil {
		return run, err
	}
	text, err := readOutput(stderr)
	run.stderr = string(text)
	return run, err
}

// imageOptions names the image so that nothing in its path is taken for anything but a path.
func imageOptions(path string) (string, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	info, err := os.Stat(path)
	if err != nil {
		return "", err
	}
	if err := checkFileType(path, info); err != nil {
		return "", err
	}
	driver := "file"
	if !info.Mode().IsRegular() {
		driver = "host_device"
	}
	return "driver=qcow2,file.driver=" + driver + ",file.filename=" + strings.ReplaceAll(path, ",", ",,"), nil
}

func memoryFile(name string) (*os.File, error) {
	fd, err := unix.MemfdCreate("imgbackup-qemu-img-"+name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("memfd_create: %w", err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

func readOutput(f *os.File) ([]byte, error) {
	return io.ReadAll(io.NewSectionReader(f, 0, maxOutput))
}

// said is what the program wrote to stderr, for a message.
func (r qemuRun) said() string {
	text := strings.TrimSpace(r.stderr)
	if text == "" {
		return ""
	}
	return ": " + quote(text)
}

// failure is the error of a run that failed.
func (r qemuRun) failure(what, path string) error {
	if strings.Contains(r.stderr, "Failed to get ") && strings.Contains(r.stderr, " lock") {
		return &InUseError{Path: path, Why: "another program has it open" + pathHolders(path)}
	}
	status := "exit status " + strconv.Itoa(r.status)
	if r.status < 0 {
		status = "ended by a signal"
	}
	err := fmt.Errorf("%s: qemu-img: %s%s", what, status, r.said())
	switch r.signal {
	case syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP:
		return &strayError{err}
	}
	return err
}

// strayError says that qemu-img was ended by a signal that was not meant for it: one to our whole process group ends a
// child that has not got as far as its own session, and so has not become qemu-img yet. Then we are about to be cancelled,
// or, where we see something through all the same, try again.
type strayError struct{ error }

func (e *strayError) Unwrap() error { return e.error }
