// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"context"
	"fmt"
	"iter"
	"runtime"
	"testing"

	"github.com/imgbackup/imgbackup/objstore"
)

// devNull takes packs and forgets them.
type devNull struct{ objstore.Store }

func (d devNull) Put(ctx context.Context, key string, body objstore.Body, o objstore.PutOptions) error {
	if key[:2] == "pa" {
		return ctx.Err()
	}
	return d.Store.Put(ctx, key, body, o)
}

func benchData(kind string) [][]byte {
	var cells [][]byte
	for i := range 64 {
		switch {
		case kind == "random" || kind == "mixed" && i%3 == 0:
			cells = append(cells, random(uint64(i), GridSize))
		default:
			cells = append(cells, text(uint64(i)*1000, GridSize))
		}
	}
	return cells
}

const benchCells = 4096

// stamp makes each cell differ from all others, in time that does not count.
func stamp(buf []byte, i int64) {
	for j := 0; j < len(buf); j += 64 << 10 {
		copy(buf[j:], fmt.Sprint(i))
	}
}

// BenchmarkFloor is what a full backup can't avoid: copy, SHA-256, zstd fastest.
func BenchmarkFloor(b *testing.B) {
	for _, kind := range []string{"text", "mixed", "random"} {
		b.Run(kind, func(b *testing.B) {
			data := benchData(kind)
			b.SetBytes(benchCells * GridSize)
			for b.Loop() {
				next := make(chan int64)
				done := make(chan struct{})
				n := runtime.GOMAXPROCS(0)
				for range n {
					go func() {
						enc, _ := newEncoder(LevelFastest, false)
						buf, out := make([]byte, GridSize), []byte(nil)
						for i := range next {
							copy(buf, data[i%int64(len(data))])
							stamp(buf, i)
							_ = Sum(buf)
							out, _ = enc.frame(out[:0], buf)
						}
						done <- struct{}{}
					}()
				}
				for i := range int64(benchCells) {
					next <- i
				}
				close(next)
				for range n {
					<-done
				}
			}
		})
	}
}

func BenchmarkWriter(b *testing.B) {
	for _, kind := range []string{"text", "mixed", "random"} {
		for _, skip := range []bool{false, true} {
			b.Run(fmt.Sprintf("%s/skipverify=%v", kind, skip), func(b *testing.B) {
				data := benchData(kind)
				b.SetBytes(benchCells * GridSize)
				for b.Loop() {
					w, err := NewWriter(b.Context(), devNull{objstore.NewMem()}, WriterOptions{SkipVerify: skip})
					if err != nil {
						b.Fatal(err)
					}
					m := w.NewMap("vda", benchCells*GridSize, true)
					for i := range int64(benchCells) {
						err := m.Add(b.Context(), i*GridSize, GridSize, func(_ context.Context, buf []byte) ([]Piece, error) {
							copy(buf, data[i%int64(len(data))])
							stamp(buf, i)
							return []Piece{{Offset: i * GridSize, Length: GridSize, Data: buf}}, nil
						})
						if err != nil {
							b.Fatal(err)
						}
					}
					if _, _, err := w.Finish(b.Context()); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

// benchMap yields n entries of size bytes, every step bytes, in packs of 32 chunks.
func benchMap(n, step, size int64, packs []Ref) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		var d Digest
		for i := range n {
			if i%32 == 0 {
				d = Sum(fmt.Append(nil, i))
			}
			d[i%32]++
			d[(i+7)%32] += byte(i)
			e := Entry{Offset: i * step, Length: size, Pack: packs[i/32%int64(len(packs))], FrameOffset: i % 32 * 900_000,
				FrameLength: int32(800_000 + i%1000), Chunk: d}
			if !yield(e, nil) {
				return
			}
		}
	}
}

func benchReplay(b *testing.B, full, deltas int64) {
	store := objstore.NewMem()
	var packs []Ref
	for i := range 1 + full/32 {
		p := Ref{Name: Sum(fmt.Append(nil, "pack", i)), Length: 32 << 20}
		packs = append(packs, p)
	}
	see := seen{store}
	size := full * GridSize
	base, err := WriteMap(b.Context(), see, MapOptions{Disk: "vda", Size: size, Full: true}, benchMap(full, GridSize, GridSize, packs))
	if err != nil {
		b.Fatal(err)
	}
	refs := []MapRef{base}
	for i := range deltas {
		step := int64(GridSize) * (3 + i)
		d, err := WriteMap(b.Context(), see, MapOptions{Disk: "vda", Size: size, Full: false}, benchMap(size/step, step, 65536, packs))
		if err != nil {
			b.Fatal(err)
		}
		refs = append([]MapRef{d}, refs...)
	}
	var maps []*Map
	for _, r := range refs {
		m, err := OpenMap(b.Context(), store, r, 0)
		if err != nil {
			b.Fatal(err)
		}
		maps = append(maps, m)
	}
	b.ReportAllocs()
	b.ResetTimer()
	n := 0
	for b.Loop() {
		for _, err := range Replay(b.Context(), maps, 0, size) {
			if err != nil {
				b.Fatal(err)
			}
			n++
		}
	}
	b.ReportMetric(float64(n)/b.Elapsed().Seconds()/1e6, "Mentries/s")
}

// seen is a store in which every pack is there.
type seen struct{ objstore.Store }

func (s seen) Stat(ctx context.Context, key string) (objstore.Info, error) {
	if key[:2] == "pa" {
		return objstore.Info{Key: key, Size: 32 << 20}, nil
	}
	return s.Store.Stat(ctx, key)
}

func BenchmarkReplay(b *testing.B) {
	b.Run("full", func(b *testing.B) { benchReplay(b, 1<<20, 0) })
	b.Run("2", func(b *testing.B) { benchReplay(b, 1<<20, 1) })
	b.Run("65", func(b *testing.B) { benchReplay(b, 1<<20, 64) })
}

func BenchmarkFrame(b *testing.B) {
	for _, kind := range []string{"text", "random"} {
		for _, name := range []string{"fastest", "default", "better", "none"} {
			level := must2(ParseLevel(name))(b)
			b.Run(kind+"/"+name, func(b *testing.B) {
				data := benchData(kind)[0]
				enc, err := newEncoder(level, false)
				if err != nil {
					b.Fatal(err)
				}
				var out []byte
				b.SetBytes(GridSize)
				for b.Loop() {
					out, _ = enc.frame(out[:0], data)
				}
				b.ReportMetric(float64(len(out))/GridSize, "ratio")
			})
		}
		b.Run(kind+"/decode", func(b *testing.B) {
			data := benchData(kind)[0]
			enc, _ := newEncoder(LevelFastest, false)
			frame, _ := enc.frame(nil, data)
			dec, _ := newDecoder()
			buf := make([]byte, 0, GridSize+bufSlack)
			b.SetBytes(GridSize)
			for b.Loop() {
				if _, err := dec.frame(frame, buf, GridSize); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	data := benchData("random")[0]
	b.Run("sha256", func(b *testing.B) {
		b.SetBytes(GridSize)
		for b.Loop() {
			_ = Sum(data)
		}
	})
}
