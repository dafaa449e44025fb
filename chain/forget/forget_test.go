// SPDX-License-Identifier: Apache-2.0

package forget_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/chain/forget"
	"github.com/imgbackup/imgbackup/drill/record"
	"github.com/imgbackup/imgbackup/objstore"
	"github.com/imgbackup/imgbackup/retention"
)

var noon = time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)

// world is a repository whose checkpoints are made one after the other.
type world struct {
	t    *testing.T
	repo *chain.Repository
	last map[string]*chain.Manifest // by domain
}

func newWorld(t *testing.T) *world {
	t.Helper()
	repo, err := chain.Init(t.Context(), objstore.NewMem(), chain.InitOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return &world{t: t, repo: repo, last: make(map[string]*chain.Manifest)}
}

// add makes a checkpoint as DOMAIN/NAME.
func (w *world) add(name string, created time.Time, change ...func(*chain.Manifest)) *chain.Manifest {
	w.t.Helper()
	domain, name, _ := strings.Cut(name, "/")
	last := w.last[domain]
	m := &chain.Manifest{
		Kind: chain.KindArchive, Domain: domain, Host: chain.Host{Name: "elsewhere"}, Checkpoint: name, UUID: chain.NewUUID(),
		Sequence: 1, Created: created, Locking: chain.LockingQEMU, Requested: chain.ModeAuto,
		Disks: []chain.Disk{{
			Name: "vda", Source: chain.Source{Path: "/vda", Format: "qcow2"}, Size: 1 << 30, Granularity: 65536,
			Mode: chain.ModeFull, Detection: chain.DetectionNone,
			Maps: []archive.MapRef{{Ref: archive.Ref{Name: archive.Sum([]byte(name)), Length: 9}, DirLength: 9, DirDigest: archive.Sum([]byte("d"))}},
		}},
	}
	m.Disks[0].Bitmap = chain.BitmapName(name, m.UUID)
	if last != nil {
		m.Sequence = last.Sequence + 1
		m.Disks[0].Witnesses = []chain.BitmapRecord{{
			Name: last.Disks[0].Bitmap, Granularity: 65536, Enabled: true, Object: archive.Ref{Name: archive.Sum([]byte("w")), Length: 9},
		}}
	}
	for _, f := range change {
		f(m)
	}
	if err := w.repo.Commit(w.t.Context(), m); err != nil {
		w.t.Fatal(err)
	}
	w.last[domain] = m
	return m
}

func (w *world) make(req forget.Request) *forget.Plan {
	w.t.Helper()
	p, err := w.plan(req)
	if err != nil {
		w.t.Fatal(err)
	}
	return p
}

func (w *world) plan(req forget.Request) (*forget.Plan, error) {
	if req.Domains == nil {
		req.Domains = []string{"web"}
	}
	req.Zone, req.Now = time.UTC, noon
	return forget.Make(w.t.Context(), w.repo, req)
}

func names(all []forget.Decision) string {
	var out []string
	for _, d := range all {
		out = append(out, d.Domain+"/"+d.Checkpoint)
	}
	return strings.Join(out, " ")
}

func lost(m *chain.Manifest) {
	m.Disks[0].Lost = []chain.Lost{{Offset: 0, Length: 512, Reason: "unreadable"}}
}

// TestOneDomain: what is wrong with one domain keeps only its own checkpoints.
func TestOneDomain(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for i, domain := range []string{"db", "web", "past", "future"} {
		w.add(domain+"/c1", noon.Add(-48*time.Hour))
		at := noon.Add(-time.Duration(i) * time.Hour)
		switch domain {
		case "past":
			at = noon.Add(-90 * 24 * time.Hour)
		case "future":
			at = noon.Add(90 * 24 * time.Hour)
		}
		w.add(domain+"/c2", at)
	}
	p := w.make(forget.Request{Domains: []string{"db", "future", "past", "web"}, Rules: retention.Rules{Daily: 1}})
	if names(p.Remove) != "db/c1 web/c1" || names(p.Keep) != "db/c2 web/c2" {
		t.Errorf("%s go, %s stay", names(p.Remove), names(p.Keep))
	}
	var clock *retention.ClockError
	if len(p.Refused) != 2 || !errors.As(p.Refused[1], &clock) || !strings.Contains(p.Refused[0].Error(), "domain future is forgotten: the newest checkpoint, c2,") {
		t.Errorf("refused: %v", p.Refused)
	}
	// Who asks for no time does not care.
	p = w.make(forget.Request{Domains: []string{"db", "future", "past", "web"}, Rules: retention.Rules{Last: 1}})
	if len(p.Remove) != 4 || len(p.Refused) > 0 {
		t.Errorf("%s go, %v", names(p.Remove), p.Refused)
	}
	if err := p.Run(t.Context(), w.repo, func(*chain.Manifest) {}); err != nil {
		t.Fatal(err)
	}
	domains, err := w.repo.Domains(t.Context())
	if err != nil || len(domains) != 4 {
		t.Errorf("%v, %v", domains, err)
	}
}

// TestNewestWhole: a backup that lost ranges does not take the place of the last that
// lost none.
func TestNewestWhole(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.add("web/c1", noon.Add(-5*time.Hour))
	w.add("web/c2", noon.Add(-4*time.Hour))
	w.add("web/c3", noon.Add(-3*time.Hour), lost)
	w.add("web/c4", noon.Add(-2*time.Hour), lost)
	p := w.make(forget.Request{Rules: retention.Rules{Last: 1}})
	if names(p.Keep) != "web/c2 web/c4" {
		t.Errorf("%s stay", names(p.Keep))
	}
	if p = w.make(forget.Request{Rules: retention.Rules{Last: 3}}); names(p.Keep) != "web/c2 web/c3 web/c4" || p.Keep[0].Reasons[0] != "last" {
		t.Errorf("%s stay", names(p.Keep))
	}
	if p = w.make(forget.Request{Checkpoints: []string{"c1", "c2"}}); names(p.Remove) != "web/c1 web/c2" {
		t.Errorf("%s go, which were named", names(p.Remove))
	}
}

// TestEmpty: what would leave any domain empty forgets nothing at all.
func TestEmpty(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.add("db/c1", noon, func(m *chain.Manifest) { m.Tags = []string{"a"} })
	w.add("web/c1", noon)
	req := forget.Request{Domains: []string{"db", "web"}, Rules: retention.Rules{Tags: []string{"a"}}}
	var empty *forget.EmptyError
	if _, err := w.plan(req); !errors.As(err, &empty) || empty.Domain != "web" {
		t.Errorf("%v", err)
	}
	req.AllowEmpty = true
	if p := w.make(req); names(p.Remove) != "web/c1" {
		t.Errorf("%s go", names(p.Remove))
	}
}

// TestNext: what the next backup has to build on is said where the newest goes.
func TestNext(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for i, name := range []string{"web/c1", "web/c2", "web/c3", "web/c4"} {
		w.add(name, noon.Add(time.Duration(i-9)*time.Hour))
	}
	for forgotten, want := range map[string]string{
		"c1": "", "c1 c2 c3": "", "c4": "incremental since c3, whose bitmap c4 left", "c3 c4": "reads all of it", "c1 c2 c3 c4": "a full one",
	} {
		p := w.make(forget.Request{Checkpoints: strings.Fields(forgotten)})
		if got := strings.Join(p.Notes, "; "); (want == "") != (got == "") || !strings.Contains(got, want) {
			t.Errorf("%s: %q", forgotten, got)
		}
	}
	w.add("web/c5", noon, func(m *chain.Manifest) {
		m.Disks[0].ReasonCode = "witnesses-differ" // and so it has taken the older ones out
	})
	if p := w.make(forget.Request{Checkpoints: []string{"c5"}}); !strings.Contains(strings.Join(p.Notes, ""), "reads all of it") {
		t.Errorf("%q", p.Notes)
	}
	w.add("web/c6", noon, func(m *chain.Manifest) {
		d := &m.Disks[0]
		d.Bitmap, d.Granularity, d.Witnesses = "", 0, nil
	})
	if p := w.make(forget.Request{Checkpoints: []string{"c6"}}); len(p.Notes) > 0 {
		t.Errorf("c6 added no bitmap: %q", p.Notes)
	}
}

// TestRunFails: the error names the domain, what is told of is gone, and the others are
// tried.
func TestRunFails(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, name := range []string{"db/c1", "db/c2", "web/c1", "web/c2"} {
		w.add(name, noon)
	}
	p := w.make(forget.Request{Domains: []string{"db", "web"}, Rules: retention.Rules{Last: 1}})
	failing := &noChange{Store: w.repo.Store, key: chain.ManifestKey("db", "c1")}
	repo := &chain.Repository{Store: failing, Config: w.repo.Config}
	var told []string
	err := p.Run(t.Context(), repo, func(m *chain.Manifest) { told = append(told, m.Domain+"/"+m.Checkpoint) })
	if err == nil || !strings.Contains(err.Error(), "domain db: ") || !failing.hit {
		t.Errorf("%v", err)
	}
	if !slices.Equal(told, []string{"web/c1"}) {
		t.Errorf("told of %v", told)
	}
	if _, err := w.repo.Manifest(t.Context(), "db", "c1"); err != nil {
		t.Error(err)
	}
}

// noChange is a store in which one object can't be replaced.
type noChange struct {
	objstore.Store
	key string
	hit bool
}

func (s *noChange) Put(ctx context.Context, key string, body objstore.Body, o objstore.PutOptions) error {
	if key == s.key {
		s.hit = true
		return objstore.MarkPermanent(errors.New("not now"))
	}
	return s.Store.Put(ctx, key, body, o)
}

// TestDrilledUnreadable: by a record that cannot be read, and whose name says that a drill
// passed, nobody knows whether its checkpoint stays: nothing goes. One of a drill that failed
// keeps nothing.
func TestDrilledUnreadable(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	one := w.add("web/one", noon)
	w.add("web/two", noon.Add(time.Hour))
	req := forget.Request{Rules: retention.Rules{Last: 1, Drilled: 1}}
	for _, v := range []record.Verdict{record.VerdictFailed, record.VerdictPassed} {
		n, err := record.NewName(noon, v, one.UUID)
		if err != nil {
			t.Fatal(err)
		}
		key := chain.DrillKey("web", n.UUID)
		if err := w.repo.Store.Put(t.Context(), key, strings.NewReader("torn"), objstore.PutOptions{}); err != nil {
			t.Fatal(err)
		}
		p := w.make(req)
		if v == record.VerdictFailed && (len(p.Refused) != 0 || len(p.Remove) != 1) {
			t.Errorf("%s: %v, %+v", v, p.Refused, p.Remove)
		}
		if v == record.VerdictPassed && (len(p.Refused) != 1 || !archive.IsDamage(p.Refused[0]) || len(p.Remove) != 0) {
			t.Errorf("%s: %v, %+v", v, p.Refused, p.Remove)
		}
		if err := w.repo.Store.Delete(t.Context(), key); err != nil {
			t.Fatal(err)
		}
	}
}
