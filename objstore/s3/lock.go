// SPDX-License-Identifier: Apache-2.0

package s3

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/minio/minio-go/v7"

	"github.com/imgbackup/imgbackup/objstore"
)

var _ objstore.Locker = (*Store)(nil)

// What HEAD tells of an object's retention: what every server that knows
// object lock answers, also one whose own answer to GET ?retention no client reads.
const (
	headerLockMode  = "X-Amz-Object-Lock-Mode"
	headerLockUntil = "X-Amz-Object-Lock-Retain-Until-Date"
)

// LockRule implements objstore.Locker.
func (s *Store) LockRule(ctx context.Context) (objstore.LockRule, error) {
	var rule objstore.LockRule
	enabled, mode, validity, unit, err := s.core.GetObjectLockConfig(ctx, s.bucket)
	switch {
	case isCode(err, "ObjectLockConfigurationNotFoundError"), isStatus(err, http.StatusNotImplemented),
		err == nil && enabled != "Enabled":
		return rule, s.unlockable(err)
	case err != nil:
		return rule, s.failed(ctx, "read the object lock of", s.bucket, err)
	case mode == nil || validity == nil || unit == nil:
		return rule, nil
	}
	rule.How, err = retention(*mode)
	days := *validity
	if *unit == minio.Years && days <= maxLockDays {
		days *= 365
	}
	if err != nil || days > maxLockDays {
		return rule, &protocolError{what: fmt.Sprintf("the object lock of bucket %s is %d %s of %.20q", s.bucket, *validity, *unit, *mode)}
	}
	rule.Days = int(days)
	return rule, nil
}

// maxLockDays bounds what a bucket keeps things for: 100 years, as S3 does.
const maxLockDays = 36500

func (s *Store) unlockable(err error) error {
	return &objstore.UnsupportedError{Ability: "keep an object for a time", Err: errors.Join(
		fmt.Errorf("bucket %s was made without object lock: make one with it (mc mb --with-lock, aws s3api create-bucket --object-lock-enabled-for-bucket)", s.bucket), noAnswer(err))}
}

// noAnswer is what a server answered, as no sentinel.
func noAnswer(err error) error {
	if err == nil {
		return nil
	}
	return noSentinel(err)
}

// SetLockRule implements objstore.Locker.
func (s *Store) SetLockRule(ctx context.Context, r objstore.LockRule) error {
	if r.Days < 0 || r.Days > maxLockDays {
		return fmt.Errorf("an object can't be kept for %d days: 1 to %d", r.Days, maxLockDays)
	}
	if r.Days == 0 {
		return s.setLockRule(ctx, nil, nil, nil)
	}
	mode, days, unit := lockMode(r.How), uint(r.Days), minio.Days
	return s.setLockRule(ctx, &mode, &days, &unit)
}

func (s *Store) setLockRule(ctx context.Context, mode *minio.RetentionMode, days *uint, unit *minio.ValidityUnit) error {
	err := s.core.SetObjectLockConfig(ctx, s.bucket, mode, days, unit)
	switch {
	case err == nil:
		return nil
	case isCode(err, "ObjectLockConfigurationNotFoundError"), isStatus(err, http.StatusNotImplemented), isStatus(err, http.StatusConflict):
		return s.unlockable(err)
	}
	return s.failed(ctx, "set the object lock of", s.bucket, err)
}

// Retained implements objstore.Locker.
func (s *Store) Retained(ctx context.Context, key, id string) (time.Time, objstore.Retention, error) {
	if err := errors.Join(s.valid(ctx, key), validVersion(id)); err != nil {
		return time.Time{}, 0, err
	}
	info, err := s.statVersion(ctx, key, id)
	if err != nil {
		return time.Time{}, 0, err
	}
	mode, date := info.Metadata.Get(headerLockMode), info.Metadata.Get(headerLockUntil)
	if mode == "" && date == "" {
		return time.Time{}, 0, nil
	}
	how, err := retention(minio.RetentionMode(mode))
	until, derr := time.Parse(time.RFC3339, date)
	if err := errors.Join(err, derr); err != nil {
		return time.Time{}, 0, &protocolError{what: fmt.Sprintf("%s is kept as %.20q until %.40q", key, mode, date)}
	}
	return until.UTC(), how, nil
}

// Retain implements objstore.Locker.
func (s *Store) Retain(ctx context.Context, key, id string, until time.Time, how objstore.Retention) error {
	if err := errors.Join(s.valid(ctx, key), validVersion(id)); err != nil {
		return err
	}
	mode, until := lockMode(how), until.UTC().Truncate(time.Second)
	err := s.core.PutObjectRetention(ctx, s.bucket, s.prefix+key, minio.PutObjectRetentionOptions{Mode: &mode, RetainUntilDate: &until, VersionID: id})
	if err != nil {
		return s.failed(ctx, "retain", key, err)
	}
	return nil
}

func lockMode(how objstore.Retention) minio.RetentionMode {
	if how == objstore.Governance {
		return minio.Governance
	}
	return minio.Compliance
}

func retention(mode minio.RetentionMode) (objstore.Retention, error) {
	switch mode {
	case minio.Compliance:
		return objstore.Compliance, nil
	case minio.Governance:
		return objstore.Governance, nil
	}
	return 0, fmt.Errorf("unknown mode %.20q of retention", mode)
}
