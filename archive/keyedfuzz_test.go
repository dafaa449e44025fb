// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"bytes"
	"context"
	"testing"

	"github.com/imgbackup/imgbackup/crypt"
	"github.com/imgbackup/imgbackup/objstore"
)

// keyedSeeds returns a small encrypted repository and its packs.
func keyedSeeds(f *testing.F) (store objstore.Store, keys *crypt.Keys, packs []Ref) {
	keys = testKeys(f)
	store = Encrypted(objstore.NewMem(), keys)
	disk := append(text(1, 70_000), random(2, 300<<10)...)
	spans := []span{{0, 30_000}, {30_000, 40_000}, {70_000, 300 << 10}}
	backup(f, store, disk, true, spans...)
	backup(f, store, make([]byte, len(disk)), false, span{512, 512}, span{4096, 512})
	backup(f, store, disk, false, span{512, 512}, span{4096, 70_000})
	for info, err := range store.List(context.Background(), PackPrefix) {
		if err != nil {
			f.Fatal(err)
		}
		_, name, _ := ParseKey(info.Key)
		packs = append(packs, Ref{Name: name, Length: info.Size})
	}
	if len(packs) < 2 {
		f.Fatalf("only %d packs", len(packs))
	}
	return store, keys, packs
}

// FuzzGroup: what a group decrypts to is bounded by what it is long, and a frame that is found
// is one that its list has.
func FuzzGroup(f *testing.F) {
	store, keys, packs := keyedSeeds(f)
	groups := 0
	for _, pack := range packs {
		chunks, err := ReadPackTable(context.Background(), store, pack)
		if err != nil {
			f.Fatal(err)
		}
		data := get(f, store, PackKey(pack.Name))
		for rest := chunks; len(rest) > 0; rest = rest[groupOf(rest):] {
			c := &rest[0]
			content, err := keys.Open(nil, crypt.Data, data[c.FrameOffset:][:c.FrameLength])
			if err != nil {
				f.Fatal(err)
			}
			g, err := openGroup(content)
			if err != nil {
				f.Fatal(err)
			}
			for i := range rest[:groupOf(rest)] {
				if frame, err := g.frame(&rest[i].Chunk); err != nil || len(frame) != int(rest[i].Keyed.Frame) {
					f.Fatalf("a seed is not valid: %v", err)
				}
			}
			if len(content) < 1<<16 { // large ones are no better seeds, and slow
				f.Add(content, c.Chunk[:])
			}
			groups++
		}
	}
	if groups < 3 {
		f.Fatalf("only %d groups", groups)
	}
	f.Fuzz(func(t *testing.T, content, chunk []byte) {
		var want Digest
		copy(want[:], chunk)
		g, err := openGroup(content)
		if err != nil {
			return
		}
		if len(g.all)+skippableHead+len(g.whole) != len(content) || len(g.all) > maxGroupFrames*groupLineLen || len(g.all) == 0 {
			t.Fatalf("%d bytes of lines and %d of frames in %d", len(g.all), len(g.whole), len(content))
		}
		frame, err := g.frame(&want)
		if err != nil {
			return
		}
		if len(frame) == 0 || len(frame) > maxFrame || !bytes.Contains(g.all, []byte(want.String()[:2*groupDigest])) {
			t.Errorf("a frame of %d bytes for a chunk that the list does not have", len(frame))
		}
		again, err := g.frame(&want)
		if err != nil || !bytes.Equal(frame, again) {
			t.Errorf("asked once more, it is another: %v", err)
		}
	})
}

// FuzzKeyedTable: what is taken for a table is what is written, lines and all.
func FuzzKeyedTable(f *testing.F) {
	store, _, packs := keyedSeeds(f)
	for _, pack := range packs {
		chunks, err := ReadPackTable(context.Background(), store, pack)
		if err != nil || len(chunks) == 0 {
			f.Fatalf("a seed is not valid: %v", err)
		}
		text, ok := keyedTableText(chunks)
		if !ok {
			f.Fatal("a seed does not fit")
		}
		last := &chunks[len(chunks)-1]
		f.Add(text, last.FrameOffset+int64(last.FrameLength))
	}
	enc := must2(newEncoder(LevelNone, false))(f)
	f.Fuzz(func(t *testing.T, text []byte, end int64) {
		if len(text) == 0 || len(text) > maxText {
			return
		}
		content, err := enc.frame(nil, text)
		if err != nil {
			t.Fatal(err)
		}
		chunks, err := parseKeyedTable(content, end)
		if err != nil {
			return
		}
		if written, ok := keyedTableText(chunks); !ok || !bytes.Equal(written, text) {
			t.Errorf("a table of %d chunks is valid, but not as it is written", len(chunks))
		}
		if FrameBytes(chunks) != end {
			t.Errorf("groups of %d bytes fill %d", FrameBytes(chunks), end)
		}
	})
}

// FuzzKeyedIndex: lines of groups and chunks in an index are bounded by their pack.
func FuzzKeyedIndex(f *testing.F) {
	store, _, packs := keyedSeeds(f)
	for _, pack := range packs {
		chunks, err := ReadPackTable(context.Background(), store, pack)
		if err != nil {
			f.Fatal(err)
		}
		text := make([]byte, indexPackLen)
		l := lineWriter{line: text}
		l.word("p")
		l.dec(10, pack.Length)
		l.hex(&pack.Name)
		_ = l.end()
		lines, ok := appendGroupLines(text, chunks)
		n := 0
		at := indexPlace{keyed: true}
		if err := at.parse(lines, func(Ref, *PackChunk) bool { n++; return true }); !ok || err != nil || n != len(chunks) {
			f.Fatalf("a seed is not valid: %v", err)
		}
		f.Add(lines)
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		at := indexPlace{keyed: true}
		_ = at.parse(text, func(pack Ref, c *PackChunk) bool {
			if c.FrameOffset < 0 || c.FrameLength <= 0 || c.FrameLength > maxGroup || c.FrameOffset+int64(c.FrameLength) > pack.Length ||
				c.Length <= 0 || c.Length > GridSize || c.Keyed == nil || len(c.Keyed.Parts) != partCount(c.Length) || c.Keyed.Frame > c.FrameLength {
				t.Errorf("%+v in a pack of %d bytes", c, pack.Length)
			}
			return true
		})
	})
}
