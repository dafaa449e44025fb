// SPDX-License-Identifier: Apache-2.0

package chain

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/objstore"
)

// What only a repair may do: to put sound objects in the place of damaged ones that have
// no digest for a name.

// MendManifest puts m, which is another repository's manifest of that checkpoint, in the
// place of one that is damaged. All that it names must be there. Where what stands there
// is sound, or changes meanwhile, the error is an *[RevisedError], or wraps
// objstore.ErrExists.
func (r *Repository) MendManifest(ctx context.Context, m *Manifest) error {
	if err := r.CheckWritable(); err != nil {
		return err
	}
	key := ManifestKey(m.Domain, m.Checkpoint)
	old, err := objstore.ReadAll(ctx, r.Store, key, maxStored)
	if err != nil {
		return err
	}
	if slot, err := r.parseSlot(old, m.Domain, m.Checkpoint); err == nil && slot.Manifest != nil {
		return &RevisedError{Domain: m.Domain, Checkpoint: m.Checkpoint, Manifest: slot.Manifest}
	} else if !archive.IsDamage(err) {
		return errors.Join(err, fmt.Errorf("%s is not damaged: %w", key, objstore.ErrExists))
	}
	next := *m
	next.RepositoryID = r.Config.ID
	data, err := r.sealManifest(&next)
	if err != nil {
		return err
	}
	return r.swap(ctx, key, old, data, nil)
}

// ErrWasEncrypted says that a repository was encrypted which has lost its configuration.
var ErrWasEncrypted = errors.New("the repository was encrypted, and its manifests prove nothing without its keys")

// EncryptedConfig is the configuration of an encrypted repository that has lost it, of whose id and
// roster key there is proof elsewhere.
func EncryptedConfig(id, rosterKey string, created time.Time) *Config {
	return &Config{
		Head: Head{Format: ConfigFormat, Version: readerVersion}, ID: id, ChunkSize: archive.GridSize,
		MinReader: readerVersion, MinWriter: writerVersion, Created: created,
		Encryption: &Encryption{Scheme: EncryptionScheme, RosterKey: rosterKey},
	}
}

// FindConfig finds out what the configuration of a repository was that has lost it, or of
// which it is damaged: every manifest has the repository's id, and all must agree. Where
// there is no manifest, or one of a newer version, it fails.
func FindConfig(ctx context.Context, store objstore.Store) (*Config, error) {
	_, err := readConfig(ctx, store)
	var newer *NewerError
	if err == nil {
		return nil, fmt.Errorf("%s is sound: %w", ConfigKey, objstore.ErrExists)
	}
	if !errors.Is(err, ErrNotRepository) && !archive.IsDamage(err) || errors.As(err, &newer) {
		return nil, err
	}
	for info, err := range store.List(ctx, accessPrefix) {
		if err != nil {
			return nil, err
		}
		// One without encryption would have others store what they have for everybody to read.
		return nil, fmt.Errorf("%s is there: %w", info.Key, ErrWasEncrypted)
	}
	c := &Config{
		Head: Head{Format: ConfigFormat, Version: readerVersion}, ChunkSize: archive.GridSize,
		MinReader: readerVersion, MinWriter: writerVersion,
	}
	var damage error
	for info, err := range store.List(ctx, domainsPrefix) {
		if err != nil {
			return nil, err
		}
		k := ParseKey(info.Key)
		if k.Kind != KeyManifest {
			continue
		}
		err := c.learn(ctx, store, info.Key)
		if archive.IsDamage(err) {
			damage = err
		} else if err != nil && !errors.Is(err, objstore.ErrNotFound) {
			return nil, err
		}
	}
	if c.ID == "" {
		return nil, errors.Join(fmt.Errorf("%w: there is no sound manifest that would tell which repository this was", ErrNotRepository), damage)
	}
	return c, nil
}

// learn takes the id from a manifest, and the time from the oldest.
func (c *Config) learn(ctx context.Context, store objstore.Store, key string) error {
	data, err := readSealed(ctx, store, key)
	if err != nil {
		return err
	}
	var m Manifest
	if err := unsealAs(data, key, ManifestFormat, &m); err != nil {
		if v := (Void{}); unsealAs(data, key, VoidFormat, &v) == nil {
			return nil
		}
		return err
	}
	switch {
	case validUUID(m.RepositoryID) != nil:
		return archive.Damaged(key, errors.New("it names no repository"))
	case c.ID == "":
		c.ID, c.Created = m.RepositoryID, m.Created
	case c.ID != m.RepositoryID:
		return fmt.Errorf("the manifests are of more than one repository: %s and %s (%s): nobody can tell which one this is", c.ID, m.RepositoryID, key)
	case m.Created.Before(c.Created):
		c.Created = m.Created
	}
	return nil
}

// RestoreConfig stores the configuration that [FindConfig] found, if it is still missing
// or damaged, and opens the repository, as [OpenWith] does.
func RestoreConfig(ctx context.Context, store objstore.Store, c *Config, unlock Unlock) (*Repository, error) {
	single, err := probe(ctx, store, InitOptions{SingleWriter: true})
	if err != nil {
		return nil, err
	}
	c.SingleWriter = single
	if single {
		store = objstore.SingleWriter(store)
	}
	data, err := Seal(c)
	if err != nil {
		return nil, err
	}
	r := &Repository{Store: store, Config: *c}
	old, err := objstore.ReadAll(ctx, store, ConfigKey, maxStored)
	switch {
	case errors.Is(err, objstore.ErrNotFound):
		err = r.create(ctx, ConfigKey, data, nil)
	case err != nil:
		return nil, err
	default:
		if _, cerr := readConfig(ctx, store); !archive.IsDamage(cerr) {
			return nil, errors.Join(cerr, fmt.Errorf("%s is not damaged any more: %w", ConfigKey, objstore.ErrExists))
		}
		err = r.swap(ctx, ConfigKey, old, data, nil)
	}
	if err != nil {
		return nil, fmt.Errorf("store %s: %w", ConfigKey, err)
	}
	return OpenWith(ctx, store, unlock)
}
