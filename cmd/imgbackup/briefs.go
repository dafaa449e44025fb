// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"io"
	"os"
	"path/filepath"

	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/internal/sys"
)

const (
	briefsFile = "briefs.json"
	maxBriefs  = 256 << 20 // bytes that are read
)

// keptBriefs is what this machine remembers of a repository.
type keptBriefs struct {
	// Roster is the revision of the keys' roster by which the manifests were proven; 0: they are not signed.
	Roster  int                      `json:"roster"`
	Domains map[string][]chain.Brief `json:"domains"`
}

// rosterOf is the revision by which what a repository has is proven: whose signatures count may be otherwise
// by another one.
func rosterOf(repo *chain.Repository) int {
	if repo.Access == nil {
		return 0
	}
	own, ok := repo.Access.Authority.(authority)
	if !ok {
		return 0
	}
	return own.Roster.Revision
}

// knownBriefs are those that this machine remembers of the repository, by domain; what can't be
// read is nothing.
func (a *app) knownBriefs(repo *chain.Repository) map[string][]chain.Brief {
	folder, _ := a.knownFolder()
	if folder == "" {
		return nil
	}
	f, err := os.Open(filepath.Join(folder, briefsFile))
	if err != nil {
		return nil
	}
	defer func() { _ = f.Close() }() // only read
	var kept keptBriefs
	if json.NewDecoder(io.LimitReader(f, maxBriefs)).Decode(&kept) != nil || kept.Roster != rosterOf(repo) {
		return nil
	}
	return kept.Domains
}

// keepBriefs remembers what was found of domains, if it is not what is known.
func (a *app) keepBriefs(repo *chain.Repository, known map[string][]chain.Brief, found map[string]*chain.DomainBriefs) {
	folder, _ := a.knownFolder()
	news := false
	next := keptBriefs{Roster: rosterOf(repo), Domains: make(map[string][]chain.Brief)}
	for domain, briefs := range known {
		next.Domains[domain] = briefs
	}
	for domain, d := range found {
		news = news || d.Fresh > 0 || len(d.Briefs) != len(known[domain])
		next.Domains[domain] = d.Briefs
	}
	if folder == "" || !news || os.MkdirAll(folder, 0o700) != nil {
		return
	}
	// Without it all is read again the next time.
	_ = sys.WriteWhole(filepath.Join(folder, briefsFile), ".briefs-", 0o600, func(w io.Writer) error { return json.NewEncoder(w).Encode(next) })
}
