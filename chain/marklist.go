// SPDX-License-Identifier: Apache-2.0

package chain

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"strings"

	"github.com/klauspost/compress/zstd"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/crypt"
	"github.com/imgbackup/imgbackup/objstore"
)

const (
	prunePrefix   = "prune/"
	markListMagic = "imgbackup-prune-list 1\n"

	// MaxMarked is how many objects one mark has at most; and how many checkpoints
	// its census.
	MaxMarked = 1 << 20

	maxMarkList    = 128 << 20 // stored, bytes
	markListWindow = 1 << 20   // zstd's, bytes
	maxMarkLine    = 1 << 10   // bytes
)

// MarkList is what a mark names: objects, and a census of the checkpoints that stood
// when it was made, so that a listing that leaves one out is noticed. Both are keys,
// sorted bytewise, none twice.
type MarkList struct {
	Objects []string // at most MaxMarked; of packs, maps and the like, and older lists
	Census  []string // keys of manifests, at most MaxMarked
}

// Has reports whether an object is in the list.
func (l *MarkList) Has(key string) bool {
	_, ok := slices.BinarySearch(l.Objects, key)
	return ok
}

// markable reports whether a key is one of those that a prune may delete.
func markable(key string) bool {
	k := ParseKey(key)
	return k.Kind == KeyData || k.Kind == KeyMarkList
}

// MarkListKey is the key of a list.
func MarkListKey(d archive.Digest) string {
	name := d.String()
	return prunePrefix + name[:2] + "/" + name + ".zst"
}

// parseMarkListKey reports whether a key is one of MarkListKey.
func parseMarkListKey(key string) bool {
	rest, ok := strings.CutPrefix(key, prunePrefix)
	if !ok || len(rest) != 2+1+64+len(".zst") {
		return false
	}
	d, err := archive.ParseDigest(rest[3 : 3+64])
	return err == nil && MarkListKey(d) == key
}

// putMarkList stores a list under its name.
func (r *Repository) putMarkList(ctx context.Context, l *MarkList) (archive.Ref, error) {
	if err := r.CheckWritable(); err != nil {
		return archive.Ref{}, err
	}
	data, err := encodeMarkList(l)
	if err != nil {
		return archive.Ref{}, fmt.Errorf("list of what is to be pruned: %w", err)
	}
	if data, err = r.encrypt(crypt.Metadata, data); err != nil {
		return archive.Ref{}, fmt.Errorf("list of what is to be pruned: %w", err)
	}
	ref := archive.Ref{Name: archive.Sum(data), Length: int64(len(data))}
	// An object there may be a damaged one: these bytes are right in any case.
	err = r.Store.Put(ctx, MarkListKey(ref.Name), bytes.NewReader(data), objstore.PutOptions{Mode: objstore.Replace})
	if err != nil {
		return archive.Ref{}, fmt.Errorf("list of what is to be pruned: %w", err)
	}
	return ref, nil
}

func encodeMarkList(l *MarkList) ([]byte, error) {
	var out bytes.Buffer
	z, err := zstd.NewWriter(&out, zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(markListWindow), zstd.WithLowerEncoderMem(true), zstd.WithEncoderCRC(true))
	if err != nil {
		return nil, err
	}
	w := bufio.NewWriter(z)
	_, _ = w.WriteString(markListMagic) // an error stays until Flush
	for _, part := range []struct {
		word string
		keys []string
		is   func(string) bool
	}{
		{"o ", l.Objects, markable},
		{"m ", l.Census, func(key string) bool { return ParseKey(key).Kind == KeyManifest }},
	} {
		if len(part.keys) > MaxMarked || !sortedOnce(part.keys) {
			return nil, fmt.Errorf("%d keys are too many, or not sorted", len(part.keys))
		}
		for _, key := range part.keys {
			if !part.is(key) {
				return nil, fmt.Errorf("%.80q has no place in it", key)
			}
			_, _ = w.WriteString(part.word + key + "\n")
		}
	}
	_, _ = fmt.Fprintf(w, "end %d %d\n", len(l.Objects), len(l.Census))
	if err := errors.Join(w.Flush(), z.Close()); err != nil {
		return nil, err
	}
	if out.Len() > maxMarkList {
		return nil, fmt.Errorf("it has %d bytes, more than %d", out.Len(), maxMarkList)
	}
	return out.Bytes(), nil
}

// MarkList reads the list that a mark names. One that is missing or damaged is an
// archive.DamageError.
func (r *Repository) MarkList(ctx context.Context, m *Mark) (*MarkList, error) {
	var l MarkList
	for line, err := range r.markLines(ctx, m.List) {
		if err != nil {
			return nil, err
		}
		if line.object {
			l.Objects = append(l.Objects, line.key)
		} else {
			l.Census = append(l.Census, line.key)
		}
	}
	return &l, nil
}

type markLine struct {
	object bool // else of the census
	key    string
}

// markLines yields the lines of a list, which is proven first.
func (r *Repository) markLines(ctx context.Context, ref archive.Ref) iter.Seq2[markLine, error] {
	return func(yield func(markLine, error) bool) {
		key := MarkListKey(ref.Name)
		data, err := objstore.ReadAll(ctx, r.Store, key, ref.Length)
		switch {
		case errors.Is(err, objstore.ErrNotFound), errors.Is(err, objstore.ErrTooLarge):
			err = archive.Damaged(key, err)
		case err == nil && archive.Sum(data) != ref.Name:
			err = archive.Damaged(key, errors.New("its bytes do not have the SHA-256 that is its name"))
		}
		if err == nil {
			data, err = r.open(crypt.Metadata, key, data)
		}
		if err != nil {
			yield(markLine{}, err)
			return
		}
		if err := decodeMarkList(data, func(l markLine) bool { return yield(l, nil) }); err != nil {
			yield(markLine{}, archive.Damaged(key, err))
		}
	}
}

var errMarkLine = errors.New("a line of it is not valid")

func decodeMarkList(data []byte, yield func(markLine) bool) error {
	z, err := zstd.NewReader(bytes.NewReader(data), zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(markListWindow))
	if err != nil {
		return err
	}
	defer z.Close()
	in := bufio.NewReaderSize(z, maxMarkLine)
	if line, err := in.ReadSlice('\n'); err != nil || string(line) != markListMagic {
		return fmt.Errorf("it does not begin as one of version 1: %w", errors.Join(err, errMarkLine))
	}
	var counts [2]int
	last := ""
	for {
		line, err := in.ReadSlice('\n')
		if err != nil {
			return fmt.Errorf("it was cut short: %w", err)
		}
		text := string(line[:len(line)-1])
		if key, ok := strings.CutPrefix(text, "o "); ok && counts[1] == 0 && markable(key) && key > last && counts[0] < MaxMarked {
			counts[0]++
			last = key
			if !yield(markLine{true, key}) {
				return nil
			}
			continue
		}
		if key, ok := strings.CutPrefix(text, "m "); ok && ParseKey(key).Kind == KeyManifest && (counts[1] == 0 || key > last) && counts[1] < MaxMarked {
			counts[1]++
			last = key
			if !yield(markLine{false, key}) {
				return nil
			}
			continue
		}
		if text != fmt.Sprintf("end %d %d", counts[0], counts[1]) {
			return errMarkLine
		}
		if _, err := in.ReadByte(); err != io.EOF {
			return fmt.Errorf("something follows its end: %w", errMarkLine)
		}
		return nil
	}
}
