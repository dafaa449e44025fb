// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"io"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/imgbackup/imgbackup/crypt"
	"github.com/imgbackup/imgbackup/objstore"
)

// An index lists packs and their chunks, for deduplication only: a session that
// can't read one stores more than it needs, and nothing else happens.

const (
	indexMagic     = "imgbackup-index 1"
	indexHeadLen   = len(indexMagic) + 1 + 19 + 1
	indexPackLen   = 1 + 1 + 10 + 1 + hexLen + 1
	indexChunkLen  = 1 + 1 + packLineLen
	maxIndexLength = 32 << 20 // stored, as it is read
	// indexLoadBytes is how much is read without asking which indexes are the newest.
	indexLoadBytes = 16 << 20
	maxIndexHeads  = 4096
	// So many are read at once: whole ones, and heads.
	indexReaders     = 16
	indexHeadReaders = 64
)

func parseIndexHead(line []byte) (int64, error) {
	l := lineReader{line: line}
	if len(line) != indexHeadLen {
		return 0, errors.New("not an index")
	}
	l.word(indexMagic)
	t := l.dec(19)
	if !l.end() {
		return 0, errors.New("not an index of version 1")
	}
	return t, nil
}

var errIndexLine = errors.New("a line of the index is not valid")

// parseIndex reads a stored index and calls fn for each chunk until it returns
// false.
func parseIndex(stored []byte, dec *decoder, fn func(pack Ref, c *PackChunk) bool) error {
	var text []byte
	at := indexPlace{keyed: dec.keys != nil}
	for first := true; first || len(stored) > 0; first = false {
		n, _, err := frameExtent(stored)
		if err != nil {
			return err
		}
		if text, err = dec.frame(stored[:n], text, maxText); err != nil {
			return err
		}
		stored = stored[n:]
		if first {
			_, err = parseIndexHead(text)
		} else {
			err = at.parse(text, fn)
		}
		if errors.Is(err, errIndexEnough) {
			return nil
		}
		if err != nil {
			return err
		}
	}
	return nil
}

var errIndexEnough = errors.New("enough")

// indexPlace is where reading an index is: in which pack, and of an encrypted repository in
// which group.
type indexPlace struct {
	keyed  bool
	pack   Ref
	groups groupLines
}

// parse reads the lines of one frame.
func (at *indexPlace) parse(text []byte, fn func(pack Ref, c *PackChunk) bool) error {
	pack := &at.pack
	for len(text) > 0 {
		if at.keyed && text[0] != 'p' {
			n, c, err := at.groups.next(text)
			switch {
			case err != nil:
				return err
			case at.groups.end > pack.Length:
				return errIndexLine
			case c != nil && !fn(*pack, c):
				return errIndexEnough
			}
			text = text[n:]
			continue
		}
		width := indexChunkLen
		if text[0] == 'p' {
			width = indexPackLen
		}
		if len(text) < width {
			return errIndexLine
		}
		line := text[:width]
		text = text[width:]
		if line[0] == 'p' {
			l := lineReader{line: line}
			l.word("p")
			pack.Length = l.dec(10)
			l.hex(&pack.Name)
			if !l.end() || pack.Length <= 0 || pack.Length > maxPackLength {
				return errIndexLine
			}
			at.groups = groupLines{}
			continue
		}
		var c PackChunk
		if line[0] != 'c' || line[1] != ' ' || !c.parse(line[2:]) || c.FrameOffset+int64(c.FrameLength) > pack.Length {
			return errIndexLine
		}
		if !fn(*pack, &c) {
			return errIndexEnough
		}
	}
	return nil
}

// indexBatch is how many of the next indexes are read at once.
func indexBatch(infos []objstore.Info) int {
	n, total := 0, int64(0)
	for n < min(len(infos), indexReaders) && (n == 0 || total+infos[n].Size <= maxIndexLength) {
		total += infos[n].Size
		n++
	}
	return n
}

// readIndexes reads some indexes at once; for each there are its bytes or an error.
func readIndexes(ctx context.Context, store objstore.Store, infos []objstore.Info) ([][]byte, []error) {
	stored, errs := make([][]byte, len(infos)), make([]error, len(infos))
	var wg sync.WaitGroup
	for i, info := range infos {
		wg.Go(func() {
			stored[i], errs[i] = objstore.ReadAll(ctx, store, info.Key, maxIndexLength)
		})
	}
	wg.Wait()
	return stored, errs
}

// loadIndex fills the table from a stored index, whose bytes are proven.
func loadIndex(stored []byte, key string, dec *decoder, x Indexing, table *dedupTable, packs *packList) error {
	stored, err := openIndex(stored, key, dec.keys, x)
	if errors.Is(err, ErrOldIndex) {
		return nil
	}
	if err != nil {
		return err
	}
	var last Ref
	var number uint32
	err = parseIndex(stored, dec, func(pack Ref, c *PackChunk) bool {
		if pack != last {
			last = pack
			number, _ = packs.number(pack)
		}
		if c.Length >= minDedup {
			table.put(&c.Chunk, place{pack: number, frameOff: uint32(c.FrameOffset), frameLen: uint32(c.FrameLength)}, table.limitLoaded())
		}
		return !table.full(table.limitLoaded())
	})
	if err != nil {
		return &DamageError{Object: key, Err: err}
	}
	return nil
}

// indexHead is how much of an index has its first line, bytes.
func indexHead(keys *crypt.Keys) int64 {
	if keys == nil {
		return 256
	}
	return crypt.MaxHeader + crypt.FirstBlock
}

// openIndexHead decrypts the first bytes of an index; nil: it can't be.
func openIndexHead(keys *crypt.Keys, stored []byte) []byte {
	if keys == nil {
		return stored
	}
	r, err := keys.Reader(crypt.Metadata, bytes.NewReader(stored))
	if err != nil {
		return nil
	}
	head := make([]byte, 256)
	n, _ := io.ReadFull(r, head) // what is behind the first block is not there
	return head[:n]
}

// newestFirst sorts indexes by the time in their first line. What can't be read
// goes last, beyond what fits.
func newestFirst(ctx context.Context, store objstore.Store, infos []objstore.Info, dec *decoder) []objstore.Info {
	type dated struct {
		objstore.Info
		time int64
	}
	infos = infos[:min(len(infos), maxIndexHeads)]
	all := make([]dated, len(infos))
	heads := make([][]byte, len(infos))
	var g errgroup.Group
	g.SetLimit(indexHeadReaders)
	for i, info := range infos {
		g.Go(func() error {
			head := make([]byte, min(info.Size, indexHead(dec.keys)))
			if readRange(ctx, store, info.Key, 0, head, info.Size) == nil {
				heads[i] = openIndexHead(dec.keys, head)
			}
			return nil
		})
	}
	_ = g.Wait() // what can't be read has no head
	for i, info := range infos {
		all[i] = dated{Info: info, time: -1}
		n, _, err := frameExtent(heads[i])
		if err != nil {
			continue
		}
		text, err := dec.frame(heads[i][:n], nil, int64(indexHeadLen))
		if err != nil {
			continue
		}
		if t, err := parseIndexHead(text); err == nil {
			all[i].time = t
		}
	}
	slices.SortStableFunc(all, func(a, b dated) int { return cmp.Compare(b.time, a.time) })
	out := make([]objstore.Info, len(all))
	for i := range all {
		out[i] = all[i].Info
	}
	return out
}
