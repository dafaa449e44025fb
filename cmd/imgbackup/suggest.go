// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/imgbackup/imgbackup/backup"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/internal/suggest"
	"github.com/imgbackup/imgbackup/internal/usage"
)

// group makes cmd one that only has commands under it: alone it shows its help, and
// a word that is none of them is wrong usage.
func group(cmd *cobra.Command) *cobra.Command {
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return nil
		}
		return unknownCommand(cmd, args[0])
	}
	cmd.Run = nil
	cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
	return cmd
}

func unknownCommand(cmd *cobra.Command, word string) error {
	of := ""
	if cmd.HasParent() {
		of = " of " + cmd.CommandPath()
	}
	return usage.Errorf("unknown command %q%s%s", word, of, suggest.DidYouMean(nearCommand(cmd, word)))
}

// nearCommand is the command whose name is nearest to word, or that other programs
// call so; empty: there is none.
func nearCommand(cmd *cobra.Command, word string) string {
	var names []string
	for _, c := range cmd.Commands() {
		if slices.ContainsFunc(c.SuggestFor, func(other string) bool { return strings.EqualFold(other, word) }) {
			return c.Name()
		}
		if c.IsAvailableCommand() || c.Name() == "help" {
			names = append(names, c.Name())
		}
	}
	return suggest.Near(word, names)
}

// flagError says in our words what cobra found wrong with a flag.
func flagError(cmd *cobra.Command, err error) error {
	var (
		unknown *pflag.NotExistError
		without *pflag.ValueRequiredError
		invalid *pflag.InvalidValueError
	)
	switch {
	case errors.As(err, &unknown) && unknown.GetSpecifiedShortnames() == "":
		name := unknown.GetSpecifiedName()
		var names []string
		cmd.Flags().VisitAll(func(f *pflag.Flag) { names = append(names, f.Name) })
		hint := suggest.Near(name, names)
		if hint != "" {
			hint = "--" + hint
		}
		return usage.Errorf("unknown flag: --%s%s", name, suggest.DidYouMean(hint))
	case errors.As(err, &without):
		return usage.Errorf("--%s needs a value", without.GetFlag().Name)
	case errors.As(err, &invalid):
		want := map[string]string{
			"duration": "a time, as 90s or 30m", "bool": "true or false", "int": "a number", "uint": "a number",
		}[invalid.GetFlag().Value.Type()]
		if want == "" {
			return usage.Errorf("--%s %q: %w", invalid.GetFlag().Name, invalid.GetValue(), invalid.Unwrap())
		}
		return usage.Errorf("--%s %q: want %s", invalid.GetFlag().Name, invalid.GetValue(), want)
	}
	return usage.Wrap(err)
}

// sayCheckpoints adds to an error about a checkpoint that a disk has not which it has.
func sayCheckpoints(ctx context.Context, repo *chain.Repository, domain string, err error) error {
	var unknown *backup.NotTrustedError
	if !errors.As(err, &unknown) || unknown.Asked == "" {
		return err
	}
	if len(unknown.Known) > 0 {
		unknown.Reason += thereIs(unknown.Asked, unknown.Known)
	} else if known, lerr := repo.Domains(ctx); lerr == nil && !slices.Contains(known, domain) {
		unknown.Reason += ": " + noDomain(ctx, repo, domain).Error()
	}
	return err
}
