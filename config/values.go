// SPDX-License-Identifier: Apache-2.0

package config

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/imgbackup/imgbackup/retention"
)

// Duration is a span of time, as 90s, 30m, 26h, 7d or 2w, or several of these.
type Duration time.Duration

var units = map[string]time.Duration{"s": time.Second, "m": time.Minute, "h": time.Hour, "d": 24 * time.Hour, "w": 7 * 24 * time.Hour}

var span = regexp.MustCompile(`([0-9]+)([smhdw])`)

// maxSpan is the longest that is taken, a hundred years.
const maxSpan = 100 * 366 * 24 * time.Hour

// UnmarshalYAML implements [yaml.Unmarshaler].
func (d *Duration) UnmarshalYAML(node *yaml.Node) error {
	var sum time.Duration
	for _, m := range span.FindAllStringSubmatch(node.Value, -1) {
		n, err := strconv.ParseUint(m[1], 10, 32)
		if err != nil || n > uint64(maxSpan/units[m[2]]) {
			return lineError(node, "%q is too long", node.Value)
		}
		if sum += time.Duration(n) * units[m[2]]; sum > maxSpan {
			return lineError(node, "%q is too long", node.Value)
		}
	}
	*d = Duration(sum)
	return nil
}

// MarshalYAML implements [yaml.Marshaler].
func (d Duration) MarshalYAML() (any, error) { return d.String(), nil }

// String is the time in the largest unit that it is a whole number of.
func (d Duration) String() string {
	for _, u := range []string{"d", "h", "m"} {
		if n := time.Duration(d) / units[u]; n > 0 && time.Duration(d)%units[u] == 0 {
			return strconv.FormatInt(int64(n), 10) + u
		}
	}
	return strconv.FormatInt(int64(time.Duration(d)/time.Second), 10) + "s"
}

// Number is how many stay; [retention.Unlimited] is all.
type Number int

// UnmarshalYAML implements [yaml.Unmarshaler].
func (n *Number) UnmarshalYAML(node *yaml.Node) error {
	if node.Value == "unlimited" {
		*n = Number(retention.Unlimited)
		return nil
	}
	return node.Decode((*int)(n))
}

// MarshalYAML implements [yaml.Marshaler].
func (n Number) MarshalYAML() (any, error) {
	if int(n) == retention.Unlimited {
		return "unlimited", nil
	}
	return int(n), nil
}

// Within is how far back checkpoints stay, on the calendar.
type Within retention.Duration

// UnmarshalYAML implements [yaml.Unmarshaler].
func (w *Within) UnmarshalYAML(node *yaml.Node) error {
	d, err := retention.ParseDuration(node.Value)
	if err != nil {
		return lineError(node, "%v", err)
	}
	*w = Within(d)
	return nil
}

// MarshalYAML implements [yaml.Marshaler].
func (w Within) MarshalYAML() (any, error) { return w.String(), nil }

func (w Within) String() string { return retention.Duration(w).String() }

// IsZero reports whether it was not given.
func (w Within) IsZero() bool { return w == Within{} }

// Part is how much is read: all of it, nothing, or 5%, 10G, N/M.
type Part string

// All is everything.
const All Part = "true"

// UnmarshalYAML implements [yaml.Unmarshaler].
func (p *Part) UnmarshalYAML(node *yaml.Node) error {
	if *p = Part(node.Value); node.Tag == "!!bool" {
		var all bool
		if err := node.Decode(&all); err != nil {
			return err
		}
		if *p = ""; all {
			*p = All
		}
	}
	return nil
}

// What is done about a VM that runs.
const (
	Skip = "skip"
	Fail = "fail"
	Wait = "wait"
	Stop = "shutdown"
)

// Running is what is done about a VM that runs.
type Running struct {
	What string
	For  Duration // with Wait: at most so long
}

// UnmarshalYAML implements [yaml.Unmarshaler].
func (r *Running) UnmarshalYAML(node *yaml.Node) error {
	what, long, _ := strings.Cut(node.Value, " ")
	r.What = what
	return r.For.UnmarshalYAML(&yaml.Node{Kind: yaml.ScalarNode, Value: long, Line: node.Line})
}

// MarshalYAML implements [yaml.Marshaler].
func (r Running) MarshalYAML() (any, error) {
	if r.What == Wait {
		return r.What + " " + r.For.String(), nil
	}
	return r.What, nil
}

// Secret is where a secret is; one of its fields is set.
type Secret struct {
	File        string `yaml:"file,omitempty"`
	Credential  string `yaml:"credential,omitempty"`
	Environment string `yaml:"environment,omitempty"`
	Value       Inline `yaml:"value,omitempty"`
}

// Inline is a secret that was written into the configuration: it is not shown again.
type Inline string

// MarshalYAML implements [yaml.Marshaler].
func (Inline) MarshalYAML() (any, error) { return "(not shown)", nil }

func (Inline) String() string   { return "(not shown)" }
func (Inline) GoString() string { return "(not shown)" }

// Setting is a value, or where it is.
type Setting struct {
	Text   string
	Secret *Secret // nil: Text is it
}

// UnmarshalYAML implements [yaml.Unmarshaler].
func (s *Setting) UnmarshalYAML(node *yaml.Node) error {
	if node.Kind == yaml.ScalarNode {
		s.Text = node.Value
		return nil
	}
	s.Secret = &Secret{}
	return node.Decode(s.Secret)
}

// MarshalYAML implements [yaml.Marshaler].
func (s Setting) MarshalYAML() (any, error) {
	if s.Secret != nil {
		return s.Secret, nil
	}
	return s.Text, nil
}

// lineError is an error about what stands at a node, of the type after which the library goes on,
// so that all such errors are told.
func lineError(node *yaml.Node, format string, args ...any) error {
	return &yaml.TypeError{Errors: []string{fmt.Sprintf("line %d: %s", node.Line, fmt.Sprintf(format, args...))}}
}
