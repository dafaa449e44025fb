// SPDX-License-Identifier: Apache-2.0

package qcow2

import "errors"

// conflict reports whether an error may go away by itself.
func conflict(err error) bool {
	var inUse *InUseError
	var busy *BusyError
	var stray *strayError
	return errors.As(err, &inUse) || errors.As(err, &busy) || errors.As(err, &stray)
}
