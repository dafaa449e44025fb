// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"time"

	"github.com/imgbackup/imgbackup/chain"
)

// revisionJSON is a version of a checkpoint as list --revisions --json shows it.
type revisionJSON struct {
	Domain     string    `json:"domain"`
	Checkpoint string    `json:"checkpoint"`
	Version    string    `json:"version"` // the store's ID
	Stored     time.Time `json:"stored"`  // by the store's clock
	State      string    `json:"state"`
	OnTop      bool      `json:"on_top"`
	UUID       string    `json:"uuid,omitempty"`
	Revision   int       `json:"revision,omitempty"`
	Created    time.Time `json:"created,omitzero"`
	Signer     string    `json:"signer,omitempty"`
	Error      string    `json:"error,omitempty"`
}

// What a version of a checkpoint is.
const (
	revisionCounts  = "counts"  // it is what the checkpoint is
	revisionEarlier = "earlier" // it proves itself, and another counts, or none
	revisionRemoved = "removed" // a marker, or a void: from here on there was no checkpoint
	revisionDamaged = "damaged" // it does not prove itself
)

func viewRevision(v *chain.Revision) revisionJSON {
	j := revisionJSON{
		Domain: v.Domain, Checkpoint: v.Checkpoint, Version: v.ID, Stored: v.Stored, OnTop: v.Latest, Signer: v.Signer, State: revisionRemoved,
	}
	switch {
	case v.Err != nil:
		j.State, j.Error = revisionDamaged, v.Err.Error()
	case v.Manifest == nil:
	case v.Counts:
		j.State = revisionCounts
	default:
		j.State = revisionEarlier
	}
	if m := v.Manifest; m != nil {
		j.UUID, j.Revision, j.Created = m.UUID, m.Revision, m.Created
	}
	return j
}

func (a *app) listRevisions(ctx context.Context, repo *chain.Repository, domain string) error {
	revisions, err := repo.Revisions(ctx, domain, "")
	if err != nil {
		return err
	}
	if len(revisions) == 0 {
		return noDomain(ctx, repo, domain)
	}
	all := []revisionJSON{}
	t := &table{out: a.out}
	t.row("CHECKPOINT", "VERSION", "STORED", "STATE", "REVISION", "SIGNED BY")
	for i := range revisions {
		v := viewRevision(&revisions[i])
		all = append(all, v)
		revision, state := "", v.State
		if v.Revision > 0 {
			revision = fmt.Sprint(v.Revision)
		}
		if v.OnTop && v.State != revisionCounts || !v.OnTop && v.State == revisionCounts {
			state += map[bool]string{true: ", on top", false: ", below"}[v.OnTop]
		}
		t.row(v.Checkpoint, v.Version, shortTime(v.Stored), state, revision, v.Signer)
	}
	if a.json {
		return a.printJSON(map[string]any{"revisions": all})
	}
	return t.print()
}
