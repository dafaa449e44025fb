// SPDX-License-Identifier: Apache-2.0

package sys

import (
	"os"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Direct reads a file past the page cache: what the medium has, and without the kernel's
// copying, which costs more than all else in reading back what was just written. A nil *Direct
// reads nothing.
type Direct struct{ f *os.File }

// directUnit is what direct reads are multiples of, bytes, in the file and in memory: what
// hardly any medium wants more of.
const directUnit = 4096

// OpenDirect opens a file that is open once more. It is nil where the file system does not do
// that.
func OpenDirect(f *os.File) *Direct {
	conn, err := f.SyscallConn()
	if err != nil {
		return nil
	}
	opened := -1
	_ = conn.Control(func(fd uintptr) { // it is not closed meanwhile
		_ = Restart(func() (err error) {
			opened, err = unix.Open("/proc/self/fd/"+strconv.Itoa(int(fd)), unix.O_RDONLY|unix.O_DIRECT|unix.O_CLOEXEC, 0)
			return err
		})
	})
	if opened < 0 {
		return nil
	}
	return &Direct{os.NewFile(uintptr(opened), f.Name())}
}

// Read reports whether it has filled p from offset off. Where it has not, for whatever reason,
// p is to be read as usual.
func (d *Direct) Read(p []byte, off int64) bool {
	if d == nil || len(p) == 0 || (off|int64(len(p)))%directUnit != 0 || uintptr(unsafe.Pointer(&p[0]))%directUnit != 0 {
		return false
	}
	conn, err := d.f.SyscallConn()
	if err != nil {
		return false
	}
	for len(p) > 0 {
		n := 0
		cerr := conn.Control(func(fd uintptr) {
			err = Restart(func() (err error) {
				n, err = unix.Pread(int(fd), p, off)
				return err
			})
		})
		if cerr != nil || err != nil || n <= 0 || n%directUnit != 0 {
			return false
		}
		p, off = p[n:], off+int64(n)
	}
	return true
}

// Close closes it.
func (d *Direct) Close() {
	if d != nil {
		_ = d.f.Close() // it was only read
	}
}
