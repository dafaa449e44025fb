// SPDX-License-Identifier: Apache-2.0

package nbd

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/imgbackup/imgbackup/internal/testkit"
)

func TestNbdinfo(t *testing.T) {
	t.Parallel()
	w := serveIn(t, ServerOptions{})
	list := testkit.Tool(t, "nbdinfo", "--json", "--list", w.uri(""))
	var info struct {
		Protocol   string
		Structured bool
		Exports    []struct {
			Name        string `json:"export-name"`
			Description string
			Contexts    []string
			Size        int64       `json:"export-size"`
			ReadOnly    bool        `json:"is_read_only"`
			Multi       bool        `json:"can_multi_conn"`
			DF          bool        `json:"can_df"`
			Minimum     json.Number `json:"block_size_minimum"`
			Preferred   json.Number `json:"block_size_preferred"`
			Maximum     json.Number `json:"block_size_maximum"`
		}
	}
	if err := json.Unmarshal([]byte(list), &info); err != nil {
		t.Fatalf("%v\n%s", err, list)
	}
	if info.Protocol != "newstyle-fixed" || !info.Structured || len(info.Exports) != 2 {
		t.Fatalf("nbdinfo --list: %s", list)
	}
	e := info.Exports[0]
	if e.Name != "vda" || e.Description != "the first disk" || e.Size != diskSize || e.ReadOnly || !e.Multi || !e.DF ||
		strings.Join(e.Contexts, " ") != "base:allocation qemu:dirty-bitmap:monday qemu:dirty-bitmap:tuesday" {
		t.Errorf("vda: %+v", e)
	}
	if e.Minimum.String() != "1" || e.Preferred.String() != "65536" || e.Maximum.String() != "33554432" {
		t.Errorf("vda: block sizes %+v", e)
	}
	if e := info.Exports[1]; e.Name != "vdb" || !e.ReadOnly || e.Size != 3<<20 {
		t.Errorf("vdb: %+v", e)
	}
	testkit.Tool(t, "nbdinfo", "--is", "read-only", w.uri("vdb"))
	fails(t, "nbdinfo", "--is", "read-only", w.uri("vda"))
	testkit.Tool(t, "nbdinfo", "--can", "zero", w.uri("vda"))
	fails(t, "nbdinfo", "--can", "trim", w.uri("vdb"))
	fails(t, "nbdinfo", w.uri("none"))
	fails(t, "nbdinfo", w.uri("")) // which of the two?

	dirty := testkit.Tool(t, "nbdinfo", "--map=qemu:dirty-bitmap:monday", "--json", w.uri("vda"))
	want := []extentJSON{{0, 64 << 10, 1}, {64 << 10, 5<<20 - 64<<10, 0}, {5 << 20, 1<<20 + 512, 1},
		{6<<20 + 512, diskSize - 512 - (6<<20 + 512), 0}, {diskSize - 512, 512, 1}}
	if got := extents(t, dirty); !equal(got, want) {
		t.Errorf("monday: %v, want %v", got, want)
	}
	if got := extents(t, testkit.Tool(t, "nbdinfo", "--map=qemu:dirty-bitmap:tuesday", "--json", w.uri("vda"))); !equal(got, []extentJSON{{0, diskSize, 0}}) {
		t.Errorf("tuesday: %v", got)
	}
	totals := testkit.Tool(t, "nbdinfo", "--map", "--totals", w.uri("vdb"))
	if !strings.Contains(totals, "100.0%   0 data") && !strings.Contains(totals, "100.0%") {
		t.Errorf("totals: %s", totals)
	}
	fails(t, "nbdinfo", "--map=qemu:dirty-bitmap:friday", w.uri("vda"))
	if n := w.noted(); len(n) > 0 {
		t.Errorf("the server complains: %v", n)
	}
}

type extentJSON struct {
	Offset, Length int64
	Type           int
}

func extents(t *testing.T, s string) []extentJSON {
	t.Helper()
	var all []extentJSON
	if err := json.Unmarshal([]byte(s), &all); err != nil {
		t.Fatalf("%v\n%s", err, s)
	}
	return all
}

func equal(a, b []extentJSON) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}

func TestNbdcopy(t *testing.T) {
	t.Parallel()
	w := serveIn(t, ServerOptions{})
	out := filepath.Join(t.TempDir(), "out")
	for _, args := range [][]string{
		{},
		{"--connections=4", "--requests=32", "--request-size=65536"},
		{"--request-size=33554432", "--no-extents"},
	} {
		testkit.Tool(t, "nbdcopy", append(args, w.uri("vda"), out)...)
		sameFile(t, out, w.a.content())
	}
	// Into the server: written, flushed, and read back by the device itself.
	content := pattern(diskSize)
	clear(content[20<<20 : 30<<20])
	content[diskSize-1] ^= 1
	if err := os.WriteFile(out, content, 0o600); err != nil {
		t.Fatal(err)
	}
	testkit.Tool(t, "nbdcopy", "--flush", out, w.uri("vda"))
	if !bytes.Equal(w.a.content(), content) || w.a.flushed() == 0 {
		t.Errorf("the device does not have what nbdcopy has written, or was not flushed (%d)", w.a.flushed())
	}
	fails(t, "nbdcopy", out, w.uri("vdb"))
	if n := w.noted(); len(n) > 0 {
		t.Errorf("the server complains: %v", n)
	}
}

func TestQemu(t *testing.T) {
	t.Parallel()
	w := serveIn(t, ServerOptions{})
	dir := t.TempDir()
	raw, image := filepath.Join(dir, "raw"), filepath.Join(dir, "image.qcow2")
	testkit.Tool(t, "qemu-img", "convert", "-O", "raw", w.uri("vda"), raw)
	sameFile(t, raw, w.a.content())
	testkit.Tool(t, "qemu-img", "convert", "-O", "qcow2", w.uri("vda"), image)
	testkit.Tool(t, "qemu-img", "compare", "-f", "qcow2", "-F", "raw", image, w.uri("vda"))
	testkit.Tool(t, "qemu-img", "convert", "-n", "-O", "raw", image, w.uri("vda"))
	sameFile(t, raw, w.a.content())

	m := testkit.Tool(t, "qemu-img", "map", "--output=json", "--image-opts",
		"driver=nbd,export=vda,server.type=unix,server.path="+w.socket+",x-dirty-bitmap=qemu:dirty-bitmap:monday")
	var parts []struct {
		Start, Length int64
		Data          bool
	}
	if err := json.Unmarshal([]byte(m), &parts); err != nil {
		t.Fatal(err)
	}
	if len(parts) != 5 || parts[0].Data || !parts[1].Data || parts[2].Data || parts[2].Start != 5<<20 || parts[2].Length != 1<<20+512 {
		t.Errorf("qemu-img map of the dirty bitmap: %s", m)
	}

	testkit.Tool(t, "qemu-io", "-f", "raw", w.uri("vda"), "-c", "write -P 7 1000 5000", "-c", "write -f -P 9 2M 1M", "-c", "write -z 4M 3M",
		"-c", "write -z -u 8M 1M", "-c", "discard 10M 2M", "-c", "flush", "-c", "read -P 7 1000 5000", "-c", "read -P 0 4M 3M")
	want := pattern(diskSize)
	copy(want[1000:], bytes.Repeat([]byte{7}, 5000))
	copy(want[2<<20:], bytes.Repeat([]byte{9}, 1<<20))
	clear(want[4<<20 : 7<<20])
	clear(want[8<<20 : 9<<20])
	clear(want[10<<20 : 12<<20])
	if !bytes.Equal(w.a.content(), want) {
		t.Error("the device does not have what qemu-io has written")
	}
	// Damage is an error of the request that needs it, and of no other.
	w.a.damage(12<<20, 12<<20+1)
	out := fails(t, "qemu-io", "-r", "-f", "raw", w.uri("vda"), "-c", "read 12M 4M", "-c", "read 13M 1M")
	if !strings.Contains(out, "read failed: Input/output error") || !strings.Contains(out, "read 1048576/1048576 bytes at offset 13631488") {
		t.Errorf("qemu-io: %s", out)
	}
	n := w.noted()
	if len(n) != 1 || !strings.Contains(n[0].Error(), "export vda: read of bytes 12582912 to 13631487: this part is damaged") {
		t.Errorf("the server's notes: %v", n)
	}
}

// nbdkit's own client, over simple replies and without NBD_OPT_GO's comforts, and
// nbdsh's for what no tool does by itself.
func TestOtherClients(t *testing.T) {
	t.Parallel()
	w := serveIn(t, ServerOptions{})
	out := filepath.Join(t.TempDir(), "out")
	testkit.Tool(t, "nbdkit", "-U", "-", "nbd", "socket="+w.socket, "export=vda", "--run", `nbdcopy "$uri" `+out)
	sameFile(t, out, w.a.content())
	script := `
import nbd, sys
def handle(structured, name_only):
    h = nbd.NBD()
    h.set_strict_mode(0)
    h.set_request_structured_replies(structured)
    h.set_export_name("vda")
    if name_only:
        h.set_handshake_flags(0)
    h.connect_unix(sys.argv[1])
    return h
want = open(sys.argv[2], "rb").read()
for structured in (False, True):
    h = handle(structured, not structured)
    assert h.get_structured_replies_negotiated() == structured
    for off, n in ((0, 1), (1000, 5 << 20), (0, 32 << 20), ((1 << 20) - 1, 2), (len(want) - 512, 512), ((3 << 20) - 7, 1 << 20)):
        assert h.pread(n, off) == want[off:off+n], (off, n)
        if structured:
            assert h.pread(n, off, nbd.CMD_FLAG_DF) == want[off:off+n], (off, n)
    for what in (lambda: h.pread(1, len(want)), lambda: h.pread(2, len(want) - 1), lambda: h.pread(33 << 20, 0),
                 lambda: h.pwrite(b"xx", len(want) - 1), lambda: h.cache(1, 0), lambda: h.block_status(512, 0, lambda *a: 0)):
        try:
            what()
        except nbd.Error:
            pass
        else:
            assert False, "it should have been refused"
    h.pwrite(want[:5 << 20], 0, nbd.CMD_FLAG_FUA)
    h.shutdown()
print("good")
`
	file := filepath.Join(t.TempDir(), "s.py")
	if err := os.WriteFile(file, []byte(script), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := testkit.Tool(t, "/usr/bin/python3", file, w.socket, out); got != "good\n" {
		t.Errorf("nbdsh: %s", got)
	}
	if w.a.flushed() == 0 {
		t.Error("a write with FUA did not flush")
	}
	// Damage in the middle of replies that are in one part.
	w.a.damage(3<<20, 3<<20+1)
	script = strings.Split(script, "for structured")[0] + `
for structured in (False, True):
    h = handle(structured, not structured)
    for flags in (0, nbd.CMD_FLAG_DF) if structured else (0,):
        try:
            h.pread(8 << 20, 0, flags)
        except nbd.Error as e:
            assert e.errnum == 5, e
        else:
            assert False, "damage was not told"
        assert h.pread(1 << 20, 0, flags) == want[:1 << 20]
    h.shutdown()
print("good")
`
	if err := os.WriteFile(file, []byte(script), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := testkit.Tool(t, "/usr/bin/python3", file, w.socket, out); got != "good\n" {
		t.Errorf("nbdsh: %s", got)
	}
}
