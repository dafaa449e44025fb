// SPDX-License-Identifier: Apache-2.0

package keys

import "sync"

// maxStanding bounds a list of what stands as it is stored, bytes.
const maxStanding = 256 << 20

type standingSet struct {
	once sync.Once
}
