// SPDX-License-Identifier: Apache-2.0

// Package objstoretest is the one suite that every store and every wrapper of
// a store passes, and a store that injects faults for the tests of what is
// built upon stores.
package objstoretest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/imgbackup/imgbackup/objstore"
)

// Run tests that the stores which factory makes keep the promises of
// [objstore.Store]. Every call of factory returns a new, empty store.
func Run(t *testing.T, factory func(t *testing.T) objstore.Store) {
	t.Helper()
	for _, c := range []struct {
		name string
		test func(t *testing.T, s objstore.Store)
	}{
		{"round trip", testRoundTrip},
		{"empty object", testEmpty},
		{"large object", testLarge},
		{"ranges", testRanges},
		{"short ranges", testShortRanges},
		{"create", testCreate},
		{"replace", testReplace},
		{"replace what was read", testReplaceOld},
		{"retention", testRetention},
		{"create race", testCreateRace},
		{"race to replace what was read", testReplaceOldRace},
		{"replace race", testReplaceRace},
		{"not found", testNotFound},
		{"delete", testDelete},
		{"delete many", testDeleteBatch},
		{"body fails", testBodyFails},
		{"cancelled", testCancelled},
		{"cancelled while storing", testCancelledPut},
		{"cancelled while reading", testCancelledGet},
		{"cancelled while listing", testCancelledList},
		{"invalid keys", testInvalidKeys},
		{"valid keys", testValidKeys},
		{"invalid ranges", testInvalidRanges},
		{"list", testList},
		{"list many", testListMany},
		{"list order", testListOrder},
		{"list prefix", testListPrefix},
		{"list stops", testListStops},
		{"list shows whole objects only", testListWhole},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			c.test(t, factory(t))
		})
	}
}

// Operations does each operation of a store, with one object, and returns what
// it says, by its name.
func Operations(t *testing.T, s objstore.Store, key string) map[string]error {
	t.Helper()
	errs := map[string]error{
		"create":  s.Put(t.Context(), key, strings.NewReader("x"), objstore.PutOptions{Mode: objstore.Create}),
		"replace": s.Put(t.Context(), key, strings.NewReader("x"), objstore.PutOptions{Mode: objstore.Replace}),
		"delete":  s.Delete(t.Context(), key),
	}
	_, errs["stat"] = s.Stat(t.Context(), key)
	_, errs["get"] = s.Get(t.Context(), key, 0, -1)
	for _, err := range s.List(t.Context(), "") {
		errs["list"] = err
	}
	return errs
}

func put(t *testing.T, s objstore.Store, key, content string, mode objstore.Mode) {
	t.Helper()
	if err := s.Put(t.Context(), key, strings.NewReader(content), objstore.PutOptions{Mode: mode}); err != nil {
		t.Fatalf("put %s: %v", key, err)
	}
}

func wantContent(t *testing.T, s objstore.Store, key, want string) {
	t.Helper()
	got, err := objstore.ReadAll(t.Context(), s, key, int64(len(want))+1)
	if err != nil {
		t.Fatalf("read %s: %v", key, err)
	}
	if string(got) != want {
		t.Fatalf("%s holds %.80q, want %.80q", key, got, want)
	}
	info, err := s.Stat(t.Context(), key)
	if err != nil {
		t.Fatalf("stat %s: %v", key, err)
	}
	if info.Key != key || info.Size != int64(len(want)) {
		t.Fatalf("stat %s: %+v, want %d bytes", key, info, len(want))
	}
}

func wantAbsent(t *testing.T, s objstore.Store, key string) {
	t.Helper()
	if _, err := s.Stat(t.Context(), key); !errors.Is(err, objstore.ErrNotFound) {
		t.Fatalf("stat %s: %v, want ErrNotFound", key, err)
	}
	if r, err := s.Get(t.Context(), key, 0, -1); !errors.Is(err, objstore.ErrNotFound) {
		if err == nil {
			_ = r.Close()
		}
		t.Fatalf("get %s: %v, want ErrNotFound", key, err)
	}
}

// list returns the keys of a listing and the error it ended with.
func list(ctx context.Context, s objstore.Store, prefix string) ([]string, error) {
	var keys []string
	for info, err := range s.List(ctx, prefix) {
		if err != nil {
			return keys, err
		}
		keys = append(keys, info.Key)
	}
	return keys, nil
}

func wantList(t *testing.T, s objstore.Store, prefix string, want ...string) {
	t.Helper()
	got, err := list(t.Context(), s, prefix)
	if err != nil {
		t.Fatalf("list %q: %v", prefix, err)
	}
	if !slices.Equal(got, want) {
		t.Fatalf("list %q: %q, want %q", prefix, got, want)
	}
}

func testRoundTrip(t *testing.T, s objstore.Store) {
	put(t, s, "a", "alpha", objstore.Create)
	put(t, s, "b/c/d.json", "beta", objstore.Create)
	put(t, s, "b/c/e", "gamma", objstore.Replace)
	wantContent(t, s, "a", "alpha")
	wantContent(t, s, "b/c/d.json", "beta")
	wantContent(t, s, "b/c/e", "gamma")
}

func testEmpty(t *testing.T, s objstore.Store) {
	put(t, s, "empty/object", "", objstore.Create)
	wantContent(t, s, "empty/object", "")
	wantList(t, s, "", "empty/object")
	if err := s.Put(t.Context(), "empty/object", strings.NewReader("x"), objstore.PutOptions{Mode: objstore.Create}); !errors.Is(err, objstore.ErrExists) {
		t.Fatalf("create over an empty object: %v, want ErrExists", err)
	}
}

// pattern is content without repetition within any small distance.
func pattern(n int) []byte {
	b := make([]byte, n)
	x := uint32(12345)
	for i := range b {
		x = x*1664525 + 1013904223
		b[i] = byte(x >> 24)
	}
	return b
}

func testLarge(t *testing.T, s objstore.Store) {
	content := pattern(9<<20 + 17)
	body := objstore.Concat(bytes.NewReader(content[:5<<20+1]), bytes.NewReader(nil), bytes.NewReader(content[5<<20+1:]))
	if err := s.Put(t.Context(), "large", body, objstore.PutOptions{Mode: objstore.Create}); err != nil {
		t.Fatal(err)
	}
	wantContent(t, s, "large", string(content))
}

// read reads a range to its end.
func read(t *testing.T, s objstore.Store, key string, offset, length int64) ([]byte, error) {
	t.Helper()
	r, err := s.Get(t.Context(), key, offset, length)
	if err != nil {
		t.Fatalf("get %s [%d, +%d): %v", key, offset, length, err)
	}
	got, err := io.ReadAll(r)
	if cerr := r.Close(); cerr != nil {
		t.Fatalf("close %s [%d, +%d): %v", key, offset, length, cerr)
	}
	return got, err
}

func testRanges(t *testing.T, s objstore.Store) {
	content := pattern(100_000)
	put(t, s, "dir/object", string(content), objstore.Create)
	size := int64(len(content))
	for _, r := range []struct{ offset, length int64 }{
		{0, 0}, {0, 1}, {0, size}, {0, -1}, {1, 1}, {1, size - 1}, {1, -1}, {4095, 2}, {65536, 8192},
		{size - 1, 1}, {size - 1, -1}, {size, 0}, {size, -1}, {50_000, 0},
	} {
		want := content[r.offset:]
		if r.length >= 0 {
			want = want[:r.length]
		}
		got, err := read(t, s, "dir/object", r.offset, r.length)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("range %+v: %d bytes, error %v; want %d bytes", r, len(got), err, len(want))
		}
	}
}

func testShortRanges(t *testing.T, s objstore.Store) {
	const content = "0123456789"
	put(t, s, "object", content, objstore.Create)
	put(t, s, "empty", "", objstore.Create)
	for _, r := range []struct {
		key            string
		offset, length int64
		want           string
	}{
		{"object", 0, 11, content}, {"object", 4, 7, "456789"}, {"object", 9, 1 << 40, "9"},
		{"object", 10, 1, ""}, {"object", 11, 1, ""}, {"object", 1 << 40, 1 << 40, ""},
		{"object", 11, -1, ""}, {"object", 5, 1<<63 - 1, "56789"}, {"empty", 0, 1, ""},
	} {
		got, err := read(t, s, r.key, r.offset, r.length)
		if !errors.Is(err, io.ErrUnexpectedEOF) || string(got) != r.want {
			t.Errorf("range %+v: %q, error %v; want ErrUnexpectedEOF", r, got, err)
		}
	}
}

func testCreate(t *testing.T, s objstore.Store) {
	put(t, s, "k/one", "first", objstore.Create)
	for _, content := range []string{"second", "first", ""} {
		err := s.Put(t.Context(), "k/one", strings.NewReader(content), objstore.PutOptions{Mode: objstore.Create})
		if !errors.Is(err, objstore.ErrExists) || errors.Is(err, objstore.ErrNotFound) {
			t.Fatalf("create over an object: %v, want ErrExists", err)
		}
		wantContent(t, s, "k/one", "first")
	}
	wantList(t, s, "", "k/one")
}

func testReplace(t *testing.T, s objstore.Store) {
	put(t, s, "k/one", "first", objstore.Replace)
	put(t, s, "k/one", "a second, longer", objstore.Replace)
	wantContent(t, s, "k/one", "a second, longer")
	put(t, s, "k/one", "3", objstore.Replace)
	wantContent(t, s, "k/one", "3")
	wantList(t, s, "", "k/one")
}

func testNotFound(t *testing.T, s objstore.Store) {
	wantAbsent(t, s, "absent")
	wantAbsent(t, s, "no/such/folder/absent")
	wantList(t, s, "")
	wantList(t, s, "no/such/folder/")
	put(t, s, "a/b/object", "x", objstore.Create)
	wantAbsent(t, s, "a/b/objec")
	wantAbsent(t, s, "a/b/object2")
	wantAbsent(t, s, "a/b") // a folder is no object
	wantAbsent(t, s, "a/b/object/below")
	wantList(t, s, "a/b/object/")
}

func testDelete(t *testing.T, s objstore.Store) {
	put(t, s, "a/one", "1", objstore.Create)
	put(t, s, "a/two", "2", objstore.Create)
	for range 2 { // deleting what is gone succeeds
		if err := s.Delete(t.Context(), "a/one"); err != nil {
			t.Fatal(err)
		}
		wantAbsent(t, s, "a/one")
		wantList(t, s, "", "a/two")
	}
	for _, key := range []string{"never/was/there", "a", "a/two/below"} {
		if err := s.Delete(t.Context(), key); err != nil {
			t.Fatalf("delete %s: %v", key, err)
		}
	}
	wantContent(t, s, "a/two", "2")
	put(t, s, "a/one", "again", objstore.Create)
	wantContent(t, s, "a/one", "again")
}

var errBody = errors.New("the body can't be read")

// badBody claims a size, and fails, or just ends, after some bytes.
type badBody struct {
	size, good int64
	err        error
}

func (b badBody) Size() int64 { return b.size }

func (b badBody) ReadAt(p []byte, off int64) (int, error) {
	n := max(0, min(int64(len(p)), b.good-off))
	clear(p[:n])
	if n < int64(len(p)) {
		return int(n), b.err
	}
	return int(n), nil
}

func testBodyFails(t *testing.T, s objstore.Store) {
	put(t, s, "there", "old", objstore.Create)
	for _, size := range []int64{10, 3 << 20} {
		for _, key := range []string{"d/absent", "there"} {
			err := s.Put(t.Context(), key, badBody{size: size, good: size - 1, err: errBody}, objstore.PutOptions{Mode: objstore.Replace})
			if !errors.Is(err, errBody) {
				t.Fatalf("put of a failing body: %v, want the body's error", err)
			}
			err = s.Put(t.Context(), key, badBody{size: size, good: size - 1, err: io.EOF}, objstore.PutOptions{Mode: objstore.Replace})
			if err == nil {
				t.Fatal("put of a body that is shorter than its size succeeded")
			}
		}
		wantAbsent(t, s, "d/absent")
		wantContent(t, s, "there", "old")
		wantList(t, s, "", "there")
	}
}

func testInvalidKeys(t *testing.T, s objstore.Store) {
	put(t, s, "a/b", "x", objstore.Create)
	for _, key := range []string{
		"", "/", "/a", "a/", "a//b", ".", "..", "./a", "../a", "a/..", "a/./b", "a/../b", "a/../../etc/passwd",
		"/etc/passwd", "a\x00b", "a/b\x00", "a\nb", "a b", "a\\b", "é", "a\xff", "a*", "a?",
		"tmp", "tmp/a", "lost+found/a", strings.Repeat("a", 256), strings.Repeat("abc/", 256) + "d",
	} {
		errs := map[string]error{
			"put":    s.Put(t.Context(), key, strings.NewReader("x"), objstore.PutOptions{Mode: objstore.Replace}),
			"delete": s.Delete(t.Context(), key),
		}
		_, errs["stat"] = s.Stat(t.Context(), key)
		r, err := s.Get(t.Context(), key, 0, -1)
		if err == nil {
			_ = r.Close()
		}
		errs["get"] = err
		for op, err := range errs {
			if err == nil || errors.Is(err, objstore.ErrNotFound) || errors.Is(err, objstore.ErrExists) {
				t.Errorf("%s of key %q: %v, want an error of its own", op, key, err)
			}
		}
	}
	for _, prefix := range []string{"/", "../", "a/../", "a//", "a\x00", "tmp/"} {
		if _, err := list(t.Context(), s, prefix); err == nil {
			t.Errorf("list %q succeeded", prefix)
		}
	}
	wantList(t, s, "", "a/b")
}

func testValidKeys(t *testing.T, s objstore.Store) {
	keys := []string{
		"...", ".hidden", "A_b-c.d~e+f%2Fg", "a/tmp/b", strings.Repeat("x", 255), "z/" + strings.Repeat("y", 255) + "/w",
		"~", "%", "-", "tmpx",
	}
	for _, key := range keys {
		put(t, s, key, key, objstore.Create)
	}
	for _, key := range keys {
		wantContent(t, s, key, key)
	}
	slices.Sort(keys)
	wantList(t, s, "", keys...)
}

func testInvalidRanges(t *testing.T, s objstore.Store) {
	put(t, s, "a", "x", objstore.Create)
	for _, r := range []struct{ offset, length int64 }{{-1, 1}, {0, -2}, {-1, -1}} {
		if body, err := s.Get(t.Context(), "a", r.offset, r.length); err == nil {
			_ = body.Close()
			t.Errorf("range %+v was read", r)
		}
	}
}
