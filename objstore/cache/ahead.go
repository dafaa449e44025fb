// SPDX-License-Identifier: Apache-2.0

package cache

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"strings"

	"github.com/imgbackup/imgbackup/objstore"
)

// Ahead is a listing that was begun before it was known which repository stands in a place.
type Ahead struct {
	id, prefix string
	borders    []string
	pieces     *pieces // nil: none were begun
}

// plainMark is the file beside the borders of listings that says that keys may be asked for: they
// are no secret of a repository whose keys are not open yet.
const plainMark = "plain"

// Ahead begins a listing of a store beside whatever else is asked of it first, if a repository in
// that place is remembered whose keys are plain ([Options.Plain]); else it returns nil. Whether it
// is that repository, [New] sees. It has to be dropped in the end.
func (d *Dir) Ahead(ctx context.Context, s objstore.Store, place, prefix string) *Ahead {
	from, ok := objstore.As[objstore.ListerAfter](s)
	if !ok {
		return nil
	}
	id := d.plainIn(place)
	if id == "" {
		return nil
	}
	borders := bordersIn(d.repository(id, place), prefix)
	return &Ahead{id: id, prefix: prefix, borders: borders, pieces: begin(ctx, from, prefix, borders)}
}

// Drop ends the listing; it may be called again, and of one that is nil.
func (a *Ahead) Drop() {
	if a != nil && a.pieces != nil {
		a.pieces.drop()
	}
}

// plainIn is the id of the repository that was last found in a place, with plain keys; "": none.
func (d *Dir) plainIn(place string) (id string) {
	var mark string
	var last fs.FileInfo
	for one, path := range d.plainMarks(place) {
		if info, err := os.Lstat(path); err == nil && (last == nil || info.ModTime().After(last.ModTime())) {
			id, mark, last = one, path, info
		}
	}
	if last != nil {
		touch(mark, last)
	}
	return id
}

// plainMarks yields the ids of the repositories that were found in a place, and where each would
// have its mark.
func (d *Dir) plainMarks(place string) iter.Seq2[string, string] {
	return func(yield func(id, path string) bool) {
		entries, err := os.ReadDir(d.path)
		if err != nil {
			return // nothing is remembered
		}
		for _, e := range entries {
			id, ok := strings.CutSuffix(e.Name(), "-"+placeName(place))
			if ok && !yield(id, filepath.Join(d.path, e.Name(), listingsFolder, plainMark)) {
				return
			}
		}
	}
}

// isPlain notes that the keys of the repository in a place are plain, or that they are not: then
// nothing is asked ahead there, whatever was in that place before.
func (s *store) isPlain(place string, plain bool) {
	if !plain {
		for _, path := range s.dir.plainMarks(place) {
			_ = os.Remove(path)
		}
		return
	}
	if _, err := os.Lstat(filepath.Join(s.folder, listingsFolder, plainMark)); err != nil {
		_ = s.dir.write(s.folder, listingsFolder, plainMark, func(*os.File) error { return nil }) // else nothing is asked ahead
	}
}

// takeAhead returns what was begun, if it is a listing of that, once.
func (s *store) takeAhead(prefix string) *Ahead {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.ahead
	if a == nil || a.prefix != prefix {
		return nil
	}
	s.ahead = nil
	return a
}

// placeName stands for a place in the name of a repository's folder.
func placeName(place string) string {
	sum := sha256.Sum256([]byte(place))
	return hex.EncodeToString(sum[:4])
}
