// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/crypt"
)

// mutant is a repository of which something was changed.
type mutant struct {
	of      *mutable
	objects map[string][]byte
	order   []string // see mutable
	rand    *rand.Rand
	did     []string
	// onlyPacks: nothing but packs was changed, and what names them.
	onlyPacks bool
}

// unchanged is one of which nothing is changed yet.
func (m *mutable) unchanged(seed uint64) *mutant {
	return &mutant{of: m, objects: maps.Clone(m.objects), order: slices.Clone(m.order), rand: rand.New(rand.NewPCG(seed, 20))}
}

func (m *mutable) mutant(t *testing.T, seed uint64) *mutant {
	t.Helper()
	mu := m.unchanged(seed)
	changes := []func(){
		mu.changePack, mu.changePack, mu.changeTable, mu.changeText, mu.changeText, mu.changeText, mu.changeDirectory,
		mu.changeChunk, mu.changeSealed, mu.changeSealed, mu.changeOther, mu.changeOther,
	}
	const ofPacks = 3 // the first of them
	mu.onlyPacks = true
	for range 1 + mu.rand.IntN(2) {
		i := mu.rand.IntN(len(changes))
		mu.onlyPacks = mu.onlyPacks && i < ofPacks
		changes[i]()
	}
	return mu
}

func (mu *mutant) say(format string, args ...any) {
	mu.did = append(mu.did, fmt.Sprintf(format, args...))
}

// under are the keys with one of these prefixes: first those whose order is the same each time,
// so that a seed makes the same mutant again.
func (mu *mutant) under(prefixes ...string) (keys []string) {
	for _, key := range append(slices.Clone(mu.order), slices.Sorted(maps.Keys(mu.objects))...) {
		if _, is := mu.objects[key]; !is || slices.Contains(keys, key) {
			continue
		}
		if slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(key, p) }) {
			keys = append(keys, key)
		}
	}
	return keys
}

func pick[T any](mu *mutant, of []T) T { return of[mu.rand.IntN(len(of))] }

// number is a number that may be meant to harm.
func (mu *mutant) number(was int64) int64 {
	others := []int64{0, 1, was - 1, was + 1, was ^ 1<<mu.rand.IntN(20), was * 2, was / 2, was + 512, was + 65536, 1 << 20, 1<<20 + 1, 1 << 31, 1<<32 + was, 1<<50 + 1, 1<<63 - 1}
	return max(0, pick(mu, others))
}

// noise changes bytes.
func (mu *mutant) noise(data []byte) []byte {
	data = slices.Clone(data)
	if len(data) == 0 {
		return data
	}
	at := mu.rand.IntN(len(data))
	switch mu.rand.IntN(5) {
	case 0:
		data = data[:at]
	case 1:
		data = append(data, byte(mu.rand.Uint32()))
	case 2:
		data = slices.Insert(data, at, byte(mu.rand.Uint32()))
	default:
		data[at] ^= 1 << mu.rand.IntN(8)
	}
	return data
}

// bomb is a frame that says, or has, far more than it takes.
func (mu *mutant) bomb() []byte {
	n := pick(mu, []int{1 << 20, 1<<20 + 1, 2 << 20, 2<<20 + 1, 8 << 20})
	f := frame(make([]byte, n))
	switch mu.rand.IntN(3) {
	case 0: // it says that it has little
		f[4] = f[4]&0x3f | 0x80
		binary.LittleEndian.PutUint32(f[5:], 4096)
	case 1: // it says that it has a lot
		binary.LittleEndian.PutUint32(f[5:], 1<<32-1)
	}
	return f
}

// rename stores content of an immutable object anew, and has all that names it name that.
func (mu *mutant) rename(key string, content []byte, dirLength int) {
	stored := mu.of.stored(half(key), content)
	if strings.HasPrefix(key, archive.PackPrefix) {
		stored = content // whose parts are encrypted
	}
	prefix, old, _ := archive.ParseKey(key)
	name := archive.Sum(stored)
	delete(mu.objects, key)
	mu.objects[archive.KeyOf(prefix, name)] = stored
	mu.reorder(key, archive.KeyOf(prefix, name))
	fields := map[string]any{"name": name.String(), "length": json.Number(strconv.Itoa(len(stored)))}
	if dirLength > 0 {
		fields["dir_length"] = json.Number(strconv.Itoa(dirLength))
		fields["dir_sha256"] = archive.Sum(content[max(0, len(content)-dirLength):]).String()
	}
	for _, key := range mu.under("domains/") {
		v, err := mu.of.sealed(mu.objects[key])
		if err == nil && setRefs(v, old.String(), fields) {
			mu.objects[key] = mu.of.seal(key, v)
		}
	}
}

func (mu *mutant) reorder(was, now string) {
	if i := slices.Index(mu.order, was); i >= 0 {
		mu.order[i] = now
	}
}

// setRefs changes each object in v that names old.
func setRefs(v any, old string, fields map[string]any) (changed bool) {
	switch v := v.(type) {
	case map[string]any:
		if v["name"] == any(old) {
			for k, f := range fields {
				if _, has := v[k]; has {
					v[k] = f
				}
			}
			changed = true
		}
		for _, k := range slices.Sorted(maps.Keys(v)) {
			changed = setRefs(v[k], old, fields) || changed
		}
	case []any:
		for _, e := range v {
			changed = setRefs(e, old, fields) || changed
		}
	}
	return changed
}

// text is that of a map.
func (mu *mutant) text(key string) (string, bool) {
	content, err := mu.of.content(crypt.Metadata, mu.objects[key])
	if err != nil {
		return "", false
	}
	text, err := unframe(content)
	return string(text), err == nil && strings.Count(string(text), "\n") > 6
}

// setText stores a map's text.
func (mu *mutant) setText(key, text string) {
	content, n := encodeMap(text, 1+mu.rand.IntN(6))
	mu.rename(key, content, n)
}

// changeText changes a line of a map, or some, and mostly has the counts in its last line right.
func (mu *mutant) changeText() {
	key := pick(mu, mu.under(archive.MapPrefix))
	text, ok := mu.text(key)
	if !ok {
		return
	}
	lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	for range 1 + mu.rand.IntN(2) {
		mu.changeLine(lines, &lines)
	}
	if mu.rand.IntN(4) > 0 {
		recount(lines)
	}
	mu.setText(key, strings.Join(lines, "\n")+"\n")
}

func (mu *mutant) changeLine(lines []string, all *[]string) {
	i := mu.rand.IntN(len(lines))
	if i < 5 && mu.rand.IntN(3) > 0 && len(lines) > 5 {
		i = 5 + mu.rand.IntN(len(lines)-5)
	}
	was := lines[i]
	f := strings.Fields(was)
	switch how := mu.rand.IntN(9); {
	case how == 0:
		*all = slices.Delete(lines, i, i+1)
		mu.say("line %q is gone", was)
		return
	case how == 1:
		*all = slices.Insert(lines, i, was)
		mu.say("line %q is there twice", was)
		return
	case how == 2:
		j := mu.rand.IntN(len(lines))
		lines[i], lines[j] = lines[j], lines[i]
		mu.say("lines %d and %d are exchanged", i, j)
		return
	case how <= 4 && len(f) == 8: // what stays a run: shorter, later, of another chunk, zeros
		at, length := runOf(was)
		switch mu.rand.IntN(4) {
		case 0:
			lines[i] = setField(was, 2, 1+mu.rand.Int64N(length))
		case 1:
			n := mu.rand.Int64N(length)
			lines[i] = setField(setField(was, 2, length-n), 1, at+n)
		case 2:
			if other := pick(mu, lines); len(other) == len(was) && len(other) > 42 {
				lines[i] = was[:42] + other[42:]
			}
		default:
			lines[i] = fmt.Sprintf("z %19d %19d %8s %10s %8s %7s %64s", at, length, "-", "-", "-", "-", "-")
		}
	case how <= 7 && len(f) > 1:
		j := 1 + mu.rand.IntN(len(f)-1)
		if n, err := strconv.ParseInt(f[j], 10, 64); err == nil {
			lines[i] = setField(was, j, mu.number(n))
			break
		}
		fallthrough
	default:
		lines[i] = string(mu.noise([]byte(was)))
	}
	if lines[i] == "" {
		lines[i] = "x"
	}
	mu.say("line %q is %q", was, lines[i])
}

// setField puts a number into a field of a line, which keeps its width.
func setField(line string, field int, n int64) string {
	at, end := 0, 0
	for range field + 1 {
		for at = end; at < len(line) && line[at] == ' '; at++ {
		}
		if end = at + strings.IndexByte(line[at:], ' '); end < at {
			end = len(line)
		}
	}
	from := at
	for from > 1 && line[from-1] == ' ' && line[from-2] == ' ' {
		from--
	}
	text := fmt.Sprintf("%*d", end-from, n)
	if strings.Contains(line[:at], "  ") || line[0] == 'd' || line[0] == 'z' || line[0] == 'p' || line[0] == 'e' {
		if len(text) > end-from && end-from < 19 {
			text = text[len(text)-(end-from):]
		}
	}
	return line[:from] + text + line[end:]
}

// recount has the counts of a map right.
func recount(lines []string) {
	var packs int
	var runs, bytes [2]int64
	for i, l := range lines {
		switch f := strings.Fields(l); {
		case len(f) == 4 && f[0] == "p":
			packs++
		case len(f) == 8 && (f[0] == "d" || f[0] == "z"):
			k := 0
			if f[0] == "z" {
				k = 1
			}
			_, n := runOf(l)
			runs[k]++
			bytes[k] += n
		case len(f) == 5 && f[0] == "e":
			lines[i] = fmt.Sprintf("e %12d %12d %19d %19d", runs[0], runs[1], bytes[0], bytes[1])
		}
	}
	for i, l := range lines {
		if strings.HasPrefix(l, "packs ") {
			lines[i] = "packs " + strconv.Itoa(packs)
		}
	}
}

// changeDirectory changes a map's directory, or its bytes anywhere.
func (mu *mutant) changeDirectory() {
	key := pick(mu, mu.under(archive.MapPrefix))
	text, ok := mu.text(key)
	if !ok {
		return
	}
	content, n := encodeMap(text, 1+mu.rand.IntN(3))
	if mu.rand.IntN(4) == 0 {
		content = mu.noise(content)
		mu.say("%s has other bytes", key)
		mu.rename(key, content, max(1, min(n, len(content))))
		return
	}
	const dirLine, footer = 150, 117
	frames := content[:len(content)-n]
	dir := content[len(frames)+8:]
	lines := strings.SplitAfter(string(dir[:len(dir)-footer]), "\n")
	lines = lines[:len(lines)-1]
	i := mu.rand.IntN(len(lines))
	was := lines[i]
	switch mu.rand.IntN(8) {
	case 0:
		lines = slices.Delete(lines, i, i+1)
		mu.say("line %q of the directory is gone", was)
	case 1:
		lines[i] = string(mu.noise([]byte(was)))
		mu.say("line %q of the directory is %q", was, lines[i])
	case 2: // a frame that decodes to a lot
		f := mu.bomb()
		lines[i] = strings.TrimSuffix(was, "\n")[:dirLine-1-64] + archive.Sum(f).String() + "\n"
		mu.say("frame %d is a bomb", i)
		var all []byte
		var fixed []string
		for j, l := range lines {
			fields := strings.Fields(l)
			at, _ := strconv.Atoi(fields[1]) // as it was written
			length, _ := strconv.Atoi(fields[2])
			part := frames[at : at+length]
			if j == i {
				part = f
			}
			fixed = append(fixed, setField(setField(l, 1, int64(len(all))), 2, int64(len(part))))
			all = append(all, part...)
		}
		frames, lines = all, fixed
	default:
		field := 1 + mu.rand.IntN(6)
		n, _ := strconv.ParseInt(strings.Fields(was)[field], 10, 64) // as it was written
		lines[i] = setField(was, field, mu.number(n))
		mu.say("line %q of the directory is %q", was, lines[i])
	}
	content, n = sealDir(bytes.Clone(frames), strings.Join(lines, ""), len(lines))
	mu.rename(key, content, n)
}

// renamePack stores a pack anew, and has all maps name that. shift says where what lay in it lies
// now; nil: where it was.
func (mu *mutant) renamePack(key string, pack []byte, each func(line string) string) {
	_, old, _ := archive.ParseKey(key)
	name := archive.Sum(pack)
	delete(mu.objects, key)
	mu.objects[archive.PackKey(name)] = pack
	mu.reorder(key, archive.PackKey(name))
	for _, mapKey := range mu.under(archive.MapPrefix) {
		text, ok := mu.text(mapKey)
		if !ok || !strings.Contains(text, old.String()) {
			continue
		}
		lines := strings.Split(text, "\n")
		number := ""
		for i, l := range lines {
			f := strings.Fields(l)
			switch {
			case len(f) == 4 && f[0] == "p" && f[3] == old.String():
				number = f[1]
				lines[i] = fmt.Sprintf("p %8s %10d %s", number, len(pack), name)
			case len(f) == 8 && f[0] == "d" && f[3] == number && each != nil:
				lines[i] = each(l)
			}
		}
		mu.setText(mapKey, strings.Join(lines, "\n"))
	}
}

// framesOf are the frames, or groups, of a pack that maps name, by where they begin.
func (mu *mutant) framesOf(key string) map[int64]int64 {
	_, name, _ := archive.ParseKey(key)
	frames := make(map[int64]int64)
	for _, mapKey := range mu.under(archive.MapPrefix) {
		text, ok := mu.text(mapKey)
		if !ok {
			continue
		}
		number := ""
		for l := range strings.Lines(text) {
			f := strings.Fields(l)
			switch {
			case len(f) == 4 && f[0] == "p" && f[3] == name.String():
				number = f[1]
			case len(f) == 8 && f[0] == "d" && f[3] == number:
				at, _ := strconv.ParseInt(f[4], 10, 64) // else nothing is there
				n, _ := strconv.ParseInt(f[5], 10, 64)
				if n > 0 && n < 1<<30 && at < 1<<30 && at+n <= int64(len(mu.objects[key])) {
					frames[at] = n
				}
			}
		}
	}
	return frames
}

// changePack changes bytes of a pack: in a frame, in its table or anywhere, or puts another frame or
// group in the place of one. Digests of chunks stay.
func (mu *mutant) changePack() {
	packs := mu.under(archive.PackPrefix)
	if len(packs) == 0 {
		return
	}
	key := pick(mu, packs)
	frames := mu.framesOf(key)
	if len(frames) == 0 || mu.rand.IntN(3) == 0 {
		mu.say("%s has other bytes", key)
		mu.renamePack(key, mu.noise(mu.objects[key]), nil)
		return
	}
	at := pick(mu, slices.Sorted(maps.Keys(frames)))
	mu.setFrame(key, at, frames[at], mu.otherFrame(mu.objects[key][at:at+frames[at]]), nil)
}

// changeTable changes a line of a pack's table, whose digest is right then.
func (mu *mutant) changeTable() {
	packs := mu.under(archive.PackPrefix)
	if len(packs) == 0 {
		return
	}
	key := pick(mu, packs)
	pack := mu.objects[key]
	if mu.of.ring != nil {
		at := bytes.LastIndex(pack, []byte("age-encryption.org/v1"))
		content, err := mu.of.content(crypt.Metadata, pack[max(0, at):])
		if err != nil {
			return
		}
		text, err := unframe(content)
		if err != nil {
			return
		}
		lines := mu.changeLines(strings.Split(strings.TrimSuffix(string(text), "\n"), "\n"))
		mu.renamePack(key, append(bytes.Clone(pack[:at]), mu.of.stored(crypt.Metadata, frame([]byte(lines)))...), nil)
		return
	}
	const footer = 113
	if len(pack) < footer+8 {
		return
	}
	f := strings.Fields(string(pack[len(pack)-footer:]))
	if len(f) != 6 {
		return
	}
	at, err := strconv.Atoi(f[3])
	if err != nil || at < 8 || at > len(pack)-footer {
		return
	}
	lines := mu.changeLines(strings.Split(strings.TrimSuffix(string(pack[at:len(pack)-footer]), "\n"), "\n"))
	end := fmt.Sprintf("imgbackup-pack 1 %8d %10d %10d %s\n", strings.Count(lines, "\n"), at, len(lines), archive.Sum([]byte(lines)))
	mu.renamePack(key, append(bytes.Clone(pack[:at-8]), skippableFrame([]byte(lines+end))...), nil)
}

// changeLines changes one of some lines of a table.
func (mu *mutant) changeLines(lines []string) string {
	i := mu.rand.IntN(len(lines))
	was := lines[i]
	f := strings.Fields(was)
	switch mu.rand.IntN(5) {
	case 0:
		lines = slices.Delete(lines, i, i+1)
	case 1:
		lines = slices.Insert(lines, i, was)
	case 2:
		lines[i] = string(mu.noise([]byte(was)))
	default:
		for range 8 {
			if j := mu.rand.IntN(len(f)); len(f) > 0 {
				if n, err := strconv.ParseInt(f[j], 10, 64); err == nil {
					lines[i] = strings.Replace(was, fmt.Sprintf("%*s", len(f[j]), f[j]), strconv.FormatInt(mu.number(n), 10), 1)
					break
				}
			}
		}
	}
	mu.say("a line of a table %q is changed", was)
	if len(lines) == 0 {
		return ""
	}
	return strings.Join(lines, "\n") + "\n"
}

// otherFrame is what stands in the place of a frame, or a group.
func (mu *mutant) otherFrame(was []byte) []byte {
	if mu.of.ring == nil {
		if mu.rand.IntN(3) == 0 {
			mu.say("a frame is a bomb")
			return mu.bomb()
		}
		content, err := unframe(was)
		if err != nil || mu.rand.IntN(2) == 0 {
			mu.say("a frame has other bytes")
			return mu.noise(was)
		}
		mu.say("a chunk has other bytes")
		return frame(mu.noise(content))
	}
	content, err := mu.of.content(crypt.Data, was)
	if err != nil || len(content) < 42 {
		return mu.noise(was)
	}
	n := 8 + int(binary.LittleEndian.Uint32(content[4:]))
	if n > len(content) {
		return mu.noise(was)
	}
	lines, rest := content[8:n], content[n:]
	switch mu.rand.IntN(4) {
	case 0:
		mu.say("a group has other bytes")
		content = mu.noise(content)
	case 1:
		mu.say("the frames of a group are a bomb")
		f := mu.bomb()
		line := fmt.Sprintf("%8d %s", len(f), lines[9:34])
		content = append(skippableFrame([]byte(line)), f...)
	default:
		field := mu.rand.IntN(2)
		i := mu.rand.IntN(len(lines)/34) * 34
		was := string(lines[i : i+33])
		f := strings.Fields(was)
		if len(f) != 3 {
			content = mu.noise(content)
			break
		}
		v, _ := strconv.ParseInt(f[field], 10, 64) // as it was written
		w := [2]int64{v, 0}
		w[1], _ = strconv.ParseInt(f[1], 10, 64)
		w[0], _ = strconv.ParseInt(f[0], 10, 64)
		w[field] = mu.number(v) % 10_000_000
		line := fmt.Sprintf("%8d %7d %s\n", w[0], w[1], f[2])
		mu.say("line %q of a group is %q", was, line)
		content = append(skippableFrame(slices.Replace(slices.Clone(lines), i, i+34, []byte(line)...)), rest...)
	}
	return mu.of.stored(crypt.Data, content)
}

// setFrame puts something in the place of a frame or group of a pack, and mends what maps say of
// where the frames are; and then each line of that frame by also.
func (mu *mutant) setFrame(key string, at, length int64, now []byte, also func(line string) string) {
	pack := slices.Concat(mu.objects[key][:at], now, mu.objects[key][at+length:])
	more := int64(len(now)) - length
	mu.renamePack(key, pack, func(l string) string {
		frameAt, _ := strconv.ParseInt(strings.Fields(l)[4], 10, 64) // else it stays
		switch {
		case frameAt > at:
			return setField(l, 4, frameAt+more)
		case frameAt == at:
			l = setField(l, 5, int64(len(now)))
			if also != nil {
				l = also(l)
			}
		}
		return l
	})
}

// changeChunk puts a chunk with other content in the place of one, and its digest in the maps:
// then that is what the tables say.
func (mu *mutant) changeChunk() {
	packs := mu.under(archive.PackPrefix)
	if len(packs) == 0 {
		return
	}
	key := pick(mu, packs)
	frames := mu.framesOf(key)
	if len(frames) == 0 {
		return
	}
	at := pick(mu, slices.Sorted(maps.Keys(frames)))
	chunk := make([]byte, pick(mu, []int{1, 4096, 65536, 1 << 20, 1<<20 + 1, 4 << 20}))
	_, _ = rand.NewChaCha8([32]byte{byte(at)}).Read(chunk[:min(len(chunk), 100<<10)]) // never fails
	var keys *crypt.Keys
	if mu.of.ring != nil {
		keys = mu.of.ring.Keys
	}
	name := archive.Sum(chunk)
	now := frame(chunk)
	if keys != nil {
		if len(chunk) > 1<<20 {
			return // which has no digest
		}
		name = archive.ChunkDigest(keys, chunk)
		line := fmt.Sprintf("%8d %7d %s\n", len(now), len(chunk), name.String()[:16])
		now = mu.of.stored(crypt.Data, append(skippableFrame([]byte(line)), now...))
	}
	mu.say("a chunk of %d bytes stands in the place of another", len(chunk))
	mu.setFrame(key, at, frames[at], now, func(l string) string { return l[:len(l)-64] + name.String() })
}

// changeSealed changes a field of a manifest or of other sealed JSON.
func (mu *mutant) changeSealed() {
	key := pick(mu, mu.under("domains/"))
	v, err := mu.of.sealed(mu.objects[key])
	if err != nil {
		return
	}
	mu.changeValue(key, v)
	mu.objects[key] = mu.of.seal(key, v)
}

// changeValue changes something in v.
func (mu *mutant) changeValue(path string, v any) {
	switch v := v.(type) {
	case map[string]any:
		keys := slices.Sorted(maps.Keys(v))
		if len(keys) == 0 {
			return
		}
		k := pick(mu, keys)
		if path += "." + k; mu.rand.IntN(12) == 0 {
			delete(v, k)
			mu.say("%s is gone", path)
			return
		}
		if (k == "disks" || k == "maps") && mu.rand.IntN(2) == 0 || !scalar(v[k]) && mu.rand.IntN(5) > 0 {
			if list, ok := v[k].([]any); ok && len(list) > 0 && mu.rand.IntN(4) == 0 {
				v[k] = mu.changeList(path, list)
				return
			}
			mu.changeValue(path, v[k])
			return
		}
		v[k] = mu.changeScalar(path, v[k])
	case []any:
		if len(v) > 0 {
			i := mu.rand.IntN(len(v))
			if scalar(v[i]) {
				v[i] = mu.changeScalar(path, v[i])
				return
			}
			mu.changeValue(path+"["+strconv.Itoa(i)+"]", v[i])
		}
	}
}

func scalar(v any) bool {
	switch v.(type) {
	case map[string]any, []any:
		return false
	}
	return true
}

func (mu *mutant) changeList(path string, list []any) []any {
	i, j := mu.rand.IntN(len(list)), mu.rand.IntN(len(list))
	switch mu.rand.IntN(4) {
	case 0:
		mu.say("%s has no %d", path, i)
		return slices.Delete(list, i, i+1)
	case 1:
		mu.say("%s has %d twice", path, i)
		return slices.Insert(list, j, list[i])
	case 2:
		mu.say("%s begins with %d", path, i)
		return list[i:]
	}
	list[i], list[j] = list[j], list[i]
	mu.say("%s: %d and %d are exchanged", path, i, j)
	return list
}

func (mu *mutant) changeScalar(path string, was any) (now any) {
	defer func() { mu.say("%s was %v, is %v", path, was, now) }()
	switch v := was.(type) {
	case json.Number:
		n, _ := v.Int64() // they all are
		return json.Number(strconv.FormatInt(mu.number(n), 10))
	case bool:
		return !v
	case string:
		if len(v) == 64 && mu.rand.IntN(2) == 0 {
			_, name, ok := archive.ParseKey(pick(mu, mu.under(archive.MapPrefix, archive.BitmapPrefix, archive.FilePrefix)))
			if ok {
				return name.String()
			}
		}
		return strings.ToValidUTF8(string(mu.noise([]byte(v))), "?")
	}
	return pick(mu, []any{nil, json.Number("1"), "x", []any{}, map[string]any{}})
}

// changeOther changes the content of an object that no disk is read from.
func (mu *mutant) changeOther() {
	keys := mu.under(archive.BitmapPrefix, archive.ClustersPrefix, archive.FilePrefix, archive.IndexPrefix, "prune/")
	if len(keys) == 0 {
		return
	}
	key := pick(mu, keys)
	content, err := mu.of.content(half(key), mu.objects[key])
	if err != nil {
		return
	}
	text, err := unframe(content)
	head, rest, isText := strings.Cut(string(text), "\n")
	if err == nil && strings.HasPrefix(key, archive.IndexPrefix) && isText && rest != "" && mu.of.ring == nil && mu.rand.IntN(4) > 0 {
		// It says that chunks are where others are, or nothing.
		mu.say("%s has other lines", key)
		lines := strings.Split(strings.TrimSuffix(rest, "\n"), "\n")
		for range 3 {
			i, j := mu.rand.IntN(len(lines)), mu.rand.IntN(len(lines))
			if a, b := lines[i], lines[j]; len(a) == len(b) && len(a) > 65 {
				at := len(a) - 64
				lines[i], lines[j] = a[:at]+b[at:], b[:at]+a[at:]
			}
		}
		if rest = strings.Join(lines, "\n") + "\n"; mu.rand.IntN(2) == 0 {
			rest = mu.changeLines(lines)
		}
		content = slices.Concat(frame([]byte(head+"\n")), frame([]byte(rest)))
	} else if err == nil && mu.rand.IntN(2) == 0 {
		mu.say("what %s says has other bytes", key)
		content = frame(mu.noise(text))
	} else if mu.rand.IntN(2) == 0 {
		mu.say("%s is a bomb", key)
		content = mu.bomb()
	} else {
		mu.say("%s has other bytes", key)
		content = mu.noise(content)
	}
	mu.rename(key, content, 0)
}
