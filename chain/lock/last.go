// SPDX-License-Identifier: Apache-2.0

package lock

import (
	"context"
	"math/rand/v2"
	"time"
)

// findLast finds when the last run was. What is recorded of it could be forged, so that less
// would be kept on. So it is believed only where the store bears it out: on each day some
// objects have their turn, and until when two of them, chosen by lot, are kept tells whether
// they had it. Where what should does not, nobody has run.
func (k *keeper) findLast(ctx context.Context, recorded time.Time, want map[claim]wanted, found map[claim]version) error {
	if recorded.Unix() <= 0 || recorded.After(k.begun) || k.o.All {
		return nil // nothing is known, a clock was wrong, or somebody lies
	}
	newest, asked := dayOf(recorded), false
	witnesses := k.witnesses(newest, want, found)
	for i := range witnesses {
		begin, keys := startOf(newest-int64(i)), witnesses[i].keys
		had, err := k.hadTurn(ctx, begin, keys, found)
		if err != nil {
			return err
		}
		if had {
			k.last, k.sure = begin, begin
			return nil
		}
		asked = asked || len(keys) > 0
	}
	if !asked {
		k.last = recorded // all is so new that nothing can testify
	}
	return nil
}

// lastLooks is on how many days a run is looked for.
const lastLooks = 14

// samples is how many objects testify for a run.
const samples = 2

func dayOf(t time.Time) int64     { return t.Unix() / 86400 }
func startOf(day int64) time.Time { return time.Unix(day*86400, 0).UTC() }

// witness are objects whose turn was on a day.
type witness struct {
	keys []claim
	of   int
}

// witnesses are those of the day newest, of that before it, and so on.
func (k *keeper) witnesses(newest int64, want map[claim]wanted, found map[claim]version) []witness {
	n := int64(k.rule.Slices())
	all := make([]witness, lastLooks)
	for c, w := range want {
		v, ok := found[c]
		if !ok {
			continue
		}
		for i := (newest - sliceOf(c.key, n) + n) % n; i < lastLooks; i += n {
			begin := startOf(newest - i)
			if !v.stored.Before(begin.Add(-day)) || !w.since.Before(begin.Add(-day)) {
				break // it had no turn then, nor before
			}
			a := &all[i]
			if a.of++; len(a.keys) < samples {
				a.keys = append(a.keys, c)
			} else if j := rand.IntN(a.of); j < samples {
				a.keys[j] = c
			}
		}
	}
	return all
}

// hadTurn reports whether objects were kept on, on the day that begins then, or later.
func (k *keeper) hadTurn(ctx context.Context, begin time.Time, keys []claim, found map[claim]version) (bool, error) {
	for _, c := range keys {
		until, _, err := k.locker.Retained(ctx, c.key, found[c].id)
		if err != nil || until.Before(begin.Add(time.Duration(k.rule.KeptDays())*day)) {
			return false, err
		}
	}
	return len(keys) > 0, nil
}
