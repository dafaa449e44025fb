// SPDX-License-Identifier: Apache-2.0

package s3

import (
	"errors"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/imgbackup/imgbackup/objstore"
	"github.com/imgbackup/imgbackup/objstore/pace"
)

// What has waited for its turn until its signature is old is not sent, and is asked again.
func TestWaitedTooLong(t *testing.T) {
	t.Parallel()
	for wait, late := range map[time.Duration]bool{maxWait - time.Second: false, maxWait + time.Second: true} {
		synctest.Test(t, func(t *testing.T) {
			sent := 0
			l := pace.New(pace.Options{Most: 1})
			round := &pacedRound{limiter: l, next: roundFunc(func(*http.Request) (*http.Response, error) {
				sent++
				return &http.Response{StatusCode: http.StatusNoContent, Body: http.NoBody}, nil
			})}
			turn, err := l.Begin(t.Context(), false)
			if err != nil {
				t.Fatal(err)
			}
			time.AfterFunc(wait, func() { turn.End(pace.Done) })
			req, err := http.NewRequestWithContext(t.Context(), http.MethodHead, "http://store.test/b/k", nil)
			if err != nil {
				t.Fatal(err)
			}
			resp, err := round.RoundTrip(req)
			if err == nil {
				_ = resp.Body.Close() // it is empty
			}
			if late && (!objstore.Busy(err) || objstore.Permanent(err) || errors.Is(err, objstore.ErrNotFound) || sent != 0) || !late && (err != nil || sent != 1) {
				t.Errorf("after %v: %v, sent %d times", wait, err, sent)
			}
			// And nobody is kept waiting by it.
			last, err := l.Begin(t.Context(), false)
			if err != nil {
				t.Fatal(err)
			}
			last.End(pace.Done)
		})
	}
}

type roundFunc func(*http.Request) (*http.Response, error)

func (f roundFunc) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }
