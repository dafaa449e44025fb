// SPDX-License-Identifier: Apache-2.0

package s3

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/minio/minio-go/v7"

	"github.com/imgbackup/imgbackup/objstore"
)

// shortestHold is how long a writer is held up at least; else as long as all other
// requests of the probe took, so that a slow store has the time for one more.
const shortestHold = 100 * time.Millisecond

// cleanupTime bounds the removal of what a probe made.
const cleanupTime = 30 * time.Second

// Probe implements objstore.Prober. What fails in it is not tried again; whoever does that
// begins anew. But what the store refuses since it has too much to do is, apart from races: of
// many requests one would always be refused while others keep it busy. What is tried is what
// several requests at once do to each other: they do not wait for one another here.
func (s *Store) Probe(ctx context.Context) error {
	return probe{patient{s}, s}.run(context.WithValue(ctx, unpaced{}, true))
}

// probe tries a store.
type probe struct {
	patient        // asks again where the store is busy
	racing  *Store // does not
}

func (s probe) run(ctx context.Context) (err error) {
	dir := objstore.ProbePrefix + rand.Text() + "/"
	var keys []string
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTime)
		defer cancel()
		for _, key := range keys {
			if derr := s.Delete(ctx, key); derr != nil && err == nil {
				err = fmt.Errorf("remove what the store was tried with: %w", derr)
			}
		}
	}()
	key := func(name string) string {
		keys = append(keys, dir+name)
		return dir + name
	}
	within := func(folder string) func(string) string {
		return func(name string) string { return key(folder + "/" + name) }
	}
	begun := time.Now()
	for _, step := range []func() error{
		func() error { return s.probeRead(ctx, key("object")) },
		func() error { return s.probeChecksum(ctx, key("checksum"), [sha256.Size]byte{}) },
		func() error { return s.probeChecksum(ctx, key("checksum256"), sha256.Sum256([]byte(meant))) },
		func() error { return s.probeCreate(ctx, key("create")) },
		func() error { return s.probeReplace(ctx, key("replace")) },
		func() error { return s.probeRace(ctx, within("race/in/new/folders/object")) },
		func() error { return s.probeHeld(ctx, within("held"), time.Since(begun)+shortestHold) },
	} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// unfit says what a store can't do that imgbackup needs.
func unfit(format string, args ...any) error {
	return objstore.MarkPermanent(fmt.Errorf(format, args...))
}

func (s probe) probeContent(ctx context.Context, key, want string) error {
	got, err := objstore.ReadAll(ctx, s, key, 2*heldSize)
	if err != nil && !errors.Is(err, objstore.ErrNotFound) {
		return err
	}
	if err != nil || string(got) != want {
		return unfit("the store does not read back what was just written: imgbackup needs read-after-write consistency")
	}
	return nil
}

// probeRead sees whether what was written, replaced and removed shows at once.
func (s probe) probeRead(ctx context.Context, key string) error {
	for _, content := range []string{"first", "the second"} {
		if err := s.Put(ctx, key, strings.NewReader(content), objstore.PutOptions{Mode: objstore.Replace}); err != nil {
			return err
		}
		if err := s.probeContent(ctx, key, content); err != nil {
			return err
		}
	}
	n := 0
	for info, err := range s.List(ctx, key) {
		if err != nil {
			return err
		}
		if n++; info.Key != key || info.Size != int64(len("the second")) {
			return unfit("the store lists %q with %d bytes instead of what was just written", info.Key, info.Size)
		}
	}
	if n != 1 {
		return unfit("the store does not list what was just written: imgbackup needs consistent listings")
	}
	if err := s.Delete(ctx, key); err != nil {
		return err
	}
	return s.probeAbsent(ctx, key, unfit("the store still has what was just removed"))
}

// probeAbsent returns the error there if an object is.
func (s probe) probeAbsent(ctx context.Context, key string, there error) error {
	switch _, err := s.Stat(ctx, key); {
	case errors.Is(err, objstore.ErrNotFound):
		return nil
	case err != nil:
		return err
	}
	return there
}

// meant is a body that never arrives as it is.
const meant = "what was meant"

// probeChecksum sees whether the store refuses a body that is not what its checksum
// says: the SHA-256 that is known of it, or else what is computed.
func (s probe) probeChecksum(ctx context.Context, key string, known [sha256.Size]byte) error {
	st := s.racing
	sums, err := st.checksum(strings.NewReader(meant), known)
	if err != nil {
		return err
	}
	opts := minio.PutObjectOptions{DisableContentSha256: true, UserMetadata: sums.headers, ServerSideEncryption: st.sse}
	refused := false
	err = whileBusy(ctx, func() error {
		body := bytes.NewReader([]byte("what arrives..")) // as long as what was meant
		_, err := st.core.PutObject(ctx, st.bucket, st.prefix+key, io.Reader(body), body.Size(), "", sums.sha256, opts)
		if refused = isStatus(err, http.StatusBadRequest); refused || err == nil {
			return nil
		}
		return st.failed(ctx, "store", key, err)
	})
	switch {
	case err != nil:
		return err
	case !refused:
		return s.unchecked()
	}
	return s.probeAbsent(ctx, key, s.unchecked())
}

func (s probe) unchecked() error {
	if s.racing.sha256 {
		return unfit("the store takes an object whose bytes were changed on their way: it checks no SHA-256")
	}
	return unfit("the store takes an object whose bytes were changed on their way: it checks neither CRC32C nor SHA-256 (try IMGBACKUP_S3_CHECKSUM=sha256)")
}

// probeCreate sees whether an object is created over another.
func (s probe) probeCreate(ctx context.Context, key string) error {
	err := s.Put(ctx, key, strings.NewReader("first"), objstore.PutOptions{Mode: objstore.Create})
	var answer *Error
	switch {
	case errors.As(err, &answer) && (answer.Status == http.StatusNotImplemented || answer.Status == http.StatusBadRequest):
		return &objstore.NoConditionsError{What: "it refuses conditional writes (If-None-Match: *): " + answer.Error()}
	case err != nil && !errors.Is(err, objstore.ErrExists): // which a repeated request may get
		return err
	}
	if err := s.probeContent(ctx, key, "first"); err != nil {
		return err
	}
	err = s.Put(ctx, key, strings.NewReader("second"), objstore.PutOptions{Mode: objstore.Create})
	switch {
	case err == nil:
		return &objstore.NoConditionsError{What: "it does not honour conditional writes (If-None-Match: *), and stored one object over another"}
	case !errors.Is(err, objstore.ErrExists):
		return err
	}
	return s.probeContent(ctx, key, "first")
}

// versionsOn is what is most likely wrong where a delete marker counts as an object, as in
// versitygw's buckets with versions.
const versionsOn = "if the bucket has versions, this store can't hold a repository that is pruned while others write; use a bucket without"

// probeReplace sees whether an object is replaced only where the very one stands that was
// read, and whether one that was deleted is absent for both conditions.
func (s probe) probeReplace(ctx context.Context, key string) error {
	unmet := func(what string) error {
		return &objstore.NoConditionsError{What: "it does not honour conditional writes (If-Match): " + what}
	}
	put := func(content string, o objstore.PutOptions) error {
		return s.Put(ctx, key, strings.NewReader(content), o)
	}
	if err := put("first", objstore.PutOptions{Mode: objstore.Replace}); err != nil {
		return err
	}
	var tag string
	err := whileBusy(ctx, func() (err error) {
		tag, err = s.racing.tagOf(ctx, key, []byte("first"))
		return err
	})
	if err != nil {
		return err
	}
	err = put("second", objstore.PutOptions{Mode: objstore.Replace, Old: []byte("first")})
	var answer *Error
	switch {
	case errors.Is(err, objstore.ErrChanged), errors.As(err, &answer) && (answer.Status == http.StatusNotImplemented || answer.Status == http.StatusBadRequest):
		return unmet("it does not replace the object that stands there: " + err.Error())
	case err != nil:
		return err
	}
	if err := s.probeContent(ctx, key, "second"); err != nil {
		return err
	}
	// As a request that comes late asks: by the first one's entity tag.
	late := func(over string) error {
		var opts minio.PutObjectOptions
		opts.SetMatchETag(tag)
		return whileBusy(ctx, func() error {
			err := s.racing.put(ctx, key, strings.NewReader("late"), [sha256.Size]byte{}, opts)
			switch {
			case err == nil:
				return unmet(over)
			case isCode(err, codePreconditionFailed), isCode(err, codeNoSuchKey):
				return nil
			}
			return s.racing.failed(ctx, "store", key, err)
		})
	}
	if err := late("it stored an object over another than the one that was to be replaced"); err != nil {
		return err
	}
	if err := s.probeContent(ctx, key, "second"); err != nil {
		return err
	}
	if err := s.Delete(ctx, key); err != nil {
		return err
	}
	if err := late("what was deleted was replaced: " + versionsOn); err != nil {
		return err
	}
	switch err := put("third", objstore.PutOptions{}); {
	case errors.Is(err, objstore.ErrExists):
		return unmet("what was deleted counts as there: " + versionsOn)
	case err != nil:
		return err
	}
	return s.probeContent(ctx, key, "third")
}

// probeRace sees whether one of several writers at once creates an object.
func (s probe) probeRace(ctx context.Context, key func(name string) string) error {
	const racers = 8
	return s.race(ctx, key, func(ctx context.Context, key string) error {
		content := func(i int) string { return fmt.Sprintf("racer %d", i) }
		var errs [racers]error
		var wg sync.WaitGroup
		for i := range racers {
			wg.Go(func() {
				errs[i] = s.racing.Put(ctx, key, strings.NewReader(content(i)), objstore.PutOptions{Mode: objstore.Create})
			})
		}
		wg.Wait()
		return s.judgeRace(ctx, key, errs[:], content, "it does not honour conditional writes (If-None-Match: *): two writers at once both created an object")
	})
}

// race runs one, each time for another object, until the store takes enough of those that
// are in it.
func (s probe) race(ctx context.Context, key func(name string) string, once func(ctx context.Context, key string) error) error {
	n := 0
	return whileBusy(ctx, func() error {
		n++
		return once(ctx, key(strconv.Itoa(n)))
	})
}

// judgeRace sees whether at most one of those that created an object has succeeded, and its
// content stands; both is what to say of two. Those that the store refused for having too
// much to do were not in the race: a store that takes but some at once is fit, too.
func (s probe) judgeRace(ctx context.Context, key string, errs []error, content func(i int) string, both string) error {
	winner, racers := -1, len(errs)
	var busy error
	for i, err := range errs {
		switch {
		case objstore.Busy(err):
			busy = err
			racers--
		case err == nil && winner >= 0:
			return &objstore.NoConditionsError{What: both}
		case err == nil:
			winner = i
		case !errors.Is(err, objstore.ErrExists):
			return err
		}
	}
	if busy != nil && (racers < 2 || winner < 0) {
		return busy // so that it is tried again
	}
	if winner < 0 {
		return nil // the winner's request was repeated on its way
	}
	return s.probeContent(ctx, key, content(winner))
}
