// SPDX-License-Identifier: Apache-2.0

package machine

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"

	"github.com/imgbackup/imgbackup/domain"
)

// firmware is the two flash memories of a machine with UEFI.
type firmware struct{ code, vars []byte }

// maxFlash bounds a flash memory, bytes.
const maxFlash = 32 << 20

// flashes are where distributions have UEFI for x86_64: its code, and its variables as
// they are in the beginning. Of a machine with secure boot the first of each folder that
// has it is taken.
var flashes = []struct {
	code, vars string
	secure     bool
}{
	{"/usr/share/OVMF/OVMF_CODE_4M.secboot.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd", true},
	{"/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd", false},
	{"/usr/share/OVMF/OVMF_CODE.secboot.fd", "/usr/share/OVMF/OVMF_VARS.fd", true},
	{"/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_VARS.fd", false},
	{"/usr/share/edk2/ovmf/OVMF_CODE.secboot.fd", "/usr/share/edk2/ovmf/OVMF_VARS.fd", true},
	{"/usr/share/edk2/ovmf/OVMF_CODE.fd", "/usr/share/edk2/ovmf/OVMF_VARS.fd", false},
	{"/usr/share/edk2/x64/OVMF_CODE.secboot.4m.fd", "/usr/share/edk2/x64/OVMF_VARS.4m.fd", true},
	{"/usr/share/edk2/x64/OVMF_CODE.4m.fd", "/usr/share/edk2/x64/OVMF_VARS.4m.fd", false},
	{"/usr/share/qemu/ovmf-x86_64-4m-code.bin", "/usr/share/qemu/ovmf-x86_64-4m-vars.bin", false},
}

// newFirmware finds what the machine boots with: what was archived, or what this host
// has of the same size. A path in a definition is never opened: whoever wrote it could
// name any file.
func newFirmware(m *domain.Machine, code, vars []byte) (*firmware, error) {
	f := &firmware{code, vars}
	for _, flash := range flashes {
		if f.code != nil && f.vars != nil {
			break
		}
		if f.code == nil && flash.secure != m.Secure {
			continue
		}
		theirVars, err := readFlash(flash.vars)
		if err != nil || f.vars != nil && len(theirVars) != len(f.vars) {
			continue
		}
		theirCode, err := readFlash(flash.code)
		if err != nil || f.code != nil && len(theirCode) != len(f.code) {
			continue
		}
		if f.code == nil {
			f.code = theirCode
		}
		if f.vars == nil {
			f.vars = theirVars
		}
	}
	if f.code == nil || f.vars == nil {
		return nil, &UnfitError{"it boots by UEFI, and neither the archive nor this host has a firmware that fits", "install the package ovmf (Debian, Ubuntu), edk2-ovmf (Fedora) or qemu-ovmf-x86_64 (SUSE)"}
	}
	for name, b := range map[string][]byte{"code": f.code, "variables": f.vars} {
		if len(b) < 4096 || len(b)%4096 != 0 || len(b) > maxFlash || string(b[:4]) == "QFI\xfb" {
			return nil, &UnfitError{fmt.Sprintf("the firmware's %s (%d bytes) are no raw image of a flash memory", name, len(b)), "leave the step boot out"}
		}
	}
	return f, nil
}

func readFlash(path string) ([]byte, error) {
	f, err := os.Open(filepath.Clean(path))
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	b, err := io.ReadAll(io.LimitReader(f, maxFlash+1))
	if err == nil && len(b) > maxFlash {
		err = fmt.Errorf("%s has more than %d bytes", path, maxFlash)
	}
	return b, err
}

// flash is a flash memory as an NBD device: bytes that may change, and go with the
// machine.
type flash struct {
	mu sync.RWMutex
	b  []byte
}

// ReadAt, WriteAt, WriteZeroes, Trim and Flush implement nbd.Device and nbd.Writer.
func (f *flash) ReadAt(_ context.Context, p []byte, off int64) error {
	f.mu.RLock()
	defer f.mu.RUnlock()
	copy(p, f.b[off:])
	return nil
}

func (f *flash) WriteAt(_ context.Context, p []byte, off int64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	copy(f.b[off:], p)
	return nil
}

func (f *flash) WriteZeroes(_ context.Context, off, length int64, _ bool) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	clear(f.b[off : off+length])
	return nil
}

func (f *flash) Trim(context.Context, int64, int64) error { return nil }
func (f *flash) Flush(context.Context) error              { return nil }

// HostFirmware returns where this host has UEFI's code for x86_64, without and with secure boot; empty: it
// has none.
func HostFirmware() (plain, secure string) {
	for _, flash := range flashes {
		if _, err := os.Stat(flash.vars); err != nil {
			continue
		}
		if _, err := os.Stat(flash.code); err != nil {
			continue
		}
		if flash.secure && secure == "" {
			secure = flash.code
		} else if !flash.secure && plain == "" {
			plain = flash.code
		}
	}
	return plain, secure
}
