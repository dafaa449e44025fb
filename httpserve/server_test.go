// SPDX-License-Identifier: Apache-2.0

package httpserve

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"math/rand/v2"
	"mime"
	"mime/multipart"
	"net"
	"net/http"
	"slices"
	"sync"
	"testing"

	"pgregory.net/rapid"

	"github.com/imgbackup/imgbackup/bitmapstore"
	"github.com/imgbackup/imgbackup/nbd"
)

// memory is a device, of which a part can't be read.
type memory struct {
	data []byte
	bad  int64 // -1: all can
}

var errBad = errors.New("a bad place")

func (m *memory) ReadAt(ctx context.Context, p []byte, off int64) error {
	if len(p) > maxPiece {
		return fmt.Errorf("%d bytes at once", len(p))
	}
	if m.bad >= 0 && off <= m.bad && m.bad < off+int64(len(p)) {
		return errBad
	}
	copy(p, m.data[off:])
	return ctx.Err()
}

// world is a server that runs until the test ends.
type world struct {
	*testing.T
	url    string
	mu     sync.Mutex
	noted  []error
	client http.Client
}

func serveDisks(t *testing.T, o Options, disks ...Disk) *world {
	t.Helper()
	w := &world{T: t}
	o.Notify = func(err error) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.noted = append(w.noted, err)
	}
	s, err := New(disks, o)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "localhost:0")
	if err != nil {
		t.Fatal(err)
	}
	w.url = "http://" + l.Addr().String()
	w.client.Transport = &http.Transport{}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(ctx, l) }()
	t.Cleanup(func() {
		w.client.CloseIdleConnections()
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return w
}

func (w *world) notes() []error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.noted)
}

// answer is what came before a body.
type answer struct {
	StatusCode int
	Header     http.Header
}

// get returns the answer to a request, and all of its body.
func (w *world) get(method, path string, header ...string) (*answer, []byte, error) {
	w.Helper()
	req, err := http.NewRequestWithContext(w.Context(), method, w.url+path, nil)
	if err != nil {
		w.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	r, err := w.client.Do(req)
	if err != nil {
		return nil, nil, err
	}
	defer r.Body.Close()
	body, err := io.ReadAll(r.Body)
	return &answer{r.StatusCode, r.Header}, body, err
}

func diskOf(data []byte, bad int64, contexts ...nbd.Context) Disk {
	return Disk{Path: "web/c1/vda", Identity: "u-vda", Export: nbd.Export{Name: "vda", Size: int64(len(data)), Device: &memory{data, bad}, Contexts: contexts}}
}

func TestRanges(t *testing.T) {
	t.Parallel()
	data := make([]byte, 5<<20+7)
	rand.NewChaCha8([32]byte{1}).Read(data)
	w := serveDisks(t, Options{}, diskOf(data, -1))
	r := rand.New(rand.NewPCG(2, 3))
	for range 60 {
		start := r.IntN(len(data))
		end := start + r.IntN(min(3<<20, len(data)-start))
		a, body, err := w.get("GET", "/web/c1/vda", "Range", fmt.Sprintf("bytes=%d-%d", start, end))
		if err != nil || a.StatusCode != http.StatusPartialContent || !bytes.Equal(body, data[start:end+1]) {
			t.Fatalf("%d to %d: %v, %d bytes: %v", start, end, a, len(body), err)
		}
	}
	for _, c := range []struct {
		method string
		header []string
		status int
		want   []byte
	}{
		{"GET", nil, 200, data},
		{"HEAD", nil, 200, nil},
		{"GET", []string{"Range", "bytes=-9"}, 206, data[len(data)-9:]},
		{"GET", []string{"Range", fmt.Sprintf("bytes=%d-", len(data)-1)}, 206, data[len(data)-1:]},
		{"GET", []string{"Range", fmt.Sprintf("bytes=%d-", len(data))}, 416, nil},
		{"GET", []string{"Range", "bytes=9223372036854775807-"}, 416, nil},
		{"GET", []string{"Range", "bytes=5-2"}, 416, nil},
		{"GET", []string{"Range", "bytes=0-0", "If-Range", `"u-vda"`}, 206, data[:1]},
		{"GET", []string{"Range", "bytes=0-0", "If-Range", `"another"`}, 200, data},
		{"GET", []string{"If-None-Match", `"u-vda"`}, 304, nil},
		{"GET", []string{"If-Match", `"another"`}, 412, nil},
	} {
		a, body, err := w.get(c.method, "/web/c1/vda", c.header...)
		if err != nil || a.StatusCode != c.status || c.status < 300 && !bytes.Equal(body, c.want) {
			t.Errorf("%s %v: %v, %d bytes: %v", c.method, c.header, a, len(body), err)
		}
	}
	a, body, err := w.get("GET", "/web/c1/vda", "Range", "bytes=0-9,100-2000100,5000000-")
	if err != nil {
		t.Fatal(err)
	}
	_, params, err := mime.ParseMediaType(a.Header.Get("Content-Type"))
	if err != nil {
		t.Fatal(err)
	}
	m := multipart.NewReader(bytes.NewReader(body), params["boundary"])
	for _, want := range [][]byte{data[:10], data[100:2000101], data[5000000:]} {
		p, err := m.NextPart()
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(p); err != nil || !bytes.Equal(got, want) {
			t.Errorf("a part of %d bytes, not %d: %v", len(got), len(want), err)
		}
	}
	if n := w.notes(); len(n) > 0 {
		t.Errorf("it complains: %v", n)
	}
}

// What can't be read cuts the answer off, wherever it lies, and nothing else.
func TestUnreadable(t *testing.T) {
	t.Parallel()
	const bad = 3<<20 + 5
	w := serveDisks(t, Options{}, diskOf(bytes.Repeat([]byte("x"), 6<<20), bad))
	for _, ranges := range []string{"", "bytes=3145728-", "bytes=0-1,3145700-3145800"} {
		_, body, err := w.get("GET", "/web/c1/vda", "Range", ranges)
		if err == nil || len(body) > bad {
			t.Errorf("%q: %d bytes came, without an error", ranges, len(body))
		}
	}
	if a, body, err := w.get("GET", "/web/c1/vda", "Range", "bytes=4194304-"); err != nil || len(body) != 2<<20 {
		t.Errorf("beside it: %v: %v", a, err)
	}
	n := w.notes()
	if len(n) != 3 {
		t.Errorf("%d failures are told: %v", len(n), n)
	}
	for _, err := range n {
		var device *nbd.DeviceError
		if !errors.As(err, &device) || !errors.Is(device.Err, errBad) {
			t.Errorf("told is %v", err)
		}
	}
}

func TestExtents(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.Int64Range(0, 40).Draw(t, "size")
		contexts := []nbd.Context{
			{Name: nbd.BaseAllocation, Extents: listed(drawExtents(t, size, "zero", nbd.StateHole|nbd.StateZero))},
			{Name: nbd.DirtyBitmapPrefix + "c0", Extents: listed(drawExtents(t, size, "dirty", nbd.StateDirty))},
		}
		pos := int64(0)
		var last [2]uint32
		for e, err := range merged(context.Background(), size, contexts) {
			if err != nil || e.start != pos || e.end <= e.start || pos > 0 && e.flags == last {
				t.Fatalf("after %d: %+v: %v", pos, e, err)
			}
			for i, c := range contexts {
				for at := e.start; at < e.end; at++ {
					if got := flagsAt(c, at); got != e.flags[i] {
						t.Fatalf("%s at %d is %d, not %d", c.Name, at, e.flags[i], got)
					}
				}
			}
			pos, last = e.end, e.flags
		}
		if pos != size {
			t.Fatalf("they end at %d of %d", pos, size)
		}
	})
}

func drawExtents(t *rapid.T, size int64, label string, mask uint32) (all []nbd.Extent) {
	for pos := int64(0); pos < size; {
		start := rapid.Int64Range(pos, size).Draw(t, label)
		end := rapid.Int64Range(start, size).Draw(t, label)
		if start < end {
			all = append(all, nbd.Extent{Start: start, End: end, Flags: rapid.Uint32Range(0, mask).Draw(t, label) & mask})
		}
		pos = max(end, pos+1)
	}
	return all
}

func listed(all []nbd.Extent) func(context.Context, int64, int64) iter.Seq2[nbd.Extent, error] {
	return func(context.Context, int64, int64) iter.Seq2[nbd.Extent, error] {
		return func(yield func(nbd.Extent, error) bool) {
			for _, e := range all {
				if !yield(e, nil) {
					return
				}
			}
		}
	}
}

func flagsAt(c nbd.Context, at int64) uint32 {
	for e := range c.Extents(context.Background(), 0, 0) {
		if e.Start <= at && at < e.End {
			return e.Flags
		}
	}
	return 0
}

func TestExtentsAreJSON(t *testing.T) {
	t.Parallel()
	runs := func(all ...bitmapstore.Run) func(context.Context, int64, int64) bitmapstore.Runs {
		return func(context.Context, int64, int64) bitmapstore.Runs {
			return bitmapstore.Join(func(yield func(bitmapstore.Run, error) bool) {
				for _, r := range all {
					if r.End > 90 {
						yield(r, errBad)
						return
					}
					if !yield(r, nil) {
						return
					}
				}
			})
		}
	}
	good := diskOf(make([]byte, 100), -1, nbd.Allocation(runs(bitmapstore.Run{Start: 10, End: 20})), nbd.DirtyBitmap("c0", runs(bitmapstore.Run{Start: 15, End: 30})))
	empty, broken := diskOf(nil, -1), diskOf(make([]byte, 100), -1, nbd.Allocation(runs(bitmapstore.Run{Start: 80, End: 95})))
	empty.Path, broken.Path = "empty", "broken"
	w := serveDisks(t, Options{}, good, empty, broken)
	for path, want := range map[string]string{
		"/web/c1/vda/extents":                        `[[0,10,null,false],[10,10,null,true],[20,80,null,false]]`,
		"/web/c1/vda/extents?context=dirty":          `[[0,10,false,false],[10,5,false,true],[15,5,true,true],[20,10,true,false],[30,70,false,false]]`,
		"/web/c1/vda/extents?context=dirty&since=c0": `[[0,10,false,false],[10,5,false,true],[15,5,true,true],[20,10,true,false],[30,70,false,false]]`,
		"/empty/extents":                             `[]`,
	} {
		_, body, err := w.get("GET", path)
		var got []struct {
			Start, Length int64
			Dirty         *bool
			Zero, Hole    bool
		}
		if err == nil {
			err = json.Unmarshal(body, &got)
		}
		short := [][]any{}
		for _, e := range got {
			if e.Zero != e.Hole {
				t.Errorf("%s: %+v", path, e)
			}
			short = append(short, []any{e.Start, e.Length, e.Dirty, e.Zero})
		}
		if text, jerr := json.Marshal(short); err != nil || jerr != nil || string(text) != want {
			t.Errorf("%s: %s, want %s: %v", path, text, want, err)
		}
	}
	if _, body, err := w.get("GET", "/broken/extents"); err == nil {
		t.Errorf("broken: %s", body)
	}
	for path, want := range map[string]int{
		"/web/c1/vda/extents?context=dirty&since=c9": 404, "/empty/extents?context=dirty": 404, "/empty/extents?context=x": 400,
		"/extents": 404, "/web": 404, "/web/c1/vda/": 404, "/web/c1/../c1/vda": 404, "/web/c1/vda/extents/extents": 404,
	} {
		if a, _, err := w.get("GET", path); err != nil || a.StatusCode != want {
			t.Errorf("%s: %v: %v", path, a, err)
		}
	}
}

func TestToken(t *testing.T) {
	t.Parallel()
	w := serveDisks(t, Options{Token: "s3cret"}, diskOf([]byte("disk"), -1))
	for _, path := range []string{"/", "/web/c1/vda", "/web/c1/vda/extents", "/nothing"} {
		for _, auth := range []string{"", "Bearer ", "Bearer s3cre", "Bearer s3cret2", "Basic s3cret", "s3cret"} {
			for _, method := range []string{"GET", "HEAD", "OPTIONS", "DELETE"} {
				a, body, err := w.get(method, path, "Authorization", auth)
				if err != nil || a.StatusCode != 401 || bytes.Contains(body, []byte("disk ")) || a.Header.Get("ETag") != "" {
					t.Errorf("%s %s with %q: %v: %v", method, path, auth, a, err)
				}
			}
		}
	}
	if a, body, err := w.get("GET", "/web/c1/vda", "Authorization", "bearer s3cret"); err != nil || string(body) != "disk" {
		t.Errorf("%v: %v", a, err)
	}
}

// Clients that say nothing, nonsense, or too much, or are too many, harm nobody else.
func TestHostileClients(t *testing.T) {
	t.Parallel()
	w := serveDisks(t, Options{Connections: 3}, diskOf(make([]byte, 64<<20), -1))
	dial := func(text string) net.Conn {
		t.Helper()
		c, err := net.Dial("tcp", w.url[len("http://"):])
		if err == nil {
			_, err = io.WriteString(c, text)
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	for _, text := range []string{"\x00\x01\x02\r\n\r\n", "GET /web/c1/vda HTTP/1.1\r\nHost: localhost\r\nX: " + string(bytes.Repeat([]byte("y"), maxHeader+8<<10)) + "\r\n\r\n"} {
		c := dial(text)
		line, err := bufio.NewReader(c).ReadString('\n')
		if err != nil || !bytes.HasPrefix([]byte(line), []byte("HTTP/1.1 4")) {
			t.Errorf("%.20q gets %q: %v", text, line, err)
		}
		c.Close()
	}
	// Three that read no more; the next is closed at once. Those above may still be counted.
	var last net.Conn
	for held := 0; held < 3; {
		last = dial("GET /web/c1/vda HTTP/1.1\r\nHost: localhost\r\n\r\n")
		if _, err := last.Read(make([]byte, 1)); err == nil {
			held++
		}
	}
	if _, err := dial("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").Read(make([]byte, 1)); err == nil {
		t.Error("a fourth is served")
	}
	if !slices.ContainsFunc(w.notes(), func(err error) bool { return errors.Is(err, nbd.ErrBusy) }) {
		t.Errorf("told is %v", w.notes())
	}
	last.Close()
	for served := false; !served; {
		a, body, err := w.get("GET", "/web/c1/vda", "Range", "bytes=0-3", "Connection", "close")
		served = err == nil && a.StatusCode == 206 && len(body) == 4
	}
}
