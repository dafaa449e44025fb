// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/imgbackup/imgbackup/config"
	"github.com/imgbackup/imgbackup/internal/suggest"
	"github.com/imgbackup/imgbackup/internal/usage"
)

const (
	configVar     = "IMGBACKUP_CONFIG" // the configuration's file
	defaultConfig = "/etc/imgbackup/config.yaml"
)

// configPath is the file of the configuration; given: a person has named it.
func (a *app) configPath() (path string, given bool) {
	if a.configFlag != "" {
		return a.configFlag, true
	}
	if path := os.Getenv(configVar); path != "" {
		return path, true
	}
	return defaultConfig, false
}

// configuration reads the configuration, and tells its warnings.
func (a *app) configuration() (*config.Config, error) {
	path, _ := a.configPath()
	c, warnings, err := config.Load(path)
	if err != nil {
		return nil, wrongConfig(err)
	}
	for _, w := range warnings {
		a.note(w.Error())
	}
	return c, nil
}

// wrongConfig is wrong usage where the configuration's text is wrong.
func wrongConfig(err error) error {
	var wrong config.Problems
	if errors.As(err, &wrong) {
		return configWrong{err}
	}
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("configuration: %w (imgbackup config example prints one to begin with; --config FILE names another)", err)
	}
	return fmt.Errorf("configuration: %w", err)
}

// configWrong says that the configuration is wrong, which no command's help explains.
type configWrong struct{ error }

func (configWrong) Is(target error) bool { return target == usage.ErrWrong }
func (e configWrong) Unwrap() error      { return e.error }

// at is the program with another repository, which is a place or a name as --repo takes it.
func (a *app) at(repo string) (*app, error) {
	other := *a
	other.repoFlag, other.getenv = repo, nil
	if a.keyFlags.configured {
		other.keyFlags, other.opened = keyFlags{}, &opened{}
	}
	if err := other.resolve(); err != nil {
		return nil, err
	}
	return &other, nil
}

// resolve puts the place in where --repo gives a name of the configuration, and whatever
// else that says of the repository and the command line does not.
func (a *app) resolve() error {
	name := a.place()
	if name == "" || strings.ContainsAny(name, "/:") {
		return nil
	}
	path, given := a.configPath()
	if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) && !given {
		return nil
	}
	folder := false
	if fi, err := os.Stat(name); err == nil {
		folder = fi.IsDir()
	}
	c, err := a.configuration()
	if err != nil {
		if folder {
			a.note(fmt.Sprintf("%s is taken for a folder, since %v", name, err))
			return nil
		}
		return err
	}
	r, ok := c.Repositories[name]
	switch {
	case !ok && folder:
		return nil
	case !ok:
		known := slices.Sorted(maps.Keys(c.Repositories))
		if near := suggest.Near(name, known); near != "" {
			a.note(fmt.Sprintf("%s is taken for a folder: %s has no such repository%s", name, path, suggest.DidYouMean(near)))
		}
		return nil
	case folder:
		return usage.Errorf("--repo %s: that is a repository of %s, and a folder here: the folder is ./%s", name, path, name)
	}
	if a.getenv, err = r.Environment(os.Getenv); err != nil {
		return fmt.Errorf("%s: repositories.%s.%w", path, name, err)
	}
	a.repoFlag = r.Place
	if a.connections == 0 {
		a.connections = r.Connections
	}
	if a.hostIDFlag == "" && os.Getenv(hostIDEnv) == "" {
		a.hostIDFlag = r.HostID
	}
	return a.resolveKeys(r, path, name)
}

// resolveKeys takes a repository's keys from the configuration where the command line and
// the environment name none.
func (a *app) resolveKeys(r config.Repository, path, name string) error {
	if len(a.keyFlags.identities) > 0 || a.keyFlags.passphraseFile != "" || os.Getenv(identityVar) != "" {
		return nil
	}
	if r.Identity != "" {
		a.keyFlags.identities = []string{r.Identity}
	}
	if r.Passphrase != nil {
		phrase, err := r.Passphrase.Read(os.Getenv)
		if err != nil {
			return fmt.Errorf("%s: repositories.%s.passphrase: %w", path, name, err)
		}
		a.keyFlags.passphrase = []byte(phrase)
	}
	a.keyFlags.configured, a.opened = true, &opened{}
	return nil
}

// secretVariables are the variables of the environment that hold secrets of the configuration,
// if there is one.
func (a *app) secretVariables() []string {
	path, _ := a.configPath()
	c, _, err := config.Load(path)
	if err != nil {
		return nil // whoever needs it says so
	}
	return c.SecretVariables()
}
