// SPDX-License-Identifier: Apache-2.0

package habit

import (
	"math/rand/v2"
	"testing"
	"time"

	"pgregory.net/rapid"
)

const (
	mib = 1 << 20
	gib = 1 << 30
	day = 24 * time.Hour
)

var start = time.Date(2026, 1, 1, 3, 0, 0, 0, time.UTC)

// guest is a made machine, backed up each night.
type guest struct {
	random *rand.Rand
	habit  Habit
	nights int
}

func newGuest(seed uint64) *guest {
	g := &guest{random: rand.New(rand.NewPCG(seed, 1))}
	g.night(Found{Full: true, Data: 20 * gib, New: 20 * gib, Stored: 9 * gib})
	return g
}

// night makes one more backup, and says what is unusual in it.
func (g *guest) night(f Found) []Finding {
	f.Time = start.Add(time.Duration(g.nights) * day)
	g.nights++
	all := Limits{}.Judge(g.habit, f)
	g.habit = g.habit.After(f)
	return all
}

// plain is what a night of a quiet life finds: logs and databases, now and then nothing,
// an update of the system each month, photographs, a large file once a quarter, and a full
// backup twice a year.
func (g *guest) plain() Found {
	data := int64(float64(50*mib) * (0.3 + g.random.ExpFloat64()))
	f := Found{Data: data, New: data * 9 / 10, Stored: data * 4 / 10}
	switch n := g.random.IntN(180); {
	case n == 0:
		f = Found{Full: true, Data: 20 * gib, New: data, Stored: data / 2}
	case n < 3:
		f.New += 3 * gib // a large archive that does not compress
		f.Stored += 3 * gib
	case n < 9:
		f.New += 2 * gib
		f.Stored += gib
	case n < 20:
		f.New += 200 * mib
		f.Stored += 199 * mib
	case n < 40:
		return Found{}
	}
	f.Data = max(f.Data, f.New)
	return f
}

// False alarms on quiet lives are few: counted over ten thousand nights, none.
func TestQuietLives(t *testing.T) {
	t.Parallel()
	nights, alarms := 0, 0
	for seed := range uint64(28) {
		g := newGuest(seed)
		for range 365 {
			for _, f := range g.night(g.plain()) {
				alarms++
				t.Logf("life %d, night %d: %s: %s", seed, g.nights, f.Code, f.Text)
			}
			nights++
		}
	}
	t.Logf("%d alarms in %d nights", alarms, nights)
	if alarms > 0 {
		t.Errorf("%d false alarms", alarms)
	}
}

// Where most of the disk is encrypted in one night, each life is warned, in that night.
func TestEncryptedForMoney(t *testing.T) {
	t.Parallel()
	for _, full := range []bool{false, true} {
		for seed := range uint64(50) {
			g := newGuest(seed)
			for range 30 + g.random.IntN(300) {
				g.night(g.plain())
			}
			n := int64((0.5 + 0.5*g.random.Float64()) * 20 * gib)
			f := Found{Full: full, Data: n, New: n, Stored: n + n/1000}
			if full {
				f.Data = 20 * gib
			}
			if all := g.night(f); len(all) != 1 || all[0].Code != Rewritten {
				t.Errorf("life %d, %d GiB: %v", seed, n/gib, all)
			}
		}
	}
}

func TestJudge(t *testing.T) {
	t.Parallel()
	steady := func(stored int64, nights int) *guest {
		g := newGuest(1)
		for range nights {
			g.night(Found{Data: 100 * mib, New: 100 * mib, Stored: stored})
		}
		return g
	}
	large := func(share float64) Found {
		n := int64(share * 20 * gib)
		return Found{Data: n, New: n, Stored: n}
	}
	tests := map[string]struct {
		guest *guest
		found Found
		want  string
	}{
		"most, incompressible":              {steady(40*mib, 10), large(0.5), Rewritten},
		"just enough":                       {steady(40*mib, 10), large(0.26), Rewritten},
		"not enough":                        {steady(40*mib, 10), large(0.24), ""},
		"it compresses":                     {steady(40*mib, 10), Found{Data: 10 * gib, New: 10 * gib, Stored: 8 * gib}, ""},
		"an encrypted guest, half":          {steady(100*mib, 60), large(0.55), Rewritten},
		"an encrypted guest, a third":       {steady(100*mib, 60), large(0.35), ""},
		"all that is known already":         {steady(40*mib, 10), Found{Data: 20 * gib}, ""},
		"no habit yet":                      {steady(40*mib, 1), large(0.9), ""},
		"a habit of two and the first full": {steady(40*mib, 2), large(0.9), Rewritten},
	}
	for name, tt := range tests {
		got := ""
		for _, f := range tt.guest.night(tt.found) {
			got += f.Code
		}
		if got != tt.want {
			t.Errorf("%s: %q, want %q", name, got, tt.want)
		}
	}
	often := steady(40*mib, 10)
	often.night(Found{Data: 6 * gib, New: 6 * gib, Stored: 3 * gib})
	if all := often.night(large(0.55)); len(all) > 0 {
		t.Errorf("11 GiB after 6 GiB: %v", all)
	}
}

// A disk that always changed and then does not is called out after two weeks and five
// backups; each time until it changes again. One that seldom changes is not.
func TestQuiet(t *testing.T) {
	t.Parallel()
	g := newGuest(1)
	for range 20 {
		g.night(Found{Data: mib, New: mib, Stored: mib})
	}
	for night := 1; night <= 30; night++ {
		all := g.night(Found{})
		if want := night >= 14; (len(all) == 1 && all[0].Code == Quiet) != want {
			t.Errorf("night %d: %v", night, all)
		}
	}
	for _, f := range []Found{{Zeros: true}, {Data: 512, New: 0}} {
		if all := g.night(f); len(all) > 0 {
			t.Errorf("after a change: %v", all)
		}
	}
	seldom := newGuest(1)
	for night := range 200 {
		f := Found{}
		if night%3 == 0 {
			f = Found{Data: mib, New: mib, Stored: mib}
		}
		if night > 150 {
			f = Found{}
		}
		if all := seldom.night(f); len(all) > 0 {
			t.Errorf("a disk that seldom changes, night %d: %v", night, all)
		}
	}
	// Few backups in a long time are no sign.
	rare := newGuest(1)
	for range 20 {
		rare.night(Found{Data: mib, New: mib, Stored: mib})
	}
	rare.nights += 100
	if all := rare.night(Found{}); len(all) > 0 {
		t.Errorf("one backup after 100 days: %v", all)
	}
}

// Whatever backups find, a habit stays one that can be stored and read.
func TestHabitStays(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		var h Habit
		for range rapid.IntRange(1, 200).Draw(t, "backups") {
			size := rapid.Int64Range(0, 1<<57).Draw(t, "data")
			f := Found{
				Time: start, Full: rapid.Bool().Draw(t, "full"), Data: size,
				New: rapid.Int64Range(0, size).Draw(t, "new"), Stored: rapid.Int64Range(0, size).Draw(t, "stored"), Zeros: rapid.Bool().Draw(t, "zeros"),
			}
			Limits{}.Judge(h, f)
			if h = h.After(f); h.Check() != nil {
				t.Fatalf("%+v: %v", h, h.Check())
			}
		}
	})
}

func TestCheck(t *testing.T) {
	t.Parallel()
	for _, h := range []Habit{{Backups: -1}, {Held: 1<<62 + 1}, {Backups: 3, Busy: 2, Quiet: 2}, {New: -5}} {
		if h.Check() == nil {
			t.Errorf("%+v is believed", h)
		}
	}
}
