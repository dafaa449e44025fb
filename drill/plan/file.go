// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/imgbackup/imgbackup/drill/record"
)

// MaxFile is the largest file of plans that is read, bytes.
const MaxFile = 1 << 20

// File is a file of plans: what holds for all domains, and what else for some.
type File struct {
	common  Plan
	domains map[string]Plan
}

// Parse reads a file of plans: the fields of a [Plan], for all domains, and under
// "domains", by name, those that are otherwise for one. A field that is not known is an
// error, which tells its line.
func Parse(data []byte) (*File, error) {
	if len(data) > MaxFile {
		return nil, fmt.Errorf("it has more than %d bytes", MaxFile)
	}
	var top struct {
		Plan    `yaml:",inline"`
		Domains map[string]yaml.Node `yaml:"domains"`
	}
	if err := decode(data, &top); err != nil {
		return nil, err
	}
	f := &File{common: top.Plan, domains: make(map[string]Plan)}
	if err := f.common.Check(); err != nil {
		return nil, err
	}
	for name, node := range top.Domains {
		one, err := yaml.Marshal(&node)
		if err != nil {
			return nil, fmt.Errorf("domain %s: %w", name, err)
		}
		p := f.common
		if err := decode(one, &p); err != nil {
			return nil, fmt.Errorf("domain %s: %w", name, err)
		}
		if err := p.Check(); err != nil {
			return nil, fmt.Errorf("domain %s: %w", name, err)
		}
		f.domains[name] = p
	}
	return f, nil
}

func decode(data []byte, v any) error {
	d := yaml.NewDecoder(bytes.NewReader(data))
	d.KnownFields(true)
	err := d.Decode(v)
	if errors.Is(err, io.EOF) {
		return nil // it is empty
	}
	return err
}

// Of is the plan of a domain.
func (f *File) Of(domain string) Plan {
	if p, ok := f.domains[domain]; ok {
		return p
	}
	return f.common
}

// Names are the domains that have plans of their own, sorted.
func (f *File) Names() []string {
	var names []string
	for name := range f.domains {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// Check returns what is wrong with a plan.
func (p *Plan) Check() error {
	for what, list := range map[string][]string{"require": p.Require, "skip": p.Skip} {
		for _, step := range list {
			if !slices.Contains(record.StepNames(), step) {
				return fmt.Errorf("%s: there is no step %.40q (there is %s)", what, step, strings.Join(record.StepNames(), ", "))
			}
		}
	}
	for _, step := range p.Skip {
		if slices.Contains(p.Require, step) {
			return fmt.Errorf("skip: %s is required, too", step)
		}
	}
	if p.Command.Expect != "" && len(p.Command.Run) == 0 {
		return errors.New("command: there is something to expect, and nothing to run")
	}
	for what, pattern := range map[string]string{"command.expect": p.Command.Expect, "boot.pattern": p.Boot.Pattern} {
		if _, err := regexp.Compile(pattern); err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
	}
	return nil
}

// UnmarshalYAML implements [yaml.Unmarshaler].
func (d *Duration) UnmarshalYAML(node *yaml.Node) error {
	t, err := ParseDuration(node.Value)
	if err != nil {
		return fmt.Errorf("line %d: %w", node.Line, err)
	}
	*d = Duration(t)
	return nil
}

// ParseDuration reads 90d, or what [time.ParseDuration] knows; nothing below zero.
func ParseDuration(s string) (time.Duration, error) {
	const day = 24 * time.Hour
	if days, ok := strings.CutSuffix(s, "d"); ok {
		if n, err := strconv.ParseUint(days, 10, 16); err == nil {
			return time.Duration(n) * day, nil
		}
	} else if d, err := time.ParseDuration(s); err == nil && d >= 0 {
		return d, nil
	}
	return 0, fmt.Errorf("%.40q: want a time as 90d or 36h", s)
}
