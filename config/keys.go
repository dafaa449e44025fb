// SPDX-License-Identifier: Apache-2.0

package config

import (
	"reflect"
	"strings"
)

// Key is a key of the configuration, as the schema explains it.
type Key struct {
	Path        string // as jobs.NAME.schedule
	Values      string // what it takes, in words
	Description string
	Required    bool
}

// Keys are all keys, in the order in which the types of this package have them.
func Keys() []Key {
	_, raw := form()
	w := walker{defs: ruleAt(raw, "#/$defs")}
	root, _ := raw.(map[string]any)
	w.keys("", root, reflect.TypeFor[Config]())
	return w.found
}

type walker struct {
	defs  map[string]any
	found []Key
}

// keys adds those of an object of a type, whose path ends with a dot.
func (w *walker) keys(path string, rule map[string]any, of reflect.Type) {
	props, _ := rule["properties"].(map[string]any)
	required, _ := rule["required"].([]any)
	for f := range of.Fields() {
		name, _, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		sub, _ := props[name].(map[string]any)
		key := Key{Path: path + name}
		key.Description, _ = sub["description"].(string)
		for _, r := range required {
			key.Required = key.Required || r == name
		}
		typ := f.Type
		for typ.Kind() == reflect.Pointer {
			typ = typ.Elem()
		}
		full := w.deref(sub)
		key.Values = values(full)
		w.found = append(w.found, key)
		w.below(key.Path, full, typ)
	}
}

// below adds what an object or a map has in it. Where secrets and settings are is said once.
func (w *walker) below(path string, rule map[string]any, typ reflect.Type) {
	if each, ok := rule["additionalProperties"].(map[string]any); ok {
		if typ.Elem() != reflect.TypeFor[Setting]() {
			w.keys(path+".NAME.", w.deref(each), typ.Elem())
		}
		return
	}
	if _, ok := rule["properties"]; ok && typ != reflect.TypeFor[Secret]() {
		w.keys(path+".", rule, typ)
	}
}

func (w *walker) deref(rule map[string]any) map[string]any {
	if ref, ok := rule["$ref"].(string); ok {
		rule, _ = w.defs[strings.TrimPrefix(ref, "#/$defs/")].(map[string]any)
	}
	return rule
}

// values says in words what a key takes.
func values(rule map[string]any) string {
	if want, ok := rule["x-want"].(string); ok {
		return want
	}
	if all, ok := rule["enum"].([]any); ok {
		return strings.Join(words(all), ", ")
	}
	switch t := rule["type"].(type) {
	case string:
		if t == "object" {
			return ""
		}
		if items, ok := rule["items"].(map[string]any); ok {
			if of := values(items); of != typeName("string") {
				return "a list: " + of
			}
		}
		return typeName(t)
	}
	return ""
}
