// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"maps"
	"strings"
	"sync"
	"testing"

	"github.com/imgbackup/imgbackup/backup"
)

// Of two runs on one image only one gets it, whatever domain or repository
// they are for.
func TestTwoRunsOnOneImage(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	other := &world{TB: t, dir: t.TempDir()}
	other.must("init")
	args := []string{"backup", domain, "--disk", "vda=" + w.image("vda") + ",format=qcow2"}
	reading, end := make(chan struct{}), make(chan struct{})
	winner := make(chan outcome, 1)
	go func() {
		winner <- w.runWith(program{step: func(step string) {
			if step == backup.StepRead {
				close(reading)
				<-end
			}
		}}, w.backup("c1")...)
	}()
	<-reading
	for name, o := range map[string]outcome{
		"the same domain":    w.runWith(program{}, w.backup("c2")...),
		"another domain":     w.runWith(program{}, append([]string{"backup", "mail"}, args[2:]...)...),
		"another repository": other.runWith(program{}, args...),
	} {
		if o.code != exitInUse {
			t.Errorf("%s: exit status %d: %s", name, o.code, o.err)
		}
		if !strings.Contains(o.err, w.image("vda")) {
			t.Errorf("%s: the message does not name the image: %s", name, o.err)
		}
	}
	close(end)
	if o := <-winner; o.code != exitDone {
		t.Fatalf("the first run: exit status %d: %s", o.code, o.err)
	}
	w.want["c1"] = maps.Clone(w.now)
	w.verify("c1")
	other.verifyTidy()
}

// Two runs of one domain that make a checkpoint of one name, from different
// images: exactly one commits.
func TestTwoRunsOfOneName(t *testing.T) {
	t.Parallel()
	for i := range 4 {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, 2)
			meet := newMeeting(2)
			results := make(chan outcome, 2)
			for _, target := range w.targets {
				go func() {
					defer meet.leave()
					results <- w.runWith(program{step: func(step string) {
						if step == backup.StepPlan || step == backup.StepCommit {
							meet.wait()
						}
					}}, "backup", domain, "--checkpoint", "c1", "--disk", target+"="+w.image(target)+",format=qcow2")
				}()
			}
			codes := make(map[int]int)
			for range 2 {
				o := <-results
				codes[o.code]++
				if o.code != exitDone && o.code != exitTaken {
					t.Errorf("exit status %d: %s", o.code, o.err)
				}
			}
			if codes[exitDone] != 1 || codes[exitTaken] != 1 {
				t.Errorf("exit statuses %v: want one %d and one %d", codes, exitDone, exitTaken)
			}
			m := w.checkpoints()[0]
			winner := m.Disks[0].Name
			w.want["c1"] = map[string]digest{winner: w.now[winner]}
			w.verify("c1")
		})
	}
}

// meeting lets n goroutines wait for each other, again and again, until one of
// them leaves.
type meeting struct {
	mu     sync.Mutex
	n, in  int
	all    chan struct{}
	leave  func()
	parted chan struct{}
}

func newMeeting(n int) *meeting {
	m := &meeting{n: n, all: make(chan struct{}), parted: make(chan struct{})}
	m.leave = sync.OnceFunc(func() { close(m.parted) })
	return m
}

func (m *meeting) wait() {
	m.mu.Lock()
	all := m.all
	if m.in++; m.in == m.n {
		close(all)
		m.in, m.all = 0, make(chan struct{})
	}
	m.mu.Unlock()
	select {
	case <-all:
	case <-m.parted:
	}
}
