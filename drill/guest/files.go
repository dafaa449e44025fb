// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/imgbackup/imgbackup/drill"
	"github.com/imgbackup/imgbackup/drill/record"
	"github.com/imgbackup/imgbackup/guestfs"
)

// Files is the step that compares files with what is expected of them.
func (l *Look) Files() drill.Step { return files{l} }

type files struct{ *Look }

func (files) Name() string { return record.StepFiles }

func (f files) Run(ctx context.Context, s *drill.Subject) (drill.Result, error) {
	if f.found != nil && f.foundFor == subject(s) {
		return *f.found, nil
	}
	return f.withAppliance(ctx, s, func(ctx context.Context, g *guestfs.Session) (drill.Result, error) {
		return f.files(ctx, s, g)
	})
}

const todoFiles = "see whether the file is meant to be so (imgbackup serve, and guestfish --ro on its socket); drill an older checkpoint to learn since when it is"

// maxMatched is how much of a file a pattern is looked for in, bytes.
const maxMatched = 4 << 20

// aheadAtMost is how much later than the checkpoint something may have been written by the
// guest's clock, which may show local time. A file that is of the future would else be the
// newest for ever.
const aheadAtMost = 24 * time.Hour

// files tries all expectations.
func (l *Look) files(ctx context.Context, s *drill.Subject, g *guestfs.Session) (res drill.Result, err error) {
	d := &details{m: make(map[string]string)}
	var wrong []string
	// What needs the same mounts comes together; the order is else that of the plan.
	todo := slices.Clone(l.Expect)
	slices.SortStableFunc(todo, func(a, b Expectation) int {
		return strings.Compare(a.Disk+":"+a.Device, b.Disk+":"+b.Device)
	})
	for _, e := range todo {
		text, n, ok, err := try(ctx, g, &e, s.Manifest.Created)
		if err != nil {
			return res, err
		}
		res.Bytes += n
		d.add("file", "%s: %s", e.Where, text)
		if !ok {
			wrong = append(wrong, fmt.Sprintf("%s: %s", e.Where, text))
		}
	}
	verdict := drill.Pass(fmt.Sprintf("%d files are as expected", len(todo)))
	if len(wrong) > 0 {
		verdict = drill.Fail(strings.Join(wrong, "; "), todoFiles)
	}
	verdict.Bytes, verdict.Details = res.Bytes, d.m
	return verdict, nil
}

// try tells whether a file is as expected, and what it is; an error is the appliance's.
func try(ctx context.Context, g *guestfs.Session, e *Expectation, created time.Time) (text string, n int64, ok bool, err error) {
	if _, err := g.Enter(ctx, guestfs.Place{Disk: e.Disk, Device: e.Device}); err != nil {
		return wrongly(err)
	}
	if e.Within > 0 {
		at, which, err := g.Newest(ctx, e.Path, created.Add(aheadAtMost))
		if err != nil {
			return wrongly(err)
		}
		age := created.Sub(at).Round(time.Second)
		text := fmt.Sprintf("the newest is %.200q of %s", which, at.Format(time.RFC3339))
		if -age > aheadAtMost {
			return text + ", after the checkpoint: the guest's clock was wrong, and its times say nothing", 0, false, nil
		}
		if age > e.Within {
			return fmt.Sprintf("%s, %s before the checkpoint: nothing was written within %s", text, age, e.Within), 0, false, nil
		}
		return text, 0, true, nil
	}
	info, err := g.Stat(ctx, e.Path)
	if err == nil && !info.Regular() {
		return "it is no plain file", 0, false, nil
	}
	if err != nil {
		return wrongly(err)
	}
	if e.Match != nil {
		var b bytes.Buffer
		n, err := g.ReadFile(ctx, e.Path, &b, 0, maxMatched)
		if err != nil {
			return wrongly(err)
		}
		if !e.Match.Match(b.Bytes()) {
			return fmt.Sprintf("%s is nowhere in its first %d bytes", e.Match, n), n, false, nil
		}
		return fmt.Sprintf("matches %s", e.Match), n, true, nil
	}
	sum, err := g.Checksum(ctx, e.Path)
	if err != nil {
		return wrongly(err)
	}
	return "its SHA-256 is " + sum, info.Size, sum == e.SHA256, nil
}

// wrongly parts what is wrong with the guest from what is wrong with the appliance.
func wrongly(err error) (string, int64, bool, error) {
	var no *guestfs.CallError
	var which *guestfs.ChoiceError
	if errors.As(err, &no) || errors.As(err, &which) || errors.Is(err, guestfs.ErrNoFile) {
		return err.Error(), 0, false, nil
	}
	return "", 0, false, err
}
