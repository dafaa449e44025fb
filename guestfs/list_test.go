// SPDX-License-Identifier: Apache-2.0

package guestfs

import (
	"bytes"
	"encoding/base64"
	"errors"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"golang.org/x/sys/unix"
)

func entrySeeds() []string {
	return []string{
		"etc/hostname//f 644 0 0 4 1700000000.1234567890 1700000001.0000000000 16 2 8//",
		"//d 1777 0 0 1024 -2.7500000000 0.0000000000 2 3 2//",
		"a\nb\x1b[31m\xff//l 777 1000 1000 9 1.0 1.0 18446744073709551615 1 0/////etc//x",
	}
}

func TestParseEntry(t *testing.T) {
	t.Parallel()
	e, err := parseEntry([]byte(entrySeeds()[0]))
	if err != nil || e.Path != "etc/hostname" || e.Mode != unix.S_IFREG|0o644 || e.Size != 4 || e.Inode != 16 || e.Links != 2 || e.Taken != 4096 ||
		!e.Modified.Equal(time.Unix(1700000000, 123456789)) || !e.Changed.Equal(time.Unix(1700000001, 0)) {
		t.Errorf("%+v, %v", e, err)
	}
	if e, err = parseEntry([]byte(entrySeeds()[1])); err != nil || e.Path != "" || !e.Dir() || e.Mode&0o7777 != 0o1777 || !e.Modified.Equal(time.Unix(-2, 75e7)) {
		t.Errorf("%+v, %v", e, err)
	}
	if e, err = parseEntry([]byte(entrySeeds()[2])); err != nil || !e.Symlink() || e.Path != "a\nb\x1b[31m\xff" || e.Link != "///etc//x" {
		t.Errorf("%+v, %v", e, err)
	}
	for _, bad := range []string{
		"", "x", "x//", "x//f 644 0 0 4 1.0 1.0 16 2 8", "x//f 644 0 0 4 1.0 1.0 16 2//", "x//? 644 0 0 4 1.0 1.0 16 2 8//",
		"x//f 999 0 0 4 1.0 1.0 16 2 8//", "x//f 644 -1 0 4 1.0 1.0 16 2 8//", "x//f 644 0 0 4 x 1.0 16 2 8//", "/x//f 644 0 0 4 1.0 1.0 16 2 8//",
		"x//f 17777 0 0 4 1.0 1.0 16 2 8//",
	} {
		if e, err := parseEntry([]byte(bad)); err == nil {
			t.Errorf("%q is %+v", bad, e)
		}
	}
}

// What is an entry is one however it is cut, and written and read again it is the same.
func FuzzEntry(f *testing.F) {
	for _, s := range entrySeeds() {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := parseEntry(b)
		if err != nil || bytes.IndexByte(b, 0) >= 0 {
			return
		}
		var again *Entry
		err = EachEntry(iotest.OneByteReader(bytes.NewReader(FormatEntry(e))), func(e *Entry) error { again = e; return nil })
		if err != nil || again == nil || *again != *e {
			t.Errorf("%q: %+v, %+v, %v", b, e, again, err)
		}
	})
}

func TestRecordsAreBounded(t *testing.T) {
	t.Parallel()
	r := &records{each: func([]byte) error { return nil }}
	part := bytes.Repeat([]byte("x"), 64<<10)
	for range maxRecord/len(part) + 2 {
		if _, err := r.Write(part); err != nil {
			if !errors.Is(err, errRecord) {
				t.Error(err)
			}
			return
		}
	}
	t.Error("a record has no bound")
}

func TestUnlettered(t *testing.T) {
	t.Parallel()
	for n := range 200 {
		data := bytes.Repeat([]byte{0, 0xff, 'a', '\n', byte(n)}, n)[:n]
		text := base64.StdEncoding.EncodeToString(data)
		for at := 76; at < len(text); at += 77 {
			text = text[:at] + "\n" + text[at:]
		}
		for _, step := range []int{1, 3, 50, 1 << 20} {
			var out bytes.Buffer
			u := &unlettered{to: &out}
			for left := text + "\n"; left != ""; left = left[min(step, len(left)):] {
				if _, err := u.Write([]byte(left[:min(step, len(left))])); err != nil {
					t.Fatal(n, step, err)
				}
			}
			if err := u.end(); err != nil || !bytes.Equal(out.Bytes(), data) {
				t.Fatalf("%d by %d: %x, %v", n, step, out.Bytes(), err)
			}
		}
	}
	for _, bad := range []string{"QQ==QQ==x", "Q", "!!!!", strings.Repeat("A", 5)} {
		u := &unlettered{to: &bytes.Buffer{}}
		var err error
		for i := 0; i < len(bad) && err == nil; i++ {
			_, err = u.Write([]byte{bad[i]})
		}
		if errors.Join(err, u.end()) == nil {
			t.Errorf("%q are letters", bad)
		}
	}
}
