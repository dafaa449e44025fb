// SPDX-License-Identifier: Apache-2.0

package prune

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/chain/chaintest"
	"github.com/imgbackup/imgbackup/chain/check"
	"github.com/imgbackup/imgbackup/chain/forget"
	"github.com/imgbackup/imgbackup/chain/repair"
	"github.com/imgbackup/imgbackup/chain/transfer"
	"github.com/imgbackup/imgbackup/internal/protocol"
	"github.com/imgbackup/imgbackup/objstore"
	"github.com/imgbackup/imgbackup/retention"
	"github.com/imgbackup/imgbackup/view"
)

// Disks of the model are some cells, each of which holds a block, or zeros.
const (
	modelCells = 4
	modelBlock = 16 << 10 // bytes; smaller ones are not deduplicated
)

// standing is a checkpoint of the model: that is all there is to it.
type standing struct {
	*chain.Manifest // as it was committed
	disk            [modelCells]int
	tags            []string
}

// modelRepository is a repository that several use, and what should stand in it.
type modelRepository struct {
	users  []*chain.Repository
	stands map[string]standing // by "domain/checkpoint"
}

// pending is a backup under way.
type pending struct {
	hold   *chain.Hold
	made   standing
	crash  func()
	broken bool
	spans  bool // damage, or a repair: what it builds on may be damaged, or was
}

// model is a repository, and another to which it is copied. Of what it holds nothing is
// damaged, or some is and then the other has all of it.
type model struct {
	*rapid.T
	ctx        context.Context
	main, twin *modelRepository
	blocks     [8][]byte
	pending    []*pending
	damaged    bool
	left       map[string]bool // what is damaged and needed by nobody, and stays till it is pruned
	names      int
	did        map[string]int
}

func newModelRepository(t *rapid.T, keys *chaintest.Keys) *modelRepository {
	store := objstore.NewMem()
	first, err := chaintest.Init(t.Context(), store, keys)
	if err != nil {
		t.Fatal(err)
	}
	r := &modelRepository{users: []*chain.Repository{first}, stands: make(map[string]standing)}
	for range 2 {
		user, err := keys.Whole(t.Context(), store)
		if err != nil {
			t.Fatal(err)
		}
		r.users = append(r.users, user)
	}
	return r
}

// TestModel: whatever is done to a repository, by several and in any order, it holds the
// checkpoints that a map would hold, and each of them restores to its bytes; or, while
// something is damaged, that is told.
func TestModel(t *testing.T) {
	t.Parallel()
	did := make(map[string]int)
	var keys *chaintest.Keys // of both repositories of the world
	world := rapid.MakeFuzz(func(t *rapid.T) {
		m := &model{T: t, main: newModelRepository(t, keys), twin: newModelRepository(t, keys), did: did, left: make(map[string]bool)}
		m.ctx = protocol.WithTest(t.Context(), &protocol.Test{
			Ended: func(run string) bool {
				return !slices.ContainsFunc(m.pending, func(p *pending) bool { return p.hold.UUID() == run })
			},
			Pause: func(context.Context) error { return errors.New("nobody would ever end this wait") },
		})
		for i := range m.blocks {
			m.blocks[i] = make([]byte, modelBlock)
			chaintest.Fill(rand.New(rand.NewPCG(uint64(i), 3)), m.blocks[i])
		}
		defer func() {
			for _, p := range m.pending {
				p.crash()
			}
		}()
		t.Repeat(map[string]func(*rapid.T){
			"":       m.verify,
			"begin":  m.begin,
			"commit": m.commit,
			"crash":  m.crash,
			"break":  m.breakLease,
			"forget": func(t *rapid.T) { m.T = t; m.forget(m.main) },
			"tag":    m.tag,
			"prune":  func(t *rapid.T) { m.T = t; m.prune(m.main) },
			"copy":   m.copy,
			"back":   m.copyBack,
			"thin":   m.thinTwin,
			"damage": m.damage,
			"repair": m.repair,
		})
		m.T = t
		m.verifyAll()
	})
	worlds := 80
	if more, err := strconv.Atoi(os.Getenv("IMGBACKUP_SOAK")); err == nil {
		worlds *= more
	}
	for seed := range worlds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			choices := make([]byte, 64<<10)
			chaintest.Fill(rand.New(rand.NewPCG(uint64(seed), 17)), choices)
			if keys = nil; seed%4 == 3 {
				keys = chaintest.NewKeys(t)
				did["encrypted"]++
			}
			world(t, choices)
		})
	}
	t.Log(did)
	for _, what := range []string{
		"full", "increment", "commit", "broken", "late", "crash", "forget", "kept", "tag", "prune", "waiting", "removed", "repacked",
		"copy", "back", "damage", "told", "repair", "again", "spanned a prune", "spanned a repair", "encrypted",
	} {
		if did[what] == 0 {
			t.Errorf("it never came to %q: %v", what, did)
		}
	}
}

// user is one of those who use a repository.
func (m *model) user(r *modelRepository) *chain.Repository {
	return r.users[rapid.IntRange(0, len(r.users)-1).Draw(m.T, "user")]
}

// one is one of what stands in a repository; without any, the step is skipped.
func (m *model) one(r *modelRepository) standing {
	if len(r.stands) == 0 {
		m.Skip()
	}
	return r.stands[rapid.SampledFrom(slices.Sorted(maps.Keys(r.stands))).Draw(m.T, "checkpoint")]
}

func key(c *chain.Manifest) string { return c.Domain + "/" + c.Checkpoint }

// must wants no error.
func (m *model) must(err error) {
	m.Helper()
	if err != nil {
		m.Fatal(err)
	}
}

// begin takes a lease and stores the data of a backup, which is committed later.
func (m *model) begin(t *rapid.T) {
	m.T = t
	if len(m.pending) == 3 {
		t.Skip()
	}
	repo := m.user(m.main)
	var base *chain.Manifest
	made := standing{}
	domain := rapid.SampledFrom([]string{"a", "b"}).Draw(t, "domain")
	if !m.damaged && len(m.main.stands) > 0 && rapid.Bool().Draw(t, "increment") {
		on := m.one(m.main)
		var err error
		base, err = repo.Manifest(m.ctx, on.Domain, on.Checkpoint)
		m.must(err)
		made.disk, domain = on.disk, on.Domain
	}
	name := m.name(domain)
	ctx, crash := context.WithCancel(m.ctx)
	hold, err := repo.HoldFor(ctx, "backup", domain, name)
	m.must(err)
	p := &pending{hold: hold, crash: crash}
	m.pending = append(m.pending, p)
	if base != nil {
		m.must(errors.Join(hold.CheckStands(m.ctx, base), hold.RelyOn(m.ctx, base)))
	}
	made.Manifest = m.store(hold.Store(), &made.disk, base)
	made.Domain, made.Checkpoint = domain, name
	p.made = made
}

// name is a new one, or one that was forgotten.
func (m *model) name(domain string) string {
	n := rapid.IntRange(0, m.names).Draw(m.T, "name")
	name := fmt.Sprintf("c%d", n)
	_, here := m.main.stands[domain+"/"+name]
	_, there := m.twin.stands[domain+"/"+name]
	taken := here || there || slices.ContainsFunc(m.pending, func(p *pending) bool { return key(p.made.Manifest) == domain+"/"+name })
	if !taken {
		m.did["again"]++
		return name
	}
	m.names++
	return fmt.Sprintf("c%d", m.names)
}

// store changes some cells of a disk, or all, and stores it; it returns the manifest.
func (m *model) store(to objstore.Store, disk *[modelCells]int, base *chain.Manifest) *chain.Manifest {
	ctx := m.ctx
	w, err := archive.NewWriter(ctx, to, archive.WriterOptions{Workers: 1, PackSize: 64 << 10, Level: archive.LevelNone})
	m.must(err)
	defer w.Abort()
	size := int64(modelCells * modelBlock)
	d := w.NewMap("vda", size, base == nil)
	for i := range disk {
		if base != nil && rapid.Bool().Draw(m.T, "unchanged") {
			continue
		}
		disk[i] = rapid.IntRange(-1, len(m.blocks)-1).Draw(m.T, "block")
		at := int64(i) * modelBlock
		switch block := disk[i]; {
		case block >= 0:
			m.must(d.Add(ctx, at, modelBlock, func(context.Context, []byte) ([]archive.Piece, error) {
				return []archive.Piece{{Offset: at, Length: modelBlock, Data: m.blocks[block]}}, nil
			}))
		case base != nil:
			m.must(d.Zero(at, modelBlock))
		}
	}
	refs, _, err := w.Finish(ctx)
	m.must(err)
	man := &chain.Manifest{
		Kind: chain.KindArchive, Host: chain.Host{Name: "h"}, UUID: chain.NewUUID(), Sequence: 1,
		Created: time.Unix(1e9, 0).UTC(), Locking: chain.LockingQEMU, Requested: chain.ModeAuto,
		Disks: []chain.Disk{{
			Name: "vda", Size: size, Source: chain.Source{Path: "/vm/a.raw", Format: "raw"}, Requested: chain.ModeAuto,
			Mode: chain.ModeFull, Detection: chain.DetectionNone, NoBitmapReason: "raw", Maps: refs,
		}},
	}
	m.did["full"]++
	if base != nil {
		m.did["full"]--
		m.did["increment"]++
		disk := &man.Disks[0]
		disk.Mode, disk.Detection, disk.IncrementalFrom = chain.ModeIncremental, chain.DetectionContent, base.Ref()
		disk.Maps = append(disk.Maps, base.Disks[0].Maps...)
		man.Parent, man.Sequence = base.Ref(), base.Sequence+1
	}
	return man
}

// commit ends a backup.
func (m *model) commit(t *rapid.T) {
	m.T = t
	if len(m.pending) == 0 {
		t.Skip()
	}
	m.commitOne(rapid.IntRange(0, len(m.pending)-1).Draw(t, "pending"))
}

func (m *model) commitOne(i int) {
	p := m.pending[i]
	err := p.hold.Commit(m.ctx, p.made.Manifest)
	switch {
	case p.broken:
		m.did["late"]++
		if err == nil {
			m.Fatalf("%s was committed under a lease that was broken", key(p.made.Manifest))
		}
	case p.spans && archive.IsDamage(err):
		m.did["refused"]++ // a map of its base is gone
	default:
		m.must(err)
		m.did["commit"]++
		m.main.stands[key(p.made.Manifest)] = p.made
	}
	m.must(p.hold.Release(m.ctx))
	p.crash()
	m.pending = slices.Delete(m.pending, i, i+1)
	if p.spans && !m.damaged {
		m.spanned()
	}
}

// spanned: a backup that was begun before a repair has been committed after it. It may name
// what that repair has given up: that is told, and the next repair mends it.
func (m *model) spanned() {
	m.did["spanned a repair"]++
	report, err := check.Run(m.ctx, m.user(m.main), check.Options{ReadData: true, Workers: 1})
	m.must(err)
	if slices.ContainsFunc(report.Findings, func(f check.Finding) bool { return len(f.Details) > 0 }) {
		m.did["repaired again"]++
		m.damaged = true
		m.repairAll()
	}
}

// breakLease takes a writer for dead that is not.
func (m *model) breakLease(t *rapid.T) {
	m.T = t
	if len(m.pending) == 0 {
		t.Skip()
	}
	p := m.pending[rapid.IntRange(0, len(m.pending)-1).Draw(t, "pending")]
	repo := m.user(m.main)
	leases, _, err := repo.Leases(m.ctx)
	m.must(err)
	for _, l := range leases {
		if l.UUID == p.hold.UUID() {
			m.must(repo.BreakLease(m.ctx, l))
			p.broken = true
			m.did["broken"]++
		}
	}
}

// crash ends a writer without a word: its lease stays.
func (m *model) crash(t *rapid.T) {
	m.T = t
	if len(m.pending) == 0 {
		t.Skip()
	}
	i := rapid.IntRange(0, len(m.pending)-1).Draw(t, "pending")
	m.pending[i].crash()
	m.pending = slices.Delete(m.pending, i, i+1)
	m.did["crash"]++
}

func (m *model) forget(r *modelRepository) {
	c := m.one(r)
	repo := m.user(r)
	plan, err := forget.Make(m.ctx, repo, forget.Request{Domains: []string{c.Domain}, Checkpoints: []string{c.Checkpoint}})
	if slices.Contains(c.tags, retention.KeepTag) {
		if err == nil {
			m.Fatalf("%s has the tag keep, and would be forgotten", key(c.Manifest))
		}
		m.did["kept"]++
		return
	}
	m.must(err)
	m.must(plan.Run(m.ctx, repo, func(*chain.Manifest) {}))
	delete(r.stands, key(c.Manifest))
	m.did["forget"]++
}

func (m *model) tag(t *rapid.T) {
	m.T = t
	c := m.one(m.main)
	tag := rapid.SampledFrom([]string{retention.KeepTag, "x", "y"}).Draw(t, "tag")
	var add, remove []string
	if has := slices.Contains(c.tags, tag); has {
		remove = []string{tag}
		c.tags = slices.DeleteFunc(slices.Clone(c.tags), func(s string) bool { return s == tag })
	} else {
		add = []string{tag}
		c.tags = append(slices.Clone(c.tags), tag)
	}
	_, err := m.user(m.main).Retag(m.ctx, c.Domain, c.Checkpoint, add, remove)
	m.must(err)
	slices.Sort(c.tags)
	m.main.stands[key(c.Manifest)] = c
	m.did["tag"]++
}

func (m *model) prune(r *modelRepository) {
	result, err := Run(m.ctx, m.user(r), Options{packSize: 64 << 10, retry: time.Microsecond})
	if err != nil && (!m.damaged || !archive.IsDamage(err)) {
		m.Fatal(err)
	}
	m.did["prune"]++
	if r == m.main && len(m.pending) > 0 {
		m.did["spanned a prune"]++
	}
	if len(result.Waiting) > 0 {
		m.did["waiting"]++
	}
	if result.Removed.Total().Objects+result.Resumed.Total().Objects > 0 {
		m.did["removed"]++
	}
	if result.Repack.Moves > 0 {
		m.did["repacked"]++
	}
}

// copy copies all to the other repository.
func (m *model) copy(t *rapid.T) {
	m.T = t
	if m.damaged {
		t.Skip()
	}
	m.copyAll()
}

func (m *model) copyAll() {
	_, err := transfer.Copy(m.ctx, m.user(m.main), m.user(m.twin), transfer.Options{})
	m.must(err)
	for _, c := range m.main.stands {
		m.twin.copied(c)
	}
	m.did["copy"]++
}

// copied notes that a checkpoint was copied there: tags are added, and none is removed.
func (r *modelRepository) copied(c standing) {
	if there, ok := r.stands[key(c.Manifest)]; ok {
		c.tags = slices.Compact(slices.Sorted(slices.Values(slices.Concat(c.tags, there.tags))))
	}
	r.stands[key(c.Manifest)] = c
}

// copyBack brings a checkpoint back, which may have been forgotten.
func (m *model) copyBack(t *rapid.T) {
	m.T = t
	if m.damaged {
		t.Skip()
	}
	c := m.one(m.twin)
	o := transfer.Options{Domains: []string{c.Domain}, Checkpoints: []string{c.Checkpoint}}
	_, err := transfer.Copy(m.ctx, m.user(m.twin), m.user(m.main), o)
	m.must(err)
	if _, ok := m.main.stands[key(c.Manifest)]; !ok {
		m.did["back"]++
	}
	m.main.copied(c)
}

// thinTwin forgets and prunes in the other repository.
func (m *model) thinTwin(t *rapid.T) {
	m.T = t
	if m.damaged || m.spans() { // then it may be needed to mend what they commit
		t.Skip()
	}
	m.forget(m.twin)
	m.prune(m.twin)
}

// spans reports whether some backup spans damage, or a repair.
func (m *model) spans() bool {
	return slices.ContainsFunc(m.pending, func(p *pending) bool { return p.spans })
}

// spanAll notes that all backups which are under way do.
func (m *model) spanAll() {
	for _, p := range m.pending {
		p.spans = true
	}
}

// damage damages what checkpoints that stand need, all of which the other repository has.
func (m *model) damage(t *rapid.T) {
	m.T = t
	if m.damaged {
		t.Skip()
	}
	if m.spans() {
		t.Skip() // the other repository may not have what they have stored
	}
	m.copyAll()
	m.damaged = true
	m.spanAll()
	needed := make(map[string]bool)
	for _, c := range m.main.stands {
		now, err := m.main.users[0].Manifest(m.ctx, c.Domain, c.Checkpoint)
		m.must(err)
		objects, err := m.main.users[0].Needs(m.ctx, now, nil)
		m.must(err)
		for _, o := range objects {
			needed[o.Key] = true
		}
	}
	isData := func(key string) bool {
		return chain.ParseKey(key).Kind == chain.KeyData && (len(m.pending) == 0 || needed[key])
	}
	r := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "damage"), 5))
	for range 1 + r.IntN(3) {
		chaintest.Harm(t, m.main.users[0].Store, r, isData, isData)
	}
	m.did["damage"]++
}

func (m *model) repair(t *rapid.T) {
	m.T = t
	if !m.damaged {
		t.Skip()
	}
	m.repairAll()
}

// repairAll repairs, unless a prune has its mark there, which waits for backups.
func (m *model) repairAll() {
	plan, err := m.repairOnce()
	if errors.As(err, new(*chain.MarkStandsError)) { // of a prune that waited for writers
		m.prune(m.main)
		plan, err = m.repairOnce()
		m.did["pruned first"]++
	}
	if errors.As(err, new(*chain.MarkStandsError)) && len(m.pending) > 0 {
		m.did["repair refused"]++
		return
	}
	m.must(err)
	m.spanAll()
	for _, a := range plan.Actions {
		if a.Do == repair.Leave && !strings.HasPrefix(a.Why, "no checkpoint needs it") {
			m.Fatalf("%+v", a)
		}
		if a.Do == repair.Leave {
			m.left[a.Object] = true
		}
	}
	if len(plan.Lost) > 0 {
		// A map that the other has not, since one of them has repacked: of the same
		// checkpoint it has another, which the next repair takes.
		plan, err = m.repairOnce()
		m.must(err)
		m.did["regained"]++
	}
	if len(plan.Lost) > 0 {
		m.Fatalf("the other repository has it: %+v", plan.Lost)
	}
	m.damaged = false
	m.compare("repaired", m.main, nil)
	m.prune(m.main) // of what nobody needs
	m.did["repair"]++
}

func (m *model) repairOnce() (*repair.Plan, error) {
	plan, err := repair.Make(m.ctx, m.user(m.main), repair.Options{From: []repair.Source{{Name: "twin", Repo: m.user(m.twin)}}})
	if err != nil {
		return nil, err
	}
	_, err = plan.Execute(m.ctx)
	return plan, err
}

// verify compares the repositories with the model; now and then they are read.
func (m *model) verify(t *rapid.T) {
	m.T = t
	if m.did["steps"]++; m.did["steps"]%8 == 0 {
		m.verifyAll()
		return
	}
	m.stand("main", m.main)
	m.stand("twin", m.twin)
}

func (m *model) verifyAll() {
	told := m.check("main", m.main)
	if len(told) > 0 && !m.damaged {
		m.Fatalf("it is told to be damaged: %v", told)
	}
	m.compare("main", m.main, told)
	m.check("twin", m.twin)
	m.compare("twin", m.twin, nil)
}

// check returns the checkpoints that are told to be damaged.
func (m *model) check(what string, r *modelRepository) map[string]bool {
	repo := m.user(r)
	report, err := check.Run(m.ctx, repo, check.Options{ReadData: true, Workers: 1})
	m.must(err)
	told := make(map[string]bool)
	for _, f := range report.Findings {
		for _, a := range f.Details {
			told[a.Domain+"/"+a.Checkpoint] = true
		}
		left := r == m.main && m.left[f.Object] && len(f.Details) == 0 // and a prune waits for backups
		if !left && (!m.damaged || r == m.twin) {
			m.Fatalf("%s: %+v", what, report.Findings)
		}
	}
	return told
}

// stand wants the checkpoints to stand that do in the model, and nothing to be missing that
// they need. It returns them.
func (m *model) stand(what string, r *modelRepository) map[string]*chain.Manifest {
	repo := m.user(r)
	found := make(map[string]*chain.Manifest)
	for _, domain := range []string{"a", "b"} {
		ms, unusable, err := repo.Manifests(m.ctx, domain)
		if err != nil && !errors.As(err, new(*chain.NoDomainError)) || len(unusable) > 0 {
			m.Fatalf("%s: %v, %v", what, err, unusable)
		}
		for _, c := range ms {
			found[key(c)] = c
			if _, ok := r.stands[key(c)]; !ok {
				m.Fatalf("%s: %s was forgotten, and stands", what, key(c))
			}
		}
	}
	for k, want := range r.stands {
		c := found[k]
		if c == nil || c.UUID != want.UUID || !slices.Equal(c.Tags, want.tags) {
			m.Fatalf("%s: of %s stands %+v, want %+v", what, k, c, want)
		}
		if m.damaged && r == m.main {
			continue
		}
		objects, err := repo.Needs(m.ctx, c, nil)
		m.must(err)
		for _, o := range objects {
			if stands, err := archive.Stands(m.ctx, repo.Store, o.Key, o.Ref.Length); err != nil || !stands {
				m.Fatalf("%s: %s lacks %s: %v", what, k, o.Key, err)
			}
		}
	}
	return found
}

// compare wants them to read as they should, too, but for those that are told to be damaged.
func (m *model) compare(what string, r *modelRepository, told map[string]bool) {
	reader := view.NewReader(m.ctx, m.user(r), view.Options{NoAhead: true})
	defer reader.Close()
	for k, c := range m.stand(what, r) {
		want := r.stands[k]
		got, err := m.read(reader, c)
		switch {
		case err == nil && bytes.Equal(got, m.content(&want.disk)):
		case err == nil || !archive.IsDamage(err) || !told[k]:
			m.Fatalf("%s: %s reads otherwise, or a check does not say that it can't be read: %v, %v", what, k, err, told)
		default:
			m.did["told"]++
		}
	}
}

// read reads a checkpoint as a restore does.
func (m *model) read(reader *view.Reader, c *chain.Manifest) ([]byte, error) {
	d, err := reader.Open(m.ctx, &c.Disks[0])
	if err != nil {
		return nil, err
	}
	got := make([]byte, d.Size())
	return got, d.ReadAt(m.ctx, got, 0)
}

func (m *model) content(disk *[modelCells]int) []byte {
	out := make([]byte, modelCells*modelBlock)
	for i, b := range disk {
		if b >= 0 {
			copy(out[i*modelBlock:], m.blocks[b])
		}
	}
	return out
}
