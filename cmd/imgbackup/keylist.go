// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/imgbackup/imgbackup/keys"
)

func (a *app) keyListCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the keys, and what each may do",
		Long: `list shows who may open the repository, as the roster in it says, whose signatures it proves. It takes
no key. --all shows those, too, that were removed: what they have signed is still there.`,
		Annotations: exits(exitDamage),
		Example:     "  imgbackup key list\n  imgbackup key list --all --json",
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
	r, err := keys.ReadRoster(ctx, place)
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
