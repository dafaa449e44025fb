// SPDX-License-Identifier: Apache-2.0

package chain

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/internal/memory"
	"github.com/imgbackup/imgbackup/internal/seal"
	"github.com/imgbackup/imgbackup/objstore"
	"github.com/imgbackup/imgbackup/objstore/below"
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
	// Told, unless nil, is told what is waited for.
	Told func(msg string)
	// Access is what encrypts and signs here; nil: nothing does.
	Access *Access
	// Lowered is what of the configuration and the keys has something on top that is not it, and was read
	// from below.
	Lowered []Lowered

	base    objstore.Store // what Store stands on: there objects are as they are stored
	beneath *beneath       // nil: what is on top counts
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
	if err := checkBelow(ctx, store); err != nil {
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
	begun := &recording{Store: store}
	if o.Encrypt != nil {
		if c.Encryption, r.Access, err = o.Encrypt(ctx, begun, c.ID); err != nil {
			return nil, begun.undo(ctx, err)
		}
	}
	r.Config = c
	r.layer(store)
	data, err := Seal(c)
	if err != nil {
		return nil, begun.undo(ctx, err)
	}
	err = r.create(ctx, ConfigKey, data, nil)
	var taken *standsError
	var unknown *unknownError
	switch {
	case err == nil:
		return r, nil
	case errors.As(err, &taken):
		return nil, fmt.Errorf("another program made a repository here just now: %w", objstore.ErrExists)
	case errors.As(err, &unknown):
		return nil, fmt.Errorf("make the repository: %w", errors.Join(ErrMadeOrNot, err))
	}
	return nil, begun.undo(ctx, fmt.Errorf("make the repository: %w", err))
}

// ErrMadeOrNot says that nobody knows whether there is a new repository: what opens it must be kept.
var ErrMadeOrNot = errors.New("it is not known whether there is a repository now")

// recording is a store that knows what it was given, to take it back.
type recording struct {
	objstore.Store
	mu    sync.Mutex
	given []given
}

type given struct {
	key  string
	data []byte
}

// Unwrap returns the store that is written to.
func (r *recording) Unwrap() objstore.Store { return r.Store }

// Put implements [objstore.Store].
func (r *recording) Put(ctx context.Context, key string, body objstore.Body, o objstore.PutOptions) error {
	data, err := io.ReadAll(io.NewSectionReader(body, 0, body.Size())) // all of it is small
	if err != nil {
		return err
	}
	r.mu.Lock()
	r.given = append(r.given, given{key, data})
	r.mu.Unlock()
	return r.Store.Put(ctx, key, body, o)
}

// undo removes what was stored for a repository that err kept from being made, unless that was
// another program, which may have made one of the same things. Of each object it looks whether it
// is this program's: also where err is something else, another may be at it.
func (r *recording) undo(ctx context.Context, err error) error {
	if errors.Is(err, objstore.ErrExists) {
		return err
	}
	ctx, cancel := Tidying(ctx)
	defer cancel()
	for _, g := range r.given {
		stands, derr := objstore.ReadAll(ctx, r.Store, g.key, int64(len(g.data)))
		switch {
		case errors.Is(derr, objstore.ErrNotFound), errors.Is(derr, objstore.ErrTooLarge), derr == nil && !bytes.Equal(stands, g.data):
			continue
		case derr == nil:
			derr = r.Delete(ctx, g.key)
		}
		if derr != nil {
			return errors.Join(err, fmt.Errorf("what was begun stays (%s and others under the same folder): remove it before init is run again: %w", g.key, derr))
		}
	}
	return err
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

// checkBelow refuses a place from which a repository was removed and that still has versions of it: the
// oldest configuration counts for all who open one there (see findFirst), whoever has put that there.
// Where nobody may ask for versions it is not known.
func checkBelow(ctx context.Context, store objstore.Store) error {
	versions, ok := objstore.As[objstore.Versions](store)
	if !ok || !objstore.KeepsVersions(store) { // as probe has seen
		return nil
	}
	all, err := below.List(ctx, versions, ConfigKey)
	switch {
	case err != nil && objstore.Permanent(err):
		return nil
	case err != nil:
		return fmt.Errorf("look whether there was a repository before: %w", err)
	case slices.ContainsFunc(all, func(v objstore.ObjectVersion) bool { return !v.Marker }):
		return &InitError{What: fmt.Sprintf("there was a repository here, of which the bucket still has versions (of %s), and these would count: choose another prefix, or remove all versions under this one", ConfigKey)}
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
	if err != nil && !errors.Is(err, ErrNotRepository) && !unusable(err) {
		return nil, err
	}
	first := make(chan firstConfig, 1)
	switch {
	case err == nil && objstore.KeepsVersions(store):
		go func() { first <- findFirst(ctx, store, c) }() // beside the keys
	case err == nil:
		first <- firstConfig{}
	default:
		first <- findFirst(ctx, store, nil)
	}
	if err != nil {
		f := <-first
		if f.config == nil {
			return nil, err
		}
		return openWith(ctx, store, f.config, unlock, f.lowered)
	}
	r, err := openWith(ctx, store, c, unlock)
	switch f := <-first; {
	case f.err != nil:
		return nil, f.err
	case f.config != nil:
		return openWith(ctx, store, f.config, unlock, f.lowered)
	}
	return r, err
}

// openWith opens a repository that has a configuration.
func openWith(ctx context.Context, store objstore.Store, c *Config, unlock Unlock, lowered ...Lowered) (*Repository, error) {
	if c.SingleWriter {
		store = objstore.SingleWriter(store)
	}
	r := &Repository{Store: store, Config: *c, Lowered: lowered}
	switch {
	case unlock != nil:
		var err error
		if r.Access, err = unlock(ctx, store, c); err != nil {
			return nil, err
		}
		if r.Access != nil {
			r.Lowered = append(r.Lowered, r.Access.Lowered...)
		}
	case c.Encryption != nil:
		return nil, ErrEncrypted
	}
	r.layer(store)
	return r, nil
}

// Reopen opens the repository again, with the keys that are open already, so that its
// configuration proves itself.
func (r *Repository) Reopen(ctx context.Context) (*Repository, error) {
	return OpenWith(ctx, r.Store, func(context.Context, objstore.Store, *Config) (*Access, error) { return r.Access, nil })
}

// readConfig reads what is on top.
func readConfig(ctx context.Context, store objstore.Store) (*Config, error) {
	data, err := readSealed(ctx, store, ConfigKey)
	if errors.Is(err, objstore.ErrNotFound) {
		return nil, &toldError{text: "there is no repository here: it would have " + ConfigKey + " (imgbackup init makes one)", is: []error{ErrNotRepository, err}}
	}
	if err != nil {
		return nil, fmt.Errorf("open the repository: %w", err)
	}
	return parseConfig(data)
}

func parseConfig(data []byte) (*Config, error) {
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

func (r *Repository) tell(format string, args ...any) {
	if r.Told != nil {
		r.Told(fmt.Sprintf(format, args...))
	}
}

// CheckWritable returns the reason why this program may not write to the repository, or nil.
func (r *Repository) CheckWritable() error { return r.Config.CheckWritable() }

// CheckWritable is [Repository.CheckWritable] of the repository that has this configuration.
func (c *Config) CheckWritable() error {
	if c.MinWriter > writerVersion {
		return &NewerError{Object: ConfigKey, What: fmt.Sprintf("its writers need version %d, this program has %d", c.MinWriter, writerVersion)}
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
