// SPDX-License-Identifier: Apache-2.0

package objstoretest

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/imgbackup/imgbackup/objstore"
)

func testList(t *testing.T, s objstore.Store) {
	put(t, s, "b/2", "22", objstore.Create)
	put(t, s, "a", "", objstore.Create)
	put(t, s, "b/1", "1", objstore.Create)
	var got []objstore.Info
	for info, err := range s.List(t.Context(), "") {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, objstore.Info{Key: info.Key, Size: info.Size})
	}
	want := []objstore.Info{{Key: "a"}, {Key: "b/1", Size: 1}, {Key: "b/2", Size: 2}}
	if !slices.Equal(got, want) {
		t.Errorf("list: %v, want %v", got, want)
	}
}

// manyObjects is more than one answer of S3 lists.
const manyObjects = 1100

func testListMany(t *testing.T, s objstore.Store) {
	keys := make([]string, manyObjects)
	for i := range keys {
		keys[i] = fmt.Sprintf("many/%d", i*7919%manyObjects)
	}
	var wg sync.WaitGroup
	for part := range slices.Chunk(keys, 100) {
		wg.Go(func() {
			for _, key := range part {
				if err := s.Put(t.Context(), key, strings.NewReader("x"), objstore.PutOptions{Mode: objstore.Create}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	slices.Sort(keys)
	wantList(t, s, "many/", keys...)
	wantList(t, s, "", keys...)
	seq := s.List(t.Context(), "many/10") // a listing can be had again
	for range 2 {
		n := 0
		for _, err := range seq {
			if err != nil {
				t.Fatal(err)
			}
			n++
		}
		if want := 1 + 10 + 100; n != want {
			t.Errorf("list many/10: %d objects, want %d", n, want)
		}
	}
}

func testListOrder(t *testing.T, s objstore.Store) {
	// The slash sorts between the bytes of these names.
	keys := []string{"a", "a+b", "a-b", "a.b", "a/b", "a0", "aa", "b/a", "b0/a", "b-/a", "b.c/d", "b/a-b/c", "b/a/c2"}
	// No key may be the folder of another one.
	keys = slices.DeleteFunc(keys, func(k string) bool {
		return slices.ContainsFunc(keys, func(o string) bool { return strings.HasPrefix(o, k+"/") })
	})
	if len(keys) != 11 {
		t.Fatalf("%d keys", len(keys))
	}
	for _, key := range keys {
		put(t, s, key, "", objstore.Create)
	}
	slices.Sort(keys)
	wantList(t, s, "", keys...)
}

func testListPrefix(t *testing.T, s objstore.Store) {
	for _, key := range []string{"web/one", "web/two", "web-2/one", "web2", "we", "x/web/one"} {
		put(t, s, key, "", objstore.Create)
	}
	wantList(t, s, "web/", "web/one", "web/two")
	wantList(t, s, "web", "web-2/one", "web/one", "web/two", "web2")
	wantList(t, s, "web/t", "web/two")
	wantList(t, s, "web/two", "web/two")
	wantList(t, s, "web/two2")
	wantList(t, s, "x/w", "x/web/one")
	wantList(t, s, "w", "we", "web-2/one", "web/one", "web/two", "web2")
	wantList(t, s, "y")
}

func testListStops(t *testing.T, s objstore.Store) {
	for i := range 5 {
		put(t, s, fmt.Sprintf("d%d/k", i), "", objstore.Create)
	}
	n := 0
	for _, err := range s.List(t.Context(), "") {
		if err != nil {
			t.Fatal(err)
		}
		if n++; n == 2 {
			break
		}
	}
	if n != 2 {
		t.Errorf("saw %d objects, want 2", n)
	}
}

// testListWhole lists while objects are being stored: each object that shows
// has its final size, and nothing else shows.
func testListWhole(t *testing.T, s objstore.Store) {
	const size = 300_000
	body := strings.Repeat("x", size)
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			for j := range 10 {
				if err := s.Put(t.Context(), fmt.Sprintf("w%d/%d", i, j), strings.NewReader(body), objstore.PutOptions{Mode: objstore.Create}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	defer wg.Wait()
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	for running := true; running; {
		select {
		case <-done:
			running = false
		default:
		}
		n := 0
		for info, err := range s.List(t.Context(), "") {
			if err != nil {
				t.Fatal(err)
			}
			if n++; info.Size != size || info.Key[0] != 'w' {
				t.Fatalf("a listing shows %+v", info)
			}
		}
		if !running && n != 40 {
			t.Errorf("%d objects listed, want 40", n)
		}
	}
}
