// SPDX-License-Identifier: Apache-2.0

package backup_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/imgbackup/imgbackup/objstore/s3test"
)

// The tests in life_*_test.go let disks live at random: real images, made and
// changed by qemu-img, qemu-io and qemu-nbd as users, and accidents, change
// them. Now and then comes a backup, and what `qemu-img convert` reads at that
// moment is kept. In the end every checkpoint must restore to exactly that.
//
// Environment:
//
//	IMGBACKUP_SOAK=N  how many lives (a small number without it)
//	IMGBACKUP_SEED=S  seed of the first life; the next has S+1, and so on
//	                  (without it: always the same, or with a soak a new one)
//
// Backups draw samples of what they read twice, and killed programs die when
// they die, so a seed repeats a life, but not in every detail.

// defaultSeed makes the tests the same every time; a soak draws other lives.
const defaultSeed = 1

// tally counts what the lives have come across.
type tally struct {
	mu     sync.Mutex
	counts map[string]int
	minio  func() *s3test.Server // for lives in a bucket; nil: there are none
}

func (c *tally) add(what string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.counts[what]++
}

func (c *tally) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var lines []string
	for what, n := range c.counts {
		lines = append(lines, fmt.Sprintf("%6d  %s", n, what))
	}
	slices.SortFunc(lines, func(a, b string) int { return strings.Compare(a[8:], b[8:]) })
	return strings.Join(lines, "\n")
}

// lives returns the seeds of the lives to be led.
func lives(t *testing.T, count int) []uint64 {
	t.Helper()
	first := uint64(defaultSeed)
	if os.Getenv("IMGBACKUP_SOAK") != "" {
		first = uint64(time.Now().UnixNano()) % 1_000_000_000
	}
	if env := os.Getenv("IMGBACKUP_SEED"); env != "" {
		n, err := strconv.ParseUint(env, 10, 64)
		if err != nil {
			t.Fatalf("IMGBACKUP_SEED: %v", err)
		}
		first = n
	}
	if env := os.Getenv("IMGBACKUP_SOAK"); env != "" {
		n, err := strconv.Atoi(env)
		if err != nil || n < 1 {
			t.Fatalf("IMGBACKUP_SOAK: %q is no number of lives", env)
		}
		count = n
	}
	seeds := make([]uint64, count)
	for i := range seeds {
		seeds[i] = first + uint64(i)
	}
	return seeds
}

// TestLives is the oracle test: see the top of this file.
func TestLives(t *testing.T) {
	t.Parallel()
	count := &tally{counts: make(map[string]int)}
	seeds := lives(t, defaultLives)
	count.minio = sync.OnceValue(func() *s3test.Server { return s3test.Start(t, s3test.MinIO) })
	events := allEvents()
	t.Run("life", func(t *testing.T) {
		for _, seed := range seeds {
			t.Run(strconv.FormatUint(seed, 10), func(t *testing.T) {
				t.Parallel()
				l := newLife(t, seed, events, count)
				defer func() {
					if t.Failed() {
						t.Logf("repeat with IMGBACKUP_SEED=%d IMGBACKUP_SOAK=1 go test ./backup -run 'TestLives/'\nwhat happened:\n%s", seed, strings.Join(l.log, "\n"))
					}
				}()
				l.lead()
			})
		}
	})
	t.Logf("seeds from %d on, %d lives:\n%s", seeds[0], len(seeds), count)
	if t.Failed() || len(seeds)*dealt < len(events) {
		return
	}
	for _, e := range events {
		if count.counts["event: "+e.name] == 0 {
			t.Errorf("no life reached the event %q", e.name)
		}
	}
	for _, verdict := range []string{
		"verdict: incremental by bitmap", "verdict: incremental by content", "verdict: full", "verdict: refused",
	} {
		if count.counts[verdict] == 0 {
			t.Errorf("no backup came to %q", verdict)
		}
	}
}

// dealt is how many kinds of events a life is sure to meet.
const dealt = 6

// lead lives one life: events, backups, and the last judgement.
func (l *life) lead() {
	l.backup()
	// A run of the list of events is dealt to each life, so that a few lives
	// with seeds in sequence meet all; chance fills up the rest.
	plan := make([]*event, 0, 24)
	sure := make(map[*event]bool)
	for i := range dealt {
		e := l.events[(l.seed*dealt+uint64(i))%uint64(len(l.events))]
		plan, sure[e] = append(plan, e), true
	}
	for range 6 + l.rng.IntN(8) {
		plan = append(plan, l.randomEvent())
	}
	l.rng.Shuffle(len(plan), func(i, j int) { plan[i], plan[j] = plan[j], plan[i] })
	for _, e := range plan {
		l.happen(e, sure[e])
		if l.t.Failed() {
			return
		}
		if l.rng.IntN(100) < 55 {
			l.backup()
		}
		if l.over {
			break
		}
	}
	if !l.over {
		l.backup()
	}
	l.judge()
}

// happen lets an event happen to one of the disks. One that must happen, and
// cannot as things are, gets what it may need.
func (l *life) happen(e *event, must bool) {
	d := l.diskFor(e)
	done := e.do(l, d)
	if !done && must && !l.t.Failed() && !l.over {
		l.prosper()
		d = l.diskFor(e)
		done = e.do(l, d)
	}
	if done {
		l.count.add("event: " + e.name)
	} else {
		l.count.add("not possible: " + e.name)
	}
	// Many events begin with a backup, after which all is well for a moment.
	if renewed := e.renews && done; !e.keeps && !renewed {
		d.sound = false
	}
	if !e.keeps && d.mixed {
		for _, other := range l.disks {
			other.sound = false // they may share backing files by now
		}
	}
}

func (l *life) diskFor(e *event) *lifeDisk {
	d := l.disks[l.rng.IntN(len(l.disks))]
	if e.qcow2 && d.format != "qcow2" {
		l.becomeQcow2(d)
	}
	l.note("# %s on %s", e.name, d.target)
	return d
}

// prosper gives the domain two disks with plain images, and each of them two
// bitmaps.
func (l *life) prosper() {
	l.t.Helper()
	if len(l.disks) < 2 {
		l.addDisk("vdaa")
	}
	for _, d := range l.disks {
		to := l.newFile("qcow2")
		l.must("qemu-img", "convert", "-f", d.format, "-O", "qcow2", d.path, to)
		d.path, d.format, d.cluster, d.sound = to, "qcow2", 64<<10, false
	}
	for range 2 {
		a := l.prepare()
		a.all()
		a.run()
		for _, d := range l.disks {
			l.writeSome(d.path, d.format, 1, false)
		}
	}
}

func (l *life) randomEvent() *event {
	total := 0
	for _, e := range l.events {
		total += e.weight
	}
	n := l.rng.IntN(total)
	for _, e := range l.events {
		if n -= e.weight; n < 0 {
			return e
		}
	}
	return l.events[0]
}

func newRand(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 0x1a6e)) }
