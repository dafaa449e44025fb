// SPDX-License-Identifier: Apache-2.0

package chain

import (
	"context"
	"errors"
	"fmt"
	"slices"
)

const (
	// MaxTag is the longest tag, bytes; MaxTags how many a checkpoint has at most.
	MaxTag  = 64
	MaxTags = 64
)

// CheckTag says why a string can't be a tag: it has letters, digits, and the characters
// _ . - : = / @ +, and 1 to MaxTag of them.
func CheckTag(s string) error {
	if s == "" || len(s) > MaxTag {
		return fmt.Errorf("a tag has 1 to %d bytes: %.80q has %d", MaxTag, s, len(s))
	}
	for i := range len(s) {
		switch c := s[i]; {
		case nameByte(c), c == ':', c == '=', c == '/', c == '@', c == '+':
		default:
			return fmt.Errorf("a tag may only have letters, digits, and the characters _ . - : = / @ +: %.80q", s)
		}
	}
	return nil
}

func validTags(tags []string) error {
	if len(tags) > MaxTags {
		return fmt.Errorf("%d of them, more than %d", len(tags), MaxTags)
	}
	for i, tag := range tags {
		if err := CheckTag(tag); err != nil {
			return err
		}
		if i > 0 && tags[i-1] >= tag {
			return fmt.Errorf("%q is twice there, or out of order", tag)
		}
	}
	return nil
}

// Tags returns tags as a manifest has them: sorted, each once, or nil. Those that can be
// none are an error, and too many are.
func Tags(tags []string) ([]string, error) {
	if len(tags) == 0 {
		return nil, nil
	}
	tags = slices.Clone(tags)
	slices.Sort(tags)
	tags = slices.Compact(tags)
	return tags, validTags(tags)
}

// retags bounds how often a checkpoint is tagged again that others describe anew
// meanwhile.
const retags = 10

// Retag adds tags to a checkpoint and removes others, by its next revision, and returns
// it as it stands then. If nothing changes, nothing is written. Errors are those of
// [Repository.Manifest] and of [Repository.Revise].
func (r *Repository) Retag(ctx context.Context, domain, checkpoint string, add, remove []string) (*Manifest, error) {
	m, err := r.Manifest(ctx, domain, checkpoint)
	if err != nil {
		return nil, err
	}
	for try := 1; ; try++ {
		next := *m
		tags := slices.DeleteFunc(append(slices.Clone(m.Tags), add...), func(tag string) bool {
			return slices.Contains(remove, tag)
		})
		if next.Tags, err = Tags(tags); err != nil || slices.Equal(next.Tags, m.Tags) {
			return m, err
		}
		err = r.unlessRotating(ctx, "tag", func(ctx context.Context) error { return r.Revise(ctx, &next) })
		var revised *RevisedError
		switch {
		case err == nil:
			return &next, nil
		case !errors.As(err, &revised) || try == retags:
			return nil, err
		}
		m = revised.Manifest // repacked, or tagged by another
	}
}
