// SPDX-License-Identifier: Apache-2.0

package s3_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/imgbackup/imgbackup/objstore"
	"github.com/imgbackup/imgbackup/objstore/objstoretest"
	"github.com/imgbackup/imgbackup/objstore/retry"
	"github.com/imgbackup/imgbackup/objstore/s3"
	"github.com/imgbackup/imgbackup/objstore/s3test"
)

// testS3Faults runs the contract while everything fails now and then.
func testS3Faults(t *testing.T, server *s3test.Server) {
	bucket := server.Bucket()
	proxy := s3test.NewProxy(t, server,
		s3test.Fault{How: s3test.Reset, Method: http.MethodPut, After: 5, Times: 40},
		s3test.Fault{How: s3test.ResetUpload, Method: http.MethodPut, Key: "/large", Times: 2},
		s3test.Fault{How: s3test.ResetUpload, Method: http.MethodPut, Key: "/race/", Times: 10},
		s3test.Fault{How: s3test.Conflict, Method: http.MethodPut, After: 300, Times: 20},
		s3test.Fault{How: s3test.Folder, Method: http.MethodPut, After: 350, Times: 20},
		s3test.Fault{How: s3test.Unavailable, Method: http.MethodPut, After: 400, Times: 40},
		s3test.Fault{How: s3test.Internal, Method: http.MethodPut, After: 500, Times: 40},
		s3test.Fault{How: s3test.Lost, Method: http.MethodDelete, Times: 3},
		s3test.Fault{How: s3test.Unavailable, Method: http.MethodDelete, Times: 3},
		s3test.Fault{How: s3test.Reset, Method: http.MethodHead, Times: 5},
		s3test.Fault{How: s3test.NotS3, Method: http.MethodHead, Times: 5},
		s3test.Fault{How: s3test.Unavailable, Method: http.MethodHead, Times: 5},
		s3test.Fault{How: s3test.Lost, Method: http.MethodGet, Times: 5},
		s3test.Fault{How: s3test.NotS3, Method: http.MethodGet, Times: 5},
		s3test.Fault{How: s3test.Internal, Method: http.MethodGet, Times: 5},
		s3test.Fault{How: s3test.Cut, Method: http.MethodGet, Key: "/large", Bytes: 1_000_000, Times: 5},
		s3test.Fault{How: s3test.Cut, Method: http.MethodGet, Key: "/dir/object", Times: 3},
		s3test.Fault{How: s3test.Cut, Method: http.MethodGet, Key: "/dir/object", Bytes: 700, Times: 3},
		s3test.Fault{How: s3test.Reset, Method: "LIST", Times: 5},
		s3test.Fault{How: s3test.Cut, Method: "LIST", Bytes: 300, Times: 5},
		s3test.Fault{How: s3test.Unavailable, Method: "LIST", Query: "continuation-token", Times: 3},
	)
	n := make(chan int, 1)
	n <- 0
	objstoretest.Run(t, func(t *testing.T) objstore.Store {
		i := <-n
		n <- i + 1
		return retry.New(openS3(t, proxy.Config(server, bucket, fmt.Sprintf("p%d", i))), quick)
	})
}

func content(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i * i >> 8)
	}
	return b
}

func readRange(s objstore.Store, t *testing.T, key string, offset, length int64) ([]byte, error) {
	t.Helper()
	r, err := s.Get(t.Context(), key, offset, length)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}

// What was created by a request whose answer is lost is reported as existing,
// and stands there.
func testS3LostAnswers(t *testing.T, server *s3test.Server) {
	proxy := s3test.NewProxy(t, server,
		s3test.Fault{How: s3test.Lost, Method: http.MethodPut, Key: "/created", Times: 1},
		s3test.Fault{How: s3test.Lost, Method: http.MethodPut, Key: "/replaced", Times: 1},
	)
	s := retry.New(openS3(t, proxy.Config(server, server.Bucket(), "")), quick)
	if err := s.Put(t.Context(), "a/created", strings.NewReader("x"), objstore.PutOptions{Mode: objstore.Create}); !errors.Is(err, objstore.ErrExists) {
		t.Errorf("create with a lost answer: %v, want ErrExists", err)
	}
	if err := s.Put(t.Context(), "a/replaced", strings.NewReader("x"), objstore.PutOptions{Mode: objstore.Replace}); err != nil {
		t.Errorf("replace with a lost answer: %v", err)
	}
	for _, key := range []string{"a/created", "a/replaced"} {
		if got, err := objstore.ReadAll(t.Context(), s, key, 10); string(got) != "x" || err != nil {
			t.Errorf("%s: %q, %v", key, got, err)
		}
	}
	if n := proxy.Count(http.MethodPut); n != 4 {
		t.Errorf("%d PUTs, want 4", n)
	}
}

// What was sent whole and not answered may be done yet; what was refused, or
// never sent, will not.
func testS3Doubt(t *testing.T, server *s3test.Server) {
	bucket := server.Bucket()
	for how, doubt := range map[s3test.How]bool{
		s3test.Reset: true, s3test.Lost: true, s3test.Late: true, s3test.Internal: true, s3test.NotS3: true,
		s3test.Portal: true, s3test.ErrorOK: true, s3test.Empty: true, s3test.Forbidden: true,
		s3test.Unavailable: false, s3test.Conflict: false, s3test.Skewed: false, s3test.Full: false,
	} {
		proxy := s3test.NewProxy(t, server, s3test.Fault{How: how, Method: http.MethodPut})
		for _, mode := range []objstore.Mode{objstore.Create, objstore.Replace} {
			raw := openS3(t, proxy.Config(server, bucket, fmt.Sprintf("p%d-%d", how, mode)))
			if err := raw.Put(t.Context(), "object", strings.NewReader("x"), objstore.PutOptions{Mode: mode}); err == nil || objstore.InDoubt(err) != doubt {
				t.Errorf("fault %d: %v, in doubt: %v", how, err, objstore.InDoubt(err))
			}
			if err := raw.Delete(t.Context(), "object"); err != nil {
				t.Error(err)
			}
		}
	}
	broken := strings.NewReader("it is shorter than it says")
	raw := openS3(t, server.Config(bucket, "p"))
	if err := raw.Put(t.Context(), "object", longer{broken}, objstore.PutOptions{Mode: objstore.Create}); err == nil || objstore.InDoubt(err) {
		t.Errorf("a body that can't be read: %v", err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := raw.Put(ended, "object", strings.NewReader("x"), objstore.PutOptions{Mode: objstore.Create}); err == nil || objstore.InDoubt(err) {
		t.Errorf("cancelled before: %v", err)
	}
	if _, err := raw.Stat(t.Context(), "object"); !errors.Is(err, objstore.ErrNotFound) {
		t.Errorf("what was never sent: %v", err)
	}

	// Nor does a later refusal make up for it, nor giving up.
	ctx, giveUp := context.WithCancel(t.Context())
	defer giveUp()
	proxy := s3test.NewProxy(t, server,
		s3test.Fault{How: s3test.Late, Method: http.MethodPut, Key: "/refused", Times: 2},
		s3test.Fault{How: s3test.Skewed, Method: http.MethodPut, Key: "/refused"},
		s3test.Fault{How: s3test.Late, Method: http.MethodPut, Key: "/given-up", Do: giveUp},
	)
	s := retry.New(openS3(t, proxy.Config(server, bucket, "late")), quick)
	for _, key := range []string{"refused", "given-up"} {
		err := s.Put(ctx, key, strings.NewReader("x"), objstore.PutOptions{Mode: objstore.Create})
		if err == nil || errors.Is(err, objstore.ErrExists) || !objstore.InDoubt(err) {
			t.Errorf("%s: %v, in doubt: %v", key, err, objstore.InDoubt(err))
		}
		if _, err := s.Stat(t.Context(), key); !errors.Is(err, objstore.ErrNotFound) {
			t.Errorf("%s, before it has arrived: %v", key, err)
		}
		if got := proxy.Deliver(); key == "refused" && !slices.Equal(got, []int{http.StatusOK, http.StatusPreconditionFailed}) {
			t.Errorf("%s: the server answered %v", key, got)
		}
	}
	if _, err := s.Stat(t.Context(), "refused"); err != nil {
		t.Errorf("what arrived late: %v", err)
	}
}

// longer is a body that ends before it should.
type longer struct{ *strings.Reader }

func (l longer) Size() int64 { return l.Reader.Size() + 1 }

func testS3CutBodies(t *testing.T, server *s3test.Server) {
	proxy := s3test.NewProxy(t, server,
		s3test.Fault{How: s3test.Cut, Method: http.MethodGet, Bytes: 100_000, Times: 8},
	)
	c := proxy.Config(server, server.Bucket(), "")
	raw := openS3(t, c)
	want := content(1 << 20)
	if err := raw.Put(t.Context(), "object", bytes.NewReader(want), objstore.PutOptions{Mode: objstore.Create}); err != nil {
		t.Fatal(err)
	}
	// The reset that ends a cut body may overtake the last of its bytes.
	got, err := readRange(raw, t, "object", 0, -1)
	if !errors.Is(err, io.ErrUnexpectedEOF) || len(got) > 100_000 || !bytes.HasPrefix(want, got) {
		t.Errorf("a cut body without retries: %d bytes, %v; want at most 100000 and ErrUnexpectedEOF", len(got), err)
	}
	got, err = readRange(raw, t, "object", 500_000, 400_000)
	if !errors.Is(err, io.ErrUnexpectedEOF) || len(got) > 100_000 || !bytes.HasPrefix(want[500_000:], got) {
		t.Errorf("a cut range without retries: %d bytes, %v; want at most 100000 and ErrUnexpectedEOF", len(got), err)
	}
	s := retry.New(raw, quick)
	got, err = readRange(s, t, "object", 5, -1)
	if err != nil || !bytes.Equal(got, want[5:]) {
		t.Errorf("a body cut 6 times: %d bytes, %v", len(got), err)
	}
	// Each went on where the one before it had ended.
	if n := proxy.Count(http.MethodGet); n != 2+7 {
		t.Errorf("%d GETs, want 9", n)
	}
}

func testS3Stall(t *testing.T, server *s3test.Server) {
	proxy := s3test.NewProxy(t, server,
		s3test.Fault{How: s3test.Stall, Method: http.MethodGet, Bytes: 1000, Times: 2},
	)
	raw, err := s3.OpenStall(proxy.Config(server, server.Bucket(), ""), 300*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	s := retry.New(raw, quick)
	want := content(300_000)
	if err := s.Put(t.Context(), "object", bytes.NewReader(want), objstore.PutOptions{Mode: objstore.Create}); err != nil {
		t.Fatal(err)
	}
	if got, err := readRange(s, t, "object", 0, int64(len(want))); err != nil || !bytes.Equal(got, want) {
		t.Errorf("a body that stalls twice: %d bytes, %v", len(got), err)
	}
}

// A cut body is never gone on with by the bytes of another object.
func testS3Replaced(t *testing.T, server *s3test.Server) {
	proxy := s3test.NewProxy(t, server,
		s3test.Fault{How: s3test.Cut, Method: http.MethodGet, Bytes: 100_000, Times: 1},
	)
	s := retry.New(openS3(t, proxy.Config(server, server.Bucket(), "")), quick)
	for i, fill := range []byte("ab") {
		if err := s.Put(t.Context(), "object", bytes.NewReader(bytes.Repeat([]byte{fill}, 300_000)), objstore.PutOptions{Mode: objstore.Replace}); err != nil {
			t.Fatal(err)
		}
		if i == 1 {
			break
		}
		r, err := s.Get(t.Context(), "object", 0, -1)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		defer func() {
			rest, err := io.ReadAll(r)
			if err == nil || len(rest) > 100_000 || bytes.Contains(rest, []byte("b")) || errors.Is(err, objstore.ErrExists) {
				t.Errorf("an object that was replaced while it was read: %d bytes, %v", len(rest), err)
			}
		}()
	}
}

// An upload that is cut leaves nothing.
func testS3CutUploads(t *testing.T, server *s3test.Server) {
	proxy := s3test.NewProxy(t, server, s3test.Fault{How: s3test.ResetUpload, Method: http.MethodPut})
	c := proxy.Config(server, server.Bucket(), "")
	s := openS3(t, c)
	for _, size := range []int{2, 5000, 1 << 20} {
		err := s.Put(t.Context(), "object", bytes.NewReader(content(size)), objstore.PutOptions{Mode: objstore.Replace})
		if err == nil || objstore.Permanent(err) {
			t.Errorf("a cut upload of %d bytes: %v", size, err)
		}
		if _, err := s.Stat(t.Context(), "object"); !errors.Is(err, objstore.ErrNotFound) {
			t.Errorf("a cut upload of %d bytes left something: %v", size, err)
		}
	}
}

// Objects come and go in one folder, which some servers make and remove with
// them.
func testS3Folders(t *testing.T, server *s3test.Server) {
	s := retry.New(openS3(t, server.Config(server.Bucket(), "p")), quick)
	var wg sync.WaitGroup
	for i := range 6 {
		wg.Go(func() {
			key := fmt.Sprintf("a/b/%d", i)
			for range 30 {
				if err := s.Put(t.Context(), key, strings.NewReader("x"), objstore.PutOptions{Mode: objstore.Create}); err != nil {
					t.Error(err)
				}
				if _, err := s.Stat(t.Context(), key); err != nil {
					t.Error(err)
				}
				if err := s.Delete(t.Context(), key); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

// fill stores small objects: k/0000 and so on.
func fill(t *testing.T, s objstore.Store, count int) {
	t.Helper()
	const parts = 10
	done := make(chan error)
	for part := range parts {
		go func() {
			for i := part; i < count; i += parts {
				if err := s.Put(t.Context(), fmt.Sprintf("k/%04d", i), strings.NewReader("x"), objstore.PutOptions{Mode: objstore.Create}); err != nil {
					done <- err
					return
				}
			}
			done <- nil
		}()
	}
	for range parts {
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
}

// A listing that fails on its second page is no shorter one.
func testS3List(t *testing.T, server *s3test.Server) {
	proxy := s3test.NewProxy(t, server,
		s3test.Fault{How: s3test.Internal, Method: "LIST", Query: "continuation-token", Times: 2},
		s3test.Fault{How: s3test.Unavailable, Method: "LIST", Query: "start-after", Times: 2},
	)
	bucket := server.Bucket()
	direct := openS3(t, server.Config(bucket, "a/b"))
	const count = 1030
	fill(t, direct, count)
	list := func(s objstore.Store) (n int, err error) {
		for info, err := range s.List(t.Context(), "k/") {
			if err != nil {
				return n, err
			}
			if want := fmt.Sprintf("k/%04d", n); info.Key != want {
				t.Fatalf("listed %s, want %s", info.Key, want)
			}
			n++
		}
		return n, nil
	}
	raw := openS3(t, proxy.Config(server, bucket, "a/b"))
	if n, err := list(raw); err == nil || n != 1000 || objstore.Permanent(err) {
		t.Errorf("a listing without retries: %d keys, %v; want an error after 1000", n, err)
	}
	s := retry.New(openS3(t, proxy.Config(server, bucket, "a/b")), quick)
	if n, err := list(s); err != nil || n != count {
		t.Errorf("a listing: %d keys, %v; want %d", n, err, count)
	}
}

// elsewhere are the answers that something on the way gives for the store.
func elsewhere() []s3test.How {
	return []s3test.How{
		s3test.NotS3, s3test.Portal, s3test.PortalXML, s3test.ErrorOK, s3test.Empty, s3test.NotModified,
		s3test.Redirected, s3test.Forbidden, s3test.Precondition,
	}
}

// What is no S3 server can't say that there is no object, nor that there is one,
// nor that it is stored, nor that a listing is empty.
func testS3NotS3(t *testing.T, server *s3test.Server) {
	for _, how := range elsewhere() {
		proxy := s3test.NewProxy(t, server, s3test.Fault{How: how})
		s := openS3(t, proxy.Config(server, server.Bucket(), ""))
		for op, err := range objstoretest.Operations(t, s, "object") {
			if err == nil || errors.Is(err, objstore.ErrNotFound) || errors.Is(err, objstore.ErrExists) || objstore.Permanent(err) {
				t.Errorf("answer %d, %s: %v, want an outage", how, op, err)
				continue
			}
			wantLine(t, err, "is not an S3 server's")
		}
	}
}

// What something on the way has answered once is asked again.
func testS3NotS3Once(t *testing.T, server *s3test.Server) {
	for _, how := range elsewhere() {
		var faults []s3test.Fault
		for _, method := range []string{http.MethodPut, http.MethodGet, http.MethodHead, http.MethodDelete, "LIST"} {
			faults = append(faults, s3test.Fault{How: how, Method: method, Times: 2})
		}
		proxy := s3test.NewProxy(t, server, faults...)
		s := retry.New(openS3(t, proxy.Config(server, server.Bucket(), "")), quick)
		if err := s.Put(t.Context(), "object", strings.NewReader("content"), objstore.PutOptions{Mode: objstore.Create}); err != nil {
			t.Errorf("answer %d, put: %v", how, err)
		}
		if info, err := s.Stat(t.Context(), "object"); err != nil || info.Size != 7 {
			t.Errorf("answer %d, stat: %+v, %v", how, info, err)
		}
		if got, err := objstore.ReadAll(t.Context(), s, "object", 10); string(got) != "content" || err != nil {
			t.Errorf("answer %d, get: %q, %v", how, got, err)
		}
		n := 0
		for info, err := range s.List(t.Context(), "") {
			if n++; err != nil || info.Key != "object" {
				t.Errorf("answer %d, list: %+v, %v", how, info, err)
			}
		}
		if n != 1 {
			t.Errorf("answer %d: %d objects listed, want 1", how, n)
		}
		if err := s.Delete(t.Context(), "object"); err != nil {
			t.Errorf("answer %d, delete: %v", how, err)
		}
		if _, err := s.Stat(t.Context(), "object"); !errors.Is(err, objstore.ErrNotFound) {
			t.Errorf("answer %d, stat of what was deleted: %v", how, err)
		}
	}
}

// A listing whose second page is something else is no shorter one.
func testS3ListPages(t *testing.T, server *s3test.Server) {
	bucket := server.Bucket()
	const count = 1001
	fill(t, openS3(t, server.Config(bucket, "")), count)
	for _, how := range elsewhere() {
		proxy := s3test.NewProxy(t, server, s3test.Fault{How: how, Method: "LIST", Query: "continuation-token"})
		n := 0
		var last error
		for _, err := range openS3(t, proxy.Config(server, bucket, "")).List(t.Context(), "k/") {
			if last = err; err == nil {
				n++
			}
		}
		if n != 1000 || last == nil || objstore.Permanent(last) {
			t.Errorf("answer %d for a listing's second page: %d keys, %v", how, n, last)
		}
	}
}

// What is on the way and can't ask whether a body is wanted gets it unasked.
func testS3Unasked(t *testing.T, server *s3test.Server) {
	proxy := s3test.NewProxy(t, server, s3test.Fault{How: s3test.Unasked, Method: http.MethodPut})
	s := openS3(t, proxy.Config(server, server.Bucket(), ""))
	want := content(1 << 20)
	for i := range 3 {
		key := fmt.Sprintf("object-%d", i)
		if err := s.Put(t.Context(), key, bytes.NewReader(want), objstore.PutOptions{}); err != nil {
			t.Fatal(err)
		}
		if got, err := readRange(s, t, key, 0, -1); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes, %v", key, len(got), err)
		}
	}
	if n := proxy.Count(http.MethodPut); n != 4 {
		t.Errorf("%d PUTs of 3 objects, want 4: only the first is asked for", n)
	}
}

// testS3Requests counts: one request for everything but the absent, over few
// connections.
func testS3Requests(t *testing.T, server *s3test.Server) {
	proxy := s3test.NewProxy(t, server)
	s := retry.New(openS3(t, proxy.Config(server, server.Bucket(), "p")), quick)
	const objects = 20
	for i := range objects {
		key := fmt.Sprintf("o%d", i)
		body := bytes.NewReader(content(i * 20_000))
		if err := s.Put(t.Context(), key, body, objstore.PutOptions{Mode: objstore.Create}); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Stat(t.Context(), key); err != nil {
			t.Fatal(err)
		}
		for _, length := range []int64{-1, body.Size(), (body.Size() + 1) / 2} {
			buf, err := readRange(s, t, key, 0, length)
			if want := max(length, body.Size()*min(1, -length)); err != nil || int64(len(buf)) != want {
				t.Fatalf("read %d bytes, %v; want %d", len(buf), err, want)
			}
		}
	}
	for method, want := range map[string]int{http.MethodPut: objects, http.MethodGet: 3*objects - 2, "LIST": 0, http.MethodHead: objects + 2} {
		if got := proxy.Count(method); got != want {
			t.Errorf("%d %s requests, want %d", got, method, want)
		}
	}
	if n := proxy.Connections(); n > 4 {
		t.Errorf("%d connections for requests one after the other", n)
	}
}

// testS3Restart kills the server between and during operations.
func testS3Restart(t *testing.T, shared *s3test.Server) {
	server := s3test.Start(t, shared.Kind())
	s := retry.New(openS3(t, server.Config(server.Bucket(), "p")), quick)
	want := content(3 << 20)
	if err := s.Put(t.Context(), "before", bytes.NewReader(want), objstore.PutOptions{Mode: objstore.Create}); err != nil {
		t.Fatal(err)
	}
	r, err := s.Get(t.Context(), "before", 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	head := make([]byte, 100_000)
	if _, err := io.ReadFull(r, head); err != nil {
		t.Fatal(err)
	}
	server.Kill()
	put := make(chan error)
	go func() {
		put <- s.Put(t.Context(), "during", bytes.NewReader(want), objstore.PutOptions{Mode: objstore.Create})
	}()
	server.Restart()
	if err := <-put; err != nil {
		t.Errorf("a put while the server was away: %v", err)
	}
	rest, err := io.ReadAll(r)
	if err != nil || !bytes.Equal(append(head, rest...), want) {
		t.Errorf("a read during which the server was away: %d bytes, %v", len(head)+len(rest), err)
	}
	if got, err := objstore.ReadAll(t.Context(), s, "during", 4<<20); err != nil || !bytes.Equal(got, want) {
		t.Errorf("what was stored: %d bytes, %v", len(got), err)
	}
}
