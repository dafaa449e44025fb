// SPDX-License-Identifier: Apache-2.0

package s3

import (
	"bytes"
	"context"
	"crypto/sha256"
	"io"
	"sync"
	"time"

	"github.com/imgbackup/imgbackup/objstore"
)

// A server may look whether an object is there before it takes the bytes of another,
// and not again when it has them: in between is all the time that a body takes. Racers
// with small bodies hardly ever meet that, backups do.

// heldSize is the length of the body that is held up, bytes: more than is sent before
// the half of it has been read.
const heldSize = 128 << 10

// heldBody is a body of which the second half is to be had only later.
type heldBody struct {
	io.ReaderAt
	once  sync.Once
	began chan struct{} // closed when the first half is on its way
	later <-chan struct{}
}

func (*heldBody) Size() int64 { return heldSize }

func (b *heldBody) ReadAt(p []byte, off int64) (int, error) {
	if off >= heldSize/2 {
		b.once.Do(func() { close(b.began) })
		<-b.later
	} else if off+int64(len(p)) > heldSize/2 {
		n, err := b.ReaderAt.ReadAt(p[:heldSize/2-off], off)
		if err != nil {
			return n, err
		}
		more, err := b.ReadAt(p[n:], off+int64(n))
		return n + more, err
	}
	return b.ReaderAt.ReadAt(p, off)
}

// probeHeld sees whether a writer whose body was on its way when another one created
// the object is refused. A server may as well let the other one wait: the body goes on
// after hold at the latest.
func (s probe) probeHeld(ctx context.Context, key func(name string) string, hold time.Duration) error {
	return s.race(ctx, key, func(ctx context.Context, key string) error { return s.held(ctx, key, hold) })
}

func (s probe) held(ctx context.Context, key string, hold time.Duration) error {
	content := [2]string{string(bytes.Repeat([]byte("slow"), heldSize/4)), "fast"}
	later := make(chan struct{})
	body := &heldBody{ReaderAt: bytes.NewReader([]byte(content[0])), began: make(chan struct{}), later: later}
	var errs [2]error
	var slow sync.WaitGroup
	slow.Go(func() {
		// The sum is known, so that the body is read only to be sent.
		errs[0] = s.racing.Put(ctx, key, body, objstore.PutOptions{Mode: objstore.Create, SHA256: sha256.Sum256([]byte(content[0]))})
		body.once.Do(func() { close(body.began) })
	})
	fast := make(chan struct{})
	go func() {
		defer close(fast)
		<-body.began
		errs[1] = s.racing.Put(ctx, key, bytes.NewReader([]byte(content[1])), objstore.PutOptions{Mode: objstore.Create})
	}()
	<-body.began
	timer := time.NewTimer(hold)
	select {
	case <-fast:
	case <-timer.C:
	}
	timer.Stop()
	close(later)
	<-fast
	slow.Wait()
	return s.judgeRace(ctx, key, errs[:], func(i int) string { return content[i] },
		"it honours conditional writes (If-None-Match: *) only as a request begins: while one object was on its way, another was created, and replaced by it")
}
