// SPDX-License-Identifier: Apache-2.0

package lock

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/objstore"
)

// counted is a store of which only till when objects are kept matters, and how often it is asked.
type counted struct {
	objstore.Locker
	until    map[string]time.Time
	requests int
}

func (c *counted) Retained(_ context.Context, key, _ string) (time.Time, objstore.Retention, error) {
	c.requests++
	return c.until[key], objstore.Compliance, nil
}

// TestWorstNight: of 100,000 objects that are needed for months, no night asks for more than 11 %
// of their number, and each is kept for the whole period after every night, also where somebody
// claims that it was done already.
func TestWorstNight(t *testing.T) {
	t.Parallel()
	const objects, nights = 100_000, 13
	rule := &chain.ObjectLock{Mode: "compliance", Days: 30}
	start := time.Date(2026, 3, 1, 2, 0, 0, 0, time.UTC)
	store := &counted{until: make(map[string]time.Time, objects)}
	want, found := make(map[claim]wanted, objects), make(map[claim]version, objects)
	for i := range objects {
		key := fmt.Sprint("packs/", i)
		c := claim{key, 1}
		want[c], found[c] = wanted{start}, version{id: "v", stored: start, latest: true}
		store.until[key] = start.AddDate(0, 0, rule.KeptDays())
	}
	var recorded time.Time
	worst := 0
	for night := 1; night <= nights; night++ {
		k := &keeper{rule: rule, begun: start.AddDate(0, 0, night), locker: store}
		if night == 7 {
			recorded = k.begun // a lie
		}
		store.requests = 0
		if err := k.findLast(t.Context(), recorded, want, found); err != nil {
			t.Fatal(err)
		}
		recorded = k.begun
		due, missing := k.dueNow(want, found, &Result{})
		until := k.begun.AddDate(0, 0, rule.KeptDays())
		for _, o := range due {
			store.until[o.key] = until
		}
		if worst = max(worst, len(due)+store.requests); len(missing) > 0 {
			t.Fatal(missing)
		}
		least := k.begun.AddDate(0, 0, rule.Days)
		for key, until := range store.until {
			if until.Before(least) {
				t.Fatalf("night %d: %s is kept until %s", night, key, until)
			}
		}
	}
	if t.Logf("at most %d requests in a night", worst); worst > objects*11/100 || worst < objects/rule.Slices() {
		t.Errorf("%d requests in a night", worst)
	}
}
