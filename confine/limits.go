// SPDX-License-Identifier: Apache-2.0

package confine

import (
	"fmt"
	"time"
)

// Limits bound what a process may use: memory and the size of files in bytes, and its
// time on a processor.
type Limits struct {
	Memory, File int64
	CPU          time.Duration
}

// Shell is a shell that sets the limits and becomes the program that follows: another
// process of another user can't be given any.
func (l Limits) Shell() []string {
	script := fmt.Sprintf(`ulimit -c 0 && ulimit -n 256 && ulimit -f %d && ulimit -v %d && ulimit -t %d && exec "$@"`,
		l.File/512, l.Memory/1024, int64(l.CPU/time.Second))
	return []string{"-c", script, "sh"}
}
