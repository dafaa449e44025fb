// SPDX-License-Identifier: Apache-2.0

package confine

import (
	"slices"
	"testing"
)

func TestEnvironment(t *testing.T) {
	t.Setenv("AWS_SECRET_ACCESS_KEY", "secret")
	t.Setenv("AWS_SESSION_TOKEN", "token")
	t.Setenv("AWS_SECRET_KEY", "old")
	t.Setenv("AWS_REGION", "here")
	t.Setenv("MAIL_PASSWORD", "other")
	env := Environment("MAIL_PASSWORD")
	for text, want := range map[string]bool{
		"AWS_SECRET_ACCESS_KEY=secret": false, "AWS_SECRET_KEY=old": false, "AWS_SESSION_TOKEN=token": false, "AWS_REGION=here": true, "MAIL_PASSWORD=other": false,
	} {
		if slices.Contains(env, text) != want {
			t.Errorf("%s: %v", text, !want)
		}
	}
}
