// SPDX-License-Identifier: Apache-2.0

package qcow2

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// The pause between two tries grows from the first to the second.
const (
	firstPause   = 20 * time.Millisecond
	longestPause = 500 * time.Millisecond
)

// retry calls try until it gives no error or one that does not go away by itself, and at least once. After
// wait it gives the last error; when ctx ends before, ctx's.
func retry(ctx context.Context, wait time.Duration, try func() error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	deadline := time.Now().Add(wait)
	for pause := firstPause; ; pause = min(2*pause, longestPause) {
		err := try()
		if !conflict(err) {
			return err
		}
		left := time.Until(deadline)
		if left <= 0 {
			return err
		}
		timer := time.NewTimer(min(pause, left))
		select {
		case <-ctx.Done():
			timer.Stop()
			return fmt.Errorf("%w while waiting: %v", ctx.Err(), err)
		case <-timer.C:
		}
	}
}

// conflict tells whether an error may go away by itself.
func conflict(err error) bool {
	var inUse *InUseError
	var busy *BusyError
	var stray *strayError
	return errors.As(err, &inUse) || errors.As(err, &busy) || errors.As(err, &stray)
}
