// SPDX-License-Identifier: Apache-2.0

package check_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/chain/chaintest"
	"github.com/imgbackup/imgbackup/chain/check"
	"github.com/imgbackup/imgbackup/objstore"
	"github.com/imgbackup/imgbackup/objstore/objstoretest"
)

// diskSize of the disks in the repository below, bytes.
const diskSize = 4 << 20

// whole returns a repository with a bit of everything: a chain of two, another
// domain, a lease, an intent, and what a backup that failed left.
func whole(t *testing.T) (r *chain.Repository, full, delta *chain.Manifest) { return wholeOf(t, nil) }

// wholeOf is whole with these keys; nil: a plain one.
func wholeOf(t *testing.T, own *chaintest.Keys) (r *chain.Repository, full, delta *chain.Manifest) {
	t.Helper()
	r = newRepositoryOf(t, own)
	full = backup(t, r, "web", "full", diskSize, nil, piece{0, random(1, 200<<10)}, piece{1 << 20, random(2, 100<<10)}, piece{3 << 20, random(3, 5000)})
	delta = backup(t, r, "web", "delta", diskSize, full, piece{1 << 20, random(4, 100<<10)})
	backup(t, r, "db", "one", 1<<20, nil, piece{0, random(5, 20<<10)})
	lost := backup(t, r, "lost", "one", 2<<20, nil, piece{0, random(6, 30<<10)})
	if err := r.Store.Delete(t.Context(), chain.ManifestKey(lost.Domain, lost.Checkpoint)); err != nil {
		t.Fatal(err)
	}
	forgotten := *delta
	forgotten.Checkpoint, forgotten.UUID = "forgotten", chain.NewUUID()
	forgotten.Disks = []chain.Disk{{Name: "vda", Bitmap: chain.BitmapName("forgotten", forgotten.UUID), Size: diskSize}}
	if err := r.Remember(t.Context(), "web", []*chain.Manifest{&forgotten}, []*chain.Manifest{full, delta}); err != nil {
		t.Fatal(err)
	}
	if err := r.PutIntent(t.Context(), intent("web")); err != nil {
		t.Fatal(err)
	}
	if err := r.PutLease(t.Context(), lease(t)); err != nil {
		t.Fatal(err)
	}
	return r, full, delta
}

func keys(t *testing.T, s objstore.Store, prefix string) []string {
	t.Helper()
	var all []string
	for info, err := range s.List(t.Context(), prefix) {
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, info.Key)
	}
	if len(all) == 0 {
		t.Fatalf("no objects under %q", prefix)
	}
	return all
}

// found checks and returns the keys of the findings.
func found(t *testing.T, r *chain.Repository, o check.Options) []string {
	t.Helper()
	report, err := check.Run(t.Context(), r, o)
	if err != nil {
		t.Fatal(err)
	}
	var keys []string
	for _, f := range report.Findings {
		keys = append(keys, f.Object)
	}
	return keys
}

func TestCheckClean(t *testing.T) {
	t.Parallel()
	plainAndEncrypted(t, checkClean)
}

func checkClean(t *testing.T, own *chaintest.Keys) {
	r, _, _ := wholeOf(t, own)
	for _, o := range []check.Options{{}, {ReadData: true}, {Domains: []string{"web", "db"}}, {ReadData: true, Domains: []string{"db"}}, {ReadData: true, Workers: 1}} {
		phases := map[string]check.Event{}
		o.Progress = func(e check.Event) {
			if e.Total > 0 && e.Done > e.Total || e.Done < phases[e.Phase].Done {
				t.Errorf("progress went from %+v to %+v", phases[e.Phase], e)
			}
			phases[e.Phase] = e
		}
		report, err := check.Run(t.Context(), r, o)
		if err != nil || len(report.Findings) != 0 {
			t.Fatalf("%+v: %+v, %v", o, report, err)
		}
		want := 3
		if len(o.Domains) == 1 {
			want = 1
		}
		if report.Checkpoints != want || report.Objects == 0 || report.Bytes == 0 {
			t.Errorf("%+v: %+v", o, report)
		}
		if all := len(o.Domains) == 0; (report.Unreferenced == 5) != all {
			t.Errorf("%+v: %d unreferenced objects, of an archive that has a pack, a map, a bitmap, a cluster map and a file", o, report.Unreferenced)
		}
		if e, ok := phases["packs"]; ok != o.ReadData || ok && e.Done != e.Total {
			t.Errorf("%+v: packs %+v", o, e)
		}
		if notes := strings.Join(report.Notes, "\n"); !strings.Contains(notes, "has not finished") != (len(o.Domains) == 1) {
			t.Errorf("%+v: notes %s", o, notes)
		}
	}
}

func TestCheckEmpty(t *testing.T) {
	t.Parallel()
	if got := found(t, newRepository(t), check.Options{ReadData: true}); len(got) != 0 {
		t.Error(got)
	}
}

func TestCheckUnknownDomain(t *testing.T) {
	t.Parallel()
	r, _, _ := whole(t)
	if _, err := check.Run(t.Context(), r, check.Options{Domains: []string{"we"}}); !errors.Is(err, objstore.ErrNotFound) {
		t.Errorf("%v", err)
	}
}

// TestCheckFindsFlippedBits flips bits all over every object.
func TestCheckFindsFlippedBits(t *testing.T) {
	t.Parallel()
	plainAndEncrypted(t, checkFindsFlippedBits)
}

func checkFindsFlippedBits(t *testing.T, own *chaintest.Keys) {
	r, _, _ := wholeOf(t, own)
	rnd := rand.New(rand.NewPCG(1, 2))
	kinds := map[string]int{}
	flips := 11
	if own != nil { // each of its bytes is proven by one and the same
		flips = 6
	}
	for _, key := range keys(t, r.Store, "") {
		data := get(t, r.Store, key)
		ats := []int{0, 1, len(data) / 2, len(data) - 2, len(data) - 1}
		for range flips - len(ats) {
			ats = append(ats, rnd.IntN(len(data)))
		}
		for _, at := range ats {
			bad := bytes.Clone(data)
			bad[at] ^= 1 << rnd.IntN(8)
			put(t, r.Store, key, bad)
			report, err := check.Run(t.Context(), r, check.Options{ReadData: true})
			if err != nil || len(report.Findings) != 1 || report.Findings[0].Object != key || report.Findings[0].What == "" {
				t.Fatalf("byte %d of %d of %s: %+v, %v", at, len(data), key, report.Findings, err)
			}
			kinds[report.Findings[0].Kind]++
		}
		put(t, r.Store, key, data)
	}
	for _, kind := range []string{check.KindConfig, check.KindManifest, check.KindMap, check.KindPack, check.KindBitmap, check.KindClusters, check.KindFile, check.KindIndex, check.KindIntent, check.KindLease, check.KindForgotten} {
		if kinds[kind] < flips {
			t.Errorf("%d findings of kind %s", kinds[kind], kind)
		}
	}
	if got := found(t, r, check.Options{ReadData: true}); len(got) != 0 {
		t.Errorf("all is as it was: %q", got)
	}
}

// TestCheckWithoutReadingData flips bits in what is small, which it proves all
// the same.
func TestCheckWithoutReadingData(t *testing.T) {
	t.Parallel()
	plainAndEncrypted(t, checkWithoutReadingData)
}

func checkWithoutReadingData(t *testing.T, own *chaintest.Keys) {
	r, full, delta := wholeOf(t, own)
	all := []string{chain.ConfigKey, chain.ManifestKey("web", "full"), keys(t, r.Store, "leases/")[0], keys(t, r.Store, "domains/web/intents/")[0]}
	for _, m := range []*chain.Manifest{full, delta} {
		all = append(all, archive.MapKey(m.Disks[0].Maps[0].Name), archive.BitmapKey(m.Disks[0].Witnesses[0].Object.Name))
	}
	for _, key := range slices.Compact(slices.Sorted(slices.Values(all))) {
		data := get(t, r.Store, key)
		step := len(data)/40 + 1
		for at := range len(data) {
			if at%step != 0 {
				continue
			}
			bad := bytes.Clone(data)
			bad[at] ^= 1 << (at / step % 8)
			put(t, r.Store, key, bad)
			if got := found(t, r, check.Options{}); !slices.Equal(got, []string{key}) {
				t.Fatalf("byte %d of %s: %q", at, key, got)
			}
		}
		put(t, r.Store, key, data)
	}
}

// usedObjects returns the keys of all packs, maps and bitmaps that checkpoints use.
func usedObjects(t *testing.T, r *chain.Repository, ms ...*chain.Manifest) []string {
	t.Helper()
	var used []string
	for _, m := range ms {
		for _, ref := range m.Disks[0].Maps {
			used = append(used, archive.MapKey(ref.Name))
			mp, err := archive.OpenMap(t.Context(), r.Store, ref, 0)
			if err != nil {
				t.Fatal(err)
			}
			for _, p := range mp.Packs() {
				used = append(used, archive.PackKey(p.Name))
			}
		}
		used = append(used, archive.BitmapKey(m.Disks[0].Witnesses[0].Object.Name))
	}
	slices.Sort(used)
	return slices.Compact(used)
}

func TestCheckFindsMissingAndCut(t *testing.T) {
	t.Parallel()
	plainAndEncrypted(t, checkFindsMissingAndCut)
}

func checkFindsMissingAndCut(t *testing.T, own *chaintest.Keys) {
	r, full, delta := wholeOf(t, own)
	used := usedObjects(t, r, full, delta)
	if len(used) < 6 {
		t.Fatalf("only %q", used)
	}
	for _, key := range used {
		data := get(t, r.Store, key)
		for _, o := range []check.Options{{}, {ReadData: true}, {Domains: []string{"web"}}} {
			if err := r.Store.Delete(t.Context(), key); err != nil {
				t.Fatal(err)
			}
			if got := found(t, r, o); !slices.Equal(got, []string{key}) {
				t.Errorf("%s is missing: %q", key, got)
			}
			put(t, r.Store, key, data[:len(data)-1])
			if got := found(t, r, o); !slices.Equal(got, []string{key}) {
				t.Errorf("%s is cut: %q", key, got)
			}
			put(t, r.Store, key, append(bytes.Clone(data), 0))
			if got := found(t, r, o); !slices.Equal(got, []string{key}) {
				t.Errorf("%s is too long: %q", key, got)
			}
		}
		put(t, r.Store, key, data)
	}
}

// TestCheckSaysWhatIsAffected damages one chunk, and then all of a pack.
func TestCheckSaysWhatIsAffected(t *testing.T) {
	t.Parallel()
	r, full, delta := whole(t)
	m, err := archive.OpenMap(t.Context(), r.Store, full.Disks[0].Maps[0], 0)
	if err != nil {
		t.Fatal(err)
	}
	var entries []archive.Entry
	for e, err := range m.Entries(t.Context(), 0, m.Size()) {
		if err != nil {
			t.Fatal(err)
		}
		entries = append(entries, e)
	}
	if len(entries) != 3 {
		t.Fatalf("%+v", entries)
	}
	finding := func(key string) check.Finding {
		t.Helper()
		report, err := check.Run(t.Context(), r, check.Options{ReadData: true})
		if err != nil || len(report.Findings) != 1 || report.Findings[0].Object != key {
			t.Fatalf("%+v, %v", report, err)
		}
		return report.Findings[0]
	}
	damage := func(e archive.Entry) (key string, undo func()) {
		key = archive.PackKey(e.Pack.Name)
		data := get(t, r.Store, key)
		bad := bytes.Clone(data)
		bad[e.FrameOffset+int64(e.FrameLength)/2] ^= 4
		put(t, r.Store, key, bad)
		return key, func() { put(t, r.Store, key, data) }
	}

	// The first chunk is part of both checkpoints.
	key, undo := damage(entries[0])
	f := finding(key)
	want := []check.Affected{
		{Domain: "web", Checkpoint: "delta", Disk: "vda", Ranges: []check.Range{{0, 200 << 10}}, Bytes: 200 << 10},
		{Domain: "web", Checkpoint: "full", Disk: "vda", Ranges: []check.Range{{0, 200 << 10}}, Bytes: 200 << 10},
	}
	slices.SortFunc(f.Details, func(a, b check.Affected) int { return strings.Compare(a.Checkpoint, b.Checkpoint) })
	if !slices.EqualFunc(f.Details, want, equalAffected) || len(f.Affects) != 2 {
		t.Errorf("first chunk: %+v", f)
	}
	undo()

	// The second one was overwritten by the delta.
	key, undo = damage(entries[1])
	f = finding(key)
	want = []check.Affected{{Domain: "web", Checkpoint: "full", Disk: "vda", Ranges: []check.Range{{1 << 20, 100 << 10}}, Bytes: 100 << 10}}
	if !slices.EqualFunc(f.Details, want, equalAffected) {
		t.Errorf("second chunk: %+v", f)
	}
	undo()

	// Damage in the table of a pack hits no data.
	data := get(t, r.Store, key)
	bad := bytes.Clone(data)
	bad[len(bad)-3] ^= 1
	put(t, r.Store, key, bad)
	if f = finding(key); len(f.Details) != 0 || len(f.Affects) != 0 {
		t.Errorf("table: %+v", f)
	}
	put(t, r.Store, key, data)

	// A damaged map takes all of the disk with it; of a manifest, the checkpoint.
	key = archive.MapKey(delta.Disks[0].Maps[0].Name)
	data = get(t, r.Store, key)
	put(t, r.Store, key, nil)
	f = finding(key)
	want = []check.Affected{{Domain: "web", Checkpoint: "delta", Disk: "vda", Ranges: []check.Range{{0, diskSize}}, Bytes: diskSize}}
	if !slices.EqualFunc(f.Details, want, equalAffected) {
		t.Errorf("map: %+v", f)
	}
	put(t, r.Store, key, data)

	// A definition's loss takes no disk with it.
	key = archive.FileKey(full.Files[0].Object.Name)
	data = get(t, r.Store, key)
	put(t, r.Store, key, nil)
	f = finding(key)
	want = []check.Affected{{Domain: "web", Checkpoint: "delta", File: chain.RoleDomainXML}, {Domain: "web", Checkpoint: "full", File: chain.RoleDomainXML}}
	slices.SortFunc(f.Details, func(a, b check.Affected) int { return strings.Compare(a.Checkpoint, b.Checkpoint) })
	if !slices.EqualFunc(f.Details, want, equalAffected) || f.Kind != check.KindFile {
		t.Errorf("file: %+v", f)
	}
	put(t, r.Store, key, data)

	key = chain.ManifestKey("db", "one")
	put(t, r.Store, key, nil)
	if f = finding(key); len(f.Affects) != 1 || f.Affects[0] != "checkpoint db/one" {
		t.Errorf("manifest: %+v", f)
	}
}

func equalAffected(a, b check.Affected) bool {
	return a.Domain == b.Domain && a.Checkpoint == b.Checkpoint && a.Disk == b.Disk && a.File == b.File && a.Bytes == b.Bytes && slices.Equal(a.Ranges, b.Ranges)
}

// TestCheckMapsMatchPacks has sound objects that do not fit together.
func TestCheckMapsMatchPacks(t *testing.T) {
	t.Parallel()
	plainAndEncrypted(t, checkMapsMatchPacks)
}

func checkMapsMatchPacks(t *testing.T, own *chaintest.Keys) {
	for name, change := range map[string]func(e *archive.Entry){
		"another frame":   func(e *archive.Entry) { e.FrameOffset++ },
		"another length":  func(e *archive.Entry) { e.FrameLength-- },
		"another chunk":   func(e *archive.Entry) { e.Chunk[0] ^= 1 },
		"beyond its end":  func(e *archive.Entry) { e.ChunkOffset++ },
		"beyond the pack": func(e *archive.Entry) { e.FrameOffset += 50 },
	} {
		r, full, _ := wholeOf(t, own)
		m, err := archive.OpenMap(t.Context(), r.Store, full.Disks[0].Maps[0], 0)
		if err != nil {
			t.Fatal(err)
		}
		ref, err := archive.WriteMap(t.Context(), r.Store, archive.MapOptions{Disk: "vda", Size: diskSize, Full: true}, func(yield func(archive.Entry, error) bool) {
			for e, err := range m.Entries(t.Context(), 0, m.Size()) {
				if e.Offset == 1<<20 {
					change(&e)
				}
				if !yield(e, err) {
					return
				}
			}
		})
		if err != nil {
			t.Logf("%s: the writer refuses it: %v", name, err)
			continue
		}
		bad := manifest("web", "bad", diskSize)
		bad.Disks, bad.Files = slices.Clone(full.Disks), full.Files
		bad.Disks[0].Maps = []archive.MapRef{ref}
		bad.Disks[0].Bitmap, bad.Disks[0].Granularity = "", 0
		commit(t, r, bad)
		if got := found(t, r, check.Options{ReadData: true}); !slices.Equal(got, []string{archive.MapKey(ref.Name)}) {
			t.Errorf("%s: %q", name, got)
		}
	}
}

// TestCheckManifestsMatchMaps has manifests that say something else than the
// maps and bitmaps that they name.
func TestCheckManifestsMatchMaps(t *testing.T) {
	t.Parallel()
	plainAndEncrypted(t, checkManifestsMatchMaps)
}

func checkManifestsMatchMaps(t *testing.T, own *chaintest.Keys) {
	for name, change := range map[string]func(d *chain.Disk){
		"another size":   func(d *chain.Disk) { d.Size++ },
		"no full map":    func(d *chain.Disk) { d.Maps = d.Maps[:1] },
		"wrong order":    func(d *chain.Disk) { slices.Reverse(d.Maps) },
		"other bitmap":   func(d *chain.Disk) { d.Witnesses[0].DirtyBytes = 0 },
		"bitmap's size":  func(d *chain.Disk) { d.Witnesses[0].Size++ },
		"bitmap's grain": func(d *chain.Disk) { d.Witnesses[0].Granularity *= 2 },
		"bitmap's name":  func(d *chain.Disk) { d.Witnesses[0].Name += "0" },
		"directory":      func(d *chain.Disk) { d.Maps[0].DirDigest[3] ^= 8 },
		"map's length":   func(d *chain.Disk) { d.Maps[1].Length++ },
	} {
		r, _, delta := wholeOf(t, own)
		m := *delta
		m.Checkpoint, m.UUID = "bad", chain.NewUUID()
		m.Disks = slices.Clone(m.Disks)
		d := &m.Disks[0]
		d.Maps, d.Witnesses = slices.Clone(d.Maps), slices.Clone(d.Witnesses)
		d.Bitmap, d.Granularity = "", 0
		change(d)
		commit(t, r, &m)
		report, err := check.Run(t.Context(), r, check.Options{})
		if err != nil || len(report.Findings) == 0 {
			t.Errorf("%s: %+v, %v", name, report, err)
		}
	}
}

// TestCheckOutage lets the store fail at each single operation: that is never a
// clean repository, and never damage.
func TestCheckOutage(t *testing.T) {
	t.Parallel()
	plainAndEncrypted(t, checkOutage)
}

func checkOutage(t *testing.T, own *chaintest.Keys) {
	r, full, _ := wholeOf(t, own)
	// With damage, more is read.
	key := usedObjects(t, r, full)[0]
	data := get(t, r.Store, key)
	for _, damaged := range []bool{false, true} {
		if damaged {
			bad := bytes.Clone(data)
			bad[len(bad)/2] ^= 1
			put(t, r.Store, key, bad)
		}
		counter := objstoretest.NewFaulty(t, r.Store)
		want, err := check.Run(t.Context(), with(r, counter), check.Options{ReadData: true, Workers: 1})
		if err != nil {
			t.Fatal(err)
		}
		n := counter.Count()
		if n < 30 {
			t.Fatalf("only %d operations", n)
		}
		for i := range n {
			s := objstoretest.NewFaulty(t, r.Store, objstoretest.Fault{After: i, Times: 1, Err: errOutage})
			report, err := check.Run(t.Context(), with(r, s), check.Options{ReadData: true, Workers: 1})
			// To remember what was proven is not a part of it.
			notRemembered := err == nil && report.Complete && i >= n-3
			if (!errors.Is(err, errOutage) || archive.IsDamage(err)) && !notRemembered {
				t.Errorf("operation %d of %d fails: %v", i, n, err)
			}
			if report == nil || len(report.Findings) > len(want.Findings) {
				t.Errorf("operation %d of %d fails: %+v", i, n, report)
			}
		}
	}
}

// TestCheckCancelled cancels at each single operation.
func TestCheckCancelled(t *testing.T) {
	t.Parallel()
	r, _, _ := whole(t)
	counter := objstoretest.NewFaulty(t, r.Store)
	if _, err := check.Run(t.Context(), with(r, counter), check.Options{ReadData: true}); err != nil {
		t.Fatal(err)
	}
	for i := range counter.Count(objstoretest.Stat) {
		ctx, cancel := context.WithCancel(t.Context())
		s := &hooked{Store: r.Store, after: i, hook: cancel}
		if report, err := check.Run(ctx, with(r, s), check.Options{ReadData: true, Workers: 1}); !errors.Is(err, context.Canceled) || len(report.Findings) != 0 {
			t.Errorf("cancelled at operation %d: %+v, %v", i, report, err)
		}
		cancel()
	}
}

// hooked calls hook at one of the calls of Stat, which work.
type hooked struct {
	objstore.Store
	after int
	hook  func()
}

func (h *hooked) Stat(ctx context.Context, key string) (objstore.Info, error) {
	if h.after == 0 {
		h.hook()
	}
	h.after--
	return h.Store.Stat(ctx, key)
}

func TestCheckNewer(t *testing.T) {
	t.Parallel()
	r, _, _ := whole(t)
	newer, err := chain.Seal(map[string]any{"format": chain.ManifestFormat, "version": 7})
	if err != nil {
		t.Fatal(err)
	}
	put(t, r.Store, chain.ManifestKey("web", "newer"), newer)
	report, err := check.Run(t.Context(), r, check.Options{})
	var tooNew *chain.NewerError
	if !errors.As(err, &tooNew) || len(report.Findings) != 0 {
		t.Errorf("%+v, %v", report, err)
	}
}

// TestCheckUnderWay: what comes and goes while the check runs is no damage.
func TestCheckUnderWay(t *testing.T) {
	t.Parallel()
	r, _, _ := whole(t)
	extra := backup(t, r, "web", "extra", diskSize, nil, piece{0, random(9, 1000)})
	ids := keys(t, r.Store, "leases/")
	gone := append(ids, chain.ManifestKey("web", extra.Checkpoint), keys(t, r.Store, "domains/web/intents/")[0])
	s := &vanishing{Store: r.Store, gone: gone}
	if got := found(t, with(r, s), check.Options{ReadData: true}); len(got) != 0 {
		t.Error(got)
	}
}

// vanishing lists objects that are gone when they are asked for.
type vanishing struct {
	objstore.Store
	gone []string
}

func (v *vanishing) Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	if slices.Contains(v.gone, key) {
		return nil, objstore.ErrNotFound
	}
	return v.Store.Get(ctx, key, offset, length)
}

// TestCheckListing: what the store does not list, and has, is told, and the check is
// not complete.
func TestCheckListing(t *testing.T) {
	t.Parallel()
	plainAndEncrypted(t, checkListing)
}

func checkListing(t *testing.T, own *chaintest.Keys) {
	r, full, _ := wholeOf(t, own)
	for name, c := range map[string]struct {
		hidden func(key string) bool
		object string
	}{
		"everything":        {func(string) bool { return true }, chain.ConfigKey},
		"the configuration": {func(key string) bool { return key == chain.ConfigKey }, chain.ConfigKey},
		"a parent":          {func(key string) bool { return key == chain.ManifestKey("web", full.Checkpoint) }, chain.ManifestKey("web", full.Checkpoint)},
	} {
		for _, o := range []check.Options{{}, {Domains: []string{"web"}}} {
			var listing *chain.ListingError
			report, err := check.Run(t.Context(), with(r, &objstoretest.Hiding{Store: r.Store, Hidden: c.hidden}), o)
			if !errors.As(err, &listing) || listing.Object != c.object || len(report.Findings) != 0 {
				t.Errorf("%s is hidden: %+v, %v", name, report, err)
			}
		}
	}
}
