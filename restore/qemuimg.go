// SPDX-License-Identifier: Apache-2.0

package restore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/imgbackup/imgbackup/internal/sys"
	"github.com/imgbackup/imgbackup/internal/usage"
	"github.com/imgbackup/imgbackup/nbd"
	"github.com/imgbackup/imgbackup/qemu"
	"github.com/imgbackup/imgbackup/view"
)

// Formats are those that qemu-img writes for us.
var formats = []string{"qcow2", "vmdk", "vhdx", "vdi", "qed"}

// QemuImg say what is written.
type QemuImg struct {
	Format     string   // one of qemu-img's: qcow2, vmdk, vhdx, vdi, qed
	Compressed bool     // each cluster compressed: qcow2, vmdk
	SecretFile string   // of qcow2: encrypt it (LUKS) with the passphrase in this file
	Settings   []string // KEY=VALUE, as qemu-img's -o takes them
	Verify     bool     // compare afterwards
}

// QemuImgTarget says where a disk goes.
type QemuImgTarget struct {
	Disk *view.Disk
	Path string // in a folder that exists; nothing stands there
}

// QemuImgResult is one disk that was written.
type QemuImgResult struct {
	Path string // absolute
	Size int64  // virtual size of the image, bytes: the format may have rounded it up
}

// Check judges the options.
func (o QemuImg) Check() error {
	switch {
	case !slices.Contains(formats, o.Format):
		return usage.Errorf("format %.40q: want raw, %s", o.Format, strings.Join(formats, ", "))
	case o.Compressed && o.Format != "qcow2" && o.Format != "vmdk":
		return usage.Errorf("%s cannot be compressed", o.Format)
	case o.SecretFile != "" && o.Format != "qcow2":
		return usage.Errorf("only qcow2 can be encrypted")
	case o.SecretFile != "" && o.Compressed:
		return usage.Errorf("QEMU cannot compress an encrypted image")
	}
	for _, s := range o.Settings {
		key, value, ok := strings.Cut(s, "=")
		if !ok || key == "" || value == "" {
			return usage.Errorf("%.80q is no KEY=VALUE", s)
		}
		// Only what changes the form of the one file that is written.
		if strings.HasPrefix(key, "backing") || strings.HasPrefix(key, "data_file") || strings.HasPrefix(key, "encrypt") ||
			key == "encryption" || key == "size" || key == "subformat" && value != "monolithicSparse" && value != "streamOptimized" && value != "dynamic" && value != "fixed" {
			return usage.Errorf("%.80q is not possible here", s)
		}
	}
	return nil
}

// arguments are those of qemu-img for the format.
func (o QemuImg) arguments(secret string) []string {
	args := []string{"-O", o.Format}
	if o.Compressed {
		args = append(args, "-c")
	}
	settings := slices.Clone(o.Settings)
	if secret != "" {
		settings = append(settings, "encrypt.format=luks", "encrypt.key-secret=secret")
	}
	for _, s := range settings {
		args = append(args, "-o", strings.ReplaceAll(s, ",", ",,"))
	}
	return args
}

// RunQemuImg writes the targets, all of them or none.
func RunQemuImg(ctx context.Context, targets []QemuImgTarget, o QemuImg) (_ []QemuImgResult, err error) {
	if err := o.Check(); err != nil {
		return nil, err
	}
	var jobs []*conversion
	defer func() {
		for _, j := range jobs {
			err = errors.Join(err, j.folder.remove())
		}
	}()
	for _, t := range targets {
		j, err := newConversion(t)
		if err != nil {
			return nil, fmt.Errorf("disk %s: %w", t.Disk.Name, err)
		}
		jobs = append(jobs, j)
	}
	var all []QemuImgResult
	for _, j := range jobs {
		size, err := j.run(ctx, o)
		if err != nil {
			return nil, fmt.Errorf("disk %s: %w", j.Disk.Name, err)
		}
		all = append(all, QemuImgResult{Path: j.Path, Size: size})
	}
	if err := ctx.Err(); err != nil {
		return nil, context.Cause(ctx)
	}
	return all, publishConversions(jobs)
}

// publishConversions gives the files their names, or none of them.
func publishConversions(jobs []*conversion) error {
	for i, j := range jobs {
		err := unix.Renameat2(unix.AT_FDCWD, filepath.Join(j.folder.path, imageName), unix.AT_FDCWD, j.Path, unix.RENAME_NOREPLACE)
		if err == nil {
			err = new(sys.FolderSyncer).SyncPath(filepath.Dir(j.Path))
			i++
		}
		if err == nil {
			continue
		}
		for _, done := range jobs[:i] {
			err = errors.Join(err, os.Remove(done.Path))
		}
		return fmt.Errorf("%s: give the file its name: %w", j.Path, err)
	}
	return nil
}

// The names in the private folder.
const (
	imageName  = "image"
	socketDir  = "server" // its own, which nobody has locked
	socketName = socketDir + "/s"
)

// conversion is one disk.
type conversion struct {
	QemuImgTarget
	folder *folder
}

func newConversion(t QemuImgTarget) (*conversion, error) {
	base := filepath.Base(t.Path)
	if t.Path == "" || strings.HasSuffix(t.Path, "/") || base == "." || base == ".." {
		return nil, usage.Errorf("%q is no name of a file", t.Path)
	}
	dir, err := filepath.EvalSymlinks(filepath.Dir(t.Path))
	if err == nil {
		dir, err = filepath.Abs(dir)
	}
	if err != nil {
		return nil, fmt.Errorf("the target's folder: %w", err)
	}
	t.Path = filepath.Join(dir, base)
	if _, err := os.Lstat(t.Path); err == nil {
		return nil, fmt.Errorf("%s: the target exists already (in a format that qemu-img writes nothing is replaced: remove it, or name another)", t.Path)
	} else if !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	f, err := newFolder(dir)
	if err != nil {
		return nil, err
	}
	return &conversion{QemuImgTarget: t, folder: f}, nil
}

// run writes the image and returns its virtual size.
func (j *conversion) run(ctx context.Context, o QemuImg) (size int64, err error) {
	var mu sync.Mutex
	var failed error
	server, err := nbd.NewServer([]nbd.Export{{Name: "disk", Size: j.Disk.Size(), Device: j.Disk,
		Contexts: []nbd.Context{nbd.Allocation(j.Disk.Zeros)}}}, nbd.ServerOptions{Notify: func(err error) {
		var device *nbd.DeviceError
		mu.Lock()
		defer mu.Unlock()
		if failed == nil && errors.As(err, &device) {
			failed = err
		}
	}})
	if err != nil {
		return 0, err
	}
	if err := os.Mkdir(filepath.Join(j.folder.path, socketDir), 0o700); err != nil {
		return 0, err
	}
	l, err := nbd.ListenUnix(ctx, filepath.Join(j.folder.path, socketName))
	if err != nil {
		return 0, err
	}
	serving, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(serving, l) }()
	defer func() {
		stop()
		err = errors.Join(err, <-ended)
		mu.Lock()
		defer mu.Unlock()
		if failed != nil {
			err = failed // and qemu-img only its victim
		}
	}()
	return j.convert(ctx, o)
}

// QEMU measures how fast it derives keys before it makes an encrypted image, and
// gives up at random where that is too fast for the clock of processes. No data
// has been read by then.
const (
	noClock  = "Unable to get accurate CPU usage"
	maxTries = 50
)

func (j *conversion) convert(ctx context.Context, o QemuImg) (int64, error) {
	const source = "nbd+unix:///disk?socket=" + socketName
	var object []string
	image := "driver=" + o.Format + ",file.driver=file,file.filename=" + imageName
	if o.SecretFile != "" {
		path, err := filepath.Abs(o.SecretFile)
		if err != nil {
			return 0, err
		}
		object = []string{"--object", "secret,id=secret,file=" + strings.ReplaceAll(path, ",", ",,")}
		image += ",encrypt.key-secret=secret"
	}
	args := slices.Concat([]string{"convert"}, object, []string{"-f", "raw"}, o.arguments(o.SecretFile), []string{source, imageName})
	_, err := j.qemuImg(ctx, args...)
	for tries := 1; err != nil && tries < maxTries && strings.Contains(err.Error(), noClock); tries++ {
		_, err = j.qemuImg(ctx, args...)
	}
	if err != nil {
		return 0, err
	}
	size, err := j.look(ctx, object, image)
	if err != nil {
		return 0, err
	}
	if size < j.Disk.Size() {
		return 0, fmt.Errorf("the image that qemu-img has written has %d bytes instead of %d", size, j.Disk.Size())
	}
	if o.Verify {
		args := slices.Concat([]string{"compare"}, object, []string{"--image-opts", "driver=nbd,server.type=unix,server.path=" + socketName + ",export=disk", image})
		if _, err := j.qemuImg(ctx, args...); err != nil {
			return 0, fmt.Errorf("read back: %w", err)
		}
	}
	f, err := os.Open(filepath.Join(j.folder.path, imageName))
	if err != nil {
		return 0, err
	}
	return size, errors.Join(f.Chmod(0o600), f.Sync(), f.Close())
}

// look asks for the virtual size of what was written.
func (j *conversion) look(ctx context.Context, object []string, image string) (int64, error) {
	out, err := j.qemuImg(ctx, slices.Concat([]string{"info", "--output=json"}, object, []string{"--image-opts", image})...)
	if err != nil {
		return 0, err
	}
	var info struct {
		Size int64 `json:"virtual-size"`
	}
	if err := json.Unmarshal(out, &info); err != nil {
		return 0, fmt.Errorf("qemu-img info: %w", err)
	}
	return info.Size, nil
}

// qemuImg runs qemu-img in the private folder. It writes nothing that lasts but the
// new image, so that it may be ended at any moment.
func (j *conversion) qemuImg(ctx context.Context, args ...string) ([]byte, error) {
	return qemu.Img{}.Run(ctx, j.folder.path, args...)
}
