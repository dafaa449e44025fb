// SPDX-License-Identifier: Apache-2.0

package s3

import (
	"net/http"
	"sync/atomic"
	"time"

	"github.com/imgbackup/imgbackup/objstore"
)

var _ objstore.Clocked = (*Store)(nil)

// clock is what the server's clock has shown.
type clock struct{ last atomic.Pointer[moment] }

// moment is one, by two clocks.
type moment struct{ theirs, ours time.Time }

// note keeps when an answer was given. Whoever is on the way may have made it, too, with a
// clock of its own.
func (c *clock) note(resp *http.Response) {
	if at, err := http.ParseTime(resp.Header.Get("Date")); err == nil {
		c.last.Store(&moment{at, time.Now()})
	}
}

// Clock implements objstore.Clocked, to the second.
func (s *Store) Clock() (theirs, ours time.Time) {
	if m := s.clock.last.Load(); m != nil {
		return m.theirs, m.ours
	}
	return theirs, ours
}
