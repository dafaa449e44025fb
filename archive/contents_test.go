// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"bytes"
	"context"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/imgbackup/imgbackup/bitmapstore"
	"github.com/imgbackup/imgbackup/clustermap"
	"github.com/imgbackup/imgbackup/objstore"
)

// smallOnes stores a bitmap, a file and a part of a cluster map, as a session that knows these contents.
func smallOnes(t *testing.T, store objstore.Store, c Contents) (refs []Ref, all Contents) {
	t.Helper()
	w := must2(NewWriter(t.Context(), store, WriterOptions{Contents: c}))(t)
	defer w.Abort()
	all = make(Contents)
	h := bitmapstore.Header{Name: "one", Granularity: 512, Size: 4096}
	bitmap, content, err := w.PutBitmap(t.Context(), h, bitmapstore.Between(512, 1024))
	noError(t, err)
	all.Add(content, bitmap)
	file := must2(w.PutFile(t.Context(), strings.NewReader("<domain/>")))(t)
	all.Add(file.SHA256, file.Object)
	runs := func(yield func(clustermap.Run, error) bool) {
		yield(clustermap.Run{Kind: clustermap.Hole, Count: 4}, nil)
	}
	part := must2(EncodeClusters(clustermap.Header{Unit: 65536, Units: 4}, runs, t.TempDir(), KeysOf(store)))(t)
	defer part.Close()
	noError(t, w.PutClusters(t.Context(), part, false))
	all.Add(part.Content, part.Ref)
	for _, ref := range []Ref{bitmap, file.Object, part.Ref} {
		if !slices.ContainsFunc(keys(t, store, ""), func(key string) bool { return strings.Contains(key, ref.Name.String()) }) {
			t.Errorf("%s is not there", ref.Name)
		}
	}
	return []Ref{bitmap, file.Object, part.Ref}, all
}

func noError(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// Equal content is one object: in an encrypted repository because it is on record.
func TestContents(t *testing.T) { plainAndEncrypted(t, testContents) }

func testContents(t *testing.T, store objstore.Store) {
	first, contents := smallOnes(t, store, nil)
	again, _ := smallOnes(t, store, contents)
	if !slices.Equal(first, again) || len(keys(t, store, "")) != len(first) {
		t.Errorf("stored once more: %v", keys(t, store, ""))
	}
	// One that is gone, and ones that are damaged, are stored again.
	prefixes := []string{BitmapPrefix, FilePrefix}
	for _, key := range keys(t, store, "") {
		if !slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(key, p) }) {
			noError(t, store.Delete(t.Context(), key))
			continue
		}
		data := get(t, store, key)
		data[len(data)-1] ^= 1
		noError(t, store.Put(t.Context(), key, bytes.NewReader(data), objstore.PutOptions{Mode: objstore.Replace}))
	}
	third, _ := smallOnes(t, store, contents)
	for i, prefix := range []string{BitmapPrefix, FilePrefix, ClustersPrefix} {
		noError(t, hashObject(t.Context(), store, objectKey(prefix, third[i].Name), third[i].Name, third[i].Length))
	}
}

// remembering has whole objects of before in memory, as the folder of a far store has.
type remembering struct {
	objstore.Store
	before map[string][]byte
}

func (r remembering) Unwrap() objstore.Store { return r.Store }
func (r remembering) Direct() objstore.Store { return r.Store }

func (r remembering) ReadListed(ctx context.Context, info objstore.Info, limit int64) ([]byte, error) {
	return objstore.ReadListed(ctx, r.Store, info, limit)
}

func (r remembering) Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	if data, ok := r.before[key]; ok && offset == 0 && length == int64(len(data)) {
		return io.NopCloser(bytes.NewReader(data)), nil
	}
	return r.Store.Get(ctx, key, offset, length)
}

// What this machine remembers of an object proves nothing of what the store has.
func TestContentsOfTheStore(t *testing.T) { plainAndEncrypted(t, testContentsOfTheStore) }

func testContentsOfTheStore(t *testing.T, store objstore.Store) {
	first, contents := smallOnes(t, store, nil)
	key := BitmapKey(first[0].Name)
	before := get(t, store, key)
	damaged := bytes.Clone(before)
	damaged[len(damaged)-1] ^= 1
	noError(t, store.Put(t.Context(), key, bytes.NewReader(damaged), objstore.PutOptions{Mode: objstore.Replace}))
	again, _ := smallOnes(t, remembering{store, map[string][]byte{key: before}}, contents)
	noError(t, hashObject(t.Context(), store, BitmapKey(again[0].Name), again[0].Name, again[0].Length))
}
