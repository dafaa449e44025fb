// SPDX-License-Identifier: Apache-2.0

package config

import (
	"reflect"
	"slices"
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
	w := walker{schema: form()}
	w.keys("", w.schema, reflect.TypeFor[Config]())
	return w.found
}

type walker struct {
	schema *rule
	found  []Key
}

// keys adds those of an object of a type, whose path ends with a dot.
func (w *walker) keys(path string, r *rule, of reflect.Type) {
	for f := range of.Fields() {
		name, _, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		sub, ok := r.Properties[name]
		if !ok {
			sub = &rule{} // which a test misses
		}
		typ := f.Type
		for typ.Kind() == reflect.Pointer {
			typ = typ.Elem()
		}
		full := w.schema.deref(sub)
		w.found = append(w.found, Key{
			Path: path + name, Values: values(full), Description: sub.Description, Required: slices.Contains(r.Required, name),
		})
		w.below(path+name, full, typ)
	}
}

// below adds what an object or a map has in it. Where secrets and settings are is said once.
func (w *walker) below(path string, r *rule, typ reflect.Type) {
	switch {
	case r.Others.rule != nil:
		if typ.Elem() != reflect.TypeFor[Setting]() {
			w.keys(path+".NAME.", w.schema.deref(r.Others.rule), typ.Elem())
		}
	case r.Properties != nil && typ != reflect.TypeFor[Secret]():
		w.keys(path+".", r, typ)
	}
}

// values says in words what a key takes.
func values(r *rule) string {
	switch {
	case r.Want != "":
		return r.Want
	case r.Enum != nil:
		return strings.Join(r.Enum, ", ")
	case len(r.Type) != 1 || r.Type[0] == "object":
		return ""
	case r.Items != nil:
		if of := values(r.Items); of != inWords("string") {
			return "a list: " + of
		}
	}
	return inWords(r.Type[0])
}
