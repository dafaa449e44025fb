// SPDX-License-Identifier: Apache-2.0

package config

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
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

// SecretVariables are the variables of the environment that hold secrets of the configuration.
func (c *Config) SecretVariables() (names []string) {
	add := func(s *Secret) {
		if s != nil && s.Environment != "" {
			names = append(names, s.Environment)
		}
	}
	for _, r := range c.Repositories {
		add(r.Passphrase)
		for _, s := range r.Credentials {
			add(s.Secret)
		}
	}
	for _, n := range c.Notices {
		if n.Email != nil {
			add(n.Email.Password)
		}
		if n.Webhook != nil {
			add(&n.Webhook.URL)
			for _, s := range n.Webhook.Headers {
				add(s.Secret)
			}
		}
		if n.Ping != nil {
			add(&n.Ping.URL)
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
