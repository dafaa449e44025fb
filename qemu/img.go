// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/imgbackup/imgbackup/confine"
	"github.com/imgbackup/imgbackup/internal/sys"
)

// Img is qemu-img, ready to be run. The zero value is the one that is found in PATH,
// and does not wait for others.
type Img struct {
	Program string        // a name to look up in PATH, or a path; empty: qemu-img
	Wait    time.Duration // for which another program that has the image open is waited for
	Flock   *ImageFlock   // that a writer holds as long as it runs; may be nil
	Files   []*os.File    // that [Img.Run] hands on, as the descriptors from 3 on
	// Access is what the program may open beside the image that a method names; all that
	// [Img.Run] may open.
	Access confine.Access
}

// LockWait is how long a QEMU that is just ending, such as a qemu-img whose starter was
// killed, is waited for.
const LockWait = 10 * time.Second

// What QEMU takes: granularities of bitmaps in bytes, and the bytes of their names.
const (
	minGranularity = 512
	maxGranularity = 2 << 30
	maxBitmapName  = 1023
)

// CheckInstalled returns the error that running qemu-img ends with where there is none.
func (q Img) CheckInstalled() error {
	_, err := q.program().find()
	return err
}

// BitmapAdd adds an enabled, empty persistent bitmap of that granularity (bytes, 512 to
// 2 GiB, a power of two) to the qcow2 image at path. ctx can prevent it and end the
// waiting for another program to close the image ([*InUseError]); once begun it is seen
// through.
//
// Success proves nothing, nor does failure: look at the image afterwards. Look before
// whether it can be done without harm: whether there is room, and whether the refcounts
// are right.
func (q Img) BitmapAdd(ctx context.Context, path, name string, granularity int64) error {
	if granularity < minGranularity || granularity > maxGranularity || granularity&(granularity-1) != 0 {
		return fmt.Errorf("add a bitmap to %s: granularity %d is not a power of two from 512 to 2147483648", path, granularity)
	}
	if err := checkBitmapName(name); err != nil {
		return fmt.Errorf("add a bitmap to %s: %w", path, err)
	}
	return q.write(ctx, fmt.Sprintf("add bitmap %.256q to", name), path,
		"bitmap", "--add", "-g", strconv.FormatInt(granularity, 10), "--", imageFile, name)
}

// BitmapRemove removes a persistent bitmap, under the same rules as [Img.BitmapAdd]. One
// that is not there is an error.
func (q Img) BitmapRemove(ctx context.Context, path, name string) error {
	if err := checkBitmapName(name); err != nil {
		return fmt.Errorf("remove a bitmap from %s: %w", path, err)
	}
	return q.write(ctx, fmt.Sprintf("remove bitmap %.256q from", name), path,
		"bitmap", "--remove", "--", imageFile, name)
}

// BitmapAdd is [Img.BitmapAdd] on the image that the flock is on, at path. The qemu-img
// holds the flock, too: should we be killed meanwhile, nobody can take it before
// qemu-img has ended, and take the bitmap for one that was not added.
func (f *ImageFlock) BitmapAdd(ctx context.Context, path, name string, granularity int64) error {
	return Img{Wait: LockWait, Flock: f}.BitmapAdd(ctx, path, name, granularity)
}

// BitmapRemove is [Img.BitmapRemove], under the same rule as [ImageFlock.BitmapAdd].
func (f *ImageFlock) BitmapRemove(ctx context.Context, path, name string) error {
	return Img{Wait: LockWait, Flock: f}.BitmapRemove(ctx, path, name)
}

func checkBitmapName(name string) error {
	if name == "" || len(name) > maxBitmapName || strings.IndexByte(name, 0) >= 0 {
		return fmt.Errorf("%.256q is no name of a bitmap", name)
	}
	return nil
}

// write runs a qemu-img that opens the image for writing.
func (q Img) write(ctx context.Context, what, path string, args ...string) error {
	what += " " + path
	return sys.Retry(ctx, q.Wait, conflict, func() error {
		run, err := q.onImage(ctx, path, true, args...)
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

// onImage runs qemu-img on the image at path. A writer is not ended with ctx.
func (q Img) onImage(ctx context.Context, path string, writer bool, args ...string) (run result, err error) {
	if !writer {
		p, err := q.reader(path, args...)
		if err != nil {
			return run, err
		}
		return p.run(ctx)
	}
	p, _, err := q.at(path, args...)
	if err != nil {
		return run, err
	}
	// No limit of any kind.
	p.access.Write, p.access.Memory = append(p.access.Write, path), 0
	if q.Flock != nil {
		p.files = []*os.File{q.Flock.file}
	}
	return p.runDetached(ctx)
}

// at is qemu-img with arguments that name the image at path.
func (q Img) at(path string, args ...string) (p program, image node, err error) {
	if image, err = nodeAt(path); err != nil {
		return p, image, err
	}
	if args, err = image.arguments(args); err != nil {
		return p, image, err
	}
	p = q.program(args...)
	p.dir = filepath.Dir(path)
	return p, image, nil
}

// reader is a qemu-img that only reads the image at path.
func (q Img) reader(path string, args ...string) (program, error) {
	p, image, err := q.at(path, args...)
	p.access.Read, p.access.Memory = append(p.access.Read, path), ReadMemory(image.size)
	return p, err
}

func (q Img) program(args ...string) program {
	name := q.Program
	if name == "" {
		name = "qemu-img"
	}
	return program{name: name, args: slices.Clone(args), access: q.Access.Clone()}
}

// Run runs qemu-img with the arguments in the folder dir, and returns what it writes to
// stdout, at most 64 KiB. It is killed when ctx ends, so it must write nothing but new
// files. It opens nothing but what Access names. It does not wait for locks. If qemu-img itself fails, the error is an
// [*ExitError].
func (q Img) Run(ctx context.Context, dir string, args ...string) ([]byte, error) {
	p := q.program(args...)
	p.dir, p.files = dir, q.Files
	run, err := p.run(ctx)
	if err == nil && run.status != 0 {
		run.stderr += string(run.stdout) // where the answer of a comparison is
		err = run.failed("qemu-img " + args[0])
	}
	if err != nil && ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	return run.stdout, err
}

// failure is the error of a run on an image that failed.
func (r result) failure(what, path string) error {
	if strings.Contains(r.stderr, "Failed to get ") && strings.Contains(r.stderr, " lock") {
		return &InUseError{Path: path, Why: "another program has it open" + pathHolders(path)}
	}
	err := r.failed(what + ": qemu-img")
	switch r.signal {
	case syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP:
		return &strayError{err}
	}
	return err
}

// strayError says that qemu-img was ended by a signal that was not meant for it: one to
// our whole process group ends a child that has not got as far as its own session, and
// so has not become qemu-img yet. Then we are about to be cancelled, or, where we see
// something through all the same, try again.
type strayError struct{ error }

func (e *strayError) Unwrap() error { return e.error }
