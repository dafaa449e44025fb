// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

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
			ring, err := a.openKeysToChange(cmd.Context())
			if err != nil {
				return err
			}
			return a.rotateKeys(cmd.Context(), ring, nil)
		},
	}
	return cmd
}

// rotateKeys begins a new generation. first, unless nil, is done before, when it is known that
// nothing stands in the way, and returns what it did.
func (a *app) rotateKeys(ctx context.Context, ring *keys.Keyring, first func(ctx context.Context) (string, error)) error {
	repo, err := a.openRepo(ctx)
	if err != nil {
		return err
	}
	if err := ring.CheckRotates(a.ways().Plugin); err != nil {
		return err
	}
	done := ""
	var stands []keys.Stands
	var untrusted []error
	err = repo.Rotating(ctx, func(ctx context.Context) error {
		// What ended a rotation that was cut off has changed the roster.
		if own, ok := repo.Access.Authority.(authority); ok && own.Roster.Revision != ring.Roster.Revision {
			newer, err := a.openKeysToChange(ctx)
			if err != nil {
				return err
			}
			*ring = *newer
		}
		if untrusted, err = repo.Standing(ctx, func(key, seal string) { stands = append(stands, keys.Stands{Key: key, Seal: seal}) }); err != nil {
			return err
		}
		if first != nil {
			if done, err = first(ctx); err != nil {
				return err
			}
			done += "; "
		}
		return ring.Rotate(ctx, stands, a.ways().Plugin)
	})
	for _, err := range untrusted {
		a.note("it does not stand: " + err.Error())
	}
	if err != nil {
		return err
	}
	if a.json {
		return a.printJSON(rotatedJSON{Generation: ring.Roster.Generation(), Standing: len(stands), Untrusted: len(untrusted)})
	}
	_, err = fmt.Fprintf(a.out, "%skeys of generation %d; %s, of before; what was stored before is read with the older keys, also by who had them\n",
		done, ring.Roster.Generation(), plural(len(stands), "signed object goes on counting", "signed objects go on counting"))
	return err
}

// rotatedJSON is what key rotate --json prints.
type rotatedJSON struct {
	Generation int `json:"generation"`
	Standing   int `json:"standing"`  // signed objects
	Untrusted  int `json:"untrusted"` // such that do not count
}
