// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/klauspost/compress/zstd"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/crypt"
	"github.com/imgbackup/imgbackup/internal/seal"
)

// What docs/format.md says, written once more and simply, for TestMutants: nothing of the
// program's own readers is used but its seals and keys.

// half is the key to which an object is encrypted.
func half(key string) crypt.Half {
	if strings.HasPrefix(key, archive.FilePrefix) {
		return crypt.Data
	}
	return crypt.Metadata
}

// content is what is stored, decrypted.
func (m *mutable) content(h crypt.Half, stored []byte) ([]byte, error) {
	if m.ring == nil {
		return stored, nil
	}
	return m.ring.Keys.Open(nil, h, stored)
}

// stored is content as it is stored.
func (m *mutable) stored(h crypt.Half, content []byte) []byte {
	if m.ring == nil {
		return content
	}
	data, err := m.ring.Keys.Append(nil, h, content)
	if err != nil {
		panic(err)
	}
	return data
}

// frame is a zstd frame as the format wants it.
func frame(content []byte) []byte {
	z, err := zstd.NewWriter(nil, zstd.WithEncoderCRC(true), zstd.WithSingleSegment(true), zstd.WithEncoderConcurrency(1))
	if err != nil {
		panic(err)
	}
	defer z.Close()
	return z.EncodeAll(content, nil)
}

// unframe decodes all frames, of at most 32 MiB.
func unframe(stored []byte) ([]byte, error) {
	z, err := zstd.NewReader(nil, zstd.WithDecoderMaxMemory(32<<20), zstd.WithDecoderConcurrency(1))
	if err != nil {
		panic(err)
	}
	defer z.Close()
	return z.DecodeAll(stored, nil)
}

func skippableFrame(content []byte) []byte {
	return append(binary.LittleEndian.AppendUint32([]byte{0x50, 0x2a, 0x4d, 0x18}, uint32(len(content))), content...)
}

// encodeMap makes a map of its text, with so many runs in a frame.
func encodeMap(text string, inFrame int) (content []byte, dirLength int) {
	lines := strings.SplitAfter(strings.TrimSuffix(text, "\n"), "\n")
	lines[len(lines)-1] += "\n"
	var dir strings.Builder
	frames := 0
	add := func(kind string, lines []string, first, end int64) {
		if len(lines) == 0 {
			return
		}
		raw := strings.Join(lines, "")
		stored := frame([]byte(raw))
		fmt.Fprintf(&dir, "%s %15d %8d %8d %19d %19d %8d %s\n", kind, len(content), len(stored), len(raw), first, end, len(lines), archive.Sum(stored))
		content = append(content, stored...)
		frames++
	}
	head := min(5, len(lines))
	add("h", lines[:head], 0, 0)
	var runs, packs, ends []string
	for _, l := range lines[head:] {
		switch l[0] {
		case 'p':
			packs = append(packs, l)
		case 'e':
			ends = append(ends, l)
		default:
			runs = append(runs, l)
		}
	}
	add("p", packs, 0, 0)
	for len(runs) > 0 {
		n := min(inFrame, len(runs))
		first, _ := runOf(runs[0])
		at, length := runOf(runs[n-1])
		add("r", runs[:n], first, at+length)
		runs = runs[n:]
	}
	add("e", ends, 0, 0)
	return sealDir(content, dir.String(), frames)
}

// sealDir appends the directory of these lines.
func sealDir(frames []byte, lines string, n int) (content []byte, dirLength int) {
	footer := fmt.Sprintf("imgbackup-dir 1 %8d %15d %10d %s\n", n, len(frames), len(lines), archive.Sum([]byte(lines)))
	dir := skippableFrame([]byte(lines + footer))
	return append(frames, dir...), len(dir)
}

func runOf(line string) (at, length int64) {
	f := strings.Fields(line)
	if len(f) > 2 {
		at, _ = strconv.ParseInt(f[1], 10, 64) // what is no number counts as 0
		length, _ = strconv.ParseInt(f[2], 10, 64)
	}
	return at, length
}

// sealed is an object of JSON, as fields.
func (m *mutable) sealed(stored []byte) (map[string]any, error) {
	data, err := m.content(crypt.Metadata, stored)
	if err != nil {
		return nil, err
	}
	plain, _, err := seal.Open(data)
	if err != nil {
		return nil, err
	}
	d := json.NewDecoder(bytes.NewReader(plain))
	d.UseNumber()
	var v map[string]any
	return v, d.Decode(&v)
}

// seal seals and signs fields, and encrypts them.
func (m *mutable) seal(key string, v map[string]any) []byte {
	var sign seal.Signer
	if m.ring != nil {
		var err error
		if sign, err = m.ring.Signer(); err != nil {
			panic(err)
		}
	}
	data, err := seal.Seal(v, key, sign)
	if err != nil {
		panic(err)
	}
	return m.stored(crypt.Metadata, data)
}

// truth is what a disk reads as, at most so much of it as is shown.
type truth struct {
	data  []byte
	err   error // why some of it can't be had
	audit error // what no reader needs to see, but a check
}

// oracle replays a disk's maps as the format says: "from the oldest to the newest to an empty
// file, setting the file's size to each map's before its runs are written".
func (m *mutable) oracle(objects map[string][]byte, d *chain.Disk) truth {
	var data []byte
	var audit error
	gaps := make(map[int64]error) // first bytes of pages of 512 that can't be had
	resize := func(size int64) {
		n := int(min(size, shown))
		if n <= len(data) {
			clear(data[n:])
			data = data[:n]
			for at := range gaps {
				if at >= int64(n) {
					delete(gaps, at)
				}
			}
			return
		}
		data = append(data, make([]byte, n-len(data))...)
	}
	for i := len(d.Maps) - 1; i >= 0; i-- {
		t, err := m.table(objects, d.Maps[i].Name)
		switch {
		case err != nil:
			return truth{err: fmt.Errorf("map %d: %w", i, err)}
		case t.full != (i == len(d.Maps)-1):
			return truth{err: fmt.Errorf("map %d is full or not", i)}
		case i == 0 && t.size != d.Size:
			return truth{err: errors.New("the first map has another size than the disk")}
		}
		resize(t.size)
		if t.audit != nil {
			audit = t.audit
		}
		for _, r := range t.runs {
			if r.at >= shown {
				break
			}
			end := min(r.at+r.length, shown)
			part, err := make([]byte, r.length), error(nil)
			if !r.zero {
				part, err = m.slice(objects, t, r)
			}
			for at := r.at; at < end; at = at/512*512 + 512 {
				delete(gaps, at)
				if err != nil {
					gaps[at] = err
				}
			}
			if err == nil {
				copy(data[r.at:end], part)
			}
		}
	}
	for _, err := range gaps {
		return truth{err: err}
	}
	return truth{data: data, audit: audit}
}

// mapTable is a map, as its text says it.
type mapTable struct {
	size  int64
	full  bool
	packs []string // keys
	runs  []tableRun
	audit error // what is wrong and no reader needs to see
}

type tableRun struct {
	zero                            bool
	at, length                      int64
	pack                            int
	frameAt, frameLength, chunkFrom int64
	chunk                           string
}

func (m *mutable) table(objects map[string][]byte, name archive.Digest) (*mapTable, error) {
	stored, ok := objects[archive.MapKey(name)]
	if !ok {
		return nil, errors.New("it is missing")
	}
	content, err := m.content(crypt.Metadata, stored)
	if err != nil {
		return nil, err
	}
	text, err := unframe(content)
	var t *mapTable
	if err == nil {
		t, err = parseTable(string(text))
	}
	if err == nil {
		return t, nil
	}
	// The last frame is read by nobody but a check.
	text, eerr := withoutEnd(content)
	if eerr != nil {
		return nil, err
	}
	t, eerr = parseTable(string(text) + "e\n")
	if eerr != nil {
		return nil, err
	}
	t.audit = err
	return t, nil
}

// withoutEnd is a map's text but for the last line, by what its directory says.
func withoutEnd(content []byte) ([]byte, error) {
	f := strings.Fields(string(content[bytes.LastIndex(content, []byte("\ne "))+1:]))
	if len(f) < 3 {
		return nil, errors.New("it has no directory")
	}
	at, err := strconv.Atoi(f[1])
	if err != nil || at < 0 || at > len(content) {
		return nil, errors.New("its directory is not valid")
	}
	return unframe(content[:at])
}

func parseTable(text string) (*mapTable, error) {
	lines := strings.SplitAfter(text, "\n")
	if len(lines) < 7 || lines[len(lines)-1] != "" {
		return nil, errors.New("too short, or it ends within a line")
	}
	t := &mapTable{}
	var disk, kind string
	var packs int
	if n, err := fmt.Sscanf(strings.Join(lines[:5], ""), "imgbackup-map 1\ndisk %s\nsize %d\nkind %s\npacks %d\n", &disk, &t.size, &kind, &packs); err != nil || n != 4 {
		return nil, fmt.Errorf("its header: %w", err)
	}
	if again := fmt.Sprintf("imgbackup-map 1\ndisk %s\nsize %d\nkind %s\npacks %d\n", disk, t.size, kind, packs); again != strings.Join(lines[:5], "") || t.size < 0 || kind != "full" && kind != "delta" {
		return nil, errors.New("its header is not as it is written")
	}
	t.full = kind == "full"
	var data, zero [2]int64
	var pos int64
	lines = lines[5 : len(lines)-1]
	for i, line := range lines {
		f := strings.Fields(line)
		n := make([]int64, len(f))
		for j := range f {
			n[j], _ = strconv.ParseInt(f[j], 10, 64) // what is no number does not read as it is written
		}
		again := ""
		switch {
		case len(f) == 4 && f[0] == "p" && len(t.runs) == 0 && int(n[1]) == len(t.packs):
			again = fmt.Sprintf("p %8d %10d %s\n", n[1], n[2], f[3])
			name, err := archive.ParseDigest(f[3])
			if err != nil {
				return nil, err
			}
			t.packs = append(t.packs, archive.PackKey(name))
		case len(f) == 8 && (f[0] == "d" || f[0] == "z"):
			r := tableRun{at: n[1], length: n[2], zero: f[0] == "z"}
			again = fmt.Sprintf("z %19d %19d %8s %10s %8s %7s %64s\n", n[1], n[2], "-", "-", "-", "-", "-")
			if !r.zero {
				r.pack, r.frameAt, r.frameLength, r.chunkFrom, r.chunk = int(n[3]), n[4], n[5], n[6], f[7]
				again = fmt.Sprintf("d %19d %19d %8d %10d %8d %7d %s\n", n[1], n[2], n[3], n[4], n[5], n[6], f[7])
				if r.pack >= len(t.packs) || r.chunkFrom+r.length > archive.GridSize || r.frameLength < 1 {
					return nil, fmt.Errorf("line %q", line)
				}
			}
			if r.zero && t.full {
				t.audit = errors.New("a full map has zeros")
			}
			if r.length < 1 || r.at < pos || r.at > t.size-r.length {
				return nil, fmt.Errorf("line %q is out of order or of range", line)
			}
			pos = r.at + r.length
			counts := &data
			if r.zero {
				counts = &zero
			}
			counts[0]++
			counts[1] += r.length
			t.runs = append(t.runs, r)
		case i == len(lines)-1 && line[0] == 'e': // of use to a check alone
			if again = line; line != fmt.Sprintf("e %12d %12d %19d %19d\n", data[0], zero[0], data[1], zero[1]) {
				t.audit = fmt.Errorf("the counts are wrong: %q", line)
			}
		}
		if again != line {
			return nil, fmt.Errorf("line %q is not as it is written", line)
		}
	}
	if !strings.HasPrefix(lines[len(lines)-1], "e") || len(t.packs) != packs {
		return nil, errors.New("its counts are not right")
	}
	return t, nil
}

// slice is what a run of data reads as.
func (m *mutable) slice(objects map[string][]byte, t *mapTable, r tableRun) ([]byte, error) {
	pack := objects[t.packs[r.pack]]
	if r.frameAt+r.frameLength > int64(len(pack)) {
		return nil, errors.New("a frame lies beyond its pack")
	}
	stored := pack[r.frameAt : r.frameAt+r.frameLength]
	if m.ring != nil {
		var err error
		if stored, err = m.inGroup(stored, r.chunk); err != nil {
			return nil, err
		}
	}
	chunk, err := unframe(stored)
	if err != nil {
		return nil, err
	}
	name, err := archive.ParseDigest(r.chunk)
	if err != nil {
		return nil, err
	}
	if m.ring == nil && archive.Sum(chunk) != name || m.ring != nil && !m.ring.Keys.Proves(chunk, name) {
		return nil, errors.New("a chunk has another digest")
	}
	if r.chunkFrom+r.length > int64(len(chunk)) {
		return nil, errors.New("a run goes beyond its chunk")
	}
	return chunk[r.chunkFrom : r.chunkFrom+r.length], nil
}

// inGroup is the frame of a chunk in a group.
func (m *mutable) inGroup(group []byte, chunk string) ([]byte, error) {
	content, err := m.content(crypt.Data, group)
	if err != nil {
		return nil, err
	}
	if len(content) < 8 {
		return nil, errors.New("a group is too short")
	}
	n := 8 + int(binary.LittleEndian.Uint32(content[4:]))
	if n > len(content) {
		return nil, errors.New("the lines of a group are cut short")
	}
	at := n
	for line := range strings.Lines(string(content[8:n])) {
		f := strings.Fields(line)
		if len(f) != 3 {
			return nil, fmt.Errorf("line %q of a group", line)
		}
		length, err := strconv.Atoi(f[0])
		if err != nil || length < 1 || at+length > len(content) {
			return nil, fmt.Errorf("line %q of a group", line)
		}
		if strings.HasPrefix(chunk, f[2]) {
			return content[at : at+length], nil
		}
		at += length
	}
	return nil, errors.New("a group does not have the chunk")
}
