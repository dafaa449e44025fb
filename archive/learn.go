// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"errors"

	"github.com/imgbackup/imgbackup/archive/known"
	"github.com/imgbackup/imgbackup/crypt"
	"github.com/imgbackup/imgbackup/objstore"
)

// learnBytes is how much there is of indexes that the machine's table lacks, stored, before
// they are added to it: fewer are read into memory by each session.
const learnBytes = 1 << 20

// learn finds out what chunks the repository has, by its indexes. What can't be had becomes
// a note; only a cancelled context is an error.
func (w *Writer) learn() error {
	if w.keys != nil && !w.keys.Opens(crypt.Data) {
		return nil // it could read back nothing of what it is told
	}
	var infos []objstore.Info
	for info, err := range w.store.List(w.ctx, IndexPrefix) {
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
	if w.o.Known != "" {
		if infos, err = l.useTable(infos); err != nil {
			return err
		}
	}
	return l.toMemory(infos)
}

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
			return loadIndex(stored, key, l.dec, &l.table, &l.packs.list)
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
		return infos
	}
	lacking := these(t.Listed(names))
	if totalSize(lacking) < learnBytes {
		return lacking, nil
	}
	if err := l.update(t, names, these); err != nil {
		if l.ctx.Err() != nil {
			return nil, l.ctx.Err()
		}
		l.note("what this machine keeps of the repository's chunks can't be brought up to date: %v", err)
	}
	return these(t.Listed(names)), nil
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
	_, err := eachIndexPack(stored, key, l.dec, func(pack Ref, chunks []PackChunk) error {
		frames = frames[:0]
		for i := range chunks {
			if c := &chunks[i]; c.Length >= minDedup {
				frames = append(frames, known.Frame{Chunk: c.Chunk, Offset: uint32(c.FrameOffset), Length: uint32(c.FrameLength)})
			}
		}
		add(known.Pack{Name: pack.Name, Length: pack.Length}, frames)
		return nil
	})
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
