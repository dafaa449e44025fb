// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/internal/usage"
)

// hostIDEnv stands for --host-id.
const hostIDEnv = "IMGBACKUP_HOST_ID"

// identify gives a repository the id of this host that the user gave, if any.
func (a *app) identify(repo *chain.Repository) (*chain.Repository, error) {
	given, from := a.hostIDFlag, "--host-id"
	if given == "" {
		given, from = os.Getenv(hostIDEnv), hostIDEnv
	}
	if given == "" {
		return repo, nil
	}
	var err error
	if repo.HostID, err = hostID(given); err != nil {
		return nil, usage.Errorf("%s: %w", from, err)
	}
	return repo, nil
}

// hostID reads an id, or the file that holds one: what has a slash is a file.
func hostID(given string) (string, error) {
	if !strings.Contains(given, "/") {
		return chain.GivenHostID(given)
	}
	f, err := os.Open(given)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }() // only read
	// More than any id has is enough to be refused.
	text, err := io.ReadAll(io.LimitReader(f, 64<<10))
	if err != nil {
		return "", err
	}
	id, err := chain.GivenHostID(string(text))
	if err != nil {
		return "", fmt.Errorf("%s: %w", given, err)
	}
	return id, nil
}
