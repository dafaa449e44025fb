// SPDX-License-Identifier: Apache-2.0

package serve

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/time/rate"

	"github.com/imgbackup/imgbackup/chain/chaintest"
	"github.com/imgbackup/imgbackup/internal/testkit"
	"github.com/imgbackup/imgbackup/objstore"
	"github.com/imgbackup/imgbackup/view"
)

// page is what guests of the tests write at once, bytes: a guest owns every third of a disk, so
// that all of them, and the fill, meet in each block.
const (
	page   = 4096
	guests = 3
)

// model is what guests have written, page by page.
type model struct {
	all   sync.RWMutex // held for writing by who changes pages of others
	now   []byte
	since []map[string]bool // what each page was since the last flush that was answered, that included
}

func newModel(content []byte) *model {
	m := &model{now: bytes.Clone(content)}
	m.since = make([]map[string]bool, (len(content)+page-1)/page)
	for i := range m.since {
		m.since[i] = map[string]bool{string(m.page(i)): true}
	}
	return m
}

func (m *model) page(i int) []byte { return m.now[i*page : min((i+1)*page, len(m.now))] }

// wrote is called, under a lock, of pages that are written: before that, too.
func (m *model) wrote(from, to int) {
	for i := from; i < to; i++ {
		m.since[i][string(m.page(i))] = true
	}
}

// world is a disk with guests that write to it while it is filled.
type world struct {
	t    *testing.T
	h    *chaintest.History
	c    *view.Checkpoint
	r    *rand.Rand
	path string
	m    *model
	cow  *Cow
}

// live lets guests write and the fill work until all guests are done, or until ctx of the fill is
// ended by one of them, at a moment that is drawn.
func (w *world) live(ops int) {
	w.t.Helper()
	ctx, kill := context.WithCancel(context.Background())
	var work sync.WaitGroup
	filled := make(chan error, 1)
	f := &Filler{Repo: w.h.Repo, Manifest: w.c.Manifest, Cows: []*Cow{w.cow}, Patience: time.Millisecond}
	if w.r.IntN(2) == 0 {
		f.Limit = rate.NewLimiter(100<<20, 64<<10) // it meets more of what guests do
	}
	go func() { filled <- f.Run(ctx) }()
	for g := range guests {
		r := rand.New(rand.NewPCG(w.r.Uint64(), uint64(g)))
		work.Go(func() {
			for range ops {
				if err := w.act(r, g); err != nil {
					w.t.Error(err)
					return
				}
			}
		})
	}
	work.Wait()
	if w.r.IntN(2) == 0 {
		kill()
	}
	if err := <-filled; err != nil && !errors.Is(err, context.Canceled) {
		w.t.Error(err)
	}
	kill()
	if w.t.Failed() {
		w.t.FailNow()
	}
}

// act is one request of a guest.
func (w *world) act(r *rand.Rand, g int) error {
	ctx, m := context.Background(), w.m
	pages := len(m.since)
	switch r.IntN(12) {
	case 0: // of everybody's
		m.all.Lock()
		defer m.all.Unlock()
		from := r.IntN(pages)
		to := min(from+1+r.IntN(40), pages)
		off, end := int64(from)*page, min(int64(to)*page, int64(len(m.now)))
		clear(m.now[off:end])
		m.wrote(from, to)
		if r.IntN(2) == 0 {
			return w.cow.WriteZeroes(ctx, off, end-off, r.IntN(2) == 0)
		}
		if err := w.cow.Trim(ctx, off, end-off); err != nil {
			return err
		}
		err := w.cow.ReadAt(ctx, m.now[off:end], off) // as the device decides
		m.wrote(from, to)
		return err
	case 1:
		m.all.Lock()
		defer m.all.Unlock()
		if err := w.cow.Flush(ctx); err != nil {
			return err
		}
		for i := range m.since {
			clear(m.since[i])
		}
		m.wrote(0, pages)
		return nil
	}
	m.all.RLock()
	defer m.all.RUnlock()
	i := r.IntN(pages)/guests*guests + g
	if i >= pages {
		return nil
	}
	p, off := m.page(i), int64(i)*page
	if r.IntN(3) == 0 {
		got := make([]byte, len(p))
		if err := w.cow.ReadAt(ctx, got, off); err != nil || !bytes.Equal(got, p) {
			return fmt.Errorf("page %d reads as it should not: %v", i, err)
		}
		return nil
	}
	chaintest.Fill(r, p)
	if r.IntN(4) == 0 {
		clear(p)
	}
	m.wrote(i, i+1)
	return w.cow.WriteAt(ctx, p, off)
}

// die leaves the files as a killed server does. With power the kernel has died, too: what no flush
// has recorded is anything.
func (w *world) die(power bool) {
	w.t.Helper()
	w.cow.file.close()
	if power {
		bits, err := os.ReadFile(w.path + mapSuffix)
		if err != nil {
			w.t.Fatal(err)
		}
		f, err := os.OpenFile(w.path, os.O_RDWR, 0)
		if err != nil {
			w.t.Fatal(err)
		}
		for at := int64(0); at < w.cow.size; at += blockSize {
			if b := at / blockSize; bits[headerSize+b/8]&(1<<(b%8)) == 0 && w.r.IntN(2) == 0 {
				garbage := make([]byte, min(blockSize, w.cow.size-at))
				chaintest.Fill(w.r, garbage)
				if _, err := f.WriteAt(garbage, at); err != nil {
					w.t.Fatal(err)
				}
			}
		}
		head := w.cow.session.head
		copy(bits[head:], "another boot")
		w.r.Shuffle(len(bits)-int(head+headerSize), func(i, j int) {
			bits[int(head+headerSize)+i], bits[int(head+headerSize)+j] = bits[int(head+headerSize)+j], bits[int(head+headerSize)+i]
		})
		if err := errors.Join(f.Close(), os.WriteFile(w.path+mapSuffix, bits, 0o600)); err != nil {
			w.t.Fatal(err)
		}
	}
	power = power || w.cow.session.mute // this kernel does not tell the one from the other
	w.begin()
	if w.cow.Lost() != power {
		w.t.Errorf("power cut %v, lost %v", power, w.cow.Lost())
	}
	if !power {
		return
	}
	// What a page is now is one of those that it was since the last flush.
	pos := 0
	for i := range w.m.since {
		p := w.m.page(i)
		if err := w.cow.ReadAt(context.Background(), p, int64(pos)); err != nil {
			w.t.Fatal(err)
		}
		if !w.m.since[i][string(p)] {
			w.t.Fatalf("after a power cut page %d is what it never was", i)
		}
		pos += len(p)
	}
}

func (w *world) begin() {
	w.t.Helper()
	var err error
	if w.cow, err = OpenCow(w.c, w.c.Disks[0], w.path, nil); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) verify() {
	w.t.Helper()
	chaintest.VerifyReads(w.t, w.r, w.cow, w.m.now)
}

// While a disk is filled guests write to it, and servers are killed, and machines lose power, at any
// moment: a guest reads what it wrote, what it had flushed is there in the end, nothing else comes up, and
// the file that is complete is the disk, by itself.
func TestFillBesideGuests(t *testing.T) {
	t.Parallel()
	lives := 12
	if n, err := strconv.Atoi(os.Getenv("IMGBACKUP_SOAK")); err == nil {
		lives = n
	}
	for seed := range uint64(lives) {
		r := rand.New(rand.NewPCG(seed, 4))
		h := chaintest.NewHistory(t)
		h.Random(r, 2, 4096+r.Int64N(3<<20)/512*512)
		w := &world{t: t, h: h, c: open(t, h, 1), r: r, path: filepath.Join(t.TempDir(), "vda.raw"), m: newModel(h.Want[1])}
		w.begin()
		for range 3 {
			w.live(20)
			w.verify()
			w.die(r.IntN(2) == 0)
			w.verify()
		}
		f := &Filler{Repo: h.Repo, Manifest: w.c.Manifest, Cows: []*Cow{w.cow}}
		told := 0
		f.Filled = func(c *Cow) error { told++; return nil }
		if err := f.Run(context.Background()); err != nil || !w.cow.Complete() || told != 1 {
			t.Fatalf("seed %d: %v, told %d times", seed, err, told)
		}
		// It is the disk from here on, also for a machine that loses power.
		w.die(true)
		w.verify()
		if err := w.cow.Close(); err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(w.path); err != nil || !bytes.Equal(got, w.m.now) {
			t.Fatalf("seed %d: the file is not the disk: %v", seed, err)
		}
	}
}

// Zeros are holes in a file that is complete, also within blocks.
func TestFilledFileIsSparse(t *testing.T) {
	t.Parallel()
	h := chaintest.NewHistory(t)
	content := make([]byte, 24<<20)
	r := rand.New(rand.NewPCG(1, 1))
	for _, at := range []int{0, 5 << 20, 5<<20 + 100<<10, 20<<20 - 4096} {
		chaintest.Fill(r, content[at:at+4096])
	}
	h.Commit(content, true, nil)
	w := &world{t: t, h: h, c: open(t, h, 0), path: filepath.Join(t.TempDir(), "vda.raw")}
	w.begin()
	if err := (&Filler{Repo: h.Repo, Manifest: w.c.Manifest, Cows: []*Cow{w.cow}}).Run(context.Background()); err != nil {
		t.Fatal(err)
	}
	if err := w.cow.Close(); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(w.path)
	if err != nil || !bytes.Equal(got, content) {
		t.Fatalf("the file is not the disk: %v", err)
	}
	fi, err := os.Stat(w.path)
	if err != nil {
		t.Fatal(err)
	}
	if n := fi.Sys().(*syscall.Stat_t).Blocks * 512; n > 6*4096 {
		t.Errorf("4 pages of data take %d bytes", n)
	}
}

// What is damaged does not come into the file, and is not said to be there; what is not is filled
// all the same. A guest that writes it anew makes the disk whole.
func TestFillMeetsDamage(t *testing.T) {
	t.Parallel()
	h := chaintest.NewHistory(t)
	r := rand.New(rand.NewPCG(3, 3))
	content := make([]byte, 3<<20)
	chaintest.Fill(r, content)
	h.Commit(content, true, nil)
	pack := chaintest.Harm(t, h.Repo.Store, r, func(key string) bool { return strings.HasPrefix(key, "packs/") }, func(string) bool { return false })
	if pack == "" {
		t.Fatal("nothing was damaged")
	}
	w := &world{t: t, h: h, c: open(t, h, 0), path: filepath.Join(t.TempDir(), "vda.raw")}
	w.begin()
	run := func() error {
		return (&Filler{Repo: h.Repo, Manifest: w.c.Manifest, Cows: []*Cow{w.cow}}).Run(context.Background())
	}
	var not *NotFilledError
	if err := run(); !errors.As(err, &not) || not.Missing <= 0 || not.Missing > 2<<20 || not.Missing != w.cow.Missing() {
		t.Fatalf("%v, missing %d", err, w.cow.Missing())
	}
	ctx := context.Background()
	for at := int64(0); at < w.cow.size; at += blockSize {
		p := make([]byte, blockSize)
		switch err := w.cow.ReadAt(ctx, p, at); {
		case w.cow.has(at / blockSize):
			if err != nil || !bytes.Equal(p, content[at:at+blockSize]) {
				t.Fatalf("block at %d: %v", at, err)
			}
		case err == nil:
			t.Fatalf("the block at %d, which is damaged, can be read", at)
		default:
			chaintest.Fill(r, content[at:at+blockSize])
			if err := w.cow.WriteAt(ctx, content[at:at+blockSize], at); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := run(); err != nil {
		t.Fatal(err)
	}
	if err := w.cow.Close(); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(w.path); err != nil || !bytes.Equal(got, content) {
		t.Fatalf("the file is not the disk: %v", err)
	}
}

// flaky is a store that fails for a while.
type flaky struct {
	objstore.Store
	mu   sync.Mutex
	left int
}

func (f *flaky) Get(ctx context.Context, key string, off, length int64) (io.ReadCloser, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if strings.HasPrefix(key, "packs/") && f.left > 0 {
		f.left--
		return nil, errors.New("the store is out")
	}
	return f.Store.Get(ctx, key, off, length)
}

// An outage, and a full file system, are waited for, and told of once.
func TestFillWaits(t *testing.T) {
	t.Parallel()
	store := &flaky{Store: objstore.NewMem()}
	h := chaintest.NewHistoryIn(t, store, (*chaintest.Keys)(nil).Options())
	content := make([]byte, 4<<20)
	chaintest.Fill(rand.New(rand.NewPCG(5, 5)), content)
	h.Commit(content, true, nil)
	w := &world{t: t, h: h, c: open(t, h, 0), path: filepath.Join(t.TempDir(), "vda.raw")}
	var notes []string
	cow, err := OpenCow(w.c, w.c.Disks[0], w.path, func(msg string) { notes = append(notes, msg) })
	if err != nil {
		t.Fatal(err)
	}
	store.left = 6
	full := 3
	real := cow.room
	cow.room = func() (int64, error) {
		if full--; full >= 0 {
			return spare, nil
		}
		return real()
	}
	f := &Filler{Repo: h.Repo, Manifest: w.c.Manifest, Cows: []*Cow{cow}, Patience: time.Microsecond}
	if err := f.Run(context.Background()); err != nil {
		t.Fatal(err)
	}
	if store.left != 0 || full >= 0 {
		t.Errorf("faults that were not met: %d, %d", store.left, full)
	}
	count := func(what string) (n int) {
		for _, msg := range notes {
			if strings.Contains(msg, what) {
				n++
			}
		}
		return n
	}
	if count("the store is out") < 1 || count("until there is room") != 1 || count("goes on") < 1 || len(notes) > 6 {
		t.Errorf("it told: %q", notes)
	}
	if err := cow.Close(); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(w.path); err != nil || !bytes.Equal(got, content) {
		t.Fatalf("the file is not the disk: %v", err)
	}
}

// Where the medium fails, no bit says that a block is there, whoever wrote it, and the fill ends:
// it does not say that the disk is complete.
func TestFillOnAMediumThatFails(t *testing.T) {
	t.Parallel()
	h := chaintest.NewHistory(t)
	content := bytes.Repeat([]byte{7}, 2<<20)
	h.Commit(content, true, nil)
	w := &world{t: t, h: h, c: open(t, h, 0), path: filepath.Join(t.TempDir(), "vda.raw")}
	w.begin()
	calls := 0
	w.cow.file.sync = func(f *os.File) error {
		if f == w.cow.file.data {
			calls++
			return syscall.EIO
		}
		return syncData(f)
	}
	f := &Filler{Repo: h.Repo, Manifest: w.c.Manifest, Cows: []*Cow{w.cow}, Filled: func(*Cow) error { t.Error("it is told as complete"); return nil }}
	if err := f.Run(context.Background()); !errors.Is(err, syscall.EIO) || calls == 0 {
		t.Errorf("%v after %d calls", err, calls)
	}
	if err := w.cow.Flush(context.Background()); !errors.Is(err, syscall.EIO) {
		t.Errorf("a guest's flush afterwards: %v", err)
	}
	bits := make([]byte, 32/8)
	if _, err := w.cow.file.bits.ReadAt(bits, headerSize); err != nil || !bytes.Equal(bits, make([]byte, len(bits))) {
		t.Errorf("bits of what is not durable: %x, %v", bits, err)
	}
	w.cow.file.close()
	if names := testkit.Names(t, filepath.Dir(w.path)); len(names) != 2 {
		t.Errorf("left: %q", names)
	}
}
