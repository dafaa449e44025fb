// SPDX-License-Identifier: Apache-2.0

package restore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/internal/usage"
	"github.com/imgbackup/imgbackup/nbd"
	"github.com/imgbackup/imgbackup/qcow2"
	"github.com/imgbackup/imgbackup/qemu"
)

// QemuImg says what qemu-img is to make of the images that it writes: those of formats
// other than raw and qcow2, and every qcow2 as soon as something is set here.
type QemuImg struct {
	Compressed bool     // each cluster compressed: qcow2, vmdk
	SecretFile string   // of qcow2: encrypt it (LUKS) with the passphrase that is all of this file
	Settings   []string // KEY=VALUE, as qemu-img's -o takes them
}

// The formats that qemu-img writes for us.
var qemuImgFormats = []string{"qcow2", "vmdk", "vhdx", "vdi", "qed"}

// foreign reports whether qemu-img writes a format.
func (o *Options) foreign(format qcow2.Format) bool {
	return format != qcow2.Raw && (format != qcow2.Qcow2 || o.QemuImg.set())
}

func (q *QemuImg) set() bool { return q.Compressed || q.SecretFile != "" || len(q.Settings) > 0 }

// Check refuses a format that there is not, and what qemu-img cannot make of it, or must
// not.
func (q *QemuImg) Check(format qcow2.Format) error {
	f := string(format)
	switch {
	case format == qcow2.Raw && q.set():
		return usage.Errorf("a raw disk is neither compressed nor encrypted, and has no options: name a --format")
	case format == qcow2.Raw:
		return nil
	case !slices.Contains(qemuImgFormats, f):
		return usage.Errorf("format %.40q: want raw, %s", f, strings.Join(qemuImgFormats, ", "))
	case q.Compressed && f != "qcow2" && f != "vmdk":
		return usage.Errorf("%s cannot be compressed", f)
	case q.SecretFile != "" && f != "qcow2":
		return usage.Errorf("only qcow2 can be encrypted")
	case q.SecretFile != "" && q.Compressed:
		return usage.Errorf("QEMU cannot compress an encrypted image")
	}
	for _, s := range q.Settings {
		if err := checkSetting(s); err != nil {
			return err
		}
	}
	if q.SecretFile != "" {
		// What is no regular file can be read only once.
		if fi, err := os.Stat(q.SecretFile); err == nil && fi.Mode().IsRegular() && fi.Size() == 0 {
			return usage.Errorf("the passphrase's file %s is empty", q.SecretFile)
		}
	}
	return nil
}

// checkSetting lets through what changes the form of the one file that is written.
func checkSetting(s string) error {
	key, value, ok := strings.Cut(s, "=")
	if !ok || key == "" || value == "" {
		return usage.Errorf("%.80q is no KEY=VALUE", s)
	}
	oneFile := []string{"monolithicSparse", "streamOptimized", "dynamic", "fixed"}
	if strings.HasPrefix(key, "backing") || strings.HasPrefix(key, "data_file") || strings.HasPrefix(key, "encrypt") ||
		key == "size" || key == "subformat" && !slices.Contains(oneFile, value) {
		return usage.Errorf("%.80q is not possible here", s)
	}
	return nil
}

// qemuImg has qemu-img write an image. It reads the disk from a server of ours, over a
// pair of sockets that nobody else can reach.
type qemuImg struct {
	archivedDisk
	format string
	o      *Options
}

// QEMU measures how fast it derives keys before it makes an encrypted image, and
// gives up at random where that is too fast for the clock of processes. No data
// has been read by then, and it has removed the file.
const (
	noClock  = "Unable to get accurate CPU usage"
	maxTries = 50
)

// served is how qemu-img names the disk: its end of the sockets is the first
// descriptor beside the standard ones.
const served = "driver=raw,file.driver=nbd,file.server.type=fd,file.server.str=3,file.export=" + exportName

const exportName = "disk"

// write is [writer]'s.
func (q *qemuImg) write(ctx context.Context, j *job, p *progress) error {
	secret, err := q.secret()
	if err != nil {
		return &chain.DiskError{Disk: q.entry.Name, Err: err}
	}
	from := []string{"--image-opts", served, "./" + j.at.Base()}
	args := slices.Concat([]string{"convert"}, secret, q.settings(), from)
	m := &meter{p: p, left: j.Data}
	_, err = q.withDisk(ctx, j, m, args...)
	for tries := 1; err != nil && tries < maxTries && strings.Contains(err.Error(), noClock); tries++ {
		if err := j.out.Again(); err != nil {
			return err
		}
		_, err = q.withDisk(ctx, j, m, args...)
	}
	if err != nil {
		return err
	}
	m.done()
	if j.size, err = q.look(ctx, j, secret); err != nil {
		return err
	}
	switch name, size := q.entry.Name, q.disk.Size(); {
	case j.size < size:
		err := fmt.Errorf("the image that qemu-img has written has %d bytes instead of %d", j.size, size)
		return &chain.DiskError{Disk: name, Err: err}
	case j.size > size:
		p.warn(fmt.Sprintf("disk %s: %s has rounded its size up from %d to %d bytes", name, q.format, size, j.size))
	}
	return nil
}

// secret gives qemu-img the passphrase: never on its command line.
func (q *qemuImg) secret() ([]string, error) {
	file := q.o.QemuImg.SecretFile
	if file == "" {
		return nil, nil
	}
	path, err := filepath.Abs(file) // it runs in another folder
	return []string{"--object", "secret,id=secret,file=" + quoteOption(path)}, err
}

// settings are the options of the image to be made.
func (q *qemuImg) settings() []string {
	args := []string{"-O", q.format}
	if q.o.QemuImg.Compressed {
		args = append(args, "-c")
	}
	settings := slices.Clone(q.o.QemuImg.Settings)
	if q.o.QemuImg.SecretFile != "" {
		settings = append(settings, "encrypt.format=luks", "encrypt.key-secret=secret")
	}
	for _, s := range settings {
		args = append(args, "-o", quoteOption(s))
	}
	return args
}

// image is how qemu-img names what it has written.
func (q *qemuImg) image(j *job) string {
	image := "driver=" + q.format + ",file.driver=file,file.filename=" + quoteOption("./"+j.at.Base())
	if q.o.QemuImg.SecretFile != "" {
		image += ",encrypt.key-secret=secret"
	}
	return image
}

// quoteOption doubles the commas, which part QEMU's options.
func quoteOption(s string) string { return strings.ReplaceAll(s, ",", ",,") }

// look asks for the virtual size of what was written, bytes.
func (q *qemuImg) look(ctx context.Context, j *job, secret []string) (int64, error) {
	args := slices.Concat([]string{"info", "--output=json"}, secret, []string{"--image-opts", q.image(j)})
	out, err := q.run(ctx, j, nil, args...)
	if err != nil {
		return 0, err
	}
	var info struct {
		Size int64 `json:"virtual-size"`
	}
	if err := json.Unmarshal(out, &info); err != nil {
		return 0, &chain.DiskError{Disk: q.entry.Name, Err: fmt.Errorf("qemu-img info: %w", err)}
	}
	return info.Size, nil
}

// The status of qemu-img compare that says that images differ, and where it says so.
const differs = 1

var mismatch = regexp.MustCompile(`offset (\d+)`)

// verify is [writer]'s: qemu-img compares what it has written with the disk.
func (q *qemuImg) verify(ctx context.Context, j *job, p *progress) error {
	secret, err := q.secret()
	if err != nil {
		return &chain.DiskError{Disk: q.entry.Name, Err: err}
	}
	m := &meter{p: p, left: j.Data}
	args := slices.Concat([]string{"compare"}, secret, []string{"--image-opts", served, q.image(j)})
	_, err = q.withDisk(ctx, j, m, args...)
	var failed *qemu.ExitError
	if errors.As(err, &failed) && failed.Status == differs {
		wrong := &VerifyError{Disk: q.entry.Name, Path: j.at.Path, End: q.disk.Size(), What: failed.Error()}
		if at := mismatch.FindStringSubmatch(failed.Error()); at != nil {
			wrong.Start, _ = strconv.ParseInt(at[1], 10, 64) // of digits; 0 if there are too many
		}
		return wrong
	}
	if err != nil {
		return err
	}
	m.done()
	return nil
}

// withDisk runs qemu-img with the disk. What the repository holds damaged is the
// error, whatever qemu-img makes of it.
func (q *qemuImg) withDisk(ctx context.Context, j *job, m *meter, args ...string) ([]byte, error) {
	device := &limited{Disk: q.disk, limit: q.o.Limit, tell: m.add}
	var first firstFault
	server, err := nbd.NewServer([]nbd.Export{{Name: exportName, Size: q.disk.Size(), Device: device,
		Contexts: []nbd.Context{nbd.Allocation(q.disk.Zeros)}}}, nbd.ServerOptions{Notify: first.note, Memory: q.repo.Memory.Part(nbd.ServerMemory, 16<<20)})
	if err != nil {
		return nil, err
	}
	ours, theirs, err := socketPair()
	if err != nil {
		return nil, err
	}
	serving, stop := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = server.ServeConn(serving, ours) // how it ended, qemu-img says
	}()
	out, err := q.run(ctx, j, theirs, args...)
	_ = theirs.Close()
	stop()
	<-ended
	if fault := first.get(); fault != nil && ctx.Err() == nil {
		return nil, damage(q.entry.Name, fault, 0, q.disk.Size())
	}
	return out, err
}

// firstFault keeps the first error that a device has answered a client with.
type firstFault struct {
	mu  sync.Mutex
	err error
}

func (f *firstFault) note(err error) {
	var device *nbd.DeviceError
	if !errors.As(err, &device) {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err == nil {
		f.err = device.Err
	}
}

func (f *firstFault) get() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.err
}

// socketPair is two sockets that are connected: one to serve, one to give away.
func socketPair() (net.Conn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "ours"), os.NewFile(uintptr(fds[1]), "theirs")
	conn, err := net.FileConn(ours)
	_ = ours.Close() // conn has its own
	if err != nil {
		_ = theirs.Close()
		return nil, nil, err
	}
	return conn, theirs, nil
}

// run runs qemu-img in the image's folder, with the socket, if any. It writes nothing
// that lasts but the new image, so that it may be ended at any moment. That folder is the
// image's alone.
func (q *qemuImg) run(ctx context.Context, j *job, socket *os.File, args ...string) ([]byte, error) {
	var img qemu.Img
	dir := filepath.Dir(j.out.NowAt())
	if socket != nil {
		img.Files = []*os.File{socket}
	}
	if file := q.o.QemuImg.SecretFile; file != "" {
		img.Access.Read = []string{file}
	}
	if args[0] == "convert" {
		img.Access.Make = []string{dir}
	} else {
		img.Access.Read = append(img.Access.Read, dir)
		img.Access.Memory = qemu.ReadMemory(q.disk.Size())
	}
	out, err := img.Run(ctx, dir, args...)
	if err != nil && ctx.Err() == nil {
		err = &chain.DiskError{Disk: q.entry.Name, Err: err}
	}
	return out, err
}
