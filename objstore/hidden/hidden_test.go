// SPDX-License-Identifier: Apache-2.0

package hidden

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"io"
	"iter"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/imgbackup/imgbackup/objstore"
	"github.com/imgbackup/imgbackup/objstore/objstoretest"
)

func testMAC(text string) (sum [sha256.Size]byte) {
	h := hmac.New(sha256.New, []byte("secret"))
	_, _ = h.Write([]byte(text)) // which never fails
	h.Sum(sum[:0])
	return sum
}

// says is a [Learn] for objects whose content is their key.
func says(_ string, data []byte) string {
	key, ok := strings.CutPrefix(string(data), "key ")
	if !ok {
		return ""
	}
	return key
}

// over is a store as a program opens it that has met no name yet.
func over(s objstore.Store) objstore.Store { return Store(s, New(testMAC), says) }

// The names in these keys are words that begin with "secret".
var named = []string{
	"domains/secretweb/checkpoints/secretmonday.json", "domains/secretweb/checkpoints/secrettuesday.json",
	"domains/secretdb%20x/checkpoints/secretmonday.json", "domains/secretdb%20x/forgotten.json",
	"domains/secretweb/intents/3c7bd0f6-9d5c-4f4f-a7f7-9a7d4d3a8a11.json", "domains/secretnew/intents/3c7bd0f6-9d5c-4f4f-a7f7-9a7d4d3a8a12.json",
	"domains/secretweb/seen.json", "drills/secretweb/3c7bd0f6-9d5c-4f4f-a7f7-9a7d4d3a8a13.json", "drills/secretgone/3c7bd0f6-9d5c-4f4f-a7f7-9a7d4d3a8a14.json",
	"leases/secrethost/3c7bd0f6-9d5c-4f4f-a7f7-9a7d4d3a8a15.json", "leases/secrethost/strikes/3c7bd0f6-9d5c-4f4f-a7f7-9a7d4d3a8a16.json",
	"imgbackup.json", "packs/ab/abcd.zst", "keys/roster/1.json", "zebra/x", "domainsx/y",
}

func put(t testing.TB, s objstore.Store, key, content string) {
	t.Helper()
	if err := s.Put(t.Context(), key, strings.NewReader(content), objstore.PutOptions{Mode: objstore.Replace}); err != nil {
		t.Fatal(err)
	}
}

func keysOf(t testing.TB, infos iter.Seq2[objstore.Info, error]) (all []string) {
	t.Helper()
	for info, err := range infos {
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, info.Key)
	}
	return all
}

func TestStore(t *testing.T) {
	t.Parallel()
	objstoretest.Run(t, func(*testing.T) objstore.Store { return over(objstore.NewMem()) })
}

// Who uses the store sees the keys with names, sorted, whoever has stored them; and what
// lies under it has none.
func TestNames(t *testing.T) {
	t.Parallel()
	below, plain := objstore.NewMem(), objstore.NewMem()
	writer := over(below)
	for _, key := range named {
		put(t, writer, key, "key "+key)
		put(t, plain, key, "key "+key)
	}
	for _, key := range keysOf(t, below.List(t.Context(), "")) {
		if strings.Contains(key, "secret") {
			t.Errorf("%s is stored", key)
		}
	}
	prefixes := []string{"", "d", "domains", "domains/", "domains/secretweb/", "domains/secretweb/checkpoints/", named[0], named[2],
		"domains/secretweb/intents/", "domains/secretweb/intents/3c", "drills/", "drills/secretgone/", "leases/", "leases/secrethost/strikes/", "l", "packs/", "zebra/x"}
	for _, prefix := range prefixes {
		reader := over(below)
		want, got := keysOf(t, plain.List(t.Context(), prefix)), keysOf(t, reader.List(t.Context(), prefix))
		if !slices.Equal(got, want) {
			t.Errorf("%q: %q, want %q", prefix, got, want)
		}
		if again := keysOf(t, reader.List(t.Context(), prefix)); !slices.Equal(again, want) {
			t.Errorf("%q, once more: %q, want %q", prefix, again, want)
		}
	}
	for _, key := range named {
		reader := over(below)
		data, err := objstore.ReadAll(t.Context(), reader, key, 1000)
		info, serr := reader.Stat(t.Context(), key)
		if err := errors.Join(err, serr); err != nil || string(data) != "key "+key || info.Key != key {
			t.Errorf("%s: %q, %+v, %v", key, data, info, err)
		}
	}
	for _, prefix := range []string{"domains/secret", "leases/s", "domains/secretweb/checkpoints/s"} {
		for _, err := range over(below).List(t.Context(), prefix) {
			if err == nil {
				t.Errorf("%q is listed", prefix)
			}
		}
	}
	if err := objstore.DeleteBatch(t.Context(), over(below), named); err != nil {
		t.Fatal(err)
	}
	if left := keysOf(t, below.List(t.Context(), "")); len(left) != 0 {
		t.Errorf("left: %q", left)
	}
}

// The same name in two domains, and a host and a domain of one name, have nothing in common.
func TestUnlike(t *testing.T) {
	t.Parallel()
	n := New(testMAC)
	seen := make(map[string]bool)
	for _, key := range []string{"domains/a/checkpoints/a.json", "domains/b/checkpoints/a.json", "leases/a/x.json"} {
		for part := range strings.SplitSeq(strings.TrimSuffix(n.Stored(key), suffix), "/") {
			if Is(part) && seen[part] {
				t.Errorf("%s occurs twice", part)
			}
			seen[part] = true
		}
	}
	if n.Stored("index/a/ab/x.zst") != "index/"+n.Host("a")+"/ab/x.zst" || n.Stored("drills/b/x.sig") != "drills/"+n.Domain("b")+"/x.sig" {
		t.Error("hosts and domains have several digests")
	}
}

// What does not say what it is keeps its digest, by which it is read and removed; what was moved
// is not taken for what it was, and what stands under a name is nobody's.
func TestDamaged(t *testing.T) {
	t.Parallel()
	below := objstore.NewMem()
	s := over(below)
	put(t, s, named[0], "nonsense")
	put(t, s, named[1], "key "+named[1])
	put(t, s, named[2], "key "+named[0]) // moved there
	put(t, below, "domains/secretplain/checkpoints/x.json", "key domains/secretplain/checkpoints/x.json")
	n := New(testMAC)
	digest := func(key string) string { return strings.Split(n.Stored(key), "/")[3] }
	want := []string{"domains/secretweb/checkpoints/" + "secretmonday.json", named[1], n.Stored(named[2])}
	reader := over(below)
	if got := keysOf(t, reader.List(t.Context(), "domains/")); !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	if err := below.Delete(t.Context(), n.Stored(named[2])); err != nil {
		t.Fatal(err)
	}
	want = []string{named[1], "domains/secretweb/checkpoints/" + digest(named[0])}
	reader = over(below)
	if got := keysOf(t, reader.List(t.Context(), "domains/")); !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	if data, err := objstore.ReadAll(t.Context(), reader, want[1], 100); err != nil || string(data) != "nonsense" {
		t.Errorf("%q, %v", data, err)
	}
	if err := reader.Delete(t.Context(), want[1]); err != nil {
		t.Fatal(err)
	}
	if got := keysOf(t, over(below).List(t.Context(), "domains/")); !slices.Equal(got, want[:1]) {
		t.Errorf("%q, want %q", got, want[:1])
	}
}

// An outage is no answer.
func TestOutage(t *testing.T) {
	t.Parallel()
	below := objstore.NewMem()
	for _, key := range named {
		put(t, over(below), key, "key "+key)
	}
	out := errors.New("outage")
	broken := &failing{Store: below, err: out}
	var err error
	for _, err = range over(broken).List(t.Context(), "domains/") {
		if err == nil {
			t.Error("something is listed whose name can't be read")
		}
	}
	if !errors.Is(err, out) || broken.hit.Load() == 0 {
		t.Errorf("%v, after %d faults", err, broken.hit.Load())
	}
}

type failing struct {
	objstore.Store
	err error
	hit atomic.Int64
}

func (f *failing) Get(context.Context, string, int64, int64) (io.ReadCloser, error) {
	f.hit.Add(1)
	return nil, f.err
}

// versioned is a store whose listings tell which bytes an object has.
type versioned struct{ *objstoretest.Far }

func (v versioned) List(ctx context.Context, prefix string) iter.Seq2[objstore.Info, error] {
	return func(yield func(objstore.Info, error) bool) {
		for info, err := range v.Far.List(ctx, prefix) {
			info.Version = "1"
			if !yield(info, err) {
				return
			}
		}
	}
}

// TestNear: a listing waits for two answers, and what it has read for its names is not read again.
func TestNear(t *testing.T) {
	t.Parallel()
	below := objstore.NewMem()
	for _, key := range named {
		put(t, over(below), key, "key "+key)
	}
	synctest.Test(t, func(t *testing.T) {
		far := versioned{objstoretest.NewFar(below)}
		s := over(far)
		var infos []objstore.Info
		for info, err := range s.List(t.Context(), "domains/secretweb/checkpoints/") {
			if err != nil {
				t.Fatal(err)
			}
			infos = append(infos, info)
		}
		for _, info := range infos {
			if data, err := objstore.ReadListed(t.Context(), s, info, 1000); err != nil || string(data) != "key "+info.Key {
				t.Errorf("%s: %q, %v", info.Key, data, err)
			}
		}
		if n := far.Elapsed(); n != 2 || len(infos) != 2 {
			t.Errorf("%d objects in %d round trips", len(infos), n)
		}
		if _, err := objstore.ReadListed(t.Context(), s, infos[0], 1000); err != nil || far.Elapsed() != 3 {
			t.Errorf("read again: %v, %d round trips", err, far.Elapsed())
		}
	})
}

// FuzzNames: what is stored is stored under the same key again, has the name that it had, and
// none of it is to be seen.
func FuzzNames(f *testing.F) {
	for _, key := range named {
		f.Add(key)
		f.Add(New(testMAC).Stored(key))
	}
	f.Fuzz(func(t *testing.T, key string) {
		if objstore.CheckKey(key) != nil {
			return
		}
		n := New(testMAC)
		stored := n.Stored(key)
		if again := New(testMAC).Stored(stored); again != stored {
			t.Errorf("%s is stored as %s, and that as %s", key, stored, again)
		}
		if folder(key) == "" {
			if stored != key {
				t.Errorf("%s is stored as %s", key, stored)
			}
			return
		}
		if plain, _ := n.plain(stored); plain != key || !isStored(stored) {
			t.Errorf("%s is stored as %s, which is %s", key, stored, plain)
		}
	})
}

// TestMoved: a name is that of an object only where it has the digest under which the object stands: who
// moves one to another domain, or puts a digest of another kind there, makes no checkpoint that a listing
// shows and that is not there, nor one that is shown twice.
func TestMoved(t *testing.T) {
	t.Parallel()
	n := New(testMAC)
	web, db := "domains/secretweb/checkpoints/secretmonday.json", "domains/secretdb/checkpoints/secretfriday.json"
	moved := "domains/" + n.Domain("secretdb") + "/checkpoints/" + strings.Split(n.Stored(web), "/")[3]
	alias := "domains/" + n.Host("secretweb") + "/seen.json"
	lease := "leases/secretweb/3c7bd0f6-9d5c-4f4f-a7f7-9a7d4d3a8a15.json"
	below := objstore.NewMem()
	writer := over(below)
	for _, key := range []string{web, db, lease, "domains/secretweb/seen.json"} {
		put(t, writer, key, "key "+key)
	}
	put(t, below, moved, "key "+web)
	put(t, below, alias, "key "+lease)
	reader := over(below)
	for range 2 {
		_ = keysOf(t, reader.List(t.Context(), "leases/"))
		seen := make(map[string]bool)
		for _, key := range keysOf(t, reader.List(t.Context(), "domains/")) {
			if _, err := reader.Stat(t.Context(), key); err != nil || seen[key] {
				t.Errorf("%s is listed: %v, %v", key, err, seen[key])
			}
			seen[key] = true
		}
		if len(seen) != 5 {
			t.Errorf("%v", seen)
		}
	}
}

// TestListByDigest: who goes on with a digest that a listing has shown in the place of a name is shown
// what lies there, also when the name has been met since.
func TestListByDigest(t *testing.T) {
	t.Parallel()
	below := objstore.NewMem()
	key := "domains/secretweb/checkpoints/secretmonday.json"
	put(t, over(below), key, "nonsense")
	n := New(testMAC)
	reader := Store(below, n, says)
	checkpoint := strings.Split(n.Stored(key), "/")[3] // which is met by that
	for _, want := range []string{key, n.Stored(key), "domains/secretweb/checkpoints/" + checkpoint} {
		for _, prefix := range []string{want, want[:strings.LastIndex(want, "/")+1]} {
			all := keysOf(t, reader.List(t.Context(), prefix))
			if len(all) != 1 || !strings.HasPrefix(all[0], prefix) {
				t.Errorf("%q: %q", prefix, all)
				continue
			}
			if _, err := reader.Stat(t.Context(), all[0]); err != nil {
				t.Error(err)
			}
		}
	}
	if all := keysOf(t, reader.List(t.Context(), "domains/")); len(all) != 1 || all[0] != key {
		t.Errorf("%q", all)
	}
}
