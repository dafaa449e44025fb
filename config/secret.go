// SPDX-License-Identifier: Apache-2.0

package config

import (
	"bytes"
	"errors"
	"fmt"
	"iter"
	"maps"
	"os"
	"path/filepath"
	"slices"
)

// maxSecret bounds what is read of a secret, bytes.
const maxSecret = 64 << 10

// Read returns the secret; getenv is os.Getenv. The error never holds any of it.
func (s *Secret) Read(getenv func(string) string) (string, error) {
	switch {
	case s.File != "":
		return firstLine(s.File)
	case s.Credential != "":
		dir := getenv("CREDENTIALS_DIRECTORY")
		if dir == "" {
			return "", fmt.Errorf("credential %s: systemd hands over none (CREDENTIALS_DIRECTORY is not set)", s.Credential)
		}
		return firstLine(filepath.Join(dir, filepath.Base(s.Credential)))
	case s.Environment != "":
		v := getenv(s.Environment)
		if v == "" {
			return "", fmt.Errorf("%s is not set", s.Environment)
		}
		return v, nil
	}
	return string(s.Value), nil
}

// Read returns the value; getenv is os.Getenv.
func (s Setting) Read(getenv func(string) string) (string, error) {
	if s.Secret != nil {
		return s.Secret.Read(getenv)
	}
	return s.Text, nil
}

func firstLine(path string) (line string, err error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	buf := make([]byte, maxSecret)
	n, err := f.Read(buf)
	if n == 0 && err != nil {
		return "", fmt.Errorf("%s: %w", path, err)
	}
	text, _, _ := bytes.Cut(buf[:n], []byte("\n"))
	text = bytes.TrimSuffix(text, []byte("\r"))
	if len(text) == 0 {
		return "", fmt.Errorf("%s: the first line is empty", path)
	}
	return string(text), nil
}

// Settings yields what of a repository is or may be secret, with where it stands in it.
func (r *Repository) Settings() iter.Seq2[[]string, Setting] {
	return func(yield func([]string, Setting) bool) {
		if yieldSecret(yield, r.Passphrase, "passphrase") {
			yieldAll(yield, r.Credentials, "credentials")
		}
	}
}

// Settings yields what of a notice is or may be secret, with where it stands in it.
func (n *Notice) Settings() iter.Seq2[[]string, Setting] {
	return func(yield func([]string, Setting) bool) {
		switch {
		case n.Email != nil:
			yieldSecret(yield, n.Email.Password, "email", "password")
		case n.Webhook != nil:
			if yieldSecret(yield, &n.Webhook.URL, "webhook", "url") {
				yieldAll(yield, n.Webhook.Headers, "webhook", "headers")
			}
		case n.Ping != nil:
			yieldSecret(yield, &n.Ping.URL, "ping", "url")
		}
	}
}

func yieldSecret(yield func([]string, Setting) bool, s *Secret, path ...string) bool {
	return s == nil || yield(path, Setting{Secret: s})
}

func yieldAll(yield func([]string, Setting) bool, all map[string]Setting, path ...string) bool {
	for _, name := range slices.Sorted(maps.Keys(all)) {
		if !yield(append(slices.Clone(path), name), all[name]) {
			return false
		}
	}
	return true
}

// Settings yields those of all repositories and notices.
func (c *Config) Settings() iter.Seq2[[]string, Setting] {
	return func(yield func([]string, Setting) bool) {
		each := func(settings iter.Seq2[[]string, Setting], path ...string) bool {
			for at, s := range settings {
				if !yield(append(slices.Clone(path), at...), s) {
					return false
				}
			}
			return true
		}
		for _, name := range slices.Sorted(maps.Keys(c.Repositories)) {
			r := c.Repositories[name]
			if !each(r.Settings(), "repositories", name) {
				return
			}
		}
		for _, name := range slices.Sorted(maps.Keys(c.Notices)) {
			n := c.Notices[name]
			if !each(n.Settings(), "notices", name) {
				return
			}
		}
	}
}

// SecretVariables are the variables of the environment that hold secrets of the configuration.
func (c *Config) SecretVariables() (names []string) {
	for _, s := range c.Settings() {
		if s.Secret != nil && s.Secret.Environment != "" {
			names = append(names, s.Secret.Environment)
		}
	}
	return names
}

// Environment is the environment of a repository: getenv, and before it its credentials.
func (r *Repository) Environment(getenv func(string) string) (func(string) string, error) {
	own := make(map[string]string, len(r.Credentials))
	for name, s := range r.Credentials {
		v, err := s.Read(getenv)
		if err != nil {
			return nil, fmt.Errorf("credentials.%s: %w", name, err)
		}
		own[name] = v
	}
	return func(name string) string {
		if v, ok := own[name]; ok {
			return v
		}
		return getenv(name)
	}, nil
}
