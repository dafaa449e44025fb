// SPDX-License-Identifier: Apache-2.0

package keys

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/klauspost/compress/zstd"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/objstore"
)

// Bounds of a list of what stands.
const (
	maxStanding      = 256 << 20 // bytes, as it is stored
	maxStandingText  = 1 << 30   // bytes of text
	maxStandingLines = 4 << 20
	maxStandingLine  = 64 + 2 + 1024
)

// Stands is a signed object as it stands under a key.
type Stands struct {
	Key  string
	Seal string // the digest in its last line: 64 hex digits
}

// compare is the order of lines. That of a key with its seal behind it is another where one key begins with
// another.
func (s Stands) compare(t Stands) int {
	return cmp.Or(cmp.Compare(s.Key, t.Key), cmp.Compare(s.Seal, t.Seal))
}

// writeStanding makes a list: zstd of lines as sha256sum has them, sorted by key, then by seal:
// where a store keeps versions, several may stand under a key.
func writeStanding(all []Stands) ([]byte, error) {
	if len(all) > maxStandingLines {
		return nil, fmt.Errorf("%d objects are more than the %d that a list of what stands can have", len(all), maxStandingLines)
	}
	all = slices.Clone(all)
	slices.SortFunc(all, Stands.compare)
	all = slices.Compact(all)
	var b bytes.Buffer
	z, err := zstd.NewWriter(&b, zstd.WithEncoderConcurrency(1))
	if err != nil {
		return nil, err
	}
	for _, s := range all {
		if !isDigest(s.Seal) || strings.ContainsAny(s.Key, "\n") || len(s.Key) > 1024 {
			return nil, fmt.Errorf("%.80q does not stand", s.Key)
		}
		if _, err := fmt.Fprintf(z, "%s  %s\n", s.Seal, s.Key); err != nil {
			return nil, err
		}
	}
	if err := z.Close(); err != nil {
		return nil, err
	}
	// Nobody opens a repository whose list can't be read.
	n := 0
	if err := readStanding(b.Bytes(), func(string) { n++ }); err != nil || n != len(all) {
		return nil, fmt.Errorf("the list of what stands can't be read back, %d of its %d lines: %w", n, len(all), cmp.Or(err, io.ErrUnexpectedEOF))
	}
	return b.Bytes(), nil
}

// readStanding calls each with every line of a list.
func readStanding(data []byte, each func(line string)) error {
	z, err := zstd.NewReader(bytes.NewReader(data), zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(64<<20), zstd.WithDecoderMaxWindow(16<<20))
	if err != nil {
		return err
	}
	defer z.Close()
	lines := bufio.NewScanner(io.LimitReader(z, maxStandingText))
	lines.Buffer(make([]byte, 0, 4096), maxStandingLine+1)
	var last Stands
	for n := 0; lines.Scan(); n++ {
		line := lines.Text()
		if len(line) < 67 || !isDigest(line[:64]) || line[64:66] != "  " || n >= maxStandingLines {
			return fmt.Errorf("line %d is none", n+1)
		}
		s := Stands{Key: line[66:], Seal: line[:64]}
		if n > 0 && s.compare(last) <= 0 {
			return fmt.Errorf("line %d is not in order", n+1)
		}
		last = s
		each(line)
	}
	return lines.Err()
}

// standingSet is what stood when the newest generation began: of each line, the first half of
// its SHA-256.
type standingSet map[[16]byte]struct{}

func lineSum(seal, key string) [16]byte {
	sum := sha256.Sum256([]byte(seal + "  " + key))
	return [16]byte(sum[:])
}

// loadStanding reads what stood when the newest generation began.
func (k *Keyring) loadStanding(ctx context.Context) (standingSet, error) {
	list := k.Roster.Generations[len(k.Roster.Generations)-1].Standing
	if list == nil {
		return nil, nil // the first generation
	}
	key := standingKey(list.SHA256)
	prove := func(data []byte) error {
		if digestOf(data) != list.SHA256 {
			return archive.Damaged(key, errors.New("its bytes have another digest"))
		}
		return nil
	}
	data, err := k.ahead.read(ctx, k.store, key, list.Length)
	switch {
	case errors.Is(err, objstore.ErrNotFound):
		err = archive.Damaged(key, err)
	case err == nil:
		err = prove(data)
	}
	if err != nil {
		err = k.lowered.find(ctx, k.store, key, list.Length, err, func(old []byte) error {
			data = old
			return prove(old)
		})
	}
	if err != nil {
		return nil, fmt.Errorf("read what stands: %w", err)
	}
	lines := make(standingSet)
	if err := readStanding(data, func(line string) { lines[lineSum(line[:64], line[66:])] = struct{}{} }); err != nil {
		return nil, archive.Damaged(key, err)
	}
	return lines, nil
}
