// SPDX-License-Identifier: Apache-2.0

package httpserve

import (
	"context"
	"net"
	"net/http"
	"runtime"
	"sync/atomic"
	"testing"

	"github.com/imgbackup/imgbackup/nbd"
)

// slow is a device that gives up only when its server waits for that, or has ended.
type slow struct {
	server *Server
	begun  chan struct{}
	ended  chan struct{}
	at     atomic.Int32 // reads at work
}

func (s *slow) ReadAt(ctx context.Context, _ []byte, _ int64) error {
	s.at.Add(1)
	defer s.at.Add(-1)
	select {
	case s.begun <- struct{}{}:
	default:
	}
	<-ctx.Done()
	for s.server.work.TryRLock() { // nobody waits for it alone
		s.server.work.RUnlock()
		select {
		case <-s.ended:
			return ctx.Err()
		default:
			runtime.Gosched()
		}
	}
	return ctx.Err()
}

// TestEndWaits: once the server has ended nobody reads a disk, so that it can be closed.
func TestEndWaits(t *testing.T) {
	t.Parallel()
	for _, ranges := range []string{"bytes=0-3", "bytes=0-3,8-9"} { // of several, net/http reads apart from the request
		t.Run(ranges, func(t *testing.T) {
			t.Parallel()
			d := &slow{begun: make(chan struct{}, 1), ended: make(chan struct{})}
			defer close(d.ended)
			s, err := New([]Disk{{Export: nbd.Export{Name: "vda", Size: 1 << 20, Device: d}, Path: "vda", Identity: "x"}}, Options{})
			if err != nil {
				t.Fatal(err)
			}
			d.server = s
			l, err := net.Listen("tcp", "localhost:0")
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			go func() {
				req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+l.Addr().String()+"/vda", nil)
				req.Header.Set("Range", ranges)
				if r, err := http.DefaultClient.Do(req); err == nil {
					_ = r.Body.Close()
				}
			}()
			go func() { <-d.begun; cancel() }()
			if err := s.Serve(ctx, l); err != nil {
				t.Error(err)
			}
			if n := d.at.Load(); n > 0 {
				t.Errorf("%d reads are at work", n)
			}
		})
	}
}
