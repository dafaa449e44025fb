// SPDX-License-Identifier: Apache-2.0

package config

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/imgbackup/imgbackup/internal/suggest"
)

// rule is a part of a JSON Schema, with those of its words that ours uses: another one is an
// error, not passed over. (The library that knows them all is in the tests, which compare; it
// compiles the schemas of all drafts whenever a program starts that has it: 6 ms of every command.)
type rule struct {
	Schema      string           `json:"$schema"`
	ID          string           `json:"$id"`
	Title       string           `json:"title"`
	Description string           `json:"description"`
	Defs        map[string]*rule `json:"$defs"`
	Ref         string           `json:"$ref"`
	// Want is what is said to be wanted, where the usual words would not do.
	Want string `json:"x-want"`

	Type          typeNames        `json:"type"`
	Enum          []string         `json:"enum"`
	Pattern       pattern          `json:"pattern"`
	Minimum       *float64         `json:"minimum"`
	Maximum       *float64         `json:"maximum"`
	Items         *rule            `json:"items"`
	MinItems      int              `json:"minItems"`
	Properties    map[string]*rule `json:"properties"`
	Others        others           `json:"additionalProperties"`
	PropertyNames *rule            `json:"propertyNames"`
	Required      []string         `json:"required"`
	MinProperties *int             `json:"minProperties"`
	MaxProperties *int             `json:"maxProperties"`
}

// parseRule reads a schema.
func parseRule(data []byte) (*rule, error) {
	var r rule
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	return &r, d.Decode(&r)
}

// typeNames are what a value may be; none: anything.
type typeNames []string

func (t *typeNames) UnmarshalJSON(data []byte) error {
	if bytes.HasPrefix(data, []byte("[")) {
		return json.Unmarshal(data, (*[]string)(t))
	}
	*t = make(typeNames, 1)
	return json.Unmarshal(data, &(*t)[0])
}

type pattern struct{ *regexp.Regexp }

func (p *pattern) UnmarshalJSON(data []byte) error {
	var text string
	err := json.Unmarshal(data, &text)
	if err == nil {
		p.Regexp, err = regexp.Compile(text)
	}
	return err
}

// others is what is with keys that are not named: they are refused, or have a rule, if there is one.
type others struct {
	refused bool
	rule    *rule
}

func (o *others) UnmarshalJSON(data []byte) (err error) {
	switch string(data) {
	case "true":
	case "false":
		o.refused = true
	default:
		o.rule, err = parseRule(data)
	}
	return err
}

// fault is something that is wrong, in what stands at a path of keys.
type fault struct {
	at   []string
	key  []string // the key in it that it is about, if it is about one
	text string
}

// faults is what is wrong with a value as [plain] makes it, in the order of keys.
func (r *rule) faults(v any) []fault {
	c := checker{schema: r}
	c.check(r, v, nil)
	return c.found
}

// deref is the rule that a part of a schema stands for.
func (r *rule) deref(part *rule) *rule {
	if name, ok := strings.CutPrefix(part.Ref, "#/$defs/"); ok {
		return r.Defs[name]
	}
	return part
}

// checker gathers what is wrong.
type checker struct {
	schema *rule
	found  []fault
}

func (c *checker) say(at, key []string, format string, args ...any) {
	c.found = append(c.found, fault{slices.Clone(at), key, fmt.Sprintf(format, args...)})
}

// check holds a value against a rule. Of one that has another type, or is none of those that may be,
// nothing else is said.
func (c *checker) check(r *rule, v any, at []string) {
	if len(r.Type) > 0 && !slices.ContainsFunc(r.Type, func(t string) bool { return isOf(v, t) }) {
		var all []string
		for _, t := range r.Type {
			all = append(all, inWords(t))
		}
		c.say(at, nil, "want %s, not %s", r.want(strings.Join(all, " or ")), inWords(typeOf(v)))
		return
	}
	if text, is := v.(string); r.Enum != nil && (!is || !slices.Contains(r.Enum, text)) {
		got := fmt.Sprint(v)
		c.say(at, nil, "%q: want one of %s%s", got, strings.Join(r.Enum, ", "), suggest.DidYouMean(suggest.Near(got, r.Enum)))
		return
	}
	if r.Ref != "" {
		c.check(c.schema.deref(r), v, at)
	}
	switch v := v.(type) {
	case map[string]any:
		c.checkKeys(r, v, at)
	case []any:
		if len(v) < r.MinItems {
			c.say(at, nil, "it is empty")
		}
		for i, e := range v {
			if r.Items != nil {
				c.check(r.Items, e, append(at, strconv.Itoa(i)))
			}
		}
	case string:
		if r.Pattern.Regexp != nil && !r.Pattern.MatchString(v) {
			c.say(at, nil, "%q: want %s", v, r.want("what matches "+r.Pattern.String()))
		}
	default:
		c.checkNumber(r, v, at)
	}
}

func (c *checker) checkKeys(r *rule, v map[string]any, at []string) {
	if r.MinProperties != nil && len(v) < *r.MinProperties || r.MaxProperties != nil && len(v) > *r.MaxProperties {
		c.say(at, nil, "want %s", r.want("another number of keys"))
	}
	missing := slices.DeleteFunc(slices.Clone(r.Required), func(name string) bool { _, ok := v[name]; return ok })
	if len(missing) > 0 {
		c.say(at, nil, "%s is missing", strings.Join(missing, ", "))
	}
	for _, name := range slices.Sorted(maps.Keys(v)) {
		if p := r.PropertyNames; p != nil && p.Pattern.Regexp != nil && !p.Pattern.MatchString(name) {
			c.say(at, []string{name}, "%q: want %s", name, p.want("another name"))
		}
		below := append(at, name)
		switch sub := r.Properties[name]; {
		case sub != nil:
			c.check(sub, v[name], below)
		case r.Others.rule != nil:
			c.check(r.Others.rule, v[name], below)
		case r.Others.refused:
			known := slices.Sorted(maps.Keys(r.Properties))
			c.say(at, []string{name}, "unknown key %q%s", name, suggest.DidYouMean(suggest.Near(name, known)))
		}
	}
}

func (c *checker) checkNumber(r *rule, v any, at []string) {
	n, is := number(v)
	switch {
	case !is:
	case r.Minimum != nil && n < *r.Minimum:
		c.say(at, nil, "%v is too small: at least %v", v, *r.Minimum)
	case r.Maximum != nil && n > *r.Maximum:
		c.say(at, nil, "%v is too large: at most %v", v, *r.Maximum)
	}
}

// want is what a rule says that it wants.
func (r *rule) want(usual string) string {
	if r.Want != "" {
		return r.Want
	}
	return usual
}

// number is a value as a number, if it is one.
func number(v any) (float64, bool) {
	switch v := v.(type) {
	case int:
		return float64(v), true
	case int64:
		return float64(v), true
	case uint64:
		return float64(v), true
	case float64:
		return v, true
	}
	return 0, false
}

// isOf reports whether a value is of a type, which is a word of JSON Schema's.
func isOf(v any, name string) bool {
	if name == "integer" {
		n, is := number(v)
		return is && n == math.Trunc(n) && !math.IsInf(n, 0)
	}
	return typeOf(v) == name
}

func typeOf(v any) string {
	switch v.(type) {
	case nil:
		return "null"
	case bool:
		return "boolean"
	case string:
		return "string"
	case []any:
		return "array"
	case map[string]any:
		return "object"
	}
	return "number"
}

// inWords is what YAML's users call a type of JSON's.
func inWords(name string) string {
	switch name {
	case "object":
		return "keys with values"
	case "array":
		return "a list"
	case "string":
		return "text"
	case "boolean":
		return "true or false"
	case "integer", "number":
		return "a number"
	case "null":
		return "nothing"
	}
	return name
}
