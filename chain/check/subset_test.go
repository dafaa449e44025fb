// SPDX-License-Identifier: Apache-2.0

package check_test

import (
	"bytes"
	"io/fs"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/chain/chaintest"
	"github.com/imgbackup/imgbackup/chain/check"
	"github.com/imgbackup/imgbackup/objstore"
	"github.com/imgbackup/imgbackup/objstore/objstoretest"
)

func TestParseSubset(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]check.Subset{
		"5%": {Percent: 5}, "0.5%": {Percent: 0.5}, "100%": {Percent: 100}, "10G": {Bytes: 10 << 30}, "1": {Bytes: 1},
		"512K": {Bytes: 512 << 10}, "2M": {Bytes: 2 << 20}, "3T": {Bytes: 3 << 40}, "1/1": {Part: 1, Of: 1}, "7/365": {Part: 7, Of: 365},
	} {
		if got, err := check.ParseSubset(text); err != nil || got != want {
			t.Errorf("%s: %+v, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "%", "0%", "101%", "NaN%", "-1%", "G", "0", "-1", "9999999T", "0/3", "4/3", "1/", "/2", "1/99999999", "5 %", "x"} {
		if got, err := check.ParseSubset(text); err == nil {
			t.Errorf("%q: %+v", text, got)
		}
	}
}

// proofs makes a repository with many small packs, and counts what is read of them.
func proofs(t *testing.T) *chaintest.History {
	t.Helper()
	h := chaintest.NewHistory(t)
	h.Random(rand.New(rand.NewPCG(3, 4)), 12, 3<<20)
	return h
}

func run(t *testing.T, h *chaintest.History, s check.Subset) (*check.Report, int) {
	t.Helper()
	before := h.Store.Of("packs/")
	r, err := check.Run(t.Context(), h.Repo, check.Options{ReadData: true, Subset: s})
	if err != nil || len(r.Findings) > 0 {
		t.Fatalf("%+v: %+v, %v", s, r, err)
	}
	return r, h.Store.Of("packs/") - before
}

// What is proven by its bytes alone is read whole, and counts as proven where it was decoded
// before; damage is found.
func TestNoDecode(t *testing.T) {
	t.Parallel()
	h := proofs(t)
	byName := func() *check.Report {
		r, err := check.Run(t.Context(), h.Repo, check.Options{ReadData: true, NoDecode: true})
		if err != nil || !r.NoDecode || r.UnreadPacks != 0 {
			t.Fatalf("%+v, %v", r, err)
		}
		return r
	}
	before := h.Store.Of("packs/")
	first := byName()
	if len(first.Findings) > 0 || first.Proofs.Packs != 0 || h.Store.Of("packs/") == before {
		t.Fatalf("%+v", first.Proofs)
	}
	whole, _ := run(t, h, check.Subset{})
	again := byName()
	if again.Proofs.Packs != whole.Proofs.Packs || again.Proofs.Never != 0 {
		t.Errorf("%+v, not %+v", again.Proofs, whole.Proofs)
	}
	var packs []string
	for info, err := range h.Store.List(t.Context(), "packs/") {
		if err != nil {
			t.Fatal(err)
		}
		packs = append(packs, info.Key)
	}
	bad := bytes.Clone(get(t, h.Store, packs[0]))
	bad[100] ^= 1
	put(t, h.Store, packs[0], bad)
	if r := byName(); len(r.Findings) != 1 || r.Findings[0].Object != packs[0] || r.Proofs.Never != 1 {
		t.Errorf("%+v, %+v", r.Findings, r.Proofs)
	}
}

// All parts together are all, and no two have anything in common.
func TestPartsAreAll(t *testing.T) {
	t.Parallel()
	h := proofs(t)
	whole, _ := run(t, h, check.Subset{Part: 1, Of: 1})
	if whole.UnreadPacks != 0 || whole.Proofs.Never != 0 {
		t.Fatalf("%+v", whole)
	}
	if err := h.Repo.Store.Delete(t.Context(), "proofs/objects.json"); err != nil {
		t.Fatal(err)
	}
	const parts = 5
	read, most := 0, 0
	for n := 1; n <= parts; n++ {
		r, _ := run(t, h, check.Subset{Part: n, Of: parts})
		packs := whole.Proofs.Packs - r.UnreadPacks
		read, most = read+packs, max(most, packs)
		if r.Proofs.Packs != read {
			t.Errorf("after part %d, %d packs are proven, not %d", n, r.Proofs.Packs, read)
		}
	}
	if read != whole.Proofs.Packs || most == read {
		t.Errorf("the parts have %d packs, at most %d, and not %d", read, most, whole.Proofs.Packs)
	}
}

// What was proven longest ago is read first, until it is enough.
func TestOldestFirst(t *testing.T) {
	t.Parallel()
	h := proofs(t)
	var total, left int
	for i := range 100 {
		r, _ := run(t, h, check.Subset{Percent: 20})
		total = r.Proofs.Packs + r.Proofs.Never
		if i > 0 && r.Proofs.Never >= left {
			t.Fatalf("round %d: %d packs were never read, as before", i, r.Proofs.Never)
		}
		if left = r.Proofs.Never; left == 0 {
			if i < 2 || i > 5 {
				t.Errorf("all was read in %d rounds of 20%%", i+1)
			}
			break
		}
	}
	// Now the clock has gone on, and one pack was proven long ago.
	var packs []archive.Digest
	for info, err := range h.Repo.Store.List(t.Context(), archive.PackPrefix) {
		if err != nil {
			t.Fatal(err)
		}
		_, name, _ := archive.ParseKey(info.Key)
		packs = append(packs, name)
	}
	old := time.Now().Add(-100 * 24 * time.Hour).UTC().Truncate(time.Second)
	if err := h.Repo.RememberProven(t.Context(), chain.News{At: old, Proven: packs[3:4]}); err != nil {
		t.Fatal(err)
	}
	due := check.Subset{Before: time.Now().Add(-90 * 24 * time.Hour)}
	if r, _ := run(t, h, due); r.UnreadPacks != total-1 || !r.Proofs.Oldest.After(old) {
		t.Errorf("%d of %d packs were not read, the oldest proof is of %v", r.UnreadPacks, total, r.Proofs.Oldest)
	}
	// What a clock was wrong about is due as well.
	if err := h.Repo.RememberProven(t.Context(), chain.News{At: time.Now().Add(time.Hour), Proven: packs[:2]}); err != nil {
		t.Fatal(err)
	}
	if r, _ := run(t, h, due); r.UnreadPacks != total-2 {
		t.Errorf("%d of %d packs were not read", r.UnreadPacks, total)
	}
}

// Checks at the same time lose nothing of each other's.
func TestRememberTogether(t *testing.T) {
	t.Parallel()
	h := proofs(t)
	var names []archive.Digest
	for i := range 24 {
		names = append(names, archive.Sum([]byte{byte(i)}))
	}
	var wg sync.WaitGroup
	for i := range 6 {
		wg.Go(func() {
			if err := h.Repo.RememberProven(t.Context(), chain.News{At: time.Unix(int64(1e9+i), 0), Proven: names[4*i : 4*i+4]}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	p, damage, err := h.Repo.Proofs(t.Context())
	if err != nil || damage != nil {
		t.Fatal(err, damage)
	}
	for i, n := range names {
		if at, ok := p.When(n); !ok || at.Unix() != int64(1e9+i/4) {
			t.Errorf("%d: %v, %v", i, at, ok)
		}
	}
	if err := h.Repo.RememberProven(t.Context(), chain.News{At: time.Unix(2e9, 0), Bad: names[:1], Names: names[:3]}); err != nil {
		t.Fatal(err)
	}
	p, _, err = h.Repo.Proofs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for i, n := range names[:4] {
		if _, ok := p.When(n); ok != (i == 1 || i == 2) {
			t.Errorf("%d is known: %v", i, ok)
		}
	}
}

// What is damaged of it is no proof, and is replaced; what can't be stored is a note.
func TestProofsAreAHelpOnly(t *testing.T) {
	t.Parallel()
	h := proofs(t)
	run(t, h, check.Subset{})
	data, err := objstore.ReadAll(t.Context(), h.Repo.Store, "proofs/objects.json", 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	bad := slices.Clone(data)
	bad[len(bad)/2] ^= 1
	if err := h.Repo.Store.Put(t.Context(), "proofs/objects.json", bytes.NewReader(bad), objstore.PutOptions{Mode: objstore.Replace}); err != nil {
		t.Fatal(err)
	}
	r, _ := run(t, h, check.Subset{Percent: 10})
	if r.Proofs.Never == 0 || !strings.Contains(strings.Join(r.Notes, "\n"), "counts as never") {
		t.Errorf("damaged: %+v", r)
	}
	if r, _ = run(t, h, check.Subset{}); r.Proofs.Never != 0 {
		t.Errorf("replaced: %+v", r.Proofs)
	}
	readonly := objstoretest.NewFaulty(t, h.Repo.Store, objstoretest.Fault{Op: objstoretest.Put, Err: fs.ErrPermission})
	repo := *h.Repo
	repo.Store = readonly
	r, err = check.Run(t.Context(), &repo, check.Options{ReadData: true})
	if err != nil || !r.Complete || !strings.Contains(strings.Join(r.Notes, "\n"), "will not know") {
		t.Errorf("read-only: %+v, %v", r, err)
	}
}
