// SPDX-License-Identifier: Apache-2.0

package drill

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/confine"
	"github.com/imgbackup/imgbackup/drill/record"
	"github.com/imgbackup/imgbackup/qemu"
)

// image is the step in which a second program agrees.
//
// What was restored has been read back before, by our own reader, at the places where its
// tables have the disk's bytes. So it is enough that QEMU finds each byte at the same place:
// qemu-img check says that the tables are sound, and qemu-img map what they say. That QEMU reads
// what lies there, as the disk is served, is shown by qemu-img compare: of all of a small disk,
// and of parts of a large one, since to read it all again costs as much as to restore it.
//
// The server takes the bytes from the image, too, and proves them once more, so that nothing is
// fetched twice; what is not proven there it takes from the repository.
type image struct{}

// Image is that step. It needs what the step restore has written.
func Image() Step { return image{} }

func (image) Name() string { return record.StepImage }

// differs is the status of qemu-img compare for images that differ.
const differs = 1

const installQemu = "install qemu-utils (Debian, Ubuntu) or qemu-img (Fedora)"

func (image) Run(ctx context.Context, s *Subject) (Result, error) {
	if len(s.Restored) == 0 {
		return Skip("nothing was restored that could be checked", "see what the step restore says"), nil
	}
	said, err := s.qemuImg.Run(ctx, s.Scratch, "--version")
	if err != nil {
		if ctx.Err() != nil {
			return Result{}, err
		}
		return Skip("there is no qemu-img: "+err.Error(), installQemu), nil
	}
	server := s.near(s.readRestored)
	defer server.stop()
	served, err := server.start(ctx)
	if err != nil {
		return Result{}, err
	}
	res := Pass("qemu-img check is content, qemu-img map finds each byte where it was read back, and qemu-img compare what it read equal to what is served")
	res.Programs = map[string]string{"qemu_img": versionOf(string(said))}
	var compared int64
	for i, r := range s.Restored {
		q := comparison{img: s.qemuImg, restored: r, size: s.Disks[i].Size, socket: served.Socket}
		one, err := q.run(ctx, s, server)
		if err != nil || one.Status != record.Passed {
			one.Programs = res.Programs
			return one, err
		}
		res.Bytes += q.size
		compared += q.compared
	}
	res.Details = map[string]string{"compared_bytes": strconv.FormatInt(compared, 10)}
	return res, nil
}

// readRestored is the [nearby] of what was restored.
func (s *Subject) readRestored(ctx context.Context, disk string, e *archive.Entry, p []byte) bool {
	for i := range s.Restored {
		if r := &s.Restored[i]; r.Disk == disk {
			return r.written.ReadEntry(ctx, e, p)
		}
	}
	return false
}

// comparison is one disk that qemu-img is asked about.
type comparison struct {
	img      qemu.Img
	restored Restored
	size     int64  // of the disk, bytes
	socket   string // where it is served

	checked  qemu.CheckResult
	compared int64 // bytes
}

// run has the disk checked, mapped, and compared meanwhile.
func (q *comparison) run(ctx context.Context, s *Subject, server *server) (Result, error) {
	differing, err := q.ask(ctx, s)
	switch fault := server.fault(); {
	case q.checked.Err() != nil || q.checked.Leaks > 0:
		return Fail(fmt.Sprintf("disk %s, restored: qemu-img check found %d corruptions, %d leaks, %d errors",
			q.restored.Disk, q.checked.Corruptions, q.checked.Leaks, q.checked.Errors), todoBug), nil
	case differing != nil:
		return Fail(fmt.Sprintf("disk %s, restored, is not what is served: %v", q.restored.Disk, differing), todoBug), nil
	case err != nil && fault != nil && ctx.Err() == nil:
		return s.Damage(ctx, fault)
	}
	return Pass(""), err
}

const (
	// compareUnit is how much of a large disk is compared in one place, bytes.
	compareUnit = 16 << 20
	// comparePlaces is in how many; a disk that has no more than these is compared whole.
	comparePlaces = 4
)

// ask runs the programs. It returns what says that something differs, and else what kept
// them from telling.
func (q *comparison) ask(ctx context.Context, s *Subject) (differing, err error) {
	var both errgroup.Group
	both.Go(func() (err error) {
		q.checked, err = q.img.CheckRefcounts(ctx, q.restored.Path)
		return err
	})
	t := readTables(ctx, q.restored.written.Image, q.size)
	defer t.close()
	both.Go(func() error { return q.img.Map(ctx, q.restored.Path, t.agree) })
	err = both.Wait()
	var elsewhere *elsewhereError
	if errors.As(err, &elsewhere) {
		return elsewhere, nil
	}
	if err != nil {
		return nil, err
	}
	if err := t.end(); err != nil {
		return err, nil
	}
	return q.compareIn(ctx, t.places(), s.Repo.Memory.Count(min(runtime.GOMAXPROCS(0), comparePlaces), 1))
}

// compareIn compares the disk from some places on, so many at once.
func (q *comparison) compareIn(ctx context.Context, places []int64, atOnce int) (differing, err error) {
	length := int64(compareUnit)
	if q.size <= comparePlaces*compareUnit {
		places, length = []int64{0}, q.size
	}
	var all errgroup.Group
	all.SetLimit(atOnce)
	var mu sync.Mutex
	for _, start := range places {
		all.Go(func() error {
			err := q.compare(ctx, start, length)
			mu.Lock()
			defer mu.Unlock()
			q.compared += min(length, q.size-start)
			var exit *qemu.ExitError
			if errors.As(err, &exit) && exit.Status == differs {
				differing = errors.Join(differing, err)
				return nil
			}
			return err
		})
	}
	err = all.Wait()
	return differing, err
}

// compare compares a part of the disk, of at most length bytes. qemu-img is given the
// connection, since it may make none.
func (q *comparison) compare(ctx context.Context, start, length int64) error {
	part := ""
	if start > 0 || length < q.size {
		part = ",offset=" + strconv.FormatInt(start, 10)
		if start+length < q.size { // the last takes what is left, as either side has it
			part += ",size=" + strconv.FormatInt(length, 10)
		}
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", q.socket)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	file, err := conn.(*net.UnixConn).File()
	if err != nil {
		return err
	}
	defer func() { _ = file.Close() }()
	img := q.img
	img.Files = []*os.File{file}
	img.Access = confine.Access{Read: []string{q.restored.Path}, Memory: qemu.ReadMemory(q.size)}
	_, err = img.Run(ctx, filepath.Dir(q.restored.Path), "compare", "--image-opts",
		"driver=raw,file.driver=qcow2,file.file.driver=file,file.file.filename="+quote(q.restored.Path)+part,
		"driver=raw,file.driver=nbd,file.export="+quote(q.restored.Disk)+",file.server.type=fd,file.server.str=3"+part)
	if err != nil && start > 0 {
		return fmt.Errorf("from byte %d on: %w", start, err)
	}
	return err
}

const todoBug = "look at the medium and the memory of this host first; if they are sound, this is a fault of imgbackup: please report it"

// quote doubles the commas, which part QEMU's options.
func quote(s string) string { return strings.ReplaceAll(s, ",", ",,") }

// versionOf is the number in what a program says of its version.
func versionOf(said string) string {
	line, _, _ := strings.Cut(said, "\n")
	if _, after, ok := strings.Cut(line, " version "); ok {
		line = after
	}
	return strings.TrimSpace(line)
}
