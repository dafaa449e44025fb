// SPDX-License-Identifier: Apache-2.0

package s3_test

import (
	"errors"
	"io"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/imgbackup/imgbackup/objstore"
	"github.com/imgbackup/imgbackup/objstore/retry"
	"github.com/imgbackup/imgbackup/objstore/s3test"
)

// versionsOf lists what stood under a key, the newest first.
func versionsOf(t *testing.T, s objstore.Versions, key string) []objstore.ObjectVersion {
	t.Helper()
	var all []objstore.ObjectVersion
	for v, err := range s.ListVersions(t.Context(), key, "") {
		if err != nil {
			t.Fatal(err)
		}
		if v.Key == key {
			all = append(all, v)
		}
	}
	return all
}

// TestVersions: what was replaced and removed is read by its version, on each kind of server,
// also through package retry; what lies on top is taken away again.
func TestVersions(t *testing.T) {
	t.Parallel()
	for _, kind := range s3test.Kinds() {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			server := s3test.StartVersioned(t, kind)
			for _, test := range []func(*testing.T, *s3test.Server){testOldVersions, testLock, testUnlocked} {
				test(t, server)
			}
		})
	}
}

func testOldVersions(t *testing.T, server *s3test.Server) {
	top := retry.New(openS3(t, server.Config(server.LockedBucket(), "p")), quick)
	s, ok := objstore.As[objstore.Versions](top)
	if !ok {
		t.Fatal("a store in a bucket has no versions")
	}
	for _, content := range []string{"first", "the second"} {
		if err := top.Put(t.Context(), "a", strings.NewReader(content), objstore.PutOptions{Mode: objstore.Replace}); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(top.Put(t.Context(), "ab", strings.NewReader(""), objstore.PutOptions{}), top.Delete(t.Context(), "a")); err != nil {
		t.Fatal(err)
	}
	all := versionsOf(t, s, "a")
	if len(all) != 3 || !all[0].Marker || !all[0].Latest || all[1].Size != 10 || all[1].Latest || all[2].Size != 5 || all[2].Stored.IsZero() {
		t.Fatalf("%+v", all)
	}
	for i, want := range map[int]string{1: "the second", 2: "first"} {
		for offset, length := range map[int64]int64{0: -1, 2: 2, 1: 0} {
			r, err := s.GetOld(t.Context(), "a", all[i].ID, offset, length)
			if err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(r)
			end := int64(len(want))
			if length >= 0 {
				end = offset + length
			}
			if string(got) != want[offset:end] || err != nil || r.Close() != nil {
				t.Errorf("[%d, +%d): %q, %v", offset, length, got, err)
			}
		}
	}
	if rest := slices.Collect(maps.Keys(maps.Collect(s.ListVersions(t.Context(), "", "a")))); len(rest) != 1 || rest[0].Key != "ab" {
		t.Errorf("after a: %+v", rest)
	}
	for _, id := range []string{all[0].ID, all[1].ID, all[1].ID} {
		if err := s.DeleteVersion(t.Context(), "a", id); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := objstore.ReadAll(t.Context(), top, "a", 100); string(got) != "first" || err != nil {
		t.Errorf("below what was taken away: %q, %v", got, err)
	}
	if _, err := s.GetOld(t.Context(), "a", all[1].ID, 0, -1); !errors.Is(err, objstore.ErrNotFound) {
		t.Errorf("a version that was removed: %v", err)
	}
}

// testLock: what the bucket's rule and Retain keep nobody removes, and Retained tells.
func testLock(t *testing.T, server *s3test.Server) {
	top := retry.New(openS3(t, server.Config(server.LockedBucket(), "p")), quick)
	s, _ := objstore.As[objstore.Locker](top)
	old, _ := objstore.As[objstore.Versions](top)
	if rule, err := s.LockRule(t.Context()); rule != (objstore.LockRule{}) || err != nil {
		t.Fatalf("%+v, %v", rule, err)
	}
	want := objstore.LockRule{Days: 3, How: objstore.Compliance}
	if err := s.SetLockRule(t.Context(), want); err != nil {
		t.Fatal(err)
	}
	if rule, err := s.LockRule(t.Context()); rule != want || err != nil {
		t.Fatalf("%+v, %v", rule, err)
	}
	before := time.Now()
	if err := top.Put(t.Context(), "a", strings.NewReader("x"), objstore.PutOptions{}); err != nil {
		t.Fatal(err)
	}
	v := versionsOf(t, old, "a")[0]
	until, how, err := s.Retained(t.Context(), "a", v.ID)
	days := until.Sub(before).Hours() / 24
	told := days > 2.9 && days < 3.1 && how == objstore.Compliance
	if err != nil || told != (server.Kind() == s3test.MinIO) {
		t.Errorf("kept by the rule until %s as %s, %v", until, how, err)
	}
	if err := old.DeleteVersion(t.Context(), "a", v.ID); err == nil || errors.Is(err, objstore.ErrNotFound) {
		t.Errorf("a version that the rule keeps was removed: %v", err)
	}
	longer := before.Add(240 * time.Hour).UTC().Truncate(time.Second)
	if err := s.Retain(t.Context(), "a", v.ID, longer, objstore.Compliance); err != nil {
		t.Fatal(err)
	}
	if err := s.Retain(t.Context(), "a", v.ID, before.Add(time.Hour), objstore.Compliance); err == nil {
		t.Error("the time could be shortened")
	}
	if until, _, err := s.Retained(t.Context(), "a", v.ID); err != nil || !until.Equal(longer) {
		t.Errorf("kept until %s, %v, want %s", until, err, longer)
	}
	if err := old.DeleteVersion(t.Context(), "a", v.ID); err == nil || errors.Is(err, objstore.ErrNotFound) {
		t.Errorf("a version that is kept was removed: %v", err)
	}
	if _, _, err := s.Retained(t.Context(), "a", strings.Repeat("0", len(v.ID))); err == nil {
		t.Error("a version that there is not is kept")
	}
}

// testUnlocked: a bucket without object lock says so.
func testUnlocked(t *testing.T, server *s3test.Server) {
	s := openS3(t, server.Config(server.Bucket(), "p"))
	_, err := s.LockRule(t.Context())
	if !errors.Is(err, errors.ErrUnsupported) || !strings.Contains(err.Error(), "without object lock") {
		t.Errorf("the rule of a bucket without: %v", err)
	}
}
