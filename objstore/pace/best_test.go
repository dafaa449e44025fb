// SPDX-License-Identifier: Apache-2.0

package pace_test

import (
	"context"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/imgbackup/imgbackup/objstore/pace"
)

// away is a store 15 ms away, each way, whose clients wait as package retry has them.
type away struct {
	store
	r *rand.Rand
}

func (s *away) random(n time.Duration) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return time.Duration(s.r.Int64N(int64(n)))
}

func (s *away) request(l *pace.Limiter, small bool, takes time.Duration) error {
	const way = 15 * time.Millisecond
	for wait := 200 * time.Millisecond; ; wait = min(2*wait, 10*time.Second) {
		turn, err := l.Begin(context.Background(), small)
		if err != nil {
			return err
		}
		time.Sleep(way)
		if taken, _ := s.begin(); taken {
			time.Sleep(takes*3/4 + s.random(takes/2))
			s.end()
			time.Sleep(way)
			turn.End(pace.Done)
			return nil
		}
		time.Sleep(way)
		turn.End(pace.Refused)
		time.Sleep(wait/2 + s.random(wait))
	}
}

// TestNearTheBest: on a store that bears six requests at once, work of all kinds takes hardly
// longer than with the best fixed number.
func TestNearTheBest(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		what         string
		small, n     int // requests: some that move little, and then others
		every, takes time.Duration
	}{
		{"a backup of 10 packs", 4, 10, 150 * time.Millisecond, 1600 * time.Millisecond},
		{"a backup of 33 packs", 4, 33, 150 * time.Millisecond, 1600 * time.Millisecond},
		{"a restore", 4, 80, 0, 200 * time.Millisecond},
		{"a restore of the last one of a chain", 100, 80, 0, 200 * time.Millisecond},
	} {
		run := func(most int) (took time.Duration) {
			for seed := range uint64(10) {
				synctest.Test(t, func(t *testing.T) {
					s := &away{store: store{bears: 6}, r: rand.New(rand.NewPCG(seed, 1))}
					l := pace.New(pace.Options{Most: most})
					done := make(chan error)
					wait := func(n int) {
						for range n {
							if err := <-done; err != nil {
								t.Error(err)
							}
						}
					}
					began := time.Now()
					for range c.small {
						go func() { done <- s.request(l, true, 5*time.Millisecond) }()
					}
					wait(c.small)
					for range c.n {
						go func() { done <- s.request(l, false, c.takes) }()
						time.Sleep(c.every)
					}
					wait(c.n)
					took += time.Since(began)
				})
			}
			return took / 10
		}
		best := min(run(4), run(6), run(8))
		if own := run(0); own > best*115/100 {
			t.Errorf("%s: %v, and with the best of some fixed numbers %v", c.what, own, best)
		}
	}
}
