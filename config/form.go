// SPDX-License-Identifier: Apache-2.0

package config

import (
	"bytes"
	_ "embed"
	"fmt"
	"strings"
	"sync"
	"time"

	"go.yaml.in/yaml/v3"
)

//go:embed schema.json
var schemaJSON []byte

// Schema is the JSON Schema of the configuration, for editors.
func Schema() []byte { return bytes.Clone(schemaJSON) }

// form is the schema, read: only by what reads a configuration.
var form = sync.OnceValue(func() *rule {
	r, err := parseRule(schemaJSON)
	if err != nil {
		panic(err) // it is a part of the program
	}
	return r
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
	for _, f := range form().faults(v) {
		text := f.text
		if len(f.at) > 0 {
			text = strings.Join(f.at, ".") + ": " + text
		}
		l.wrong(file, lineOf(root, append(f.at, f.key...)), "%s", text)
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
