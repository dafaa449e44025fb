// SPDX-License-Identifier: Apache-2.0

package chain

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"sync"
	"testing"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/objstore"
	"github.com/imgbackup/imgbackup/objstore/objstoretest"
)

var errOutage = errors.New("outage")

func TestInitAndOpen(t *testing.T) {
	t.Parallel()
	s := objstore.NewMem()
	if _, err := Open(t.Context(), s); !errors.Is(err, ErrNotRepository) || !strings.Contains(err.Error(), "imgbackup init") {
		t.Errorf("open of an empty store: %v", err)
	}
	r, err := Init(t.Context(), s, InitOptions{})
	if err != nil {
		t.Fatal(err)
	}
	got, err := Open(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got.Config, r.Config) || validUUID(got.Config.ID) != nil || got.Config.ChunkSize != 1<<20 {
		t.Errorf("opened %+v, made %+v", got.Config, r.Config)
	}
	if _, err := Init(t.Context(), s, InitOptions{}); !errors.Is(err, objstore.ErrExists) || !strings.Contains(err.Error(), "already") {
		t.Errorf("second init: %v", err)
	}
	foreign := objstore.NewMem()
	put(t, foreign, "somebody/else", nil)
	if _, err := Init(t.Context(), foreign, InitOptions{}); !errors.Is(err, objstore.ErrExists) || !strings.Contains(err.Error(), "somebody/else") {
		t.Errorf("init over foreign objects: %v", err)
	}
	if _, err := Open(t.Context(), foreign); !errors.Is(err, ErrNotRepository) {
		t.Errorf("open of foreign objects: %v", err)
	}
}

func TestInitOutage(t *testing.T) {
	t.Parallel()
	for name, fault := range map[string]objstoretest.Fault{
		"list": {Op: objstoretest.List, Err: errOutage},
		"put":  {Op: objstoretest.Put, Err: errOutage},
	} {
		s := objstore.NewMem()
		if _, err := Init(t.Context(), objstoretest.NewFaulty(t, s, fault), InitOptions{}); !errors.Is(err, errOutage) {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := Open(t.Context(), s); !errors.Is(err, ErrNotRepository) {
			t.Errorf("%s left a repository: %v", name, err)
		}
	}
	s := objstoretest.NewFaulty(t, objstore.NewMem(), objstoretest.Fault{Op: objstoretest.Put, Times: 1, Lost: true, Err: errOutage})
	if _, err := Init(t.Context(), s, InitOptions{}); err != nil {
		t.Errorf("a lost answer: %v", err)
	}
	s = objstoretest.NewFaulty(t, newRepository(t).Store, objstoretest.Fault{Op: objstoretest.Get, Err: errOutage})
	if _, err := Open(t.Context(), s); !errors.Is(err, errOutage) || errors.Is(err, ErrNotRepository) || archive.IsDamage(err) {
		t.Errorf("open in an outage: %v", err)
	}
}

func TestInitRace(t *testing.T) {
	t.Parallel()
	s := objstore.NewMem()
	var wg sync.WaitGroup
	errs := make([]error, 8)
	for i := range errs {
		wg.Go(func() { _, errs[i] = Init(t.Context(), s, InitOptions{}) })
	}
	wg.Wait()
	made := 0
	for _, err := range errs {
		if err == nil {
			made++
		} else if !errors.Is(err, objstore.ErrExists) {
			t.Error(err)
		}
	}
	if made != 1 {
		t.Errorf("%d made the repository", made)
	}
}

func TestOpenRefuses(t *testing.T) {
	t.Parallel()
	r := newRepository(t)
	data := get(t, r.Store, ConfigKey)
	for bit := range len(data) * 8 {
		data[bit/8] ^= 1 << (bit % 8)
		put(t, r.Store, ConfigKey, data)
		if _, err := Open(t.Context(), r.Store); !archive.IsDamage(err) {
			t.Fatalf("bit %d flipped: %v, want damage", bit, err)
		}
		data[bit/8] ^= 1 << (bit % 8)
	}
	plain, err := unsealed(data)
	if err != nil {
		t.Fatal(err)
	}
	body := strings.TrimSuffix(string(plain), "\n}")
	for name, c := range map[string]struct {
		from, to string
		newer    bool
	}{
		"newer reader":     {`"min_reader": 1`, `"min_reader": 2, "what": "else"`, true},
		"newer version":    {`"version": 1`, `"version": 2, "what": "else"`, true},
		"requires":         {`"version": 1`, `"version": 1, "requires": ["x"]`, true},
		"encrypted":        {`"version": 1`, `"version": 1, "encryption": {"how": "well"}`, true},
		"chunks":           {`1048576`, `4194304`, false},
		"format":           {ConfigFormat, "something", false},
		"unknown field":    {`"version": 1`, `"version": 1, "what": "else"`, false},
		"id":               {r.Config.ID, strings.ToUpper(r.Config.ID), false},
		"version 0":        {`"version": 1`, `"version": 0`, false},
		"no minimal write": {`"min_writer": 1`, `"min_writer": 0`, false},
	} {
		changed := strings.Replace(body, c.from, c.to, 1)
		if changed == body {
			t.Fatalf("%s: nothing was changed", name)
		}
		put(t, r.Store, ConfigKey, reseal(changed))
		_, err := Open(t.Context(), r.Store)
		var newer *NewerError
		if errors.As(err, &newer) != c.newer || archive.IsDamage(err) == c.newer {
			t.Errorf("%s: %v", name, err)
		}
		if c.newer && !strings.Contains(err.Error(), "newer imgbackup") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestNewerWriter(t *testing.T) {
	t.Parallel()
	r := newRepository(t)
	data := get(t, r.Store, ConfigKey)
	plain, err := unsealed(data)
	if err != nil {
		t.Fatal(err)
	}
	put(t, r.Store, ConfigKey, reseal(strings.Replace(strings.TrimSuffix(string(plain), "\n}"), `"min_writer": 1`, `"min_writer": 2`, 1)))
	r, err = Open(t.Context(), r.Store)
	if err != nil {
		t.Fatal("a repository that may be read: ", err)
	}
	in, lease := testIntent("web"), testLease(t)
	for what, err := range map[string]error{
		"commit": r.Commit(t.Context(), r.sample("web", "one")), "intent": r.PutIntent(t.Context(), in), "lease": r.PutLease(t.Context(), lease),
	} {
		var newer *NewerError
		if !errors.As(err, &newer) {
			t.Errorf("%s: %v, want a NewerError", what, err)
		}
	}
}

func TestDomainsAndCheckpoints(t *testing.T) {
	t.Parallel()
	r := newRepository(t)
	for _, name := range []string{"web/b", "web/a", "web-2/x", "web.2/x", "db/1"} {
		domain, checkpoint, _ := strings.Cut(name, "/")
		commit(t, r, r.sample(domain, checkpoint))
	}
	for _, key := range []string{"domains/other/checkpoints/x.txt", "domains/other/checkpoints/.x.json", "domains/%61/checkpoints/x.json", "domains/x.json", "domains/web/checkpoints/deep/a.json"} {
		put(t, r.Store, key, nil)
	}
	domains, err := r.Domains(t.Context())
	if err != nil || strings.Join(domains, " ") != "db web web-2 web.2" {
		t.Errorf("%q, %v", domains, err)
	}
	for domain, want := range map[string]string{"web": "a b", "web-2": "x", "we": "", "none": ""} {
		names, err := r.Checkpoints(t.Context(), domain)
		if err != nil || strings.Join(names, " ") != want {
			t.Errorf("%s: %q, %v; want %q", domain, names, err, want)
		}
	}
	faulty := r.with(objstoretest.NewFaulty(t, r.Store, objstoretest.Fault{Op: objstoretest.List, Cut: 1, Err: errOutage}))
	if domains, err := faulty.Domains(t.Context()); !errors.Is(err, errOutage) {
		t.Errorf("domains in an outage: %q, %v", domains, err)
	}
	if names, err := faulty.Checkpoints(t.Context(), "web"); !errors.Is(err, errOutage) {
		t.Errorf("checkpoints in an outage: %q, %v", names, err)
	}
	if ms, _, err := faulty.Manifests(t.Context(), "web"); !errors.Is(err, errOutage) || ms != nil {
		t.Errorf("manifests in an outage: %d, %v", len(ms), err)
	}
}

func TestManifests(t *testing.T) {
	t.Parallel()
	r := newRepository(t)
	const n = 30
	for i := range n {
		m := r.sample("web", fmt.Sprintf("cp%02d", i))
		m.Sequence = int64(n - i/2) // in pairs of one sequence
		commit(t, r, m)
	}
	put(t, r.Store, ManifestKey("web", "broken"), []byte("{}"))
	newer := strings.Replace("{\n\"format\": \"FORMAT\", \"version\": 1, \"requires\": [\"x\"]", "FORMAT", ManifestFormat, 1)
	put(t, r.Store, ManifestKey("web", "newer"), reseal(newer))
	ms, unusable, err := r.Manifests(t.Context(), "web")
	if err != nil || len(ms) != n {
		t.Fatalf("%d manifests, %v", len(ms), err)
	}
	for i := 1; i < n; i++ {
		a, b := ms[i-1], ms[i]
		if a.Sequence > b.Sequence || a.Sequence == b.Sequence && a.UUID >= b.UUID {
			t.Errorf("%d/%s comes before %d/%s", a.Sequence, a.UUID, b.Sequence, b.UUID)
		}
	}
	var ne *NewerError
	if len(unusable) != 2 || !archive.IsDamage(unusable[0]) || !errors.As(unusable[1], &ne) {
		t.Errorf("unusable: %v", unusable)
	}
	if Newest(ms) != ms[n-1] || NextSequence(ms) != n+1 || Newest(nil) != nil || NextSequence(nil) != 1 {
		t.Errorf("newest %+v, next %d", Newest(ms), NextSequence(ms))
	}
	// One that is forgotten while they are read is left out; an outage is told.
	gone := r.with(objstoretest.NewFaulty(t, r.Store, objstoretest.Fault{Op: objstoretest.Get, After: 5, Times: 1, Err: objstore.ErrNotFound}))
	if ms, _, err := gone.Manifests(t.Context(), "web"); err != nil || len(ms) < n-1 {
		t.Errorf("%d manifests, %v", len(ms), err)
	}
	down := r.with(objstoretest.NewFaulty(t, r.Store, objstoretest.Fault{Op: objstoretest.Get, After: 5, Times: 1, Err: errOutage}))
	if ms, _, err := down.Manifests(t.Context(), "web"); !errors.Is(err, errOutage) || ms != nil {
		t.Errorf("%d manifests, %v", len(ms), err)
	}
}

func TestTree(t *testing.T) {
	t.Parallel()
	var ms []*Manifest
	add := func(name string, seq int64, parent *Manifest) *Manifest {
		m := &Manifest{Checkpoint: name, UUID: NewUUID(), Sequence: seq}
		if parent != nil {
			m.Parent = parent.Ref()
		}
		ms = append([]*Manifest{m}, ms...) // newest first, to be sorted
		return m
	}
	a := add("a", 1, nil)
	b := add("b", 2, a)
	add("c", 3, b)
	d := add("d", 4, a)
	add("e", 5, &Manifest{Checkpoint: "forgotten", UUID: NewUUID()})
	add("f", 6, d)
	x := add("x", 7, nil)
	y := add("y", 7, x) // not older
	x.Parent = y.Ref()
	x.UUID, y.UUID = min(x.UUID, y.UUID), max(x.UUID, y.UUID)
	x.Parent, y.Parent = y.Ref(), x.Ref()
	tree := BuildTree(ms)
	var got strings.Builder
	tree.Walk(func(n *Node, depth int) {
		fmt.Fprintf(&got, "%d%s", depth, n.Manifest.Checkpoint)
		if n.Note != "" {
			fmt.Fprintf(&got, "(%s)", n.Note)
		}
		got.WriteByte(' ')
	})
	want := "0a 1b 2c 1d 2f 0e(parent forgotten is gone) 0x(parent y is gone) 0y(parent x is not older) "
	if got.String() != want {
		t.Errorf("got  %s\nwant %s", got.String(), want)
	}
	n := tree.Find(d.UUID)
	if n == nil || n.Manifest != d || n.Parent == nil || n.Parent.Manifest != a {
		t.Errorf("found %+v", n)
	}
	if tree.Find("none") != nil {
		t.Error("found what is not there")
	}
}

// TestInitBeside: what another init has made meanwhile is not taken back with what this one began.
func TestInitBeside(t *testing.T) {
	t.Parallel()
	store := objstore.NewMem()
	const roster, files = "keys/roster/1.json", "keys/signing/alice.age"
	_, err := Init(t.Context(), store, InitOptions{Encrypt: func(ctx context.Context, s objstore.Store, _ string) (*Encryption, *Access, error) {
		put(t, s, files, []byte("mine"))
		put(t, store, roster, []byte("another's")) // arrives first
		_ = s.Put(ctx, roster, strings.NewReader("mine"), objstore.PutOptions{})
		return nil, nil, errOutage
	}})
	if !errors.Is(err, errOutage) {
		t.Error(err)
	}
	if got := get(t, store, roster); string(got) != "another's" {
		t.Errorf("%q", got)
	}
	if _, err := store.Stat(t.Context(), files); !errors.Is(err, objstore.ErrNotFound) {
		t.Errorf("what it began: %v", err)
	}
}
