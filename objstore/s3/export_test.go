// SPDX-License-Identifier: Apache-2.0

package s3

import "time"

// OpenStall is Open with another time for which a connection may stand still.
func OpenStall(c Config, stall time.Duration) (*Store, error) { return open(c, stall) }
