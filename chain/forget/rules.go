// SPDX-License-Identifier: Apache-2.0

package forget

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/retention"
)

// ahead is how far the newest checkpoint's time may be in the future by this machine's
// clock: one of two clocks is wrong then, and nobody knows which.
const ahead = 24 * time.Hour

// Kept are those of a domain's checkpoints that the rules keep, oldest first. Where forget
// would not go by them, and so keeps all, all are, and refused says why.
func (req Request) Kept(ctx context.Context, repo *chain.Repository, domain string) (kept []*chain.Manifest, refused, err error) {
	h, err := repo.History(ctx, domain)
	if err != nil {
		return nil, nil, err
	}
	req.AllowEmpty = true
	decisions, refused := req.byRules(ctx, repo, h, domain)
	if refused != nil {
		return h.Manifests, refused, ctx.Err()
	}
	for _, d := range decisions {
		if len(d.Reasons) > 0 {
			kept = append(kept, d.Manifest)
		}
	}
	return kept, nil, nil
}

// byRules applies the rules to a domain's archives. A checkpoint without data is no
// backup: it takes no archive's place, and goes by its name only.
func (req *Request) byRules(ctx context.Context, repo *chain.Repository, h chain.History, domain string) ([]Decision, error) {
	if len(h.Unusable) > 0 {
		return nil, fmt.Errorf("not all of its checkpoints can be read, so that nobody knows what is the newest of a day: %w",
			errors.Join(h.Unusable...))
	}
	var archives []retention.Checkpoint
	for _, m := range h.Manifests {
		if counts(m) {
			archives = append(archives, retention.Checkpoint{Name: m.Checkpoint, Time: m.Created, Tags: m.Tags})
		}
	}
	if err := req.checkFuture(archives); err != nil {
		return nil, err
	}
	rules := req.Rules
	rules.Young = repo.Config.ObjectLock.Young()
	if wanted := rules.Drilled; wanted != 0 {
		if rules.Young > 0 {
			wanted = retention.Unlimited // young ones take no place of older ones
		}
		if err := noteDrilled(ctx, repo, domain, h.Manifests, archives, wanted); err != nil {
			return nil, err
		}
	}
	kept, err := rules.Apply(archives, req.Zone)
	if err != nil {
		return nil, err
	}
	var all []Decision
	stay := 0
	for _, m := range h.Manifests {
		d := Decision{Domain: domain, Manifest: m, Reasons: []string{"without data"}}
		if m.Kind == chain.KindArchive && !counts(m) {
			d.Reasons = []string{"time in doubt"}
		}
		if counts(m) {
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

// counts reports whether rules count a checkpoint: archives whose time can be believed. Others
// stay, and take no place of any.
func counts(m *chain.Manifest) bool { return m.Kind == chain.KindArchive && m.Doubt() == "" }

// inDoubt says of which checkpoints the time is not believed.
func inDoubt(all []*chain.Manifest) (notes []string) {
	for _, m := range all {
		if why := m.Doubt(); why != "" {
			notes = append(notes, fmt.Sprintf("%s, checkpoint %s: rules neither remove nor count it: %s (forget it by its name, if it is not wanted)", m.Domain, m.Checkpoint, why))
		}
	}
	return notes
}

// keepWhole keeps the newest archive that has lost nothing, if all that stay have: what
// a backup of a dying disk could not read is in no other. Here, too, nothing depends on those that
// are younger than the lock.
func keepWhole(all []Decision) {
	newest, stay := -1, false
	for i, d := range all {
		if !counts(d.Manifest) || slices.Contains(d.Reasons, retention.YoungReason) {
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
