// SPDX-License-Identifier: Apache-2.0

package mount

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

// A request outlives a signal that its caller gets by a short time, and the mount by none.
func TestPatience(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		served, unmount := context.WithCancel(t.Context())
		s := &system{ctx: served}
		caller, signal := context.WithCancel(t.Context())
		first, end := s.patient(caller)
		defer end()
		signal()
		time.Sleep(interruptGrace - 1)
		synctest.Wait()
		if first.Err() != nil {
			t.Error("a signal ended a request")
		}
		time.Sleep(time.Nanosecond)
		synctest.Wait()
		if first.Err() == nil {
			t.Error("a request went on for ever")
		}
		second, end := s.patient(t.Context())
		defer end()
		unmount()
		synctest.Wait()
		if second.Err() == nil {
			t.Error("a request outlived its mount")
		}
	})
}
