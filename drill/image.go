// SPDX-License-Identifier: Apache-2.0

package drill

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"

	"github.com/imgbackup/imgbackup/confine"
	"github.com/imgbackup/imgbackup/drill/record"
	"github.com/imgbackup/imgbackup/qemu"
)

// image is the step in which a second program agrees: qemu-img checks the restored
// images, and compares them with the disks as they are served.
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
	var img qemu.Img
	said, err := img.Run(ctx, s.Scratch, "--version")
	if err != nil {
		if ctx.Err() != nil {
			return Result{}, err
		}
		return Skip("there is no qemu-img: "+err.Error(), installQemu), nil
	}
	served, err := s.Serve(ctx)
	if err != nil {
		return Result{}, err
	}
	res := Pass("")
	res.Programs = map[string]string{"qemu_img": versionOf(string(said))}
	for i, r := range s.Restored {
		checked, err := img.CheckRefcounts(ctx, r.Path)
		if err != nil {
			return Result{}, err
		}
		if checked.Err() != nil || checked.Leaks > 0 {
			return Fail(fmt.Sprintf("disk %s, restored: qemu-img check found %d corruptions, %d leaks, %d errors",
				r.Disk, checked.Corruptions, checked.Leaks, checked.Errors), todoBug), nil
		}
		err = compare(ctx, r, served.Socket, s.Disks[i].Size)
		var exit *qemu.ExitError
		switch {
		case errors.As(err, &exit) && exit.Status == differs:
			return Fail(fmt.Sprintf("disk %s, restored, is not what is served: %v", r.Disk, err), todoBug), nil
		case err != nil && s.Fault() != nil && ctx.Err() == nil:
			return s.Damage(ctx, s.Fault())
		case err != nil:
			return Result{}, err
		}
		res.Bytes += s.Disks[i].Size
	}
	res.Reason = "qemu-img check is content, and finds what is restored equal to what is served"
	return res, nil
}

// compare has qemu-img compare what was restored with what is served. It is given the
// connection, since it may make none.
func compare(ctx context.Context, r Restored, socket string, size int64) error {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	file, err := conn.(*net.UnixConn).File()
	if err != nil {
		return err
	}
	defer func() { _ = file.Close() }()
	img := qemu.Img{Files: []*os.File{file}, Access: confine.Access{Read: []string{r.Path}, Memory: qemu.ReadMemory(size)}}
	_, err = img.Run(ctx, filepath.Dir(r.Path), "compare", "--image-opts",
		"driver=qcow2,file.driver=file,file.filename="+quote(r.Path),
		"driver=raw,file.driver=nbd,file.export="+quote(r.Disk)+",file.server.type=fd,file.server.str=3")
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
