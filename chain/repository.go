// SPDX-License-Identifier: Apache-2.0

package chain

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"time"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/internal/memory"
	"github.com/imgbackup/imgbackup/internal/seal"
	"github.com/imgbackup/imgbackup/objstore"
)

// ConfigFormat is the value of a configuration's field "format".
const ConfigFormat = "imgbackup-repository"

// ErrNotRepository says that the store answers, and holds no repository.
var ErrNotRepository = errors.New("not a repository")

// Config is the content of imgbackup.json, written once.
type Config struct {
	Head
	ID        string    `json:"id"`         // a UUID
	ChunkSize int64     `json:"chunk_size"` // archive.GridSize, bytes
	MinReader int       `json:"min_reader"` // the oldest version that may read
	MinWriter int       `json:"min_writer"` // the oldest version that may write
	Created   time.Time `json:"created"`
	// SingleWriter: the store does not honour conditional writes, and whoever
	// made the repository promised that one program at a time writes to it.
	SingleWriter bool `json:"single_writer,omitempty"`
	// ObjectLock says how long the store keeps what checkpoints need; nil: it need not.
	ObjectLock *ObjectLock `json:"object_lock,omitempty"`
	// Encryption says how the repository is encrypted; nil: it is not.
	Encryption *Encryption     `json:"encryption,omitempty"`
	Info       json.RawMessage `json:"info,omitempty"` // free, an object; ignored
}

// Repository is an open repository. It is safe for concurrent use.
type Repository struct {
	Store  objstore.Store
	Config Config
	// HostID is this host's id where a person gave one ([GivenHostID]); empty: the
	// machine id tells.
	HostID string
	// Memory is how much working with the repository may take.
	Memory memory.Budget
	// Access is what encrypts and signs here; nil: nothing does.
	Access *Access
}

// InitOptions say how to make a repository.
type InitOptions struct {
	// SingleWriter accepts a store that does not honour conditional writes: one
	// program at a time may write to it. It is recorded only where it is needed.
	SingleWriter bool
	// Encrypt makes the keys of a repository with this id, before there is one; nil: it
	// is not encrypted.
	Encrypt func(ctx context.Context, store objstore.Store, id string) (*Encryption, *Access, error)
	// Lock, unless nil, has the store keep what checkpoints need, which must be able to.
	Lock *ObjectLock
}

// InitError says why no repository is made where something stands already.
type InitError struct{ What string }

func (e *InitError) Error() string { return e.What }

// Unwrap is [objstore.ErrExists].
func (e *InitError) Unwrap() error { return objstore.ErrExists }

// Init makes a new repository in an empty store, which is tried first where its
// abilities can't be known (an objstore.Prober). Where there is a repository
// already, or anything else, the error wraps objstore.ErrExists.
func Init(ctx context.Context, store objstore.Store, o InitOptions) (*Repository, error) {
	for info, err := range store.List(ctx, "") {
		if err != nil {
			return nil, fmt.Errorf("look whether there is a repository already: %w", err)
		}
		if strings.HasPrefix(info.Key, objstore.ProbePrefix) {
			continue // an init that was killed, or is at work
		}
		if _, err := store.Stat(ctx, ConfigKey); err == nil {
			return nil, &InitError{What: "there is a repository already"}
		} else if !errors.Is(err, objstore.ErrNotFound) {
			return nil, err
		}
		return nil, &InitError{What: fmt.Sprintf("this place is not empty and not a repository (it holds %s): choose an empty one", info.Key)}
	}
	if err := checkEnclosing(ctx, store); err != nil {
		return nil, err
	}
	single, err := probe(ctx, store, o)
	if err != nil {
		return nil, err
	}
	if single {
		store = objstore.SingleWriter(store)
	}
	c := Config{
		Head:         Head{Format: ConfigFormat, Version: readerVersion},
		ID:           NewUUID(),
		ChunkSize:    archive.GridSize,
		MinReader:    readerVersion,
		MinWriter:    writerVersion,
		Created:      now(),
		SingleWriter: single,
	}
	if c.ObjectLock, err = o.setLock(ctx, store); err != nil {
		return nil, err
	}
	r := &Repository{Store: store}
	if o.Encrypt != nil {
		if c.Encryption, r.Access, err = o.Encrypt(ctx, store, c.ID); err != nil {
			return nil, err
		}
	}
	r.Config = c
	r.Store = archive.Encrypted(r.Store, r.keys())
	data, err := Seal(c)
	if err != nil {
		return nil, err
	}
	err = r.create(ctx, ConfigKey, data, nil)
	var taken *standsError
	if errors.As(err, &taken) {
		return nil, fmt.Errorf("another program made a repository here just now: %w", objstore.ErrExists)
	}
	if err != nil {
		return nil, fmt.Errorf("make the repository: %w", err)
	}
	return r, nil
}

// checkEnclosing refuses a place within another repository, whose objects these would
// be taken for.
func checkEnclosing(ctx context.Context, store objstore.Store) error {
	inner, ok := objstore.As[objstore.Enclosed](store)
	if !ok {
		return nil
	}
	for _, outer := range inner.Enclosing() {
		switch _, err := outer.Stat(ctx, ConfigKey); {
		case err == nil:
			return &InitError{What: fmt.Sprintf("this place lies in the repository %v: choose one beside it", outer)}
		case errors.Is(err, objstore.ErrNotFound), errors.Is(err, fs.ErrPermission): // rights may end at the prefix
		default:
			return fmt.Errorf("look whether this place lies in another repository: %w", err)
		}
	}
	return nil
}

// probe sees whether the store is fit for a repository. single says that it
// is so for one writer at a time only.
func probe(ctx context.Context, store objstore.Store, o InitOptions) (single bool, err error) {
	p, ok := objstore.As[objstore.Prober](store)
	if !ok {
		return false, nil
	}
	err = p.Probe(ctx)
	var unconditional *objstore.NoConditionsError
	switch {
	case err == nil:
		return false, nil
	case !errors.As(err, &unconditional):
		return false, fmt.Errorf("this store can't hold a repository: %w", err)
	case !o.SingleWriter:
		return false, fmt.Errorf("%w: two backups at once could overwrite each other (if only one program will ever write here, say so with --single-writer)", err)
	}
	return true, nil
}

// now is the time as it is stored.
func now() time.Time { return time.Now().UTC().Round(0) }

// Open opens a repository that is not encrypted. The error is ErrNotRepository when there is
// none, an archive.DamageError when its configuration is damaged, a NewerError when this
// program is too old to read it, and [ErrEncrypted] when it is encrypted.
func Open(ctx context.Context, store objstore.Store) (*Repository, error) {
	return OpenWith(ctx, store, nil)
}

// OpenWith is Open, also of an encrypted repository, whose keys unlock opens. It is asked
// about every repository: whoever knows that one must be encrypted refuses it if
// c.Encryption is nil, and else returns nil.
func OpenWith(ctx context.Context, store objstore.Store, unlock Unlock) (*Repository, error) {
	c, err := readConfig(ctx, store)
	if err != nil {
		return nil, err
	}
	if c.SingleWriter {
		store = objstore.SingleWriter(store)
	}
	r := &Repository{Store: store, Config: *c}
	switch {
	case unlock != nil:
		if r.Access, err = unlock(ctx, store, c); err != nil {
			return nil, err
		}
	case c.Encryption != nil:
		return nil, ErrEncrypted
	}
	r.Store = archive.Encrypted(r.Store, r.keys())
	return r, nil
}

// Reopen opens the repository again, with the keys that are open already, so that its
// configuration proves itself.
func (r *Repository) Reopen(ctx context.Context) (*Repository, error) {
	return OpenWith(ctx, r.Store, func(context.Context, objstore.Store, *Config) (*Access, error) { return r.Access, nil })
}

func readConfig(ctx context.Context, store objstore.Store) (*Config, error) {
	data, err := readSealed(ctx, store, ConfigKey)
	if errors.Is(err, objstore.ErrNotFound) {
		return nil, &toldError{text: "there is no repository here: it would have " + ConfigKey + " (imgbackup init makes one)", is: []error{ErrNotRepository, err}}
	}
	if err != nil {
		return nil, fmt.Errorf("open the repository: %w", err)
	}
	plain, err := unsealed(data)
	if err != nil {
		return nil, archive.Damaged(ConfigKey, err)
	}
	// What a newer version put there need not be understood to be refused.
	var head struct {
		MinReader  int64           `json:"min_reader"`
		Encryption json.RawMessage `json:"encryption"`
	}
	if err := json.Unmarshal(plain, &head); err != nil {
		return nil, archive.Damaged(ConfigKey, err)
	}
	if head.MinReader > readerVersion {
		return nil, &NewerError{Object: ConfigKey, What: fmt.Sprintf("its readers need version %d, this program has %d", head.MinReader, readerVersion)}
	}
	if !knownEncryption(head.Encryption) {
		return nil, &NewerError{Object: ConfigKey, What: "it is encrypted in a way that is not known here"}
	}
	var c Config
	if err := unsealAs(data, ConfigKey, ConfigFormat, &c); err != nil {
		return nil, err
	}
	if err := c.validate(); err != nil {
		return nil, archive.Damaged(ConfigKey, err)
	}
	return &c, nil
}

func (c *Config) validate() error {
	var k checker
	k.nilErr("id", validUUID(c.ID))
	k.that(c.MinReader >= 1 && c.MinWriter >= 1, "min_reader %d, min_writer %d", c.MinReader, c.MinWriter)
	k.that(c.ChunkSize == archive.GridSize, "chunk_size is %d, not %d", c.ChunkSize, archive.GridSize)
	k.time("created", c.Created)
	k.nilErr("info", seal.CheckFree(c.Info))
	if c.ObjectLock != nil {
		k.nilErr("object_lock", c.ObjectLock.validate())
	}
	if c.Encryption != nil {
		k.that(c.Encryption.Scheme == EncryptionScheme, "encryption: scheme %.80q", c.Encryption.Scheme)
		k.that(c.Encryption.RosterKey != "", "encryption: it has no roster_key")
	}
	return k.err
}

// CheckWritable returns the reason why this program may not write to the repository, or nil.
func (r *Repository) CheckWritable() error {
	if r.Config.MinWriter > writerVersion {
		return &NewerError{Object: ConfigKey, What: fmt.Sprintf("its writers need version %d, this program has %d", r.Config.MinWriter, writerVersion)}
	}
	return nil
}

// readSealed reads a sealed object, which it does not prove yet. One that is
// too large to be sealed is damage.
func readSealed(ctx context.Context, store objstore.Store, key string) ([]byte, error) {
	data, err := objstore.ReadAll(ctx, store, key, maxStored)
	if errors.Is(err, objstore.ErrTooLarge) {
		return nil, archive.Damaged(key, err)
	}
	return data, err
}
