// SPDX-License-Identifier: Apache-2.0

package s3

import (
	"errors"
	"io"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/imgbackup/imgbackup/objstore/pace"
)

// smallBody bounds the body of a request that waits for the store rather than for the
// line, in bytes.
const smallBody = 64 << 10

// maxWait bounds how long a request that was signed waits for its turn: servers refuse what
// was signed 15 minutes ago by their clock.
const maxWait = 10 * time.Minute

// waitedError says that a request has waited for its turn for too long, and was not sent.
type waitedError struct{}

func (waitedError) Error() string {
	return "it has waited so long for others that it has to be signed again"
}
func (waitedError) Permanent() bool { return false }
func (waitedError) Busy() bool      { return true } // it is waited for as long as others are served

// pacedRound is the round tripper through which all requests to a store go: no more at
// once than its limiter lets begin. A request lasts until the last byte of its answer has
// come, or nobody wants more of it.
type pacedRound struct {
	next    http.RoundTripper
	limiter *pace.Limiter
}

// unpaced marks the context of requests that begin at once.
type unpaced struct{}

func (t *pacedRound) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.Context().Value(unpaced{}) != nil {
		return t.next.RoundTrip(req)
	}
	signed := time.Now()
	turn, err := t.limiter.Begin(req.Context(), isSmall(req))
	if err == nil && time.Since(signed) > maxWait {
		turn.End(pace.Failed)
		err = waitedError{}
	}
	if err != nil {
		if req.Body != nil {
			_ = req.Body.Close() // as a RoundTripper must
		}
		return nil, err
	}
	resp, err := t.next.RoundTrip(req)
	if err != nil {
		turn.End(outcomeOf(err))
		return nil, err
	}
	if isBusyStatus(resp.StatusCode) {
		turn.End(pace.Refused)
		return resp, nil
	}
	body := &pacedBody{ReadCloser: resp.Body, turn: turn}
	body.left.Store(resp.ContentLength)
	if resp.ContentLength == 0 || resp.Body == http.NoBody || req.Method == http.MethodHead {
		turn.End(pace.Done)
	}
	resp.Body = body
	return resp, nil
}

// isSmall reports whether a request moves little. What is read as a whole without saying
// how much is a manifest or its like.
func isSmall(req *http.Request) bool {
	switch req.Method {
	case http.MethodPut, http.MethodPost:
		return 0 <= req.ContentLength && req.ContentLength <= smallBody
	case http.MethodGet:
		return req.Header.Get("Range") == ""
	}
	return true
}

// isBusyStatus reports whether a store says that it is asked too much at once.
func isBusyStatus(status int) bool {
	return status == http.StatusServiceUnavailable || status == http.StatusTooManyRequests
}

func outcomeOf(err error) pace.Outcome {
	var slow net.Error
	if errors.As(err, &slow) && slow.Timeout() {
		return pace.TimedOut
	}
	return pace.Failed
}

// pacedBody ends its request when it has been read, or is closed.
type pacedBody struct {
	io.ReadCloser
	turn *pace.Turn
	left atomic.Int64 // < 0: unknown
}

func (b *pacedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	switch left := b.left.Add(-int64(n)); {
	case err != nil && err != io.EOF:
		b.turn.End(outcomeOf(err))
	case err == io.EOF, left == 0 && n > 0:
		b.turn.End(pace.Done)
	}
	return n, err
}

func (b *pacedBody) Close() error {
	err := b.ReadCloser.Close()
	b.turn.End(pace.Done) // as far as it was wanted
	return err
}
