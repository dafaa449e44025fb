// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/keys"
	"github.com/imgbackup/imgbackup/objstore"
)

func (a *app) keyListCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the keys, and what each may do",
		Long: `list shows who may open the repository, as the roster in it says, whose signatures it proves. It takes
no key; but then nothing proves that it is the repository that you mean, or that its roster is the newest. An
identity that is given has to open it: one that key add --out has written proves both, as far as it knew.
Domains whose names are hidden are shown by digests without a key, and with one by their names, once they
are in the repository.

--all shows those, too, that were removed: what they have signed is still there.`,
		Annotations: exits(exitDamage),
		Example:     "  imgbackup key list --identity me.key\n  imgbackup key list --all --json",
		Args:        takes(cobra.ExactArgs(0), "no arguments"),
	}
	all := cmd.Flags().Bool("all", false, "removed ones, too")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error { return a.keyList(cmd.Context(), *all) }
	return cmd
}

func (a *app) keyList(ctx context.Context, all bool) error {
	c, place, err := a.openConfig(ctx)
	if err != nil {
		return err
	}
	ring, r, err := a.rosterToShow(ctx, c, place)
	if err != nil {
		return err
	}
	newest := r.Generations[len(r.Generations)-1]
	view := keysJSON{
		RepositoryID: c.ID, RosterKey: c.Encryption.RosterKey, Revision: r.Revision, Generation: newest.Number,
		PostQuantum: r.PostQuantum, DataKey: newest.DataKey, MetadataKey: newest.MetadataKey, Keys: []keyJSON{},
	}
	for i := range r.Members {
		if m := &r.Members[i]; all || !m.Removed() {
			view.Keys = append(view.Keys, viewKey(m))
		}
	}
	var unnamed error // why names are shown by digests
	if ring == nil {
		a.note("no key was given, so nothing proves that this is the repository that you mean, or that this is the newest list of its keys (--identity FILE)")
	} else {
		view.OpenedBy = ring.Member.Name
		unnamed = nameDomains(ctx, ring, place, view.Keys)
	}
	return errors.Join(a.printKeys(&view), unnamed)
}

// rosterToShow is the roster, of which the keys are opened if an identity was given; else they are nil.
func (a *app) rosterToShow(ctx context.Context, c *chain.Config, place keys.Place) (*keys.Keyring, *keys.Roster, error) {
	ids, err := a.identity(c.ID)
	if err != nil {
		return nil, nil, err
	}
	if ids == nil { // and nobody is asked for a passphrase
		r, err := keys.ReadRoster(ctx, place)
		return nil, r, err
	}
	ring, err := a.keyring(ctx, place.Store, c, nil)
	if err != nil {
		return nil, nil, err
	}
	return ring, ring.Roster, nil
}

// nameDomains puts names in the place of the digests of domains that the repository has, where it hides them.
func nameDomains(ctx context.Context, ring *keys.Keyring, place keys.Place, all []keyJSON) error {
	names := ring.Names()
	if names == nil {
		return nil
	}
	repo, err := chain.OpenWith(ctx, place.Store, func(context.Context, objstore.Store, *chain.Config) (*chain.Access, error) {
		return accessOf(ring), nil
	})
	if err != nil {
		return err
	}
	domains, err := repo.Domains(ctx)
	byDigest := make(map[string]string)
	for _, d := range domains {
		byDigest[names.Domain(objstore.EncodePart(d))] = d
	}
	for _, k := range all {
		for i, d := range k.Domains {
			k.Domains[i] = cmp.Or(byDigest[d], d)
		}
	}
	return err
}

func (a *app) printKeys(view *keysJSON) error {
	if a.json {
		return a.printJSON(view)
	}
	w := &checkedWriter{w: a.out}
	w.printf("repository %s, keys of generation %d\n", view.RepositoryID, view.Generation)
	for _, k := range view.Keys {
		w.printf("  %-20s %-8s %s\n", k.Name, k.Role, describeKey(&k))
	}
	return w.err
}

// describeKey says what else there is to know of a key.
func describeKey(k *keyJSON) string {
	text := shortRecipient(k.Recipient)
	if k.Passphrase {
		text = "a passphrase"
	}
	if k.Role == keys.Host {
		domains := "all domains"
		if len(k.Domains) > 0 {
			domains = strings.Join(k.Domains, ", ")
		}
		text += ", " + domains
	}
	if k.Until > 0 {
		text += fmt.Sprintf(", removed in generation %d", k.Until)
	}
	return oneLine(text)
}

// shortRecipient is a recipient that may be thousands of letters.
func shortRecipient(s string) string {
	const most = 72
	if len(s) <= most {
		return s
	}
	return s[:40] + "…" + s[len(s)-16:]
}
