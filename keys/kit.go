// SPDX-License-Identifier: Apache-2.0

package keys

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"filippo.io/age/armor"

	"github.com/imgbackup/imgbackup/objstore"
)

// Kept is an object under keys/ as it can be printed and typed in again.
type Kept struct {
	Key   string
	Of    string // the member's name
	Armor string // an armored age file
}

// Kit is what opens the data with a member's identity: the age files under keys/ of all that
// may read it, in armor, which age takes as they are. Without them an identity opens nothing.
func Kit(ctx context.Context, p Place, r *Roster) ([]Kept, error) {
	var all []Kept
	for _, m := range r.standing() {
		if !m.Role.ReadsData() {
			continue
		}
		var names []string
		if m.Passphrase {
			names = append(names, identityKey(m.Name))
		}
		for i := range r.Generations {
			g := &r.Generations[i]
			names = append(names, dataKey(g, m.Name), metadataKey(g, m.Name))
		}
		names = append(names, signingKey(m.Name))
		for _, key := range names {
			data, err := read(ctx, p.Store, key, maxFile)
			if errors.Is(err, objstore.ErrNotFound) {
				return nil, fmt.Errorf("%s is missing, and the roster says that it is of %s: %w", key, m.Name, err)
			}
			if err != nil {
				return nil, err
			}
			text, err := armored(data)
			if err != nil {
				return nil, err
			}
			all = append(all, Kept{Key: key, Of: m.Name, Armor: text})
		}
	}
	return all, nil
}

func armored(data []byte) (string, error) {
	var b bytes.Buffer
	w := armor.NewWriter(&b)
	_, err := io.Copy(w, bytes.NewReader(data))
	if err = errors.Join(err, w.Close()); err != nil {
		return "", err
	}
	return b.String(), nil
}

// Revision is a revision of a roster, as it is stored: text.
type Revision struct{ Key, Text string }

// Revisions are all of a roster's, without which the program opens nothing, though age does.
func Revisions(ctx context.Context, p Place, r *Roster) ([]Revision, error) {
	var all []Revision
	for n := 1; n <= r.Revision; n++ {
		data, err := read(ctx, p.Store, rosterKey(n), maxRoster)
		if err != nil {
			return nil, err
		}
		all = append(all, Revision{Key: rosterKey(n), Text: string(data)})
	}
	return all, nil
}
