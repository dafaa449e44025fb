// SPDX-License-Identifier: Apache-2.0

package check

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/objstore"
)

// Subset is a part of the data that is read. At most one of its fields is set; of the zero
// value it is all.
type Subset struct {
	Percent float64 // of the bytes: what was proven longest ago
	Bytes   int64   // likewise
	Part    int     // from 1 to Of: a fixed part, by digest; all parts together are all
	Of      int
	Before  time.Time // what was not proven since
}

// maxParts bounds Subset.Of.
const maxParts = 1 << 16

// ParseSubset reads 5%, 10G or N/M.
func ParseSubset(s string) (Subset, error) {
	bad := fmt.Errorf("%.40q: want a part as 5%%, an amount as 10G, or N/M as 3/365", s)
	if number, ok := strings.CutSuffix(s, "%"); ok {
		p, err := strconv.ParseFloat(number, 64)
		if err != nil || !(p > 0 && p <= 100) {
			return Subset{}, bad
		}
		return Subset{Percent: p}, nil
	}
	if part, of, ok := strings.Cut(s, "/"); ok {
		n, err := strconv.Atoi(part)
		m, merr := strconv.Atoi(of)
		if err != nil || merr != nil || n < 1 || m < n || m > maxParts {
			return Subset{}, bad
		}
		return Subset{Part: n, Of: m}, nil
	}
	number, shift := s, 0
	for i, unit := range []string{"K", "M", "G", "T"} {
		if without, ok := strings.CutSuffix(s, unit); ok {
			number, shift = without, 10*(i+1)
		}
	}
	n, err := strconv.ParseInt(number, 10, 64)
	if err != nil || n < 1 || n > math.MaxInt64>>shift {
		return Subset{}, bad
	}
	return Subset{Bytes: n << shift}, nil
}

// all reports whether nothing is left out.
func (s *Subset) all() bool { return *s == Subset{} }

// datum is an object whose bytes are read, and not only its length.
type datum struct {
	ref   archive.Ref
	loose *objstore.Info // nil: a pack that a checkpoint needs
}

func (d *datum) key() string {
	if d.loose != nil {
		return d.loose.Key
	}
	return archive.PackKey(d.ref.Name)
}

// data are all of them, in the order of their names.
func (c *check) data() []datum {
	all := make([]datum, 0, len(c.packs)+len(c.loose))
	for ref := range c.packs {
		all = append(all, datum{ref: ref})
	}
	for i := range c.loose {
		_, name, _ := archive.ParseKey(c.loose[i].Key)
		all = append(all, datum{ref: archive.Ref{Name: name, Length: c.loose[i].Size}, loose: &c.loose[i]})
	}
	slices.SortFunc(all, func(a, b datum) int {
		return cmp.Or(bytes.Compare(a.ref.Name[:], b.ref.Name[:]), cmp.Compare(a.key(), b.key()))
	})
	return all
}

// choose are those of the data that are to be read, in the order of their names.
func (c *check) choose(all []datum) []datum {
	s := &c.o.Subset
	switch {
	case s.all():
		return all
	case s.Of > 0:
		return slices.DeleteFunc(all, func(d datum) bool {
			return binary.BigEndian.Uint64(d.ref.Name[:])%uint64(s.Of) != uint64(s.Part-1)
		})
	case !s.Before.IsZero():
		return slices.DeleteFunc(all, func(d datum) bool { return c.provenAt(d.ref.Name) >= s.Before.Unix() })
	}
	var total int64
	for i := range all {
		total += all[i].ref.Length
	}
	want := s.Bytes
	if s.Percent > 0 {
		want = int64(math.Ceil(float64(total) * s.Percent / 100))
	}
	// What was proven longest ago comes first, and what never was before it.
	byAge := slices.Clone(all)
	slices.SortStableFunc(byAge, func(a, b datum) int {
		return cmp.Compare(c.provenAt(a.ref.Name), c.provenAt(b.ref.Name))
	})
	chosen := make(map[string]bool)
	for i := range byAge {
		if want <= 0 {
			break
		}
		chosen[byAge[i].key()] = true
		want -= byAge[i].ref.Length
	}
	return slices.DeleteFunc(all, func(d datum) bool { return !chosen[d.key()] })
}

// provenAt is when an object was last proven, in seconds since 1970; 0: never, or in a
// future that a clock was wrong about.
func (c *check) provenAt(name archive.Digest) int64 {
	at, ok := c.proofs.When(name)
	if !ok || at.After(c.begun) {
		return 0
	}
	return at.Unix()
}

// loadProofs reads what was proven when, if there is anything.
func (c *check) loadProofs(ctx context.Context) error {
	p, damage, err := c.repo.Proofs(ctx)
	if err != nil {
		return err
	}
	c.proofs = p
	if damage != nil {
		c.note("what was proven when is not known, and counts as never: %v", damage)
	}
	return nil
}

// remember keeps what has been proven for later checks, also when this one was cut short. It
// is no failure if it can't.
func (c *check) remember(ctx context.Context) {
	if len(c.proven)+len(c.unsound) == 0 {
		return
	}
	ctx, cancel := chain.Tidying(ctx)
	defer cancel()
	var names []archive.Digest
	if c.all() {
		names = make([]archive.Digest, 0, len(c.listed))
		for i := range c.listed {
			names = append(names, c.listed[i].name)
		}
	}
	err := c.repo.RememberProven(ctx, chain.News{At: c.begun, Proven: c.proven, Bad: c.unsound, Names: names})
	if err != nil {
		c.note("later checks will not know what was proven now: %v", err)
	}
}

// Proofs says when the data that checkpoints need was last read and proven.
type Proofs struct {
	Packs  int        `json:"packs"` // that were, at any time
	Bytes  int64      `json:"bytes"`
	Oldest *time.Time `json:"oldest,omitempty"` // when the one that was proven longest ago was
	Never  int        `json:"never"`            // packs that never were
	Unread int64      `json:"never_bytes"`
}

// sumProofs fills in the report's summary.
func (c *check) sumProofs() {
	now := make(map[archive.Digest]bool, len(c.proven))
	for _, d := range c.proven {
		now[d] = true
	}
	var s Proofs
	var oldest int64 = math.MaxInt64
	for ref := range c.packs {
		at := c.provenAt(ref.Name)
		if now[ref.Name] {
			at = c.begun.Unix()
		}
		if at == 0 || c.damagedKey(archive.PackKey(ref.Name)) {
			s.Never++
			s.Unread += ref.Length
			continue
		}
		s.Packs++
		s.Bytes += ref.Length
		oldest = min(oldest, at)
	}
	if s.Packs > 0 {
		at := time.Unix(oldest, 0).UTC()
		s.Oldest = &at
	}
	c.report.Proofs = &s
}
