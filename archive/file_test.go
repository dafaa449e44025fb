// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"bytes"
	"errors"
	"io"
	"os/exec"
	"testing"

	"github.com/imgbackup/imgbackup/objstore"
)

func putFile(t *testing.T, store objstore.Store, content []byte) FileRef {
	t.Helper()
	w := must2(NewWriter(t.Context(), store, WriterOptions{TempDir: t.TempDir()}))(t)
	defer w.Abort()
	// In small pieces, or all at once: the object is the same.
	one := must2(w.PutFile(t.Context(), bytes.NewReader(content)))(t)
	two := must2(w.PutFile(t.Context(), oneByte{bytes.NewReader(content)}))(t)
	if one != two {
		t.Fatalf("%+v and %+v", one, two)
	}
	return one
}

type oneByte struct{ r io.Reader }

func (o oneByte) Read(p []byte) (int, error) { return o.r.Read(p[:min(len(p), 777)]) }

func TestFiles(t *testing.T) {
	t.Parallel()
	for name, content := range map[string][]byte{
		"empty": {}, "text": text(1, 3000), "noise": random(2, 5<<20), "zeros": make([]byte, 9<<20),
	} {
		store := objstore.NewMem()
		f := putFile(t, store, content)
		stored := get(t, store, FileKey(f.Object.Name))
		if f.Size != int64(len(content)) || f.SHA256 != Sum(content) || f.Object != (Ref{Name: Sum(stored), Length: int64(len(stored))}) || f.Object.Length > MaxFileObject {
			t.Errorf("%s: %+v", name, f)
		}
		var out bytes.Buffer
		if err := CopyFile(t.Context(), store, f, &out); err != nil || !bytes.Equal(out.Bytes(), content) {
			t.Errorf("%s: %d bytes, %v", name, out.Len(), err)
		}
		// Everybody's zstd reads it.
		cmd := exec.Command("zstd", "-dcq")
		cmd.Stdin = bytes.NewReader(stored)
		if plain, err := cmd.Output(); err != nil || !bytes.Equal(plain, content) {
			t.Errorf("%s: zstd: %v", name, err)
		}
	}
}

func TestFileTooLarge(t *testing.T) {
	t.Parallel()
	w := must2(NewWriter(t.Context(), objstore.NewMem(), WriterOptions{TempDir: t.TempDir()}))(t)
	defer w.Abort()
	if _, err := w.PutFile(t.Context(), io.LimitReader(zeros{}, MaxFile+1)); err == nil {
		t.Error("it was stored")
	}
	if f, err := w.PutFile(t.Context(), io.LimitReader(zeros{}, MaxFile)); err != nil || f.Size != MaxFile {
		t.Errorf("%+v, %v", f, err)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// No byte of a stored file can change unseen, and nothing else passes for it.
func TestFileDamage(t *testing.T) {
	t.Parallel()
	store := objstore.NewMem()
	content := append(text(3, 4000), random(4, 200)...)
	f := putFile(t, store, content)
	key := FileKey(f.Object.Name)
	stored := get(t, store, key)
	check := func(what string, f FileRef) {
		t.Helper()
		var d *DamageError
		if err := CopyFile(t.Context(), store, f, io.Discard); !errors.As(err, &d) || d.Object != FileKey(f.Object.Name) {
			t.Errorf("%s: %v", what, err)
		}
	}
	for at := range stored {
		bad := bytes.Clone(stored)
		bad[at] ^= 0x40
		put(t, store, key, bad)
		check("a flipped bit", f)
	}
	for _, bad := range [][]byte{nil, stored[:len(stored)-1], append(bytes.Clone(stored), 0), append(bytes.Clone(stored), stored...), content} {
		put(t, store, key, bad)
		check("another length", f)
		g := f
		g.Object.Length = int64(len(bad))
		if len(bad) > 0 {
			check("another length that the reference has, too", g)
		}
	}
	put(t, store, key, stored)
	for what, change := range map[string]func(f *FileRef){
		"too short a size": func(f *FileRef) { f.Size-- },
		"too large a size": func(f *FileRef) { f.Size++ },
		"another digest":   func(f *FileRef) { f.SHA256[3] ^= 1 },
		"another object":   func(f *FileRef) { f.Object.Name[3] ^= 1 },
	} {
		g := f
		change(&g)
		check(what, g)
	}
	if err := CopyFile(t.Context(), store, f, failing{}); !errors.Is(err, errFailing) || IsDamage(err) {
		t.Errorf("a writer that fails: %v", err)
	}
}

var errFailing = errors.New("failing")

type failing struct{}

func (failing) Write([]byte) (int, error) { return 0, errFailing }
