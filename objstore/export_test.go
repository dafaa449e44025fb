// SPDX-License-Identifier: Apache-2.0

package objstore

import "time"

// OpenS3Stall is OpenS3 with another time for which a connection may stand still.
func OpenS3Stall(c S3Config, stall time.Duration) (*S3, error) { return openS3(c, stall) }
