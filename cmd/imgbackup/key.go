// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/keys"
	"github.com/imgbackup/imgbackup/objstore"
	"github.com/imgbackup/imgbackup/objstore/open"
)

func (a *app) keyCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:        "key",
		Short:      "Say who may open an encrypted repository",
		SuggestFor: []string{"keys", "password", "passphrase", "encrypt"},
		Long: `An encrypted repository (init --encrypt) has a data key, which opens what is in the disks, and a
metadata key, which opens everything else. Both lie in it, encrypted to each that may use them: an
admin (all), a host (stores its domains and reads none of the data), a manager (keeps order without
reading the data) or a drill (reads everything, writes nothing).

Whose key it is that a command works with, --identity FILE says, or the environment variable
IMGBACKUP_IDENTITY: an age identity file, an SSH key, or the file that key add --out has written. An
identity that has a passphrase is asked for it, unless it is in --passphrase-file.`,
		Annotations: exits(exitDamage),
		Example: `  imgbackup key list
  imgbackup key add web1 --role host --domain 'web*' --out web1.key
  imgbackup key add safe --role admin --recipient age1…`,
	}
	cmd.AddCommand(a.keyListCommand(), a.keyAddCommand(), a.keyRemoveCommand(), a.keyRotateCommand(), a.keyKitCommand(), a.keyPolicyCommand())
	return group(cmd)
}

// notEncryptedError says that a repository has no keys.
var errNotEncrypted = errors.New("this repository is not encrypted: it has no keys (imgbackup init --encrypt makes one that has)")

// openConfig reads which repository this is, and opens no key.
func (a *app) openConfig(ctx context.Context) (*chain.Config, keys.Place, error) {
	store, err := a.store(open.Options{})
	if err != nil {
		return nil, keys.Place{}, err
	}
	var found *chain.Config
	repo, err := chain.OpenWith(ctx, store, func(_ context.Context, _ objstore.Store, c *chain.Config) (*chain.Access, error) {
		found = c
		return nil, nil
	})
	if err != nil {
		return nil, keys.Place{}, fmt.Errorf("%s: %w", a.place(), err)
	}
	if found.Encryption == nil {
		if ids, err := a.identity(found.ID); err != nil {
			return nil, keys.Place{}, err
		} else if ids != nil {
			if err := ids.Pin.CheckAbsent(); err != nil {
				return nil, keys.Place{}, err
			}
		}
		return nil, keys.Place{}, fmt.Errorf("%s: %w", a.place(), errNotEncrypted)
	}
	return found, keys.Place{Store: repo.Store, Repository: found.ID, RosterKey: found.Encryption.RosterKey}, nil
}

// openKeys opens the keys of an encrypted repository.
func (a *app) openKeys(ctx context.Context) (*keys.Keyring, keys.Place, error) {
	c, place, err := a.openConfig(ctx)
	if err != nil {
		return nil, place, err
	}
	ring, err := a.keyring(ctx, place.Store, c, nil)
	return ring, place, err
}

// openKeysToChange is openKeys for commands that change them.
func (a *app) openKeysToChange(ctx context.Context) (*keys.Keyring, error) {
	c, place, err := a.openConfig(ctx)
	if err == nil {
		err = c.CheckWritable()
	}
	if err != nil {
		return nil, err
	}
	return a.keyring(ctx, place.Store, c, nil)
}

// keyJSON is a key in key list --json.
type keyJSON struct {
	Name       string    `json:"name"`
	Role       keys.Role `json:"role"`
	Recipient  string    `json:"recipient"`
	Passphrase bool      `json:"passphrase"`
	Domains    []string  `json:"domains,omitempty"`
	SigningKey string    `json:"signing_key,omitempty"`
	Since      int       `json:"since"`
	Until      int       `json:"until,omitempty"`
	Identity   string    `json:"identity,omitempty"` // the file that was written
}

func viewKey(m *keys.Member) keyJSON {
	return keyJSON{
		Name: m.Name, Role: m.Role, Recipient: m.Recipient, Passphrase: m.Passphrase, Domains: slices.Clone(m.Domains),
		SigningKey: m.SigningKey, Since: m.Since, Until: m.Until,
	}
}

// keysJSON is what key list --json prints.
type keysJSON struct {
	RepositoryID string    `json:"repository_id"`
	RosterKey    string    `json:"roster_key"`
	Revision     int       `json:"revision"`
	Generation   int       `json:"generation"`
	PostQuantum  bool      `json:"post_quantum"`
	DataKey      string    `json:"data_key"`
	MetadataKey  string    `json:"metadata_key"`
	OpenedBy     string    `json:"opened_by,omitempty"` // whose identity was given; empty: nothing is proven
	Keys         []keyJSON `json:"keys"`
}
