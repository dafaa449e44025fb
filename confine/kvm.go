// SPDX-License-Identifier: Apache-2.0

package confine

import (
	"os"
	"os/user"
	"strconv"

	"golang.org/x/sys/unix"
)

// KVM is the device by which machines run on the host's processors.
const KVM = "/dev/kvm"

// KVMGroup is the group that may open the device, if a group may.
func KVMGroup(device string) []uint32 {
	var st unix.Stat_t
	if unix.Stat(device, &st) == nil && st.Mode&0o060 == 0o060 && st.Gid != 0 {
		return []uint32{st.Gid}
	}
	if g, err := user.LookupGroup("kvm"); err == nil {
		if id, err := strconv.ParseUint(g.Gid, 10, 32); err == nil && id != 0 && uint32(id) == st.Gid {
			return []uint32{uint32(id)}
		}
	}
	return nil
}

// KVMOpens reports whether a program could open the device as the user that it will be.
func KVMOpens(device string) bool {
	var st unix.Stat_t
	if unix.Stat(device, &st) != nil {
		return false
	}
	if os.Geteuid() == 0 {
		return st.Mode&0o006 == 0o006 || len(KVMGroup(device)) > 0
	}
	return unix.Access(device, unix.R_OK|unix.W_OK) == nil
}
