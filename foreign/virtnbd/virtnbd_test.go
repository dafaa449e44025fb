// SPDX-License-Identifier: Apache-2.0

package virtnbd

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pierrec/lz4/v4"

	"github.com/imgbackup/imgbackup/qcow2"
)

// piece is a frame of a stream that a test makes.
type piece struct {
	kind   string
	start  int64
	data   []byte // of a data frame
	length int64  // of another
	chunk  int    // compressed in so many bytes at once; 0: whole
}

// made is a stream that a test makes.
type made struct {
	size                     int64
	disk, checkpoint, parent string
	date                     string
	incremental, compressed  bool
	pieces                   []piece
}

// bytes is the stream as the program writes it.
func (m *made) bytes(t testing.TB) []byte {
	t.Helper()
	var b bytes.Buffer
	data := int64(0)
	for _, p := range m.pieces {
		data += int64(len(p.data))
	}
	var compressed any = false
	if m.compressed {
		compressed = 2
	}
	meta, err := json.MarshalIndent(map[string]any{
		"virtualSize": m.size, "dataSize": data, "date": m.date, "diskName": m.disk, "diskFormat": "qcow2", "checkpointName": m.checkpoint,
		"compressed": compressed, "compressionMethod": "lz4", "parentCheckpoint": m.parent, "incremental": m.incremental, "streamVersion": 2,
	}, "", "    ")
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(&b, "meta %016x %016x\r\n%s\r\n", 0, len(meta), meta)
	sizes := []any{}
	for _, p := range m.pieces {
		if p.kind != "data" {
			fmt.Fprintf(&b, "%s %016x %016x\r\n", p.kind, p.start, p.length)
			continue
		}
		fmt.Fprintf(&b, "data %016x %016x\r\n", p.start, len(p.data))
		if !m.compressed {
			b.Write(p.data)
		} else {
			var lengths []int
			for part := range slices.Chunk(p.data, max(1, cmpOr(p.chunk, len(p.data)))) {
				before := b.Len()
				z := lz4.NewWriter(&b)
				if err := z.Apply(lz4.SizeOption(uint64(len(part)))); err != nil {
					t.Fatal(err)
				}
				if _, err := z.Write(part); err != nil {
					t.Fatal(err)
				}
				if err := z.Close(); err != nil {
					t.Fatal(err)
				}
				lengths = append(lengths, b.Len()-before)
			}
			if p.chunk > 0 {
				sizes = append(sizes, map[string]any{"1": lengths})
			} else {
				sizes = append(sizes, lengths[0])
			}
		}
		b.WriteString("\r\n")
	}
	fmt.Fprintf(&b, "stop %016x %016x\r\n", 0, 0)
	if m.compressed {
		text, err := json.Marshal(sizes)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&b, "%s\r\ncomp %016x %016x\r\n", text, 0, len(text))
	}
	return b.Bytes()
}

func cmpOr(a, b int) int {
	if a != 0 {
		return a
	}
	return b
}

// random makes a stream of a disk of size bytes, and puts its data over want.
func (m *made) random(r *rand.Rand, want []byte) {
	for at := int64(0); at < m.size; {
		n := min(m.size-at, 1+r.Int64N(5000))
		switch r.IntN(3) {
		case 0:
			p := piece{kind: "data", start: at, data: make([]byte, n)}
			for i := range p.data {
				p.data[i] = byte(r.IntN(3))
			}
			if r.IntN(2) == 0 {
				p.chunk = 1 + r.IntN(2000)
			}
			copy(want[at:], p.data)
			m.pieces = append(m.pieces, p)
		case 1:
			m.pieces = append(m.pieces, piece{kind: "zero", start: at, length: n})
		}
		at += n
	}
}

func put(t testing.TB, dir, name string, data []byte) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// Chains of streams read as what they were made of, in any parts.
func TestChain(t *testing.T) {
	t.Parallel()
	r := rand.New(rand.NewPCG(1, 2))
	for round := range 30 {
		dir := t.TempDir()
		size := 1 + r.Int64N(60_000)
		want := make([]byte, size)
		n := 1 + r.IntN(4)
		for i := range n {
			m := made{size: size, disk: "vda", checkpoint: fmt.Sprintf("virtnbdbackup.%d", i), compressed: r.IntN(2) == 0, date: fmt.Sprintf("2026-01-02T03:04:%02d.123456", i)}
			name := "vda.full.data"
			if i > 0 {
				m.incremental, m.parent = true, fmt.Sprintf("virtnbdbackup.%d", i-1)
				name = "vda.inc." + m.checkpoint + ".data"
			}
			m.random(r, want)
			put(t, dir, name, m.bytes(t))
		}
		d, err := Scan(dir, time.UTC, nil)
		if err != nil || len(d.Backups) != n {
			t.Fatal(err, d)
		}
		for _, b := range d.Backups {
			if b.Refused != nil {
				t.Fatal(b.Refused)
			}
		}
		last := d.Backups[n-1].Disks[0]
		if len(last.Files) != n {
			t.Fatalf("%d files: %v", n, last.Files)
		}
		im, err := last.Open("", Format)
		if err != nil {
			t.Fatal(err)
		}
		checkReads(t, r, im, want)
		if err := im.Close(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Fatalf("round %d", round)
		}
	}
}

func checkReads(t *testing.T, r *rand.Rand, im qcow2.Foreign, want []byte) {
	t.Helper()
	size := int64(len(want))
	if im.Size() != size {
		t.Fatalf("%d bytes, want %d", im.Size(), size)
	}
	for range 20 {
		start := r.Int64N(size)
		end := start + 1 + r.Int64N(size-start)
		got := make([]byte, end-start)
		if err := im.ReadAt(t.Context(), got, start); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want[start:end]) {
			t.Errorf("bytes %d to %d differ", start, end)
		}
		at := start
		for e, err := range im.Extents(start, end) {
			if err != nil || e.Offset != at || e.Length <= 0 {
				t.Fatalf("%+v after %d: %v", e, at, err)
			}
			at += e.Length
			if e.Kind == qcow2.Hole && !bytes.Equal(want[e.Offset:e.Offset+e.Length], make([]byte, e.Length)) {
				t.Errorf("a hole with data at %d", e.Offset)
			}
		}
		if at != end {
			t.Errorf("extents end at %d, not %d", at, end)
		}
	}
}

// What is wrong with a stream is found before anything is read of it, or when what was compressed
// is not what it is for.
func TestHostile(t *testing.T) {
	t.Parallel()
	plain := made{size: 9000, disk: "vda", checkpoint: "virtnbdbackup.0", date: "2026-01-02T03:04:05", pieces: []piece{
		{kind: "data", start: 0, data: bytes.Repeat([]byte{1}, 3000)}, {kind: "zero", start: 3000, length: 1000}, {kind: "data", start: 5000, data: bytes.Repeat([]byte{2}, 4000)},
	}}
	packed := plain
	packed.compressed = true
	for i, m := range []made{plain, packed} {
		good := m.bytes(t)
		if _, err := parse(bytes.NewReader(good), int64(len(good))); err != nil {
			t.Fatal(err)
		}
		for n := range good {
			if _, err := parse(bytes.NewReader(good[:n]), int64(n)); err == nil {
				t.Errorf("stream %d: cut to %d of %d bytes it is taken", i, n, len(good))
			}
		}
		if b := append(bytes.Clone(good), 0); parseFails(b) == "" {
			t.Errorf("stream %d: something may follow it", i)
		}
	}
	head := func(kind string, start, length uint64) string {
		return fmt.Sprintf("%s %016x %016x\r\n", kind, start, length)
	}
	text := string(plain.bytes(t))
	zipped := string(packed.bytes(t))
	for what, c := range map[string]struct{ in, old, new, want string }{
		"overlap":          {text, head("zero", 3000, 1000), head("zero", 2999, 1000), "overlaps"},
		"beyond the disk":  {text, head("data", 5000, 4000), head("data", 5001, 4000), "not within the disk"},
		"wraps around":     {text, head("zero", 3000, 1000), head("zero", 3000, 1<<63-1), "not within"},
		"negative":         {text, head("zero", 3000, 1000), head("zero", 3000, 1<<64-1), "no frame begins"},
		"unknown":          {text, head("zero", 3000, 1000), head("fill", 3000, 1000), "unknown kind"},
		"too little data":  {text, `"dataSize": 7000`, `"dataSize": 7001`, "says that they are"},
		"a huge disk":      {text, `"virtualSize": 9000`, `"virtualSize": 9e30`, "description"},
		"newer":            {text, `"streamVersion": 2`, `"streamVersion": 3`, "newest that is known"},
		"no lengths":       {text, `"compressed": false`, `"compressed":  true`, "do not end here"},
		"another method":   {zipped, `"lz4"`, `"xz4"`, "only lz4"},
		"a huge length":    {zipped, "\r\n[", "\r\n[99999999999999999999,", ""},
		"a strange length": {zipped, "\r\n[", "\r\n{", ""},
	} {
		b := strings.Replace(c.in, c.old, c.new, 1)
		if b == c.in {
			t.Fatal(what)
		}
		if said := parseFails([]byte(b)); said == "" || !strings.Contains(said, c.want) {
			t.Errorf("%s: %q", what, said)
		}
	}
}

func parseFails(b []byte) string {
	if _, err := parse(bytes.NewReader(b), int64(len(b))); err != nil {
		return err.Error()
	}
	return ""
}

// Lists of no lengths are counted as well: each takes as much memory as some text.
func TestManyLengths(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]bool{`[1,2,{"3":[1,2]}]`: true, `[1,2,3,4,5]`: false, `[{"9":[3,3,3]},1,2]`: false, `[{"0":[]},{"0":[]},{"0":[]},{"0":[]},{"0":[]}]`: false} {
		if all, err := readSizes(strings.NewReader(text), 4); (err == nil) != want {
			t.Errorf("%s: %v, %v", text, all, err)
		}
	}
}

// A bomb is not decoded beyond what it is for, and one that says too little or too much fails.
func TestBomb(t *testing.T) {
	t.Parallel()
	for what, decoded := range map[string]int{"bomb": 60 << 20, "too long": 4097, "too short": 4095} {
		var b bytes.Buffer
		z := lz4.NewWriter(&b)
		if _, err := z.Write(make([]byte, decoded)); err != nil {
			t.Fatal(err)
		}
		if err := z.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := decode(bytes.NewReader(b.Bytes()), chunk{stored: int32(b.Len()), length: 4096}); err == nil {
			t.Errorf("%s is decoded", what)
		}
	}
	if _, err := contentSize([]byte("\x04\x22\x4d\x18\x68\x40\xff\xff\xff\xff\xff\xff\xff\xff")); err == nil {
		t.Error("an LZ4 frame of 2^64-1 bytes is taken")
	}
}

// What a folder lacks, or has twice, or too new, is refused by name, and what does not need it is not.
func TestFolder(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	stream := func(name, checkpoint, parent, date string) {
		m := made{size: 4096, disk: "vda", checkpoint: checkpoint, parent: parent, incremental: parent != "", date: date,
			pieces: []piece{{kind: "data", start: 0, data: []byte(name)}}}
		put(t, dir, name, m.bytes(t))
	}
	stream("vda.full.data", "virtnbdbackup.0", "", "2026-01-01T00:00:00")
	stream("vda.inc.virtnbdbackup.1.data", "virtnbdbackup.1", "virtnbdbackup.0", "2026-01-02T00:00:00.5")
	stream("vda.diff.1767312000.data", "virtnbdbackup.2", "virtnbdbackup.1", "2026-01-02T12:00:00")
	stream("vda.inc.virtnbdbackup.2.data", "virtnbdbackup.2", "virtnbdbackup.1", "2026-01-03T00:00:00")
	stream("vda.inc.virtnbdbackup.4.data", "virtnbdbackup.4", "virtnbdbackup.3", "2026-01-05T00:00:00") // 3 is missing
	stream("vda.inc.virtnbdbackup.5.data", "virtnbdbackup.5", "virtnbdbackup.2", "2025-01-05T00:00:00") // it is older than that
	put(t, dir, "vda.inc.virtnbdbackup.6.data.partial", nil)
	put(t, dir, "vdb.inc.virtnbdbackup.1.data", []byte("meta"))
	put(t, dir, "vmconfig.virtnbdbackup.1.xml", nil)
	d, err := Scan(dir, time.UTC, nil)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, b := range d.Backups {
		for _, k := range b.Disks {
			line := fmt.Sprintf("%s %s %s %d", b.Made.Format("060102T15"), b.Kind, k.Name, len(k.Files))
			if b.Refused != nil {
				line += " refused"
			}
			if b.Config != "" {
				line += " defined"
			}
			got = append(got, line)
		}
	}
	want := []string{
		"250105T00 inc vda 1 refused", "260101T00 full vda 1", "260102T00 inc vda 2 refused defined", "260102T00 inc vdb 1 refused defined",
		"260102T12 diff vda 3", "260103T00 inc vda 3", "260105T00 inc vda 1 refused",
	}
	slices.Sort(want[2:4])
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s", strings.Join(got, "\n"))
	}
	if len(d.Notes) != 1 || !strings.Contains(d.Notes[0], "never completed") {
		t.Error(d.Notes)
	}
	// What changes after it was looked at is not read.
	disk := d.Backups[1].Disks[0]
	if err := os.Chtimes(disk.Files[0], time.Time{}, time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	if _, err := disk.Open("", Format); err == nil || !strings.Contains(err.Error(), "changed") {
		t.Error(err)
	}
	if _, err := Scan(t.TempDir(), time.UTC, nil); err == nil {
		t.Error("an empty folder holds a backup")
	}
}

// Links lead to what is in the folder, or in one that is allowed; others may lead to what whoever
// wrote them can't read.
func TestLinks(t *testing.T) {
	t.Parallel()
	dir, elsewhere := t.TempDir(), t.TempDir()
	m := made{size: 4096, disk: "vda", checkpoint: "c", date: "2026-01-02T03:04:05"}
	link := func(to, disk string) {
		t.Helper()
		if err := os.Symlink(to, filepath.Join(dir, disk+".full.data")); err != nil {
			t.Fatal(err)
		}
	}
	put(t, dir, "kept", m.bytes(t))
	link("kept", "vda")
	m.disk = "vdb"
	link(put(t, elsewhere, "far", m.bytes(t)), "vdb")
	link("/etc/passwd", "vdc")
	for _, c := range []struct {
		allow []string
		want  string
	}{{nil, "vdb.full.data: it is a link to .*far, outside.*vdc.full.data: it is a link"}, {[]string{elsewhere, elsewhere + "/none"}, "^[^\n]*vdc.full.data: it is a link[^\n]*$"}} {
		d, err := Scan(dir, time.UTC, c.allow)
		if err != nil || len(d.Backups) != 1 || len(d.Backups[0].Disks) != 3 {
			t.Fatal(err, d)
		}
		if got := d.Backups[0].Refused; got == nil || !regexp.MustCompile("(?s)"+c.want).MatchString(got.Error()) {
			t.Errorf("with %q: %v", c.allow, got)
		}
	}
}

func FuzzStream(f *testing.F) {
	// Small ones: what is interesting is made smaller first, which takes a minute of a large one.
	for i := range 4 {
		m := made{size: 2048, disk: "vda", checkpoint: "c", compressed: i%2 == 0, date: "2026-01-02T03:04:05", pieces: []piece{
			{kind: "data", data: []byte("abcdefgh"), chunk: i / 2 * 5}, {kind: "zero", start: 8, length: 1000}, {kind: "data", start: 1500, data: make([]byte, 100)},
		}}
		b := m.bytes(f)
		if parseFails(b) != "" {
			f.Fatal("a seed is not taken")
		}
		f.Add(b)
	}
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := parse(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			return
		}
		at := int64(0)
		for i, fr := range s.frames {
			if fr.start < at || fr.length <= 0 || fr.length > s.Size-fr.start {
				t.Fatalf("frame %d: %+v of %d", i, fr, s.Size)
			}
			at = fr.end()
		}
		path := put(t, dir, "vda.full.data", b)
		im, err := openImage([]string{path}, func(*qcow2.File) (*stream, error) { return s, nil })
		if err != nil {
			t.Fatal(err)
		}
		for _, fr := range s.frames {
			if fr.length < 1<<20 {
				_ = im.ReadAt(t.Context(), make([]byte, fr.length), fr.start) // may fail, and must not panic
			}
		}
		if err := im.Close(); err != nil {
			t.Fatal(err)
		}
	})
}

// Where the streams over those of another disk hold nothing the two are the same; and nothing is said
// of one of another size, or of other files.
func TestAbove(t *testing.T) {
	t.Parallel()
	r := rand.New(rand.NewPCG(5, 6))
	for round := range 20 {
		dir := t.TempDir()
		size := (2 + r.Int64N(100)) * 512
		n := 2 + r.IntN(3)
		for i := range n {
			m := made{size: size, disk: "vda", checkpoint: fmt.Sprintf("virtnbdbackup.%d", i), compressed: r.IntN(2) == 0, date: fmt.Sprintf("2026-01-02T03:04:%02d", i)}
			if i == n-1 && round%5 == 4 {
				m.size += 512 // it was grown
			}
			name := "vda.full.data"
			if i > 0 {
				m.incremental, m.parent = true, fmt.Sprintf("virtnbdbackup.%d", i-1)
				name = "vda.inc." + m.checkpoint + ".data"
			}
			m.random(r, make([]byte, m.size))
			put(t, dir, name, m.bytes(t))
		}
		d, err := Scan(dir, time.UTC, nil)
		if err != nil || len(d.Backups) != n {
			t.Fatal(err, d)
		}
		open := func(i int) (*qcow2.Image, []byte) {
			disk := &d.Backups[i].Disks[0]
			im, err := qcow2.Open(disk.Top(), Format, qcow2.OpenOptions{Foreign: disk.Open})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = im.Close() })
			data := make([]byte, im.Size())
			if err := im.ReadAt(t.Context(), data, 0); err != nil {
				t.Fatal(err)
			}
			return im, data
		}
		i := r.IntN(n - 1)
		below, was := open(i)
		top, is := open(n - 1)
		stack, ok := below.Stack()
		if !ok {
			t.Fatal("it has no stack")
		}
		above, ok := top.Above(t.Context(), stack)
		if want := len(was) == len(is); ok != want {
			t.Fatalf("round %d: %v, want %v", round, ok, want)
		}
		if itself, ok := below.Above(t.Context(), stack); ok {
			t.Error("it lies over itself", itself)
		}
		if !ok {
			continue
		}
		runs, err := above.Collect()
		if err != nil {
			t.Fatal(err)
		}
		for _, run := range runs {
			copy(was[run.Start:run.End], is[run.Start:run.End])
		}
		if !bytes.Equal(was, is) {
			t.Errorf("round %d: they differ elsewhere than in %v", round, runs)
		}
	}
}
