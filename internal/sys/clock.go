// SPDX-License-Identifier: Apache-2.0

package sys

import (
	"time"

	"golang.org/x/sys/unix"
)

// SinceBoot is the time since the machine was started. It goes on while the machine is
// suspended, unlike the monotonic clock of package time, and nobody can set it.
func SinceBoot() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t); err != nil {
		panic(err) // every Linux has it
	}
	return time.Duration(t.Nano())
}
