// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/imgbackup/imgbackup/archive/known"
	"github.com/imgbackup/imgbackup/crypt"
	"github.com/imgbackup/imgbackup/objstore"
)

const (
	// learnBytes, or learnIndexes, is how much there is of indexes that the machine's table lacks
	// before they are added to it: fewer are read into memory by each session.
	learnBytes   = 1 << 20
	learnIndexes = 8
	// smallIndex is what an index has, stored, that lists so little that it is perhaps not worth
	// a request: some hundred chunks. Of those of others a session reads but so many.
	smallIndex  = 32 << 10
	smallOthers = 8
)

// learn finds out what chunks the repository has, by its indexes. What can't be had becomes
// a note; only a cancelled context is an error.
func (w *Writer) learn() error {
	prefix := IndexPrefix
	if w.blind() {
		if w.o.Indexing.Seals == nil {
			return nil
		}
		prefix = IndexFolder(w.o.Indexing.folder()) // what others say it could not prove
	}
	var infos []objstore.Info
	for info, err := range w.store.List(w.ctx, prefix) {
		if err != nil {
			w.note("the list of indexes can't be had, so more may be stored than is new: %v", err)
			return w.ctx.Err()
		}
		if _, _, ok := ParseKey(info.Key); ok && info.Size <= maxIndexLength {
			infos = append(infos, info)
		}
	}
	dec, err := newKeyedDecoder(w.keys)
	if err != nil {
		return err
	}
	defer dec.close()
	l := &learner{Writer: w, dec: dec}
	if w.o.Known != "" && !w.blind() { // which has what others say
		if infos, err = l.useTable(infos); err != nil {
			return err
		}
	}
	return l.toMemory(infos)
}

// FillsTable reports whether a repository has so much in its indexes that a session is going to keep it in the
// table of [WriterOptions.Known], as far as that can be had.
func FillsTable(ctx context.Context, store objstore.Store) bool {
	var all int64
	for info, err := range store.List(ctx, IndexPrefix) {
		if err != nil {
			return false // the session tells of it
		}
		if all += info.Size; all >= learnBytes {
			return true
		}
	}
	return false
}

// blind reports whether the session can read nothing of what is stored, its own included.
func (w *Writer) blind() bool { return w.keys != nil && !w.keys.Opens(crypt.Data) }

// learner is a Writer that begins.
type learner struct {
	*Writer
	dec *decoder
}

func totalSize(infos []objstore.Info) (n int64) {
	for _, info := range infos {
		n += info.Size
	}
	return n
}

// toMemory fills the table in memory, with the newest indexes when not all fit.
func (l *learner) toMemory(infos []objstore.Info) error {
	if totalSize(infos) > indexLoadBytes {
		infos = newestFirst(l.ctx, l.store, infos, l.dec)
	}
	for len(infos) > 0 && !l.table.full(l.table.limitLoaded()) {
		n := indexBatch(infos)
		l.read(infos[:n], func(stored []byte, key string) error {
			return loadIndex(stored, key, l.dec, l.o.Indexing, &l.table, &l.packs.list)
		})
		infos = infos[n:]
		if err := l.ctx.Err(); err != nil {
			return err
		}
	}
	if l.table.full(l.table.limitLoaded()) {
		l.note("only the newest %d chunks of the repository are known, so more may be stored than is new:"+
			" there is no folder to keep what it has (IMGBACKUP_CACHE names one), no room in it, or another backup is at it", l.table.limitLoaded())
	}
	return l.ctx.Err()
}

// read reads some indexes at once, and gives each to use. What fails leaves a note.
func (l *learner) read(infos []objstore.Info, use func(stored []byte, key string) error) {
	stored, errs := readIndexes(l.ctx, l.store, infos)
	for i, info := range infos {
		err := errs[i]
		if err == nil {
			err = checkIndexName(stored[i], info.Key)
		}
		if err == nil {
			err = use(stored[i], info.Key)
		}
		if err != nil && l.ctx.Err() == nil && !errors.Is(err, known.ErrFull) {
			l.note("an index is ignored, so more may be stored than is new: %v", err)
		}
	}
}

// useTable opens the table that this machine keeps, adds what it lacks if that is much,
// and returns the indexes that it lacks then.
func (l *learner) useTable(infos []objstore.Info) ([]objstore.Info, error) {
	t, err := known.Open(l.o.Known, l.o.KnownLimit)
	if err != nil {
		l.note("what this machine keeps of the repository's chunks can't be used: %v", err)
		return infos, nil
	}
	l.known = t
	names := make([]known.Digest, len(infos))
	byName := make(map[known.Digest]objstore.Info, len(infos))
	for i, info := range infos {
		_, name, _ := ParseKey(info.Key)
		names[i], byName[known.Digest(name)] = known.Digest(name), info
	}
	these := func(lacking []known.Digest) (infos []objstore.Info) {
		for _, name := range lacking {
			infos = append(infos, byName[name])
		}
		return l.worthIt(infos)
	}
	lacking := these(t.Listed(names))
	if totalSize(lacking) < learnBytes && len(lacking) <= learnIndexes {
		return lacking, nil
	}
	err = l.update(t, names, func(names []known.Digest) []objstore.Info {
		lacking = these(names)
		return lacking
	})
	if err != nil {
		if l.ctx.Err() != nil {
			return nil, l.ctx.Err()
		}
		l.note("what this machine keeps of the repository's chunks can't be brought up to date: %v", err)
	}
	still := make(map[known.Digest]bool)
	for _, name := range t.Listed(names) {
		still[name] = true
	}
	return slices.DeleteFunc(lacking, func(info objstore.Info) bool {
		_, name, _ := ParseKey(info.Key)
		return !still[known.Digest(name)]
	}), nil
}

// worthIt returns the indexes that are worth to be read: all of this host, since what a backup
// of it that was killed has stored is found by them, all that are large, and the largest of the
// others. Each night of a fleet adds as many small ones as it has VMs, of which each lists what
// one of them wrote: to read all of them would cost each backup more than it saves.
func (l *learner) worthIt(infos []objstore.Info) []objstore.Info {
	own := IndexFolder(l.o.Indexing.folder())
	others := func(info objstore.Info) bool { return info.Size < smallIndex && !strings.HasPrefix(info.Key, own) }
	rank := func(info objstore.Info) int {
		if others(info) {
			return 1
		}
		return 0
	}
	slices.SortStableFunc(infos, func(a, b objstore.Info) int { return cmp.Or(rank(a)-rank(b), cmp.Compare(b.Size, a.Size)) })
	if i := slices.IndexFunc(infos, others); i >= 0 {
		infos = infos[:min(len(infos), i+smallOthers)]
	}
	return infos
}

// update adds the indexes that the table lacks, unless another does so at this moment.
func (l *learner) update(t *known.Table, names []known.Digest, these func([]known.Digest) []objstore.Info) error {
	u, lacking, err := t.Update(names)
	if err != nil || u == nil {
		return err
	}
	defer u.Close()
	for infos, full := these(lacking), false; len(infos) > 0 && !full; {
		n := indexBatch(infos)
		l.read(infos[:n], func(stored []byte, key string) error {
			_, name, _ := ParseKey(key)
			err := u.Add(known.Digest(name), func(add func(known.Pack, []known.Frame)) error {
				return l.frames(stored, key, add)
			})
			full = full || errors.Is(err, known.ErrFull)
			return err
		})
		infos = infos[n:]
		if err := l.ctx.Err(); err != nil {
			return err
		}
	}
	return u.Commit(l.ctx)
}

// frames gives what an index says of chunks that are worth to be found.
func (l *learner) frames(stored []byte, key string, add func(known.Pack, []known.Frame)) error {
	var frames []known.Frame
	_, err := eachIndexPack(stored, key, l.dec, l.o.Indexing, func(pack Ref, chunks []PackChunk) error {
		frames = frames[:0]
		for i := range chunks {
			if c := &chunks[i]; c.Length >= minDedup {
				frames = append(frames, known.Frame{Chunk: c.Chunk, Offset: uint32(c.FrameOffset), Length: uint32(c.FrameLength)})
			}
		}
		add(known.Pack{Name: pack.Name, Length: pack.Length}, frames)
		return nil
	})
	if errors.Is(err, ErrOldIndex) {
		return nil // and is not read again
	}
	return err
}

func checkIndexName(stored []byte, key string) error {
	if _, name, _ := ParseKey(key); Sum(stored) != name {
		return damagef(key, 0, 0, "its bytes do not have the SHA-256 that is its name")
	}
	return nil
}

// closeKnown gives back what helped to find chunks.
func (w *Writer) closeKnown() {
	w.table.close()
	if w.known != nil {
		w.known.Close()
	}
}
