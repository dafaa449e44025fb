// SPDX-License-Identifier: Apache-2.0

package config

import (
	"bytes"
	"errors"
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/santhosh-tekuri/jsonschema/v6/kind"
	"go.yaml.in/yaml/v3"
)

// compiled is the schema as a library has it, which knows all of JSON Schema. It is held against
// the schema of schemas on the way.
func compiled(t *testing.T) *jsonschema.Schema {
	t.Helper()
	raw, err := jsonschema.UnmarshalJSON(bytes.NewReader(schemaJSON))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	if err := c.AddResource("config.json", raw); err != nil {
		t.Fatal(err)
	}
	return c.MustCompile("config.json")
}

// places counts what the library finds, at which places, and of which kinds.
func places(e *jsonschema.ValidationError, at, kinds map[string]int) {
	n := 1
	switch k := e.ErrorKind.(type) {
	case *kind.AdditionalProperties:
		n = len(k.Properties)
		kinds["additional"]++
	case *kind.PropertyNames:
		kinds["names"]++
		at["(a name)"]++ // the library may say the place of another
		return
	case *kind.Type, *kind.InvalidJsonValue:
		kinds["type"]++
	case *kind.Enum:
		kinds["enum"]++
	case *kind.Pattern:
		kinds["pattern"]++
	case *kind.Required:
		kinds["required"]++
	case *kind.Minimum, *kind.Maximum:
		kinds["number"]++
	case *kind.MinItems:
		kinds["items"]++
	case *kind.MinProperties, *kind.MaxProperties:
		kinds["keys"]++
	default:
		for _, c := range e.Causes {
			places(c, at, kinds)
		}
		return
	}
	at[strings.Join(e.InstanceLocation, ".")] += n
}

// What is wrong with whatever a configuration may be made into is found where the library finds it.
func TestRules(t *testing.T) {
	t.Parallel()
	library, ours := compiled(t), form()
	r := rand.New(rand.NewPCG(1, 2))
	names := allNames(ours)
	kinds := make(map[string]int)
	right := 0
	for range 3000 {
		var v any
		if err := yaml.Unmarshal([]byte(whole), &v); err != nil {
			t.Fatal(err)
		}
		if all := v.(map[string]any); r.IntN(3) > 0 {
			under(under(all, "repositories"), "s")["connections"] = amount(r)
			under(under(under(all, "jobs"), "j"), "forget")["keep_last"] = amount(r)
		}
		for range r.IntN(4) {
			v = changed(r, v, names)
		}
		want, got := make(map[string]int), make(map[string]int)
		var invalid *jsonschema.ValidationError
		if err := library.Validate(v); errors.As(err, &invalid) {
			places(invalid, want, kinds)
		} else if err != nil {
			t.Fatal(err)
		} else {
			right++
		}
		faults := ours.faults(v)
		for _, f := range faults {
			if len(f.key) > 0 && !strings.HasPrefix(f.text, "unknown key") {
				got["(a name)"]++
				continue
			}
			got[strings.Join(f.at, ".")]++
		}
		if !maps.Equal(got, want) {
			t.Fatalf("%v\nis wrong at %v\nwant        %v\nit says %v", v, got, want, faults)
		}
	}
	if right < 300 || len(kinds) != 9 {
		t.Errorf("%d were right, and there were faults of the kinds %v", right, kinds)
	}
}

// What the program does not know of JSON Schema the schema does not use.
func TestUnknownRules(t *testing.T) {
	t.Parallel()
	for _, text := range []string{`{"oneOf": []}`, `{"items": {"maxLength": 3}}`, `{"additionalProperties": {"const": 1}}`, `{"pattern": "("}`} {
		if _, err := parseRule([]byte(text)); err == nil {
			t.Errorf("%s is taken", text)
		}
	}
}

// allNames are the names of all keys.
func allNames(r *rule) (names []string) {
	for name, sub := range r.Properties {
		names = append(append(names, name), allNames(sub)...)
	}
	for _, sub := range r.Defs {
		names = append(names, allNames(sub)...)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// changed is a value with something in it changed, taken out or added.
func changed(r *rand.Rand, v any, names []string) any {
	if r.IntN(6) > 0 {
		switch v := v.(type) {
		case map[string]any:
			if len(v) == 0 {
				break
			}
			name := pick(r, slices.Sorted(maps.Keys(v)))
			switch r.IntN(8) {
			case 0:
				delete(v, name)
			case 1:
				v[pick(r, names)] = other(r)
			case 2:
				v[pick(r, []string{"", "a/b", "A-B", strings.Repeat("x", 65)})] = v[name]
			default:
				v[name] = changed(r, v[name], names)
			}
			return v
		case []any:
			if len(v) > 0 {
				i := r.IntN(len(v))
				v[i] = changed(r, v[i], names)
				return v
			}
		}
	}
	return other(r)
}

func pick[T any](r *rand.Rand, all []T) T { return all[r.IntN(len(all))] }

func under(v map[string]any, name string) map[string]any { return v[name].(map[string]any) }

// amount is one, perhaps.
func amount(r *rand.Rand) any {
	return pick(r, []any{-1, 0, 1, 64, 65, 5.5, 5.0, "unlimited", "5", nil})
}

// other is a value of any kind.
func other(r *rand.Rand) any {
	switch r.IntN(14) {
	case 0:
		return nil
	case 1:
		return r.IntN(2) == 0
	case 2:
		return r.IntN(80) - 5
	case 3:
		return pick(r, []any{5.5, 5.0, -0.5, 1e300, math.Inf(1), math.NaN(), uint64(math.MaxUint64), int64(math.MinInt64)})
	case 4:
		return []any{}
	case 5:
		return map[string]any{}
	case 6:
		return map[string]any{"file": "/a", pick(r, []string{"value", "credential", "fil"}): "b"}
	case 7:
		return []any{"a", other(r)}
	case 8:
		return strconv.Itoa(r.IntN(100)) + pick(r, []string{"", "d", "x", "%", "G", "/100"})
	}
	return pick(r, []string{"", "auto", "incremental", "none", "unlimited", "/a", "/a.prom", "s3://b", "a", "a@b", "failure", "chunks", "x=/y", "latest"})
}

// whole has a key of most kinds.
const whole = `
state: /a
history: 90d
metrics: {file: /a/b.prom}
clone: {clone_command: [/a], release_command: [/b, c]}
repositories:
  s: {place: /backup, connections: 3, passphrase: {file: /a}}
  t: {place: "s3://b/p", credentials: {A: b, C: {value: d}}}
domains:
  d: {disks: ["vda=/a,format=raw"], mode: full}
jobs:
  j:
    repository: s
    domains: [d, e]
    schedule: daily 02:30
    objective: 26h
    on_running: wait 5m
    shutdown: {by: command, stop: [a], start: [b], running: [c], timeout: 5m}
    backup: {mode: auto, audit: true, compression: best, with_files: [a=/b], clone: never}
    copy: {to: [t], newest: 3}
    forget: {keep_last: 3, keep_daily: unlimited, keep_within: 30d, keep_tag: [a]}
    prune: {max_unused: 5%}
    check: {read_data: 1/7}
    drill: {checkpoint: latest, skip: [boot, files]}
    limits: {rate: 100M, lock_time: 5m, parallel: 3}
    hooks: {before: [/a], timeout: 3m}
    notices: [n]
notices:
  n: {on: [failure], email: {server: a, tls: none, from: a@b, to: [a@b], password: {credential: x}}}
  m: {webhook: {url: {value: "https://a"}, headers: {A: b}}}
  p: {ping: {url: {environment: X}}}
`
