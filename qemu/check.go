// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/imgbackup/imgbackup/internal/sys"
)

// CheckResult is what qemu-img found. Leaked clusters are a waste of space; everything else means
// that a writer may overwrite guest data.
type CheckResult struct {
	Leaks       int64 // clusters that nothing uses
	Corruptions int64 // clusters whose refcount is too low, or references that are wrong
	Errors      int64 // what could not be checked
	ImageEnd    int64 // offset behind the last cluster in use, bytes; 0: not told
}

// Err is nil when the refcounts can be relied on.
func (r CheckResult) Err() error {
	if r.Corruptions != 0 || r.Errors != 0 {
		return fmt.Errorf("its refcounts are wrong: %d corruptions, %d errors found by qemu-img check", r.Corruptions, r.Errors)
	}
	return nil
}

// Exit statuses of qemu-img check.
const (
	checkClean       = 0
	checkCorruptions = 2
	checkLeaks       = 3
)

// CheckRefcounts lets qemu-img check the image's refcounts. It only reads, and ends when
// ctx does.
func (q Img) CheckRefcounts(ctx context.Context, path string) (CheckResult, error) {
	var result CheckResult
	what := "check " + path
	err := sys.Retry(ctx, q.Wait, conflict, func() error {
		run, err := q.onImage(ctx, path, false, "check", "--output", "json", "--", imageFile)
		if err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		switch run.status {
		case checkClean, checkCorruptions, checkLeaks:
			result, err = parseCheck(run.stdout, run.status)
			if err != nil {
				return fmt.Errorf("%s: %w%s", what, err, run.said())
			}
			return nil
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		return run.failure(what, path)
	})
	return result, err
}

// parseCheck reads the report of qemu-img check. What it does not name is 0.
func parseCheck(report []byte, status int) (CheckResult, error) {
	var r struct {
		ImageEnd    int64  `json:"image-end-offset"`
		Errors      *int64 `json:"check-errors"`
		Corruptions int64  `json:"corruptions"`
		Leaks       int64  `json:"leaks"`
	}
	if err := json.Unmarshal(report, &r); err != nil {
		return CheckResult{}, fmt.Errorf("qemu-img's report cannot be understood: %w", err)
	}
	if r.Errors == nil || *r.Errors < 0 || r.Corruptions < 0 || r.Leaks < 0 || r.ImageEnd < 0 {
		return CheckResult{}, errors.New("qemu-img's report cannot be understood")
	}
	result := CheckResult{Leaks: r.Leaks, Corruptions: r.Corruptions, Errors: *r.Errors, ImageEnd: r.ImageEnd}
	if status == checkCorruptions && result.Err() == nil {
		return CheckResult{}, errors.New("qemu-img's report does not agree with its exit status")
	}
	return result, nil
}
