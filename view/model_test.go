// SPDX-License-Identifier: Apache-2.0

package view

import (
	"bytes"
	"context"
	"math/rand/v2"
	"testing"

	"pgregory.net/rapid"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/bitmapstore"
	"github.com/imgbackup/imgbackup/chain/chaintest"
	"github.com/imgbackup/imgbackup/internal/zero"
)

// model is all checkpoints of a chain, open in one reader, and what each reads as.
type model struct {
	h     *chaintest.History
	disks []*Disk
}

// Every checkpoint of any chain reads as it was, however small the windows and the
// cache are, from anywhere and by many at once; what is called zeros is, and what is
// called data covers all else; and what changed between two is never left out.
func TestAnyChain(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		ctx := context.Background()
		seed := rapid.Uint64().Draw(t, "seed")
		m := model{h: chaintest.NewHistory(t)}
		m.h.Random(rand.New(rand.NewPCG(seed, 1)), rapid.IntRange(1, 4).Draw(t, "checkpoints"), rapid.Int64Range(8, 3<<10).Draw(t, "sectors")*512)
		o := Options{Cache: rapid.Int64Range(1, 4<<20).Draw(t, "cache"), NoAhead: rapid.Bool().Draw(t, "not ahead")}
		if rapid.Bool().Draw(t, "near") {
			o.Near = m.near(rapid.Uint64().Draw(t, "what is near"))
		}
		reader := NewReader(ctx, m.h.Repo, o)
		defer reader.Close()
		for _, c := range m.h.Checkpoints {
			d, err := reader.Open(ctx, &c.Disks[0])
			if err != nil {
				t.Fatal(err)
			}
			d.windows.limits = windowLimits{
				size:    rapid.Int64Range(64<<10, 1<<20).Draw(t, "window"),
				entries: rapid.IntRange(4, 40).Draw(t, "entries of a window"),
				kept:    rapid.IntRange(1, 100).Draw(t, "kept entries"),
			}
			m.disks = append(m.disks, d)
		}
		t.Repeat(map[string]func(*rapid.T){
			"read":     m.read,
			"together": m.together,
			"prefetch": m.prefetch,
			"zeros":    m.zeros,
			"layout":   m.layout,
			"changed":  m.changed,
		})
	})
}

// near has some chunks whole, by their digests, and leaves something else in the place of those
// that it has not.
func (m *model) near(which uint64) func(context.Context, string, *archive.Entry, []byte) bool {
	return func(ctx context.Context, _ string, e *archive.Entry, p []byte) bool {
		if int64(len(p)) != e.Length {
			panic("not all of an entry is asked for")
		}
		fetcher := archive.NewFetcher(m.h.Repo.Store, archive.FetcherOptions{})
		chunk, err := fetcher.Chunk(ctx, *e, nil)
		if err != nil || uint64(chunk[0])%3 == which%3 {
			copy(p, "wrong")
			return false
		}
		data, err := e.In(chunk)
		return err == nil && copy(p, data) == len(p)
	}
}

// choose returns a disk, what it reads as, and a part of it.
func (m *model) choose(t *rapid.T) (d *Disk, want []byte, start, end int64) {
	i := rapid.IntRange(0, len(m.disks)-1).Draw(t, "checkpoint")
	d, want = m.disks[i], m.h.Want[i]
	start = rapid.Int64Range(0, d.Size()).Draw(t, "start")
	return d, want, start, rapid.Int64Range(start, d.Size()).Draw(t, "end")
}

func (m *model) read(t *rapid.T) {
	d, want, start, end := m.choose(t)
	p := bytes.Repeat([]byte{0xaa}, int(end-start))
	if err := d.ReadAt(context.Background(), p, start); err != nil || !bytes.Equal(p, want[start:end]) {
		t.Fatalf("bytes %d to %d: %v", start, end, err)
	}
}

func (m *model) together(t *rapid.T) {
	d, want, start, _ := m.choose(t)
	chaintest.VerifyReads(t, rand.New(rand.NewPCG(uint64(start), 2)), d, want)
}

func (m *model) prefetch(t *rapid.T) {
	d, _, start, end := m.choose(t)
	parts := []bitmapstore.Run{{Start: start, End: end}, {Start: d.Size() - 1, End: d.Size() + 100}}
	if err := d.Prefetch(context.Background(), parts); err != nil {
		t.Fatal(err)
	}
}

func (m *model) zeros(t *rapid.T) {
	d, want, start, end := m.choose(t)
	runs, err := d.Zeros(context.Background(), start, end).Collect()
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range runs {
		if r.Start < start || r.End > end {
			t.Fatalf("%v is not in %d to %d", r, start, end)
		}
	}
	chaintest.VerifyZeros(t, bitmapstore.Of(runs...), want)
	data := d.Data(context.Background(), start, end)
	whole := bitmapstore.Union(bitmapstore.Of(runs...), data)
	if same, err := bitmapstore.Equal(whole, bitmapstore.Between(start, end)); err != nil || !same {
		t.Fatalf("zeros and data are not all of %d to %d: %v", start, end, err)
	}
}

// layout wants the entries without gaps, and zeros behind the end.
func (m *model) layout(t *rapid.T) {
	d, want, start, end := m.choose(t)
	end += rapid.Int64Range(0, 5000).Draw(t, "beyond")
	pos := start
	entries := d.Entries(context.Background(), start, end)
	for _, err := range entries { // each iteration begins anew
		if err != nil {
			t.Fatal(err)
		}
	}
	for e, err := range entries {
		if err != nil || e.Offset != pos || e.Length <= 0 || e.End() > end {
			t.Fatalf("%+v after %d: %v", e, pos, err)
		}
		pos = e.End()
		if e.Zero && e.Offset < d.Size() && !zero.Is(want[e.Offset:min(e.End(), d.Size())]) {
			t.Fatalf("%+v has data", e)
		}
		if !e.Zero && e.End() > d.Size() {
			t.Fatalf("%+v is beyond the end", e)
		}
	}
	if pos != end {
		t.Fatalf("the entries end at %d, not at %d", pos, end)
	}
}

func (m *model) changed(t *rapid.T) {
	d, is, start, end := m.choose(t)
	i := rapid.IntRange(0, len(m.disks)-1).Draw(t, "older")
	was, pos := m.h.Want[i], start
	same := func(to int64) {
		if to > pos && (to > int64(len(was)) || !bytes.Equal(was[pos:to], is[pos:to])) {
			t.Fatalf("a change in bytes %d to %d is left out", pos, to-1)
		}
	}
	for run, err := range d.ChangedSince(context.Background(), m.disks[i].Layout, start, end) {
		if err != nil || run.Start < pos || run.End <= run.Start || run.End > end {
			t.Fatalf("run %v after %d: %v", run, pos, err)
		}
		same(run.Start)
		pos = run.End
	}
	same(end)
}

// A map that lies makes reads fail with damage, and gives no byte that no chunk proves:
// what else it says is read as it says.
func TestAnyLie(t *testing.T) {
	t.Parallel()
	const cell = archive.GridSize
	h := chaintest.NewHistory(t)
	content := make([]byte, 3*cell)
	rand.NewChaCha8([32]byte{8}).Read(content)
	h.Commit(content, true, nil)
	ctx := context.Background()
	layout, err := OpenLayout(ctx, h.Repo, &h.Checkpoints[0].Disks[0])
	if err != nil {
		t.Fatal(err)
	}
	var honest []archive.Entry
	for e, err := range layout.Entries(ctx, 0, layout.Size()) {
		if err != nil {
			t.Fatal(err)
		}
		honest = append(honest, e)
	}
	rapid.Check(t, func(t *rapid.T) {
		const size = 64 << 10
		var entries []archive.Entry
		want := make([]byte, size)
		lies := make([]bool, size)
		for pos := int64(0); ; {
			e := rapid.SampledFrom(honest).Draw(t, "entry")
			source := content[e.Offset:e.End()]
			e.Offset = pos + rapid.Int64Range(0, 3000).Draw(t, "gap")
			e.Length = rapid.Int64Range(1, 8000).Draw(t, "length")
			if e.End() > size {
				break
			}
			lie := true
			switch rapid.IntRange(0, 5).Draw(t, "lie") {
			case 0:
				e.ChunkOffset = archive.GridSize - int32(e.Length)
				lie = int(e.ChunkOffset)+int(e.Length) > len(source)
			case 1:
				e.Chunk[5] ^= 1
			case 2:
				e.FrameOffset++
			case 3:
				e.FrameLength--
			default:
				e.ChunkOffset = rapid.Int32Range(0, 50000).Draw(t, "from")
				lie = int(e.ChunkOffset)+int(e.Length) > len(source)
			}
			for at := e.Offset; at < e.End(); at++ {
				lies[at] = lie
			}
			if !lie {
				copy(want[e.Offset:], source[e.ChunkOffset:][:e.Length])
			}
			entries = append(entries, e)
			pos = e.End()
		}
		h.CommitMap(size, entries...)
		reader := NewReader(ctx, h.Repo, Options{Cache: 1 << 20})
		defer reader.Close()
		d, err := reader.Open(ctx, &h.Checkpoints[len(h.Checkpoints)-1].Disks[0])
		if err != nil {
			t.Fatal(err)
		}
		for off := int64(0); off < size; off += 1024 {
			p := make([]byte, 1024)
			err := d.ReadAt(ctx, p, off)
			lie := bytes.Contains(boolBytes(lies[off:off+1024]), []byte{1})
			if lie && !archive.IsDamage(err) || !lie && (err != nil || !bytes.Equal(p, want[off:off+1024])) {
				t.Fatalf("at %d, lies: %v: %v", off, lie, err)
			}
		}
	})
}

func boolBytes(b []bool) []byte {
	p := make([]byte, len(b))
	for i := range b {
		if b[i] {
			p[i] = 1
		}
	}
	return p
}
