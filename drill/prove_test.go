// SPDX-License-Identifier: Apache-2.0

package drill

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/chain/chaintest"
	"github.com/imgbackup/imgbackup/objstore"
)

const mib = 1 << 20

// grown is a history of a full and increments of noise.
func grown(t *testing.T, increments int) *chaintest.History {
	r := rand.New(rand.NewPCG(1, 2))
	h := chaintest.NewHistory(t)
	content := make([]byte, 8*mib)
	chaintest.Fill(r, content[:6*mib])
	h.Commit(content, true, nil)
	for i := range increments {
		at := int64(i%8) * mib
		chaintest.Fill(r, content[at:at+64<<10])
		h.Commit(content, false, []chaintest.Change{{Start: at, End: at + 64<<10}})
	}
	return h
}

func quietly(int64) {}

// TestEachChunkOnce: all checkpoints together read what there is once, if the oldest comes
// first; if the newest does, what others have beside it is read over.
func TestEachChunkOnce(t *testing.T) {
	t.Parallel()
	h := grown(t, 12)
	var stored int64
	for info, err := range h.Repo.Store.List(t.Context(), archive.PackPrefix) {
		if err != nil {
			t.Fatal(err)
		}
		stored += info.Size
	}
	last := len(h.Checkpoints) - 1
	for most, order := range map[int64][]int{stored: seq(last + 1), 2 * stored: append([]int{last}, seq(last)...)} {
		before, maps, chunks := h.Store.Read(), h.Store.Of(archive.MapPrefix), int64(0)
		p := newProver(h.Repo)
		for at, i := range order {
			pr, err := p.prove(t.Context(), &h.Checkpoints[i].Disks[0], quietly)
			if err != nil || len(pr.Damage) > 0 {
				t.Fatalf("checkpoint %d: %v, %v", i, pr.Damage, err)
			}
			if at > 0 && i > 0 && pr.Bytes > 64<<10 {
				t.Errorf("checkpoint %d went through %d bytes: it adds 64 KiB", i, pr.Bytes)
			}
			chunks += pr.Chunks
		}
		if read := h.Store.Read() - before; read > most || chunks != 96+12 {
			t.Errorf("%d bytes were read of the %d that there are, and %d chunks proven", read, stored, chunks)
		}
		// The newest, if it is first, opens all, the oldest its own, and each other one more.
		if n := h.Store.Of(archive.MapPrefix) - maps; n > 8*len(h.Checkpoints) {
			t.Errorf("maps were read %d times", n)
		}
	}
}

func seq(n int) (all []int) {
	for i := range n {
		all = append(all, i)
	}
	return all
}

// TestDamageIsToldOfEach: whichever pack is damaged or gone, just those checkpoints fail
// that need it, as reading them by itself tells, and in any order.
func TestDamageIsToldOfEach(t *testing.T) {
	t.Parallel()
	h := grown(t, 9)
	var packs []string
	for info, err := range h.Repo.Store.List(t.Context(), archive.PackPrefix) {
		if err != nil {
			t.Fatal(err)
		}
		packs = append(packs, info.Key)
	}
	for i, key := range packs {
		bad := &spoilt{Store: h.Repo.Store, key: key, gone: i%2 == 0}
		repo := *h.Repo
		repo.Store = bad
		shared := newProver(&repo)
		affected := 0
		for _, n := range rand.New(rand.NewPCG(3, uint64(i))).Perm(len(h.Checkpoints)) {
			d := &h.Checkpoints[n].Disks[0]
			alone, err := newProver(&repo).prove(t.Context(), d, quietly)
			if err != nil {
				t.Fatal(err)
			}
			together, err := shared.prove(t.Context(), d, quietly)
			if err != nil {
				t.Fatal(err)
			}
			if alone.Lost != together.Lost || len(alone.Damage) != len(together.Damage) {
				t.Errorf("%s, checkpoint %d: %d bytes are lost, together with others %d", key, n, alone.Lost, together.Lost)
			}
			if alone.Lost > 0 {
				affected++
			}
			if gone := together.Missing != nil; gone && !bad.gone {
				t.Errorf("%s is damaged, and not missing", key)
			}
		}
		if affected == 0 {
			t.Errorf("%s: nothing needs it", key)
		}
	}
}

// spoilt is a store with one object whose bytes are wrong, or that is gone.
type spoilt struct {
	objstore.Store
	key  string
	gone bool
}

func (s *spoilt) Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	r, err := s.Store.Get(ctx, key, offset, length)
	switch {
	case key != s.key || err != nil:
		return r, err
	case s.gone:
		return nil, objstore.ErrNotFound
	}
	return struct {
		io.Reader
		io.Closer
	}{io.MultiReader(strings.NewReader("spoilt"), &skip{r, 6}), r}, nil
}

func (s *spoilt) Stat(ctx context.Context, key string) (objstore.Info, error) {
	if key == s.key && s.gone {
		return objstore.Info{}, objstore.ErrNotFound
	}
	return s.Store.Stat(ctx, key)
}

// skip leaves out the first n bytes.
type skip struct {
	r io.Reader
	n int64
}

func (s *skip) Read(p []byte) (int, error) {
	if s.n > 0 {
		if _, err := io.CopyN(io.Discard, s.r, s.n); err != nil {
			return 0, err
		}
		s.n = 0
	}
	return s.r.Read(p)
}

// TestOutageIsNoDamage: what fails is an error, and nothing is taken for proven because of
// it.
func TestOutageIsNoDamage(t *testing.T) {
	t.Parallel()
	h := grown(t, 3)
	away := &offline{Store: h.Repo.Store}
	repo := *h.Repo
	repo.Store = away
	p := newProver(&repo)
	d := &h.Checkpoints[3].Disks[0]
	away.after.Store(2)
	if _, err := p.prove(t.Context(), d, quietly); err == nil || archive.IsDamage(err) || len(p.bad) > 0 {
		t.Fatalf("%v, %d bad", err, len(p.bad))
	}
	if !away.hit.Load() {
		t.Fatal("the store did not fail")
	}
	if len(p.lists) > 0 {
		t.Error("a list counts as proven")
	}
	away.after.Store(1 << 30)
	before := h.Store.Read()
	if pr, err := p.prove(t.Context(), d, quietly); err != nil || len(pr.Damage) > 0 || h.Store.Read() == before {
		t.Errorf("%v, %v: %d bytes were read", err, pr.Damage, h.Store.Read()-before)
	}
}

// offline is a store that is away after some reads of packs.
type offline struct {
	objstore.Store
	after atomic.Int64
	hit   atomic.Bool
}

func (o *offline) Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	if strings.HasPrefix(key, archive.PackPrefix) {
		if o.after.Add(-1) < 0 {
			o.hit.Store(true)
			return nil, objstore.MarkPermanent(errors.New("the store is away"))
		}
	}
	return o.Store.Get(ctx, key, offset, length)
}

// TestState: a run that goes on reads nothing again; a file that is not whole, or another
// repository's, is refused.
func TestState(t *testing.T) {
	t.Parallel()
	h := grown(t, 4)
	d := &Drill{repo: h.Repo, prover: newProver(h.Repo), o: Options{Run: chain.NewUUID()}}
	disk := &h.Checkpoints[3].Disks[0]
	if _, err := d.prover.prove(t.Context(), disk, quietly); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "state")
	if err := d.Save(path); err != nil {
		t.Fatal(err)
	}
	s, err := LoadState(path)
	if err != nil || s.Run != d.o.Run {
		t.Fatalf("%v, %v", s, err)
	}
	again := &Drill{repo: h.Repo, prover: newProver(h.Repo)}
	if err := again.resume(s); err != nil {
		t.Fatal(err)
	}
	before := h.Store.Read()
	if _, err := again.prover.prove(t.Context(), disk, quietly); err != nil || h.Store.Read() != before {
		t.Errorf("%v, %d bytes were read again", err, h.Store.Read()-before)
	}
	if pr, err := again.prover.prove(t.Context(), &h.Checkpoints[4].Disks[0], quietly); err != nil || pr.Chunks != 1 {
		t.Errorf("%v, %d chunks", err, pr.Chunks)
	}
	if err := (&Drill{repo: chaintest.NewHistory(t).Repo, prover: newProver(h.Repo)}).resume(s); err == nil {
		t.Error("the state of another repository is taken")
	}
	flipByte(t, path)
	if s, err := LoadState(path); err == nil {
		t.Errorf("a state that is not whole is taken: %v", s.head)
	}
	if s, err := LoadState(path + ".none"); s != nil || err != nil {
		t.Errorf("%v, %v", s, err)
	}
}

// TestSavedMeanwhile: what was proven of a checkpoint is saved while more of it is, so that who
// is killed there goes on from there.
func TestSavedMeanwhile(t *testing.T) {
	t.Parallel()
	h := grown(t, 0)
	d := &Drill{repo: h.Repo, prover: newProver(h.Repo), o: Options{Run: chain.NewUUID()}}
	disk := &h.Checkpoints[0].Disks[0]
	path := filepath.Join(t.TempDir(), "state")
	var told, saved atomic.Int64
	_, err := d.prover.prove(t.Context(), disk, func(n int64) {
		if told.Add(n) >= 3*mib && saved.CompareAndSwap(0, told.Load()) {
			if err := d.Save(path); err != nil {
				t.Error(err)
			}
		}
	})
	if err != nil || saved.Load() == 0 {
		t.Fatalf("%v, saved after %d bytes", err, saved.Load())
	}
	s, err := LoadState(path)
	if err != nil || len(s.lists) > 0 {
		t.Fatalf("%v: a list counts as proven: %v", err, s.lists)
	}
	again := &Drill{repo: h.Repo, prover: newProver(h.Repo)}
	if err := again.resume(s); err != nil {
		t.Fatal(err)
	}
	pr, err := again.prover.prove(t.Context(), disk, quietly)
	if err != nil || pr.Chunks == 0 || pr.Chunks > 48 { // of 96
		t.Errorf("%v, %d chunks were proven again", err, pr.Chunks)
	}
}
