// SPDX-License-Identifier: Apache-2.0

package s3_test

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/imgbackup/imgbackup/internal/testkit"
	"github.com/imgbackup/imgbackup/objstore"
	"github.com/imgbackup/imgbackup/objstore/s3"
)

// isolate lets no setting of this machine count.
func isolate(t *testing.T) {
	for _, name := range []string{
		"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY", "AWS_SECRET_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE",
		"AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI",
	} {
		t.Setenv(name, "")
	}
	t.Setenv("HOME", t.TempDir())
	t.Setenv("AWS_EC2_METADATA_DISABLED", "true")
	t.Setenv("AWS_CONFIG_FILE", filepath.Join(t.TempDir(), "config"))
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", filepath.Join(t.TempDir(), "credentials"))
}

// A role's service that is away for a while is an outage, and what it gave is used
// as long as it is valid.
func TestCredentialsInTime(t *testing.T) {
	isolate(t)
	var down atomic.Bool
	var valid atomic.Int64 // seconds
	service := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if down.Load() {
			http.Error(w, "", http.StatusServiceUnavailable)
			return
		}
		until := time.Now().Add(time.Duration(valid.Load()) * time.Second).UTC().Format(time.RFC3339)
		fmt.Fprintf(w, `{"Code":"Success","AccessKeyId":"role","SecretAccessKey":"hunter2","Token":"","Expiration":%q}`, until)
	}))
	defer service.Close()
	t.Setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", service.URL)
	c, err := s3.Parse("s3://vms?endpoint=http://127.0.0.1:1", os.Getenv)
	if err != nil {
		t.Fatal(err)
	}
	get := func() error {
		v, err := c.Credentials.GetWithContext(nil)
		if err == nil && v.AccessKeyID != "role" {
			t.Errorf("credentials of %q", v.AccessKeyID)
		}
		return err
	}
	wantOutage := func(when string) {
		t.Helper()
		err := get()
		if err == nil || objstore.Permanent(err) {
			t.Errorf("%s: %v, want an outage", when, err)
			return
		}
		wantLine(t, err, "503", "the container's role", service.URL)
	}
	down.Store(true)
	wantOutage("at the beginning")
	s := openS3(t, c)
	for _, content := range []string{"", "x"} { // nothing was sent, so nothing will arrive
		if err := s.Put(t.Context(), "object", strings.NewReader(content), objstore.PutOptions{}); err == nil || objstore.InDoubt(err) || objstore.Permanent(err) {
			t.Errorf("put %q: %v, want an outage without doubt", content, err)
		}
	}
	down.Store(false)
	valid.Store(-1)
	for _, away := range []bool{false, true, false} { // each asks anew: they have ended
		down.Store(away)
		if away {
			wantOutage("later")
		} else if err := get(); err != nil {
			t.Error(err)
		}
	}
	valid.Store(3600)
	for _, away := range []bool{false, true} {
		down.Store(away)
		c.Credentials.Expire() // as if it were time to renew them
		if err := get(); err != nil {
			t.Errorf("credentials that are valid still: %v", err)
		}
	}
}

// Whose credentials can't be had, and why, is said.
func TestWhyNoCredentials(t *testing.T) {
	isolate(t)
	program := filepath.Join(t.TempDir(), "login")
	testkit.Program(t, program, "#!/bin/sh\necho 'your session has ended' >&2; exit 3\n")
	config, keys := os.Getenv("AWS_CONFIG_FILE"), os.Getenv("AWS_SHARED_CREDENTIALS_FILE")
	for _, c := range []struct {
		config, keys string
		env          string
		want         []string
	}{
		{env: "AWS_ACCESS_KEY_ID=a", want: []string{"the environment", "not complete"}},
		{keys: "[default]\naws_access_key_id = a\n", want: []string{"profile default in " + keys, "must both be set"}},
		{config: "[profile p]\naws_secret_access_key = hunter2\n", env: "AWS_PROFILE=p", want: []string{"profile p in " + config, "must both be set"}},
		{config: "[default]\ncredential_process = " + program + " --json\n", want: []string{"profile default in " + config, program, "exit status 3", "your session has ended"}},
		{config: "[default]\nsso_start_url = https://x\nsso_region = r\nsso_account_id = 1\nsso_role_name = x\n", want: []string{"profile default in " + config, "SSO", "aws sso login"}},
		{config: "[default]\nrole_arn = arn:x\nsource_profile = y\n", want: []string{"profile default in " + config, "role_arn", "credential_process"}},
		{want: []string{"no credentials", "AWS_PROFILE"}},
	} {
		t.Run("", func(t *testing.T) {
			if name, value, ok := strings.Cut(c.env, "="); ok {
				t.Setenv(name, value)
			}
			for file, text := range map[string]string{config: c.config, keys: c.keys} {
				if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			parsed, err := s3.Parse("s3://vms?endpoint=http://127.0.0.1:1", os.Getenv)
			if err != nil {
				t.Fatal(err)
			}
			_, err = openS3(t, parsed).Stat(t.Context(), "object")
			if err == nil || !objstore.Permanent(err) || errors.Is(err, objstore.ErrNotFound) {
				t.Fatalf("%v, want it refused", err)
			}
			wantLine(t, err, c.want...)
		})
	}
}

// The keys are those of the environment that a repository has been given, as by the configuration, and not of this
// process's.
func TestGivenEnvironment(t *testing.T) {
	isolate(t)
	t.Setenv("AWS_ACCESS_KEY_ID", "process")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "of-the-process")
	given := map[string]string{"AWS_ACCESS_KEY_ID": "given", "AWS_SECRET_ACCESS_KEY": "hunter2", "AWS_SESSION_TOKEN": "token"}
	c, err := s3.Parse("s3://vms?endpoint=http://127.0.0.1:1", func(name string) string { return given[name] })
	if err != nil {
		t.Fatal(err)
	}
	if v, err := c.Credentials.GetWithContext(nil); err != nil || v.AccessKeyID != "given" || v.SecretAccessKey != "hunter2" || v.SessionToken != "token" {
		t.Errorf("%+v, %v", v, err)
	}
}
