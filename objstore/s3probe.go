// SPDX-License-Identifier: Apache-2.0

package objstore

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/minio/minio-go/v7"
)

// Prober is a store whose abilities are not known beforehand.
type Prober interface {
	// Probe finds out, by objects of its own that it removes again, whether the
	// store keeps the promises of Store. The error is a *NoConditionsError when
	// only Create is not atomic there.
	Probe(ctx context.Context) error
}

// ProbePrefix is the prefix of the keys that Probe uses, and may leave behind
// when it is killed.
const ProbePrefix = "probe/"

// NoConditionsError says that a store creates objects over others.
type NoConditionsError struct{ what string }

func (e *NoConditionsError) Error() string {
	return "the store does not honour conditional writes (If-None-Match: *): " + e.what
}

// Probe implements Prober.
func (s *S3) Probe(ctx context.Context) error { return probe(ctx, s, s) }

// Probe implements Prober; a store that is none is taken for fit.
func (r *retrying) Probe(ctx context.Context) error {
	if s, ok := r.store.(*S3); ok {
		return probe(ctx, r, s)
	}
	if p, ok := r.store.(Prober); ok {
		return p.Probe(ctx)
	}
	return nil
}

var (
	_ Prober = (*S3)(nil)
	_ Prober = (*retrying)(nil)
)

// cleanupTime bounds the removal of what a probe made.
const cleanupTime = 30 * time.Second

// probe looks at the store direct, through s where what fails is tried again.
func probe(ctx context.Context, s Store, direct *S3) (err error) {
	dir := ProbePrefix + rand.Text() + "/"
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
	for _, step := range []func() error{
		func() error { return probeRead(ctx, s, key("object")) },
		func() error { return probeChecksum(ctx, s, direct, key("checksum")) },
		func() error { return probeCreate(ctx, s, key("create")) },
		func() error { return probeRace(ctx, s, key("race")) },
	} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

func probeContent(ctx context.Context, s Store, key, want string) error {
	got, err := ReadAll(ctx, s, key, 1<<10)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return err
	}
	if err != nil || string(got) != want {
		return errors.New("the store does not read back what was just written: imgbackup needs read-after-write consistency")
	}
	return nil
}

// probeRead sees whether what was written, replaced and removed shows at once.
func probeRead(ctx context.Context, s Store, key string) error {
	for _, content := range []string{"first", "the second"} {
		if err := s.Put(ctx, key, strings.NewReader(content), Replace); err != nil {
			return err
		}
		if err := probeContent(ctx, s, key, content); err != nil {
			return err
		}
	}
	n := 0
	for info, err := range s.List(ctx, key) {
		if err != nil {
			return err
		}
		if n++; info.Key != key || info.Size != int64(len("the second")) {
			return fmt.Errorf("the store lists %q with %d bytes instead of what was just written", info.Key, info.Size)
		}
	}
	if n != 1 {
		return errors.New("the store does not list what was just written: imgbackup needs consistent listings")
	}
	if err := s.Delete(ctx, key); err != nil {
		return err
	}
	if _, err := s.Stat(ctx, key); !errors.Is(err, ErrNotFound) {
		return errors.Join(errors.New("the store still has what was just removed"), err)
	}
	return nil
}

// probeChecksum sees whether the store refuses a body that is not what its
// checksum says.
func probeChecksum(ctx context.Context, s Store, direct *S3, key string) error {
	sums, err := direct.checksum(strings.NewReader("what was meant"))
	if err != nil {
		return err
	}
	r := &retrying{o: RetryOptions{}.withDefaults()}
	_, err = try(ctx, r, func() (struct{}, error) {
		opts := minio.PutObjectOptions{DisableContentSha256: true, UserMetadata: sums.headers}
		body := bytes.NewReader([]byte("what arrives..")) // as long as what was meant
		_, err := direct.core.PutObject(ctx, direct.bucket, direct.prefix+key, io.Reader(body), body.Size(), "", sums.sha256, opts)
		if isStatus(err, http.StatusBadRequest) {
			return struct{}{}, nil // refused
		}
		if err == nil {
			err = &permanentError{direct.unchecked()}
		} else {
			err = direct.failed(ctx, "store", key, err)
		}
		return struct{}{}, err
	})
	if err != nil {
		return err
	}
	if _, err := s.Stat(ctx, key); !errors.Is(err, ErrNotFound) {
		return errors.Join(direct.unchecked(), err)
	}
	return nil
}

func (s *S3) unchecked() error {
	if s.sha256 {
		return errors.New("the store takes an object whose bytes were changed on their way: it checks no SHA-256")
	}
	return errors.New("the store takes an object whose bytes were changed on their way: it checks no CRC32C (try IMGBACKUP_S3_CHECKSUM=sha256)")
}

// probeCreate sees whether an object is created over another.
func probeCreate(ctx context.Context, s Store, key string) error {
	err := s.Put(ctx, key, strings.NewReader("first"), Create)
	var answer *S3Error
	switch {
	case errors.As(err, &answer) && (answer.Status == http.StatusNotImplemented || answer.Status == http.StatusBadRequest):
		return &NoConditionsError{answer.Error()}
	case err != nil && !errors.Is(err, ErrExists): // which a repeated request may get
		return err
	}
	if err := probeContent(ctx, s, key, "first"); err != nil {
		return err
	}
	err = s.Put(ctx, key, strings.NewReader("second"), Create)
	switch {
	case err == nil:
		return &NoConditionsError{"it stored one object over another"}
	case !errors.Is(err, ErrExists):
		return err
	}
	return probeContent(ctx, s, key, "first")
}

// probeRace sees whether one of several writers at once creates an object.
func probeRace(ctx context.Context, s Store, key string) error {
	const racers = 8
	content := func(i int) string { return fmt.Sprintf("racer %d", i) }
	var errs [racers]error
	var wg sync.WaitGroup
	for i := range racers {
		wg.Go(func() { errs[i] = s.Put(ctx, key, strings.NewReader(content(i)), Create) })
	}
	wg.Wait()
	winner := -1
	for i, err := range errs {
		switch {
		case err == nil && winner >= 0:
			return &NoConditionsError{"two writers at once both created an object"}
		case err == nil:
			winner = i
		case !errors.Is(err, ErrExists):
			return err
		}
	}
	if winner < 0 {
		return nil // the winner's answer was lost, and it asked again
	}
	return probeContent(ctx, s, key, content(winner))
}

// SingleWriter returns a store for the only program that writes to s, where s
// does not honour conditions: Create looks first, and then writes. Two writers
// at once could store over each other.
func SingleWriter(s Store) Store { return &singleWriter{s} }

type singleWriter struct{ Store }

// Unwrap returns the store that is written to.
func (s *singleWriter) Unwrap() Store { return s.Store }

// Put implements Store.
func (s *singleWriter) Put(ctx context.Context, key string, body Body, mode Mode) error {
	if mode == Create {
		_, err := s.Stat(ctx, key)
		if err == nil {
			return fmt.Errorf("store %s: %w", key, ErrExists)
		}
		if !errors.Is(err, ErrNotFound) {
			return err
		}
	}
	return s.Store.Put(ctx, key, body, Replace)
}
