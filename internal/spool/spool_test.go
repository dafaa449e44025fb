// SPDX-License-Identifier: Apache-2.0

package spool

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"github.com/imgbackup/imgbackup/internal/testkit"
)

// random is n bytes that differ from place to place.
func random(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(b) // never fails
	return b
}

func write(t *testing.T, s *Spool, b []byte) {
	t.Helper()
	if n, err := s.Write(b); n != len(b) || err != nil {
		t.Fatalf("%d of %d bytes written: %v", n, len(b), err)
	}
}

// What is few stays in memory; what is not goes to a file that has no name.
func TestWhereItGoes(t *testing.T) {
	t.Parallel()
	few := Spool{Dir: filepath.Join(t.TempDir(), "that is not there")}
	defer few.Close()
	write(t, &few, random(Memory-1))
	if few.file != nil {
		t.Error("there is a file for few bytes")
	}
	dir := t.TempDir()
	many := Spool{Dir: dir}
	write(t, &many, random(Memory-1))
	write(t, &many, []byte{1})
	write(t, &many, []byte{2, 3})
	if many.file == nil || many.Size() != Memory+2 || len(many.mem) != 2 {
		t.Errorf("file %v, %d bytes, %d in memory", many.file, many.Size(), len(many.mem))
	}
	if names := testkit.Names(t, dir); len(names) != 0 {
		t.Errorf("the file is called %q", names)
	}
	many.Close()
	many.Close() // once more is no harm
}

// Every range reads as it was written: in memory, in the file, across both, and beyond
// the end as io.ReaderAt says.
func TestReadAt(t *testing.T) {
	t.Parallel()
	for _, size := range []int{0, 1, Memory - 1, Memory, Memory + 1, 3*Memory + 12345} {
		want := random(size)
		s := Spool{Dir: t.TempDir()}
		rng := rand.New(rand.NewPCG(uint64(size), 1))
		for rest := want; len(rest) > 0; {
			n := min(len(rest), 1+rng.IntN(Memory/2))
			write(t, &s, rest[:n])
			rest = rest[n:]
		}
		if s.Size() != int64(size) {
			t.Fatalf("size %d, want %d", s.Size(), size)
		}
		edges := []int{0, 1, size - 1, size, size + 1, int(s.done) - 1, int(s.done), int(s.done) + 1}
		for range 100 {
			edges = append(edges, rng.IntN(size+1))
		}
		for _, off := range edges {
			if off < 0 {
				continue
			}
			p := make([]byte, rng.IntN(10_000)+1)
			n, err := s.ReadAt(p, int64(off))
			inside := want[min(off, size):min(off+len(p), size)]
			if !bytes.Equal(p[:n], inside) || (err == io.EOF) != (len(inside) < len(p)) || err != nil && err != io.EOF {
				t.Fatalf("size %d: %d bytes at %d: %d, %v", size, len(p), off, n, err)
			}
		}
		if _, err := s.ReadAt(make([]byte, 1), -1); err == nil {
			t.Error("a byte before the first")
		}
		s.Close()
	}
}

// What waits beside many others takes little memory, and reads as before; where there is no
// room for a file it stays in memory.
func TestRest(t *testing.T) {
	t.Parallel()
	nowhere := filepath.Join(t.TempDir(), "that is not there")
	for _, c := range []struct {
		dir        string
		size, most int
	}{
		{nowhere, few, few}, {t.TempDir(), few + 1, 0}, {t.TempDir(), Memory + few, 0}, {nowhere, few + 1, 2 * Memory},
	} {
		want := random(c.size)
		s := Spool{Dir: c.dir}
		write(t, &s, want[:few])
		write(t, &s, want[few:])
		s.Rest()
		got, err := io.ReadAll(io.NewSectionReader(&s, 0, s.Size()))
		if err != nil || !bytes.Equal(got, want) || cap(s.mem) > c.most {
			t.Errorf("%d bytes: read %d, %d in memory, %v", c.size, len(got), cap(s.mem), err)
		}
		s.Close()
	}
}

// Several may read at once.
func TestReadAtOnce(t *testing.T) {
	t.Parallel()
	want := random(2*Memory + 100)
	s := Spool{Dir: t.TempDir()}
	defer s.Close()
	write(t, &s, want[:Memory+50])
	write(t, &s, want[Memory+50:])
	var readers sync.WaitGroup
	for range 8 {
		readers.Go(func() {
			got, err := io.ReadAll(io.NewSectionReader(&s, 0, s.Size()))
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("%d bytes: %v", len(got), err)
			}
		})
	}
	readers.Wait()
}

// A file that was cut short under us is an error, no end.
func TestReadAtCutShort(t *testing.T) {
	t.Parallel()
	s := Spool{Dir: t.TempDir()}
	defer s.Close()
	write(t, &s, random(Memory+1))
	if err := s.file.Truncate(10); err != nil {
		t.Fatal(err)
	}
	if _, err := s.ReadAt(make([]byte, 20), 0); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("got %v", err)
	}
}

// A write that fails has written nothing, and can be tried again.
func TestWriteFails(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "later")
	s := Spool{Dir: dir}
	defer s.Close()
	want := random(Memory)
	write(t, &s, want[:10])
	if n, err := s.Write(want[10:]); n != 0 || !errors.Is(err, os.ErrNotExist) {
		t.Errorf("without its folder: %d, %v", n, err)
	}
	if s.Size() != 10 {
		t.Errorf("%d bytes are kept", s.Size())
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	write(t, &s, want[10:])
	got := make([]byte, Memory)
	if _, err := s.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
		t.Errorf("read back: %v", err)
	}
}

// A full file system is an error that says where to look.
func TestWriteToAFullFileSystem(t *testing.T) {
	t.Parallel()
	if !testkit.InNamespace(t, 0) {
		return
	}
	dir := t.TempDir()
	testkit.Mount(t, "tmpfs", dir, "tmpfs", 0, "size=4m")
	s := Spool{Dir: dir}
	defer s.Close()
	b := random(Memory)
	write(t, &s, b)
	write(t, &s, b)
	if _, err := s.Write(b); !errors.Is(err, syscall.ENOSPC) || !bytes.Contains([]byte(err.Error()), []byte("TMPDIR")) {
		t.Errorf("got %v", err)
	}
	if s.Size() != 2*Memory {
		t.Errorf("%d bytes are kept", s.Size())
	}
}

// What is held is all that is held, whatever was before: also less than that, in the same
// file.
func TestHold(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := Spool{Dir: dir}
	defer s.Close()
	var file *os.File
	for _, n := range []int{Memory + 5, 3, 0, 2 * Memory} {
		data := random(n)
		if err := s.Hold("a test", data); err != nil {
			t.Fatal(err)
		}
		if file == nil {
			file = s.file
		}
		clear(data[:n/2]) // it is the caller's
		got := make([]byte, n+1)
		if m, err := s.ReadAt(got, 0); m != n || err != io.EOF || !bytes.Equal(got[:n], random(n)) || s.Size() != int64(n) {
			t.Errorf("%d bytes are held: %d of %d are read, %v", n, m, s.Size(), err)
		}
		if s.file != file {
			t.Errorf("%d bytes are in another file", n)
		}
	}
	if names := testkit.Names(t, dir); len(names) != 0 {
		t.Errorf("the file is called %q", names)
	}
}
