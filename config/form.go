// SPDX-License-Identifier: Apache-2.0

package config

import (
	"bytes"
	_ "embed"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/santhosh-tekuri/jsonschema/v6/kind"
	"go.yaml.in/yaml/v3"

	"github.com/imgbackup/imgbackup/internal/suggest"
)

//go:embed schema.json
var schemaJSON []byte

// Schema is the JSON Schema of the configuration, for editors.
func Schema() []byte { return bytes.Clone(schemaJSON) }

// form is the schema, compiled, and as it was written.
var form = sync.OnceValues(func() (*jsonschema.Schema, any) {
	raw, err := jsonschema.UnmarshalJSON(bytes.NewReader(schemaJSON))
	if err != nil {
		panic(err) // it is a part of the program
	}
	c := jsonschema.NewCompiler()
	if err := c.AddResource("config.json", raw); err != nil {
		panic(err)
	}
	return c.MustCompile("config.json"), raw
})

// checkForm holds a file against the schema.
func (l *loader) checkForm(file string, root *yaml.Node) {
	var v any
	if err := root.Decode(&v); err != nil {
		l.wrongYAML(file, err)
		return
	}
	v, err := plain(v)
	if err != nil {
		l.wrong(file, root.Line, "%v", err)
		return
	}
	schema, raw := form()
	var invalid *jsonschema.ValidationError
	if err := schema.Validate(v); errors.As(err, &invalid) {
		l.tell(file, root, raw, invalid)
	}
}

// plain makes of what YAML gives what JSON would: names are text, and so are times.
func plain(v any) (any, error) {
	switch v := v.(type) {
	case map[string]any:
		for k, e := range v {
			p, err := plain(e)
			if err != nil {
				return nil, err
			}
			v[k] = p
		}
		return v, nil
	case map[any]any:
		out := make(map[string]any, len(v))
		for k, e := range v {
			name, ok := k.(string)
			if !ok {
				return nil, fmt.Errorf("a name is no text: %v (write it in quotes)", k)
			}
			p, err := plain(e)
			if err != nil {
				return nil, err
			}
			out[name] = p
		}
		return out, nil
	case []any:
		for i, e := range v {
			p, err := plain(e)
			if err != nil {
				return nil, err
			}
			v[i] = p
		}
		return v, nil
	case time.Time:
		return v.Format(time.RFC3339), nil
	}
	return v, nil
}

// tell says in our words what a validation has found.
func (l *loader) tell(file string, root *yaml.Node, raw any, e *jsonschema.ValidationError) {
	if len(e.Causes) > 0 && !isUnion(e) {
		for _, c := range e.Causes {
			l.tell(file, root, raw, c)
		}
		return
	}
	rule := ruleAt(raw, e.SchemaURL)
	line := lineOf(root, e.InstanceLocation)
	where := strings.Join(e.InstanceLocation, ".")
	say := func(format string, args ...any) {
		text := fmt.Sprintf(format, args...)
		if where != "" {
			text = where + ": " + text
		}
		l.wrong(file, line, "%s", text)
	}
	switch k := e.ErrorKind.(type) {
	case *kind.AdditionalProperties:
		known := names(rule["properties"])
		for _, name := range k.Properties {
			line = lineOf(root, append(slices.Clone(e.InstanceLocation), name))
			say("unknown key %q%s", name, suggest.DidYouMean(suggest.Near(name, known)))
		}
	case *kind.Required:
		say("%s is missing", strings.Join(k.Missing, ", "))
	case *kind.Enum:
		got, want := fmt.Sprint(k.Got), words(k.Want)
		say("%q: want one of %s%s", got, strings.Join(want, ", "), suggest.DidYouMean(suggest.Near(got, want)))
	case *kind.Type:
		say("want %s, not %s", wanted(rule, k.Want), typeName(k.Got))
	case *kind.PropertyNames:
		say("%q: want %s", k.Property, wantOf(rule, "another name"))
	case *kind.Pattern:
		say("%q: want %s", k.Got, wantOf(rule, "what matches "+k.Want))
	case *kind.MinProperties, *kind.MaxProperties:
		say("want %s", wantOf(rule, "another number of keys"))
	case *kind.MinItems:
		say("it is empty")
	case *kind.Minimum:
		say("%s is too small: at least %s", rat(k.Got), rat(k.Want))
	case *kind.Maximum:
		say("%s is too large: at most %s", rat(k.Got), rat(k.Want))
	default:
		say("%v", e)
	}
}

// isUnion reports whether an error's causes are about something else: names of keys.
func isUnion(e *jsonschema.ValidationError) bool {
	_, names := e.ErrorKind.(*kind.PropertyNames)
	return names
}

// ruleAt is the part of the schema that a URL's fragment names.
func ruleAt(raw any, url string) map[string]any {
	_, pointer, _ := strings.Cut(url, "#")
	at := raw
	for _, step := range strings.Split(strings.TrimPrefix(pointer, "/"), "/") {
		m, ok := at.(map[string]any)
		if !ok {
			return nil
		}
		if step != "" {
			at = m[strings.NewReplacer("~1", "/", "~0", "~").Replace(step)]
		}
	}
	m, _ := at.(map[string]any)
	return m
}

func names(properties any) []string {
	m, _ := properties.(map[string]any)
	return slices.Sorted(maps.Keys(m))
}

func words(all []any) []string {
	var out []string
	for _, w := range all {
		out = append(out, fmt.Sprint(w))
	}
	return out
}

// wantOf is what a rule says in words that it wants.
func wantOf(rule any, usual string) string {
	m, _ := rule.(map[string]any)
	if want, ok := m["x-want"].(string); ok {
		return want
	}
	return usual
}

func wanted(rule map[string]any, types []string) string {
	var all []string
	for _, t := range types {
		all = append(all, typeName(t))
	}
	return wantOf(rule, strings.Join(all, " or "))
}

// typeName is what YAML's users call a type of JSON's.
func typeName(t string) string {
	switch t {
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
	return t
}

func rat(r interface{ FloatString(prec int) string }) string {
	text := strings.TrimRight(strings.TrimRight(r.FloatString(6), "0"), ".")
	if _, err := strconv.ParseFloat(text, 64); err != nil {
		return "0"
	}
	return text
}
