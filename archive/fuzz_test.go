// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"bytes"
	"context"
	"testing"

	"github.com/imgbackup/imgbackup/objstore"
)

// seeds returns the objects of a small repository with the given prefix.
func seeds(f *testing.F, prefix string) [][]byte {
	store := objstore.NewMem()
	disk := append(text(1, 70_000), random(2, 5000)...)
	backup(f, store, disk, true, span{0, 70_000}, span{70_000, 5000})
	backup(f, store, disk, false, span{512, 512}, span{4096, 512})
	backup(f, store, make([]byte, len(disk)), false, span{512, 512}, span{4096, 512})
	var out [][]byte
	for _, key := range keys(f, store, prefix) {
		out = append(out, get(f, store, key))
	}
	if len(out) < 2 {
		f.Fatalf("only %d seeds", len(out))
	}
	return out
}

func FuzzPackTable(f *testing.F) {
	for _, data := range seeds(f, PackPrefix) {
		store := objstore.NewMem()
		put(f, store, PackKey(Sum(data)), data)
		chunks, err := ReadPackTable(context.Background(), store, Ref{Name: Sum(data), Length: int64(len(data))})
		if err != nil || len(chunks) == 0 {
			f.Fatalf("a seed is not valid: %v", err)
		}
		f.Add(data[len(data)-packTableLen(len(chunks)):], int64(len(data)))
	}
	f.Fuzz(func(t *testing.T, tail []byte, length int64) {
		chunks, err := parsePackTable(tail, length)
		if err != nil {
			return
		}
		// What is taken for valid is what the builder writes.
		b := packBuilder{}
		for _, c := range chunks {
			b.chunks = append(b.chunks, c)
			b.buf = append(b.buf, make([]byte, c.FrameLength)...)
		}
		frames := len(b.buf)
		if err := b.seal(); err != nil || !bytes.Equal(b.buf[frames:], tail) {
			t.Errorf("a table of %d chunks is valid, but not as it is written: %v", len(chunks), err)
		}
	})
}

func FuzzMapDir(f *testing.F) {
	for _, data := range seeds(f, MapPrefix) {
		i := bytes.LastIndex(data, []byte(dirMagic))
		l := lineReader{line: data[i:]}
		l.word(dirMagic)
		l.dec(8)
		at := l.dec(15)
		if frames, err := parseDir(data[at:], at); err != nil || len(frames) < 3 {
			f.Fatalf("a seed is not valid: %v", err)
		}
		f.Add(data[at:], at)
	}
	f.Fuzz(func(t *testing.T, dir []byte, at int64) {
		frames, err := parseDir(dir, at)
		if err != nil {
			return
		}
		again, err := appendDir(nil, frames, at)
		if err != nil || !bytes.Equal(again, dir) {
			t.Errorf("a directory of %d frames is valid, but not as it is written: %v", len(frames), err)
		}
	})
}

// FuzzMap opens whole maps whose directory is proven whatever it says.
func FuzzMap(f *testing.F) {
	open := func(data []byte, dir int64) (*Map, error) {
		store := objstore.NewMem()
		key := MapKey(Digest{})
		if err := store.Put(context.Background(), key, bytes.NewReader(data), objstore.PutOptions{Mode: objstore.Create}); err != nil {
			return nil, err
		}
		ref := MapRef{Ref: Ref{Length: int64(len(data))}, DirLength: dir}
		if dir > 0 && dir <= int64(len(data)) {
			ref.DirDigest = Sum(data[int64(len(data))-dir:])
		}
		return OpenMap(context.Background(), store, ref, 0)
	}
	for _, data := range seeds(f, MapPrefix) {
		i := bytes.LastIndex(data, []byte(dirMagic))
		l := lineReader{line: data[i:]}
		l.word(dirMagic)
		l.dec(8)
		dir := int64(len(data)) - l.dec(15)
		if _, err := open(data, dir); err != nil {
			f.Fatalf("a seed is not valid: %v", err)
		}
		f.Add(data, dir)
	}
	f.Fuzz(func(t *testing.T, data []byte, dir int64) {
		m, err := open(data, dir)
		if err != nil {
			return
		}
		var next int64
		for e, err := range m.Entries(context.Background(), 0, m.Size()) {
			if err != nil {
				return
			}
			if e.Offset < next || e.Length <= 0 || e.End() > m.Size() {
				t.Fatalf("entry %+v after %d, disk of %d", e, next, m.Size())
			}
			next = e.End()
		}
	})
}

func FuzzRunLine(f *testing.F) {
	n := 0
	for _, r := range []run{
		{off: 1 << 40, len: 4096, pack: 7, frameOff: 123456, frameLen: 999, chunkOff: 512, chunk: Sum(nil)},
		{off: 0, len: 1 << 62, zero: true},
		{len: 1, frameLen: 1},
	} {
		line := make([]byte, runLineLen)
		if !r.put(line) {
			f.Fatalf("%+v can't be written", r)
		}
		f.Add(line)
		n++
	}
	if n == 0 {
		f.Fatal("no seeds")
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		if len(line) != runLineLen {
			return
		}
		var r run
		if !r.parse(line) {
			return
		}
		again := make([]byte, runLineLen)
		if !r.put(again) || !bytes.Equal(again, line) {
			t.Errorf("%q is valid, but not as it is written: %q", line, again)
		}
	})
}

func FuzzIndex(f *testing.F) {
	dec, err := newDecoder()
	if err != nil {
		f.Fatal(err)
	}
	for _, data := range seeds(f, IndexPrefix) {
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		_ = parseIndex(data, dec, func(pack Ref, c *PackChunk) bool {
			if c.FrameOffset < 0 || c.FrameLength <= 0 || c.FrameOffset+int64(c.FrameLength) > pack.Length || pack.Length > maxPackLength {
				t.Errorf("chunk %+v of pack %+v", c, pack)
			}
			return true
		})
	})
}

func FuzzFrame(f *testing.F) {
	enc, err := newEncoder(LevelFastest, true)
	if err != nil {
		f.Fatal(err)
	}
	for _, data := range [][]byte{text(1, 5000), random(1, 300), make([]byte, 200_000), {1}} {
		frame, err := enc.frame(nil, data)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(frame)
		f.Add(appendRawFrame(nil, data))
	}
	dec, err := newDecoder()
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, frame []byte) {
		out, err := dec.frame(frame, nil, GridSize)
		if err != nil {
			return
		}
		n, content, err := frameExtent(append(bytes.Clone(frame), frame...))
		if err != nil || n != len(frame) || content != int64(len(out)) || content > GridSize {
			t.Errorf("a frame of %d bytes is taken for %d, content %d for %d: %v", len(frame), n, len(out), content, err)
		}
	})
}

func FuzzFile(f *testing.F) {
	contents := [][]byte{{}, text(1, 3000), random(2, 300), make([]byte, 200_000)}
	for _, content := range contents {
		store := objstore.NewMem()
		w, err := NewWriter(context.Background(), store, WriterOptions{})
		if err != nil {
			f.Fatal(err)
		}
		ref, err := w.PutFile(context.Background(), bytes.NewReader(content))
		w.Abort()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(get(f, store, FileKey(ref.Object.Name)), ref.Size, ref.SHA256[:])
	}
	f.Fuzz(func(t *testing.T, stored []byte, size int64, digest []byte) {
		ref := FileRef{Object: Ref{Name: Sum(stored), Length: int64(len(stored))}, Size: min(max(size, 0), MaxFile)}
		copy(ref.SHA256[:], digest)
		var out bytes.Buffer
		if err := decodeFile(bytes.NewReader(stored), ref, &out); err == nil && (int64(out.Len()) != ref.Size || Sum(out.Bytes()) != ref.SHA256) {
			t.Errorf("%d bytes of %d, SHA-256 %s", out.Len(), ref.Size, Sum(out.Bytes()))
		}
		if int64(out.Len()) > ref.Size+1 {
			t.Errorf("%d bytes came out where %d were wanted", out.Len(), ref.Size)
		}
	})
}
