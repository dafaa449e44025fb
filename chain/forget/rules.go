// SPDX-License-Identifier: Apache-2.0

package forget

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/retention"
)

// ahead is how far the newest checkpoint's time may be in the future by this machine's
// clock: one of two clocks is wrong then, and nobody knows which.
const ahead = 24 * time.Hour

// byRules applies the rules to a domain's archives. A checkpoint without data is no
// backup: it takes no archive's place, and goes by its name only.
func (req *Request) byRules(ctx context.Context, repo *chain.Repository, h chain.History, domain string) ([]Decision, error) {
	if len(h.Unusable) > 0 {
		return nil, fmt.Errorf("not all of its checkpoints can be read, so that nobody knows what is the newest of a day: %w",
			errors.Join(h.Unusable...))
	}
	var archives []retention.Checkpoint
	for _, m := range h.Manifests {
		if m.Kind == chain.KindArchive {
			archives = append(archives, retention.Checkpoint{Name: m.Checkpoint, Time: m.Created, Tags: m.Tags})
		}
	}
	if err := req.checkFuture(archives); err != nil {
		return nil, err
	}
	if req.Rules.Drilled != 0 {
		if err := noteDrilled(ctx, repo, domain, h.Manifests, archives, req.Rules.Drilled); err != nil {
			return nil, err
		}
	}
	kept, err := req.Rules.Apply(archives, req.Zone)
	if err != nil {
		return nil, err
	}
	var all []Decision
	stay := 0
	for _, m := range h.Manifests {
		d := Decision{Domain: domain, Manifest: m, Reasons: []string{"without data"}}
		if m.Kind == chain.KindArchive {
			d.Reasons, kept = kept[0].Reasons, kept[1:]
			if len(d.Reasons) > 0 {
				stay++
			}
		}
		all = append(all, d)
	}
	if stay == 0 && len(archives) > 0 && !req.AllowEmpty {
		return nil, &EmptyError{Domain: domain}
	}
	keepWhole(all)
	return all, nil
}

// keepWhole keeps the newest archive that has lost nothing, if all that stay have: what
// a backup of a dying disk could not read is in no other.
func keepWhole(all []Decision) {
	newest, stay := -1, false
	for i, d := range all {
		if d.Kind != chain.KindArchive {
			continue
		}
		whole := d.LostBytes() == 0
		if whole {
			newest = i
		}
		if len(d.Reasons) > 0 {
			if whole {
				return
			}
			stay = true
		}
	}
	if stay && newest >= 0 {
		all[newest].Reasons = []string{"the newest that has lost nothing"}
	}
}

// checkFuture returns an error if the newest checkpoint was made in the future, and a
// rule asks how old others are beside it.
func (req *Request) checkFuture(all []retention.Checkpoint) error {
	if len(all) == 0 || !req.Rules.Timed() {
		return nil
	}
	if c := all[len(all)-1]; c.Time.After(req.Now.Add(ahead)) {
		return fmt.Errorf("the newest checkpoint, %s, was made at %s, which is in the future by this machine's clock: one of two clocks is wrong,"+
			" and rules about times would remove the wrong ones (--keep-last and --keep-tag ask for no time)",
			c.Name, c.Time.UTC().Format(time.RFC3339))
	}
	return nil
}
