// SPDX-License-Identifier: Apache-2.0

package chain

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/imgbackup/imgbackup/objstore"
)

// IntentFormat is the value of an intent's field "format".
const IntentFormat = "imgbackup-intent"

// Intent says what a backup is about to add to which images, so that a later
// run can settle what became of it. Its key is domains/DOMAIN/intents/UUID.json.
type Intent struct {
	Head
	UUID           string `json:"uuid"` // of the backup's lease, too
	Domain         string `json:"domain"`
	Checkpoint     string `json:"checkpoint"`
	CheckpointUUID string `json:"checkpoint_uuid"`
	Process
	Created time.Time     `json:"created"` // UTC
	Images  []IntentImage `json:"images"`
	// Complete says that the checkpoint was made, and that of the images, which a VM may have had
	// since, only old bitmaps are to be removed.
	Complete bool `json:"complete,omitempty"`
	// Clones are copies that are made by a command of the user's, and go when they were read.
	Clones []IntentClone `json:"clones,omitempty"`

	// By is whose key has signed it; empty: nothing is signed here.
	By string `json:"-"`
	// Foreign says that it is signed by another host's key than that by which the repository was
	// opened, and no manager's: nothing is to be done for it.
	Foreign bool `json:"-"`
}

// IntentImage is one image that a bitmap is added to.
type IntentImage struct {
	Disk   string   `json:"target"`
	Path   string   `json:"path"`
	Device uint64   `json:"device"`
	Inode  uint64   `json:"inode"`
	Before []string `json:"before"`           // names of all bitmaps that were there
	Add    string   `json:"add"`              // name of the bitmap that is added
	Retire []string `json:"retire,omitempty"` // names of bitmaps that are needed no more, if it is complete
}

// IntentClone is a copy of one file or block device of an image.
type IntentClone struct {
	Disk  string `json:"target"`
	Image string `json:"image"` // the active image that the file belongs to
	Path  string `json:"path"`  // of the file
	Name  string `json:"name"`  // of the copy: see [CloneName]
}

// CloneName is the name of a run's nth copy, which no other run's has: letters, digits and hyphens.
func CloneName(uuid string, n int) string { return fmt.Sprintf("imgbackup-%s-%d", uuid, n) }

// Empty reports whether an intent is about nothing.
func (in *Intent) Empty() bool { return len(in.Images) == 0 && len(in.Clones) == 0 }

// Validate says what is wrong with an intent, or nil.
func (in *Intent) Validate() error {
	var c checker
	c.nilErr("head", in.CheckHead(IntentFormat))
	c.nilErr("uuid", validUUID(in.UUID))
	c.nilErr("domain", CheckDomain(in.Domain))
	c.nilErr("checkpoint", CheckName(in.Checkpoint))
	c.nilErr("checkpoint_uuid", validUUID(in.CheckpointUUID))
	in.validate(&c)
	c.time("created", in.Created)
	c.that(len(in.Images) <= maxDisks, "%d images", len(in.Images))
	for i := range in.Images {
		im := &in.Images[i]
		c.nilErr("target", CheckName(im.Disk))
		c.path("path", im.Path)
		c.that(im.Add == BitmapName(in.Checkpoint, in.CheckpointUUID) || im.Add == in.Checkpoint, "bitmap %.80q is not named after the checkpoint", im.Add)
		c.that(len(im.Before) <= maxWitnesses && len(im.Retire) <= maxWitnesses, "%d bitmaps", max(len(im.Before), len(im.Retire)))
		c.that(in.Complete || len(im.Retire) == 0, "it is not complete, and old bitmaps are to be removed")
		for _, b := range slices.Concat(im.Before, im.Retire) {
			c.that(b != "" && len(b) <= 1023, "a bitmap's name has %d bytes", len(b))
		}
	}
	c.that(len(in.Clones) <= maxClones, "%d clones", len(in.Clones))
	for i := range in.Clones {
		k := &in.Clones[i]
		c.nilErr("target", CheckName(k.Disk))
		c.path("image", k.Image)
		c.path("path", k.Path)
		c.that(in.names(k.Name), "clone %.80q is not named after the run", k.Name)
	}
	if c.err != nil {
		return fmt.Errorf("invalid intent: %w", c.err)
	}
	return nil
}

// maxClones bounds the copies of an intent.
const maxClones = 4096

// names reports whether a name is that of one of the run's copies.
func (in *Intent) names(name string) bool {
	i, err := strconv.Atoi(name[strings.LastIndexByte(name, '-')+1:])
	return err == nil && i >= 0 && i < maxClones && name == CloneName(in.UUID, i)
}

// Key returns the key that the intent is stored under.
func (in *Intent) Key() string { return intentKey(in.Domain, in.UUID) }

func (in *Intent) mapTexts(f func(string) (string, error)) (*Intent, error) {
	out := *in
	out.Images, out.Clones = slices.Clone(in.Images), slices.Clone(in.Clones)
	var texts []*string
	for i := range out.Images {
		im := &out.Images[i]
		im.Before, im.Retire = slices.Clone(im.Before), slices.Clone(im.Retire)
		texts = append(texts, &im.Path)
		for _, names := range [][]string{im.Before, im.Retire} {
			for j := range names {
				texts = append(texts, &names[j])
			}
		}
	}
	for i := range out.Clones {
		texts = append(texts, &out.Clones[i].Image, &out.Clones[i].Path)
	}
	return &out, mapAll(texts, f)
}

// PutIntent stores an intent, durably; it replaces an earlier state of the same
// intent. It fills in Format and Version.
func (r *Repository) PutIntent(ctx context.Context, in *Intent) error {
	in.Format, in.Version = IntentFormat, 1
	in.Created = in.Created.UTC().Round(0)
	if err := in.Validate(); err != nil {
		return err
	}
	stored, err := in.mapTexts(escapeText)
	if err != nil {
		return err
	}
	return r.replace(ctx, intentKey(in.Domain, in.UUID), stored)
}

// replace stores a small sealed object, whatever stood there.
func (r *Repository) replace(ctx context.Context, key string, v any) error {
	if err := r.CheckWritable(); err != nil {
		return err
	}
	data, err := r.seal(key, v)
	if err != nil {
		if errors.As(err, new(*NotYoursError)) {
			return err // which is about the domain, and not about this object
		}
		return fmt.Errorf("%s: %w", key, err)
	}
	return r.Store.Put(ctx, key, bytes.NewReader(data), objstore.PutOptions{Mode: objstore.Replace})
}

// Intents returns a domain's intents, oldest first. For each one that is
// damaged or too new there is an error among the second result; the last one is
// the store's failure.
func (r *Repository) Intents(ctx context.Context, domain string) ([]*Intent, []error, error) {
	return r.intents(ctx, intentsPrefix(domain))
}

// AllIntents returns the intents of all domains, also of those that have no
// checkpoint yet, as Intents does.
func (r *Repository) AllIntents(ctx context.Context) ([]*Intent, []error, error) {
	return r.intents(ctx, domainsPrefix)
}

func (r *Repository) intents(ctx context.Context, prefix string) ([]*Intent, []error, error) {
	keys, err := r.list(ctx, prefix, KeyIntent)
	if err != nil {
		return nil, nil, err
	}
	intents, unusable, err := readEach(ctx, keys, func(ctx context.Context, k Key) (*Intent, error) {
		return r.readIntent(ctx, k.Domain, k.Name)
	})
	slices.SortStableFunc(intents, func(a, b *Intent) int { return a.Created.Compare(b.Created) })
	return intents, unusable, err
}

func (r *Repository) readIntent(ctx context.Context, domain, id string) (*Intent, error) {
	key := intentKey(domain, id)
	data, err := readSealed(ctx, r.Store, key)
	if err != nil {
		return nil, err
	}
	return parseAs(r, data, key, IntentFormat, func(in *Intent, who Author) error {
		if who != nil {
			in.By = who.AuthorName()
			in.Foreign = !who.Manages() && in.By != r.authority().Self().AuthorName() && r.manages() != nil
		}
		if in.Domain != domain || in.UUID != id {
			return errors.New("it is another intent's")
		}
		return nil
	})
}

// DeleteIntent removes an intent; one that is gone already is no error.
func (r *Repository) DeleteIntent(ctx context.Context, domain, id string) error {
	if err := errors.Join(CheckDomain(domain), validUUID(id)); err != nil {
		return err
	}
	return r.Store.Delete(ctx, intentKey(domain, id))
}
