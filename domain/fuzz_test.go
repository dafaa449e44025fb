// SPDX-License-Identifier: Apache-2.0

package domain_test

import (
	"bytes"
	"testing"

	"github.com/imgbackup/imgbackup/domain"
)

// seed adds the rules' examples.
func seed(f *testing.F, file string) (plain *domain.Domain) {
	rules, plain, _ := readRules(f, file)
	n := 0
	for _, r := range rules {
		for _, text := range []string{r.accepted, r.completed, r.refused} {
			f.Add([]byte(text))
			n++
		}
	}
	if n < 60 {
		f.Fatalf("%d seeds", n)
	}
	return plain
}

func FuzzBackup(f *testing.F) {
	plain := seed(f, "backup.txtar")
	f.Fuzz(func(t *testing.T, data []byte) {
		b, err := domain.ParseBackup(data)
		if err != nil {
			return
		}
		fixedPoint(t, b.Format(), func(data []byte) ([]byte, error) {
			b, err := domain.ParseBackup(data)
			if err != nil {
				return nil, err
			}
			return b.Format(), nil
		})
		if a, err := b.Align(plain, "now"); err == nil {
			fixedPoint(t, a.Format(), func(data []byte) ([]byte, error) {
				b, err := domain.ParseBackup(data)
				if err == nil {
					b, err = b.Align(plain, "later")
				}
				if err != nil {
					return nil, err
				}
				return b.Format(), nil
			})
		}
	})
}

func FuzzCheckpoint(f *testing.F) {
	plain := seed(f, "checkpoint.txtar")
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := domain.ParseCheckpoint(data)
		if err != nil {
			return
		}
		fixedPoint(t, c.Format(), func(data []byte) ([]byte, error) {
			c, err := domain.ParseCheckpoint(data)
			if err != nil {
				return nil, err
			}
			return c.Format(), nil
		})
		if a, err := c.Align(plain, 1); err == nil && len(a.Disks) != len(plain.Disks) {
			t.Fatalf("%d disks", len(a.Disks))
		}
	})
}

// fixedPoint demands that formatting what was formatted and parsed changes
// nothing.
func fixedPoint(t *testing.T, text []byte, again func([]byte) ([]byte, error)) {
	t.Helper()
	got, err := again(text)
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	if !bytes.Equal(got, text) {
		t.Fatalf("\n%s\nbecame\n%s", text, got)
	}
}

func FuzzDomain(f *testing.F) {
	for _, text := range domainSeeds(f) {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		d, err := domain.Parse(data)
		if err != nil {
			return
		}
		seen := make(map[string]bool)
		for _, disk := range d.Disks {
			if disk.Target == "" || seen[disk.Target] {
				t.Fatalf("disk %q", disk.Target)
			}
			seen[disk.Target] = true
		}
		adjusted(t, data, d)
		c := &domain.Checkpoint{Name: "c"}
		if err := c.SetDomain(data); err != nil {
			t.Fatal(err)
		}
		fixedPoint(t, c.Format(), func(data []byte) ([]byte, error) {
			c, err := domain.ParseCheckpoint(data)
			if err != nil {
				return nil, err
			}
			return c.Format(), nil
		})
	})
}
