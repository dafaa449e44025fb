// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/keys"
)

func (a *app) keyRotateCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "rotate",
		Short: "Make new keys, which removed ones do not have",
		Long: `rotate makes a new data key, metadata key and secret of digests, for all keys that were not removed.
What is stored from then on a removed key does not open, and its signatures count for what stood at
that moment and for nothing else. What was stored before stays encrypted as it was, and is read with the
old keys, which all have that may. It is refused while backups are at work: what they are about to store
would not count.`,
		Annotations: exits(exitDamage, exitInUse),
		Example:     "  imgbackup key rotate --identity me.key",
		Args:        takes(cobra.ExactArgs(0), "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			ring, _, err := a.openKeys(cmd.Context())
			if err != nil {
				return err
			}
			return a.rotateKeys(cmd.Context(), ring, "")
		},
	}
	return cmd
}

// rotateKeys begins a new generation; done is what was done before.
func (a *app) rotateKeys(ctx context.Context, ring *keys.Keyring, done string) error {
	repo, err := a.openRepo(ctx)
	if err != nil {
		return err
	}
	if err := checkQuiet(ctx, repo); err != nil {
		return err
	}
	var stands []keys.Stands
	untrusted, err := repo.Standing(ctx, func(key, seal string) { stands = append(stands, keys.Stands{Key: key, Seal: seal}) })
	if err != nil {
		return err
	}
	for _, err := range untrusted {
		a.note("it does not stand: " + err.Error())
	}
	if err := checkQuiet(ctx, repo); err != nil { // to read what stands takes a while
		return err
	}
	if err := ring.Rotate(ctx, stands, a.ways().Plugin); err != nil {
		return err
	}
	if a.json {
		return a.printJSON(rotatedJSON{Generation: ring.Roster.Generation(), Standing: len(stands), Untrusted: len(untrusted)})
	}
	if done != "" {
		done += "; "
	}
	_, err = fmt.Fprintf(a.out, "%skeys of generation %d; %s\n", done, ring.Roster.Generation(), plural(len(stands), "signed object stands", "signed objects stand"))
	return err
}

// rotatedJSON is what key rotate --json prints.
type rotatedJSON struct {
	Generation int `json:"generation"`
	Standing   int `json:"standing"`  // signed objects
	Untrusted  int `json:"untrusted"` // such that do not count
}

// checkQuiet sees that nobody has announced to write.
func checkQuiet(ctx context.Context, repo *chain.Repository) error {
	for info, err := range repo.Store.List(ctx, "leases/") {
		if err != nil {
			return err
		}
		if chain.ParseKey(info.Key).Kind == chain.KeyLease {
			return &atWorkError{strings.TrimSuffix(info.Key, ".json")}
		}
	}
	return nil
}

// atWorkError says that somebody writes to the repository.
type atWorkError struct{ lease string }

func (e *atWorkError) Error() string {
	return "somebody is at work in the repository, or was and left that behind (" + e.lease + "): wait, or see imgbackup leases"
}
