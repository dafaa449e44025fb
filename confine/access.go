// SPDX-License-Identifier: Apache-2.0

package confine

import (
	"os"
	"slices"
)

// Access is what a program may do beside reading its own libraries. Files that are not
// there are passed over.
type Access struct {
	Read    []string // files that it reads, and folders in which it reads all
	Write   []string // files and block devices that it reads and writes
	Make    []string // folders in which it may do with files as it likes; not run them
	Memory  int64    // bytes of address space at most; 0: no limit
	Listens bool     // it may make Unix sockets to be connected to; never connect itself
}

// Clone returns a copy that can be changed.
func (a Access) Clone() Access {
	a.Read, a.Write, a.Make = slices.Clone(a.Read), slices.Clone(a.Write), slices.Clone(a.Make)
	return a
}

// Off reports whether a person wants programs to run unconfined.
func Off() bool { return os.Getenv(variable) == "off" }

const variable = "IMGBACKUP_CONFINE"

// What any program on any distribution may read: its libraries, what the C library, GnuTLS
// and the like are configured by, and how many processors there are.
var (
	everyFolder = []string{
		"/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/nix/store", "/gnu/store",
		"/etc/gnutls", "/etc/crypto-policies", "/sys/devices/system/cpu", "/sys/devices/system/node",
	}
	everyFile = []string{
		"/etc/ld.so.cache", "/etc/ld.so.preload", "/proc/sys/crypto/fips_enabled", "/dev/urandom", "/dev/random",
	}
)
