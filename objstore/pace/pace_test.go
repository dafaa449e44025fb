// SPDX-License-Identifier: Apache-2.0

package pace_test

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/imgbackup/imgbackup/objstore/pace"
)

// store answers requests by the clock of a bubble: each takes some time, and those above
// what it bears are refused at once.
type store struct {
	takes time.Duration

	mu       sync.Mutex
	bears    int
	now      int
	most     int
	refused  int
	timeouts int // so many of the next stand still
}

// begin reports whether a request is taken, and whether it stands still.
func (s *store) begin() (taken, still bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.now >= s.bears {
		s.refused++
		return false, false
	}
	s.now++
	s.most = max(s.most, s.now)
	if still = s.timeouts > 0; still {
		s.timeouts--
	}
	return true, still
}

func (s *store) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.now--
}

// request is one that is tried again until it is served.
func (s *store) request(ctx context.Context, l *pace.Limiter, small bool) error {
	for {
		turn, err := l.Begin(ctx, small)
		if err != nil {
			return err
		}
		taken, still := s.begin()
		if !taken {
			turn.End(pace.Refused)
			time.Sleep(100 * time.Millisecond)
			continue
		}
		if time.Sleep(s.takes); still {
			time.Sleep(time.Minute)
		}
		s.end()
		if !still {
			turn.End(pace.Done)
			return nil
		}
		turn.End(pace.TimedOut)
	}
}

// run has n requests done, and returns how long that took.
func (s *store) run(t testing.TB, l *pace.Limiter, n int, small bool) time.Duration {
	t.Helper()
	began := time.Now()
	done := make(chan error)
	for range n {
		go func() { done <- s.request(context.Background(), l, small) }()
	}
	for range n {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	return time.Since(began)
}

// TestAdapts: whatever a store bears, all requests are served, never more at once than
// allowed, and in little more time than with the best number, which nobody knows before.
// When it bears more again, more are made.
func TestAdapts(t *testing.T) {
	t.Parallel()
	const n = 600
	rapid.Check(t, func(r *rapid.T) {
		most := rapid.IntRange(0, 32).Draw(r, "most") // 0: nobody said
		bears := rapid.IntRange(1, 40).Draw(r, "bears")
		small := rapid.Bool().Draw(r, "small")
		synctest.Test(t, func(t *testing.T) {
			s := &store{bears: bears, takes: time.Second}
			l := pace.New(pace.Options{Most: most})
			atOnce := most
			if most == 0 {
				most, atOnce = l.Most(), l.Most()
				if small {
					atOnce *= 8
				}
			}
			took := s.run(t, l, n, small)
			s.mu.Lock()
			best := time.Duration((n + min(most, bears) - 1) / min(most, bears) * int(s.takes))
			if s.most > atOnce || took > best+best/5+2*s.takes {
				t.Errorf("most %d, bears %d: %d at once, %v, and with the best number %v", most, bears, s.most, took, best)
			}
			// Each refusal costs a request: a store that bears all refuses none, and others are
			// asked for too much the less often the longer it lasts.
			if allowed := atOnce + n/20; bears >= atOnce && s.refused > 0 || s.refused > allowed {
				t.Errorf("most %d, bears %d: %d requests were refused", most, bears, s.refused)
			}
			s.bears = most
			s.mu.Unlock()
			s.run(t, l, 8*n, small)
			if got := l.Limit(); got != most {
				t.Errorf("most %d, bore %d: the limit stays at %d when all are borne", most, bears, got)
			}
		})
	})
}

// TestSmallRequests: where nobody said how many are allowed, eight times as many are at
// work at once if they move little, until the store refuses one.
func TestSmallRequests(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ most, bears, want int }{{0, 1000, 8 * pace.Default}, {16, 1000, 16}, {0, 50, 50}} {
		synctest.Test(t, func(t *testing.T) {
			s := &store{bears: c.bears, takes: time.Second}
			l := pace.New(pace.Options{Most: c.most})
			s.run(t, l, 1000, true)
			s.mu.Lock()
			if s.most != c.want {
				t.Errorf("%+v: %d at once", c, s.most)
			}
			s.most = 0
			s.mu.Unlock()
			s.run(t, l, 100, false)
			s.mu.Lock()
			defer s.mu.Unlock()
			if s.most > l.Most() {
				t.Errorf("%+v: %d large ones at once", c, s.most)
			}
		})
	}
}

// TestTimeOuts: what stands still halves the limit, once for all that began before.
func TestTimeOuts(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := &store{bears: 100, takes: time.Second, timeouts: 12}
		l := pace.New(pace.Options{Most: 16})
		var halved atomic.Int64
		go func() {
			time.Sleep(time.Minute + 2*time.Second - time.Millisecond)
			halved.Store(int64(l.Limit()))
		}()
		s.run(t, l, 20, false)
		if halved.Load() != 8 {
			t.Errorf("after twelve time-outs at once the limit is %d, want 8", halved.Load())
		}
	})
}

// TestBegins: requests begin in the order in which they came, whatever they weigh; one that
// is given up while it waits takes nobody's place; none begins above the limit.
func TestBegins(t *testing.T) {
	t.Parallel()
	gaveUp := errors.New("gave up")
	rapid.Check(t, func(r *rapid.T) {
		most := rapid.IntRange(0, 3).Draw(r, "most")
		steps := rapid.SliceOfN(rapid.IntRange(0, 5), 1, 60).Draw(r, "steps")
		synctest.Test(t, func(t *testing.T) {
			type asked struct {
				n      int
				cancel context.CancelCauseFunc
			}
			l := pace.New(pace.Options{Most: most})
			var mu sync.Mutex
			var atWork []*pace.Turn
			var waiting []asked
			began := -1 // the last
			end := func(o pace.Outcome) bool {
				mu.Lock()
				if len(atWork) == 0 {
					mu.Unlock()
					return false
				}
				turn := atWork[0]
				atWork = atWork[1:]
				mu.Unlock()
				turn.End(o)
				turn.End(pace.Done) // which is no news
				return true
			}
			for i, step := range steps {
				switch {
				case step < 3: // another comes
					ctx, cancel := context.WithCancelCause(context.Background())
					mu.Lock()
					waiting = append(waiting, asked{i, cancel})
					mu.Unlock()
					go func() {
						turn, err := l.Begin(ctx, step == 0)
						if err != nil {
							if !errors.Is(err, gaveUp) {
								t.Error(err)
							}
							return
						}
						mu.Lock()
						defer mu.Unlock()
						began = max(began, i)
						atWork = append(atWork, turn)
						for k := range waiting {
							if waiting[k].n == i {
								waiting = append(waiting[:k:k], waiting[k+1:]...)
								break
							}
						}
					}()
				case step == 3: // the oldest that waits gives up
					mu.Lock()
					if len(waiting) > 0 {
						waiting[0].cancel(gaveUp)
						waiting = waiting[1:]
					}
					mu.Unlock()
				default:
					end(pace.Outcome(i % 4))
				}
				synctest.Wait()
				mu.Lock()
				if len(waiting) > 0 && waiting[0].n < began {
					t.Errorf("request %d waits, and %d has begun", waiting[0].n, began)
				}
				if most > 0 && len(atWork) > most {
					t.Errorf("%d at work, more than %d", len(atWork), most)
				}
				if len(atWork) == 0 && len(waiting) > 0 {
					t.Error("nothing is at work, and some wait")
				}
				mu.Unlock()
			}
			for end(pace.Done) {
				synctest.Wait()
			}
			mu.Lock()
			defer mu.Unlock()
			if len(waiting) > 0 {
				t.Errorf("%d wait for ever", len(waiting))
			}
		})
	})
}
