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
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/imgbackup/imgbackup/confine"
	"github.com/imgbackup/imgbackup/drill/record"
	"github.com/imgbackup/imgbackup/qemu"
)

// image is the step in which a second program agrees: qemu-img checks the restored images,
// and compares them with the disks as they are served.
//
// It is done as soon as they are written, since it reads them back in the same go: qemu-img by
// its own code, and the server that it compares them with by ours. That one takes the bytes
// from the image, too, and proves them once more, by the digests that the maps have, so that
// nothing is fetched twice; what is not proven there it takes from the repository.
type image struct{}

// Image is that step. It needs what the step restore has written.
func Image() Step { return image{} }

func (image) Name() string { return record.StepImage }

func isImage(s Step) bool { return s.Name() == record.StepImage }

func (image) Run(_ context.Context, s *Subject) (Result, error) {
	if len(s.Restored) == 0 {
		return Skip("nothing was restored that could be checked", "see what the step restore says"), nil
	}
	return s.agreed.result, s.agreed.err
}

// agreement is what qemu-img has found.
type agreement struct {
	result Result
	err    error // why it could not be asked
}

// passed reports whether all was read, and is as it should be.
func (a *agreement) passed() bool { return a.err == nil && a.result.Status == record.Passed }

// agree asks qemu-img about what was restored.
func agree(ctx context.Context, s *Subject, restored []Restored, near nearby) *agreement {
	begun := time.Now()
	server := s.near(near)
	defer server.stop()
	res, err := askQemu(ctx, s, restored, server)
	if err == nil && res.Status == record.Passed {
		res.Details = map[string]string{"read_back_ms": strconv.FormatInt(time.Since(begun).Milliseconds(), 10)}
	}
	return &agreement{res, err}
}

// differs is the status of qemu-img compare for images that differ.
const differs = 1

const installQemu = "install qemu-utils (Debian, Ubuntu) or qemu-img (Fedora)"

func askQemu(ctx context.Context, s *Subject, restored []Restored, server *server) (Result, error) {
	said, err := s.qemuImg.Run(ctx, s.Scratch, "--version")
	if err != nil {
		if ctx.Err() != nil {
			return Result{}, err
		}
		return Skip("there is no qemu-img: "+err.Error(), installQemu), nil
	}
	served, err := server.start(ctx)
	if err != nil {
		return Result{}, err
	}
	res := Pass("qemu-img check is content, and finds what is restored equal to what is served")
	res.Programs = map[string]string{"qemu_img": versionOf(string(said))}
	for i, r := range restored {
		q := comparison{img: s.qemuImg, restored: r, size: s.Disks[i].Size, socket: served.Socket}
		one, err := q.run(ctx, s, server)
		if err != nil || one.Status != record.Passed {
			one.Programs = res.Programs
			return one, err
		}
		res.Bytes += q.size
	}
	return res, nil
}

// comparison is one disk that qemu-img is asked about.
type comparison struct {
	img      qemu.Img
	restored Restored
	size     int64  // of the disk, bytes
	socket   string // where it is served

	checked qemu.CheckResult
}

// run has the disk checked, and compared meanwhile.
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
	// partUnit is what parts of a disk that are compared at once are multiples of, bytes: a
	// chunk lies in one.
	partUnit = 128 << 20
	// mostParts bounds them: qemu-img waits for one read after the other.
	mostParts = 4
)

// ask runs the programs. It returns what says that something differs, and else what kept
// them from telling.
func (q *comparison) ask(ctx context.Context, s *Subject) (differing, err error) {
	parts := int64(s.Repo.Memory.Count(min(runtime.GOMAXPROCS(0), mostParts), 1))
	length := max((q.size/parts+partUnit-1)/partUnit*partUnit, partUnit)
	var all errgroup.Group
	all.Go(func() (err error) {
		q.checked, err = q.img.CheckRefcounts(ctx, q.restored.Path)
		return err
	})
	var mu sync.Mutex
	for start := int64(0); start == 0 || start < q.size; start += length {
		all.Go(func() error {
			err := q.compare(ctx, start, length)
			var exit *qemu.ExitError
			if errors.As(err, &exit) && exit.Status == differs {
				mu.Lock()
				defer mu.Unlock()
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
