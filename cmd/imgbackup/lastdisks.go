// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"

	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/request"
)

// ofDomain is a request that may name a domain and nothing else.
type ofDomain interface {
	NamesNone() bool
	Take(*request.Last)
}

// takeLast finds the disks of a request that names none, and notes which they are. A
// repository that is not named is not asked.
func (a *app) takeLast(ctx context.Context, r ofDomain, domain string) (err error) {
	if !r.NamesNone() {
		return nil
	}
	var repo *chain.Repository
	if a.place() != "" {
		if repo, err = a.openCached(ctx); err != nil {
			return err
		}
	}
	last, err := request.FindLast(ctx, repo, domain, cmp.Or(a.definitions, request.DefinitionsDir))
	if err != nil {
		return err
	}
	a.noteAll(last.Notes)
	r.Take(last)
	return nil
}
