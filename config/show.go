// SPDX-License-Identifier: Apache-2.0

package config

import (
	"bytes"
	_ "embed"
	"maps"

	"go.yaml.in/yaml/v3"
)

//go:embed example.yaml
var example []byte

// Example is a configuration with comments, which is valid.
func Example() []byte { return bytes.Clone(example) }

// YAML is the configuration as it is in force, with defaults; inline secrets are left out.
func (c *Config) YAML() ([]byte, error) {
	shown := *c
	shown.Repositories = maps.Clone(c.Repositories)
	for name, r := range shown.Repositories {
		r.Credentials = masked(r.Credentials)
		shown.Repositories[name] = r
	}
	shown.Notices = maps.Clone(c.Notices)
	for name, n := range shown.Notices {
		if n.Webhook != nil {
			w := *n.Webhook
			w.Headers = masked(w.Headers)
			n.Webhook = &w
		}
		shown.Notices[name] = n
	}
	var b bytes.Buffer
	e := yaml.NewEncoder(&b)
	e.SetIndent(2)
	if err := e.Encode(shown); err != nil {
		return nil, err
	}
	return b.Bytes(), e.Close()
}

// masked is settings without what is likely a secret.
func masked(all map[string]Setting) map[string]Setting {
	all = maps.Clone(all)
	for name, s := range all {
		if s.Secret == nil && secretName.MatchString(name) {
			all[name] = Setting{Secret: &Secret{Value: Inline(s.Text)}}
		}
	}
	return all
}

// Plain is the configuration as YAML writes it, as plain values for JSON.
func (c *Config) Plain() (any, error) {
	text, err := c.YAML()
	if err != nil {
		return nil, err
	}
	var v any
	if err := yaml.Unmarshal(text, &v); err != nil {
		return nil, err
	}
	return plain(v)
}
