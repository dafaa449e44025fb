// SPDX-License-Identifier: Apache-2.0

package record

import (
	"errors"
	"fmt"
	"slices"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"

	"github.com/imgbackup/imgbackup/chain"
)

// Bounds of a record.
const (
	MaxText  = 4096 // of a reason, what to do, a detail, bytes
	maxShort = 255
	maxDisks = 4096
	maxMaps  = 65
	maxSteps = 64
	maxKept  = 1024
)

// checks collects what is wrong.
type checks []error

func (c *checks) that(ok bool, format string, args ...any) {
	if !ok {
		*c = append(*c, fmt.Errorf(format, args...))
	}
}

func (c *checks) text(what, s string, most int) {
	c.that(len(s) <= most && utf8.ValidString(s), "%s has %d bytes, or is not UTF-8", what, len(s))
}

func (c *checks) uuid(what, s string) {
	id, err := uuid.Parse(s)
	c.that(err == nil && id.String() == s, "%s is no UUID: %.80q", what, s)
}

func (c *checks) digest(what, s string) {
	c.that(len(s) == 64 && !slices.ContainsFunc([]byte(s), func(b byte) bool { return (b < '0' || b > '9') && (b < 'a' || b > 'f') }),
		"%s is no SHA-256: %.80q", what, s)
}

func (c *checks) time(what string, t time.Time) {
	c.that(t.Year() >= 1970 && t.Year() <= 9999 && t.Location() == time.UTC, "%s is %s", what, t)
}

// Validate says what is wrong with a record, or nil.
func (r *Record) Validate() error {
	var c checks
	if err := r.CheckHead(Format); err != nil {
		c = append(c, err)
	}
	n, err := ParseName(r.UUID)
	c.that(err == nil && n.Of(r.CheckpointUUID) && n.Verdict == r.Verdict && n.Partial == (len(r.LeftOut) > 0) && n.Begun.Equal(r.Begun.Truncate(time.Millisecond)),
		"its name %.40q does not agree with what it says", r.UUID)
	c.uuid("run", r.Run)
	c.uuid("repository_id", r.RepositoryID)
	c.that(chain.CheckDomain(r.Domain) == nil, "domain %.200q", r.Domain)
	if r.DomainUUID != "" {
		c.uuid("domain_uuid", r.DomainUUID)
	}
	c.that(chain.CheckName(r.Checkpoint) == nil, "checkpoint %.200q", r.Checkpoint)
	c.uuid("checkpoint_uuid", r.CheckpointUUID)
	c.that(r.Revision >= 1, "revision %d", r.Revision)
	if r.Manifest != "" || len(r.Disks) > 0 {
		c.digest("manifest_sha256", r.Manifest)
	}
	c.text("host.name", r.Host.Name, maxShort)
	c.text("host.id", r.Host.ID, maxShort)
	c.text("tool", r.Tool, maxShort)
	c.text("asked_by", r.AskedBy, MaxText)
	c.text("chosen_by", r.ChosenBy, MaxText)
	c.time("created", r.Created)
	c.time("begun", r.Begun)
	c.time("ended", r.Ended)
	c.that(slices.Contains(verdicts()[1:], r.Verdict), "verdict %.80q", r.Verdict)
	r.validateDisks(&c)
	r.validateSteps(&c)
	if len(c) > 0 {
		return fmt.Errorf("invalid: %w", errors.Join(c[:min(len(c), 10)]...))
	}
	return nil
}

func (r *Record) validateDisks(c *checks) {
	c.that(len(r.Disks) <= maxDisks && len(r.LeftOut) <= maxDisks, "%d disks, %d left out", len(r.Disks), len(r.LeftOut))
	for _, d := range r.Disks {
		c.that(chain.CheckName(d.Disk) == nil && d.Size >= 0 && len(d.Maps) <= maxMaps, "disk %.200q of %d bytes with %d maps", d.Disk, d.Size, len(d.Maps))
		for _, m := range d.Maps {
			c.digest("a map", m)
		}
	}
}

func (r *Record) validateSteps(c *checks) {
	c.that(len(r.Steps) <= maxSteps && len(r.Required) <= maxSteps, "%d steps, %d required", len(r.Steps), len(r.Required))
	seen := make(map[string]bool)
	for _, s := range r.Steps {
		c.that(slices.Contains(StepNames(), s.Step) && !seen[s.Step], "step %.80q is not known, or there twice", s.Step)
		seen[s.Step] = true
		c.that(slices.Contains([]Status{Passed, Failed, Skipped}, s.Status), "status %.80q", s.Status)
		c.text("a reason", s.Reason, MaxText)
		c.text("what is to do", s.WhatToDo, MaxText)
		c.time("begun", s.Begun)
		c.that(s.Duration >= 0 && s.Bytes >= 0, "a duration of %d ms, %d bytes", s.Duration, s.Bytes)
		validateTexts(c, s.Details)
		c.that(len(s.Kept) <= maxKept, "%d files", len(s.Kept))
		for _, k := range s.Kept {
			c.text("a file's name", k.Name, maxShort)
			c.digest("a file", k.SHA256)
		}
	}
	validateTexts(c, r.Programs)
}

// validateTexts checks names and texts that are free within their bounds.
func validateTexts(c *checks, all map[string]string) {
	c.that(len(all) <= maxShort, "%d texts", len(all))
	for name, text := range all {
		c.that(plain(name), "the name %.80q", name)
		c.text(name, text, MaxText)
	}
}

// plain reports whether a name is one of a-z 0-9 _.
func plain(name string) bool {
	return name != "" && len(name) <= maxShort && !slices.ContainsFunc([]byte(name), func(b byte) bool {
		return (b < 'a' || b > 'z') && (b < '0' || b > '9') && b != '_'
	})
}
