// SPDX-License-Identifier: Apache-2.0

package confine

import (
	"os"
	"slices"
	"strings"
)

// Environment is ours without what opens a repository, and without other variables that
// hold secrets, for a program that a person names and that runs unconfined.
func Environment(others ...string) []string {
	return slices.DeleteFunc(os.Environ(), func(v string) bool {
		name, _, _ := strings.Cut(v, "=")
		return slices.Contains(secrets, name) || slices.Contains(others, name)
	})
}

var secrets = []string{
	"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY", "AWS_SECRET_KEY", // old names, which count as well
	"AWS_SESSION_TOKEN", "AWS_CONTAINER_AUTHORIZATION_TOKEN", "IMGBACKUP_IDENTITY",
}
