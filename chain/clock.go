// SPDX-License-Identifier: Apache-2.0

package chain

import (
	"context"
	"fmt"
	"time"
)

// clockTrust is how far the time in a manifest that a host has signed may be from the store's.
const clockTrust = 24 * time.Hour

// Origin is what later revisions of a manifest keep of the first, which a host had signed: whose
// that was, and when the store took it.
type Origin struct {
	By     string    `json:"by"`
	Stored time.Time `json:"stored"` // UTC
}

// Doubt says why the time in a manifest is not to be believed; "": it is. A host's clock may be
// wrong, and a host that was taken may say what it likes: so as to push others out of those that
// rules keep. Where the store's time is not known nothing is said.
func (m *Manifest) Doubt() string {
	by, stored := m.By, m.Stored
	switch {
	case m.Origin != nil:
		by, stored = m.Origin.By, m.Origin.Stored
	case !m.ByHost:
		return ""
	}
	if stored.IsZero() || stored.Sub(m.Created).Abs() <= clockTrust {
		return ""
	}
	return fmt.Sprintf("%s says that it was made at %s, and the store took it at %s", by, m.Created.UTC().Format(time.RFC3339), stored.UTC().Format(time.RFC3339))
}

// StoredTimes is when the store took the manifests of a domain, by the names of checkpoints. Where
// nothing is signed nobody asks.
func (r *Repository) StoredTimes(ctx context.Context, domain string) (map[string]time.Time, error) {
	if r.authority() == nil {
		return nil, nil
	}
	all, err := r.listed(ctx, checkpointsPrefix(domain), KeyManifest)
	times := make(map[string]time.Time, len(all))
	for _, l := range all {
		times[l.Name] = l.info.Stored
	}
	return times, err
}

// FirstOrigin is what a copy, which another signs, has to keep of who had signed the first
// revision; nil: nothing.
func (m *Manifest) FirstOrigin() *Origin {
	if m.Origin != nil || !m.ByHost || m.Stored.IsZero() {
		return m.Origin
	}
	return &Origin{By: m.By, Stored: m.Stored.UTC()}
}

// keepOrigin notes in the next revision of a manifest what will not be seen any more when it
// is another's.
func (r *Repository) keepOrigin(ctx context.Context, slot *Slot, next *Manifest) error {
	was := slot.Manifest
	if next.Origin = was.Origin; was.Origin != nil || !was.ByHost {
		return nil
	}
	for info, err := range r.Store.List(ctx, slot.Key()) {
		if err != nil {
			return fmt.Errorf("find out when the store took %s: %w", slot.Key(), err)
		}
		if info.Key == slot.Key() && !info.Stored.IsZero() {
			next.Origin = &Origin{By: was.By, Stored: info.Stored.UTC()}
		}
	}
	return nil
}
