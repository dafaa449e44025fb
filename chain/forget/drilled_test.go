// SPDX-License-Identifier: Apache-2.0

package forget_test

import (
	"context"
	"errors"
	"iter"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/chain/forget"
	"github.com/imgbackup/imgbackup/drill/record"
	"github.com/imgbackup/imgbackup/objstore"
	"github.com/imgbackup/imgbackup/retention"
)

// drilled stores the record of a drill of a checkpoint.
func (w *world) drilled(m *chain.Manifest, begun time.Time, v record.Verdict, leftOut ...string) {
	w.t.Helper()
	r := &record.Record{
		Run: chain.NewUUID(), RepositoryID: w.repo.Config.ID, Domain: m.Domain, Checkpoint: m.Checkpoint, CheckpointUUID: m.UUID,
		Revision: 1, Created: m.Created, LeftOut: leftOut, Begun: begun, Ended: begun, Required: []string{}, Verdict: v, Steps: []record.Step{},
	}
	r.Format, r.Version = record.Format, record.Version
	data, err := record.Seal(r)
	if err == nil {
		err = w.repo.PutDrill(w.t.Context(), &chain.DrillRecord{Domain: m.Domain, ID: r.UUID, CheckpointUUID: m.UUID, Data: data})
	}
	if err != nil {
		w.t.Fatal(err)
	}
}

// TestKeepDrilled: a checkpoint counts as drilled by the last drill that came to a verdict; one of
// some disks came to one only if it failed.
func TestKeepDrilled(t *testing.T) {
	t.Parallel()
	const passed, failed, incomplete = record.VerdictPassed, record.VerdictFailed, record.VerdictIncomplete
	type drill struct {
		verdict record.Verdict
		partial bool
	}
	for name, c := range map[string]struct {
		drills []drill
		counts bool
	}{
		"passed":                         {[]drill{{passed, false}}, true},
		"some disks passed":              {[]drill{{passed, true}}, false},
		"failed":                         {[]drill{{failed, false}}, false},
		"passed, failed":                 {[]drill{{passed, false}, {failed, false}}, false},
		"passed, some disks failed":      {[]drill{{passed, false}, {failed, true}}, false},
		"some disks failed, passed":      {[]drill{{failed, true}, {passed, false}}, true},
		"failed, some disks passed":      {[]drill{{failed, false}, {passed, true}}, false},
		"passed, some disks passed":      {[]drill{{passed, false}, {passed, true}}, true},
		"passed, incomplete":             {[]drill{{passed, false}, {incomplete, false}}, true},
		"passed, some disks incomplete":  {[]drill{{passed, false}, {incomplete, true}}, true},
		"some disks: failed, then not":   {[]drill{{passed, false}, {failed, true}, {passed, true}}, false},
		"all passed, then some, then no": {[]drill{{passed, false}, {passed, true}, {failed, false}}, false},
	} {
		w := newWorld(t)
		oldest := w.add("web/oldest", noon)
		w.drilled(oldest, noon, passed)
		tried := w.add("web/tried", noon.Add(time.Hour))
		w.add("web/newest", noon.Add(2*time.Hour))
		for i, d := range c.drills {
			var leftOut []string
			if d.partial {
				leftOut = []string{"vda"}
			}
			w.drilled(tried, noon.Add(time.Duration(i+1)*time.Minute), d.verdict, leftOut...)
		}
		p := w.make(forget.Request{Rules: retention.Rules{Last: 1, Drilled: 1}})
		goes := "tried"
		if c.counts {
			goes = "oldest"
		}
		if len(p.Refused) > 0 || len(p.Remove) != 1 || p.Remove[0].Checkpoint != goes {
			t.Errorf("%s: %v goes, %v", name, p.Remove, p.Refused)
		}
	}
}

// unlisting is a store whose listings leave out some objects, or fail.
type unlisting struct {
	objstore.Store
	hidden []string // beginnings of keys
	err    error    // nil: they are left out
	hits   int
}

func (u *unlisting) List(ctx context.Context, prefix string) iter.Seq2[objstore.Info, error] {
	if u.err != nil && slices.ContainsFunc(u.hidden, func(h string) bool { return strings.HasPrefix(prefix, h) }) {
		u.hits++
		return func(yield func(objstore.Info, error) bool) { yield(objstore.Info{}, u.err) }
	}
	return func(yield func(objstore.Info, error) bool) {
		for info, err := range u.Store.List(ctx, prefix) {
			if err == nil && slices.ContainsFunc(u.hidden, func(h string) bool { return strings.HasPrefix(info.Key, h) }) {
				u.hits++
				continue
			}
			if !yield(info, err) {
				return
			}
		}
	}
}

// TestDrilledUnlisted: a listing of records that fails, or is empty as all others are by now,
// is no reason to forget what was drilled.
func TestDrilledUnlisted(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	one := w.add("web/one", noon)
	w.add("web/two", noon.Add(time.Hour))
	w.drilled(one, noon, record.VerdictPassed)
	req := forget.Request{Domains: []string{"web"}, Rules: retention.Rules{Last: 1, Drilled: 1}}
	if p := w.make(req); len(p.Remove) != 0 {
		t.Fatalf("%v", p.Remove)
	}
	away := errors.New("away")
	for name, s := range map[string]*unlisting{
		"fails":    {hidden: []string{"drills/"}, err: away},
		"is empty": {hidden: []string{"drills/", chain.ConfigKey}},
	} {
		s.Store = w.repo.Store
		repo := &chain.Repository{Store: s, Config: w.repo.Config}
		p, err := forget.Make(t.Context(), repo, req)
		if err == nil {
			err = errors.Join(p.Refused...)
		}
		var listing *chain.ListingError
		if told := errors.Is(err, away) || errors.As(err, &listing); !told || s.hits == 0 || p != nil && len(p.Remove) > 0 {
			t.Errorf("%s: %v, %+v, %d hits", name, err, p, s.hits)
		}
	}
}
