// SPDX-License-Identifier: Apache-2.0

package sys

import (
	"context"
	"fmt"
	"time"
)

// The pause between two tries grows from the first to the longest.
const (
	firstPause   = 20 * time.Millisecond
	longestPause = 500 * time.Millisecond
)

// Retry calls try, at least once, until it gives no error or one that does not pass
// by itself. After wait it gives the last error; when ctx ends before, an error that
// wraps ctx's.
func Retry(ctx context.Context, wait time.Duration, passes func(error) bool, try func() error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	deadline := time.Now().Add(wait)
	for pause := firstPause; ; pause = min(2*pause, longestPause) {
		err := try()
		if err == nil || !passes(err) {
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
