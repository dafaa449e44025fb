// SPDX-License-Identifier: Apache-2.0

package newhost

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/imgbackup/imgbackup/chain"
)

// errNotYet says that a domain had no checkpoint yet.
var errNotYet = errors.New("it had no checkpoint then")

// choose finds the checkpoint of a domain. known are the uuids of all of them that can be read.
func (h *Host) choose(ctx context.Context, domain string) (m *chain.Manifest, known map[string]bool, err error) {
	ms, unusable, err := h.repo.Manifests(ctx, domain)
	if err != nil {
		return nil, nil, err
	}
	known = make(map[string]bool)
	for _, m := range ms {
		known[m.UUID] = true
	}
	if len(unusable) > 0 {
		err = errors.Join(unusable...)
		if !h.req.Options.SkipDamaged {
			return nil, known, fmt.Errorf("which of its checkpoints is meant cannot be determined (restore %s CHECKPOINT names one; --skip-damaged takes the newest that can be read): %w", domain, err)
		}
		h.req.note(domain, fmt.Sprintf("checkpoints that cannot be read are passed over: %v", err))
	}
	m, cerr := newestBefore(ms, h.req.Before)
	return m, known, cerr
}

// newestBefore is the newest checkpoint that holds data, or that of an instant: the newest that is not
// younger. Checkpoints are in their order.
func newestBefore(ms []*chain.Manifest, before time.Time) (*chain.Manifest, error) {
	var chosen *chain.Manifest
	younger := ""
	for _, m := range ms {
		switch {
		case m.Kind != chain.KindArchive:
		case before.IsZero():
			chosen = m
		case made(m, before).After(before):
			younger = m.Checkpoint
		case younger != "":
			return nil, fmt.Errorf("the times of checkpoints %s and %s contradict their order: a clock was wrong, and nobody knows which was there then; restore --checkpoint names one", younger, m.Checkpoint)
		default:
			chosen = m
		}
	}
	switch {
	case chosen != nil:
		return chosen, nil
	case younger != "":
		return nil, errNotYet
	case len(ms) > 0:
		return nil, errors.New("no checkpoint of it holds data: they were only in its images")
	}
	return nil, errors.New("no checkpoint of it can be read")
}

// made is when a checkpoint was made. Where a host's clock is not to be believed, it is when the store took
// it. To a second, if the other time is: so people read it in lists.
func made(m *chain.Manifest, other time.Time) time.Time {
	at := m.Created
	if m.Doubt() != "" {
		if at = m.Stored; m.Origin != nil {
			at = m.Origin.Stored
		}
	}
	if other.Nanosecond() == 0 {
		at = at.Truncate(time.Second)
	}
	return at
}
