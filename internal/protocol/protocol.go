// SPDX-License-Identifier: Apache-2.0

// Package protocol lets tests take rules away from the protocol by which pruning goes
// on beside everything else, and the clock: only so they can show that they would see
// it if a rule were missing. What is not a test never sets any of it.
package protocol

import (
	"context"
	"time"
)

// Rule is one rule of the protocol; docs/design.md says what each is for.
type Rule int

// The rules. Each of them is kept unless a test says otherwise.
const (
	Wait    Rule = iota // a pruner waits for the leases that it lists after its mark stands
	Second              // and reads the manifests again after that
	Order               // the mark stands before the leases are listed
	Lease               // a writer takes its lease before it reads the mark
	Heed                // a writer counts marked objects as absent, and strikes what it needs
	Swap                // the mark is only replaced conditionally
	Spend               // who breaks a lease spends the commits that it announces
	Scar                // a name that was spent is never again as it was before
	Renew               // a lease announces its next commit by a conditional replace
	Fence               // a pruner whose mark was taken over deletes nothing more
	Bases               // a writer sees that what it builds on stands once its lease does
	Strikes             // a pruner looks for what hosts have struck after its mark deletes
	Look                // a host looks at the mark again after it has struck beside it
	Rotate              // a writer looks, once its lease stands, whether keys are rotated, or were
	Late                // what was sent twice is seen to, since the first of the two may arrive late
)

// Rules are all of them.
func Rules() []Rule {
	var all []Rule
	for r := Wait; r <= Late; r++ {
		all = append(all, r)
	}
	return all
}

func (r Rule) String() string {
	return [...]string{"wait", "second", "order", "lease", "heed", "swap", "spend", "scar", "renew", "fence", "bases", "strikes", "look", "rotate", "late"}[r]
}

type key struct{}

// Test is what a test changes.
type Test struct {
	Without map[Rule]bool
	// Ended, if not nil, says which runs (by the uuid of their lease or mark) have ended,
	// instead of the system.
	Ended func(run string) bool
	// Pause, if not nil, is what waiting is, instead of time.
	Pause func(ctx context.Context) error
	// Boot, if not nil, is the clock of the machine that looks: the id of its boot, and how
	// long ago that was.
	Boot func() (id string, since time.Duration)
}

// WithTest returns a context in which the protocol is as the test says.
func WithTest(ctx context.Context, t *Test) context.Context { return context.WithValue(ctx, key{}, t) }

func test(ctx context.Context) *Test {
	t, _ := ctx.Value(key{}).(*Test)
	return t
}

// Keeps reports whether a rule is kept: always, but in its test.
func Keeps(ctx context.Context, r Rule) bool {
	t := test(ctx)
	return t == nil || !t.Without[r]
}

// Ended reports whether a run has ended, as far as a test says; else system does.
func Ended(ctx context.Context, run string, system func() bool) bool {
	if t := test(ctx); t != nil && t.Ended != nil {
		return t.Ended(run)
	}
	return system()
}

// Boot is the clock by which is told for how long something did not change; system is the
// system's.
func Boot(ctx context.Context, system func() (id string, since time.Duration, err error)) (string, time.Duration, error) {
	if t := test(ctx); t != nil && t.Boot != nil {
		id, since := t.Boot()
		return id, since, nil
	}
	return system()
}

// Pause waits before something is looked at again.
func Pause(ctx context.Context, d time.Duration) error {
	if t := test(ctx); t != nil && t.Pause != nil {
		return t.Pause(ctx)
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
