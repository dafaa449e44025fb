// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/imgbackup/imgbackup/internal/usage"
	"github.com/imgbackup/imgbackup/keys"
)

// keyAddOptions are the command line of key add.
type keyAddOptions struct {
	name, role, recipient, out, passphraseFile string
	domains                                    []string
}

func (a *app) keyAddCommand() *cobra.Command {
	var o keyAddOptions
	cmd := &cobra.Command{
		Use:   "add NAME --role ROLE {--out FILE | --recipient R | --new-passphrase-file FILE}",
		Short: "Let somebody open the repository",
		Long: `add lets somebody open the repository, with what its role is for:

  admin    all: reads everything, adds and removes keys
  host     stores the domains that --domain names (all, if none) and reads no data
  manager  list, check, forget, prune, repair, lock, report; reads no data
  drill    reads everything; its machine is worth guarding as the disks themselves

--out writes an identity file, for age and for --identity: a new identity, or none where --recipient
names one that exists, to which these lines can be appended. Its comment lines pin the repository, its
keys and its roster: who has them takes no other repository for this one. It takes the identity of an
admin.`,
		Annotations: exits(exitDamage, exitTaken),
		Example: `  imgbackup key add web1 --role host --domain 'web*' --out web1.key
  imgbackup key add keeper --role manager --out keeper.key
  imgbackup key add bob --role admin --recipient age1…`,
		Args: takes(cobra.ExactArgs(1), "a NAME"),
	}
	f := cmd.Flags()
	f.StringVar(&o.role, "role", "", "what it may do, as its `ROLE`: admin, host, manager or drill")
	f.StringArrayVar(&o.domains, "domain", nil, "a host may store domains of this `PATTERN` only, as 'web*' (a whole name where\nnames are hidden, of which key list shows the digest); may be repeated")
	f.StringVar(&o.recipient, "recipient", "", "to whom the keys are encrypted: `R`, as age takes it")
	f.StringVar(&o.passphraseFile, "new-passphrase-file", "", "the first line of `FILE` is a passphrase that opens it")
	f.StringVar(&o.out, "out", "", "write an identity file, which must not exist: `FILE`")
	completes(cmd, map[string]completer{"role": words(roleWords()...), "domain": a.domains})
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		o.name = args[0]
		if err := o.complete(cmd.Flags()); err != nil {
			return err
		}
		return a.keyAdd(cmd.Context(), &o)
	}
	return cmd
}

func roleWords() []string {
	var all []string
	for _, r := range keys.Roles() {
		all = append(all, string(r))
	}
	return all
}

func (o *keyAddOptions) complete(f *pflag.FlagSet) error {
	if err := errors.Join(notEmpty(f, "recipient", "out", "new-passphrase-file"), exclude(f, "recipient", "new-passphrase-file"), exclude(f, "new-passphrase-file", "out")); err != nil {
		return err
	}
	switch {
	case o.role == "":
		return usage.Errorf("what may it do? give --role %s", strings.Join(roleWords(), ", "))
	case !slices.Contains(roleWords(), o.role):
		return usage.Errorf("--role is %s, not %q", strings.Join(roleWords(), ", "), o.role)
	case o.recipient == "" && o.out == "" && o.passphraseFile == "":
		return usage.Errorf("with which key? give --out FILE for a new one, --recipient R, or --new-passphrase-file FILE")
	case len(o.domains) > 0 && keys.Role(o.role) != keys.Host:
		return usage.Errorf("--domain is for --role host: a key of role %s is for all domains", o.role)
	}
	for _, p := range o.domains {
		if err := keys.CheckPattern(p); err != nil {
			return usage.Errorf("--domain: %w", err)
		}
	}
	return usage.Wrap(keys.CheckName(o.name))
}

func (a *app) keyAdd(ctx context.Context, o *keyAddOptions) error {
	j := keys.Joining{Name: o.name, Role: keys.Role(o.role), Domains: o.domains, WorkFactor: a.workFactor}
	var err error
	if o.recipient != "" {
		if j.Recipient, err = keys.ParseRecipient(o.recipient, a.ways().Plugin); err != nil {
			return usage.Errorf("--recipient: %w", err)
		}
	}
	if o.passphraseFile != "" {
		if j.Passphrase, err = readPassphrase(o.passphraseFile); err != nil {
			return err
		}
	}
	ring, err := a.openKeysToChange(ctx)
	if err != nil {
		return err
	}
	out, err := a.newSecretFile("--out", o.out)
	if err != nil {
		return err
	}
	joined, err := ring.Add(ctx, j)
	if err != nil {
		return errors.Join(err, out.discard())
	}
	if err := out.finish(identityFileText(ring, &joined[0])); err != nil {
		return fmt.Errorf("the key of %s was added, but its identity file could not be written (remove it: imgbackup key remove %s): %w", o.name, o.name, err)
	}
	if a.json {
		view := viewKey(&joined[0].Member)
		view.Identity, view.Domains = o.out, o.domains // also where the roster has digests of them
		return a.printJSON(view)
	}
	w := &checkedWriter{w: a.out}
	w.printf("added %s (%s)\n", o.name, o.role)
	if o.out != "" {
		w.printf("%s is for that machine or person alone: it opens the repository as %s\n", o.out, o.name)
	}
	return w.err
}

func (a *app) keyRemoveCommand() *cobra.Command {
	var rotate bool
	cmd := &cobra.Command{
		Use:   "remove NAME",
		Short: "Let somebody open the repository no more",
		Long: `remove takes a key's files out of the repository. That alone revokes nothing: who had the key may have
copies of the files, and so reads what is stored, and signs. Only --rotate (as key rotate) ends that,
for what is stored from then on; what was stored before can't be taken from who has read it.`,
		Annotations: exits(exitDamage),
		Example:     "  imgbackup key remove web1 --rotate",
		Args:        takes(cobra.ExactArgs(1), "a NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := keys.CheckName(args[0]); err != nil {
				return usage.Wrap(err)
			}
			return a.keyRemove(cmd.Context(), args[0], rotate)
		},
	}
	cmd.Flags().BoolVar(&rotate, "rotate", false, "make new keys, too, which those that remain have alone")
	cmd.ValidArgsFunction = completer(a.keyNames).fn
	return cmd
}

// keyNames completes the name of a key.
func (a *app) keyNames(cmd *cobra.Command, args []string, _ string) []cobra.Completion {
	if len(args) > 0 {
		return nil
	}
	a.quiet, a.retry.Patience = true, completionPatience
	_, place, err := a.openConfig(cmd.Context())
	if err != nil {
		return nil // a person who types is not told
	}
	r, err := keys.ReadRoster(cmd.Context(), place)
	if err != nil {
		return nil
	}
	var all []string
	for i := range r.Members {
		if m := &r.Members[i]; !m.Removed() {
			all = append(all, m.Name)
		}
	}
	return all
}

func (a *app) keyRemove(ctx context.Context, name string, rotate bool) error {
	ring, err := a.openKeysToChange(ctx)
	if err != nil {
		return err
	}
	if rotate {
		return a.rotateKeys(ctx, ring, func(ctx context.Context) (string, error) {
			_, err := ring.Remove(ctx, name)
			return "removed " + name, err
		})
	}
	m, err := ring.Remove(ctx, name)
	if err != nil {
		return err
	}
	a.note(fmt.Sprintf("this revokes nothing yet: %s opens what is stored, and signs, until imgbackup key rotate has made new keys", name))
	if a.json {
		return a.printJSON(viewKey(m))
	}
	_, err = fmt.Fprintf(a.out, "removed %s (%s)\n", name, m.Role)
	return err
}
