// SPDX-License-Identifier: Apache-2.0

package s3

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os/exec"
	"time"

	"github.com/minio/minio-go/v7/pkg/credentials"
)

const (
	// metadataTimeout bounds the look for a role of the container or the instance.
	metadataTimeout = 5 * time.Second
	// renewDelay is the time between two tries to renew credentials that can still
	// be used.
	renewDelay = 5 * time.Second
)

// awsCredentials are those that the AWS tools would find: of the environment,
// then of the profile in the shared files, then of the container's or the
// instance's role. A profile that was named with the place comes first.
func awsCredentials(profile string, getenv func(string) string) *credentials.Credentials {
	c := &credentialChain{}
	if profile == "" {
		c.sources = append(c.sources, source{name: "the environment", provider: &environment{getenv: getenv}})
	}
	c.sources = append(c.sources, profileSource(profile, getenv))
	role := source{provider: &credentials.IAM{Client: &http.Client{Timeout: metadataTimeout}}, remote: true, set: true}
	switch uri := first(getenv("AWS_CONTAINER_CREDENTIALS_FULL_URI"), getenv("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI")); {
	case getenv("AWS_WEB_IDENTITY_TOKEN_FILE") != "":
		role.name = "the web identity in " + getenv("AWS_WEB_IDENTITY_TOKEN_FILE")
	case uri != "":
		role.name = "the container's role at " + uri
	case getenv("AWS_EC2_METADATA_DISABLED") != "true":
		role.name, role.set = "the role of this machine", false
	default:
		return credentials.New(c)
	}
	c.sources = append(c.sources, role)
	return credentials.New(c)
}

// environment has the keys that an environment holds, which need not be that of the process.
type environment struct {
	getenv func(string) string
	asked  bool
}

// Retrieve implements credentials.Provider.
func (e *environment) Retrieve() (credentials.Value, error) { return e.RetrieveWithCredContext(nil) }

// RetrieveWithCredContext implements credentials.Provider.
func (e *environment) RetrieveWithCredContext(*credentials.CredContext) (credentials.Value, error) {
	e.asked = true
	return credentials.Value{
		AccessKeyID:     first(e.getenv("AWS_ACCESS_KEY_ID"), e.getenv("AWS_ACCESS_KEY")),
		SecretAccessKey: first(e.getenv("AWS_SECRET_ACCESS_KEY"), e.getenv("AWS_SECRET_KEY")),
		SessionToken:    e.getenv("AWS_SESSION_TOKEN"),
		SignerType:      credentials.SignatureV4,
	}, nil
}

// IsExpired implements credentials.Provider.
func (e *environment) IsExpired() bool { return !e.asked }

// source is where credentials may come from.
type source struct {
	name     string
	provider credentials.Provider
	set      bool  // somebody has set it up: where it fails, no other one is asked
	remote   bool  // it is asked over a network, and may be away for a while
	err      error // it is set up so that it can't be used
}

// credentialChain asks one source after the other, and then only the one that
// had credentials. Unlike minio-go's it does not go on without any credentials,
// and says why a source that was set up has none. A source that had some and
// fails is away for a while; what it gave is used as long as it is valid.
type credentialChain struct {
	sources []source
	current *source // the one that had credentials
	value   credentials.Value
	renew   time.Time // not before; zero is at once
}

// credentialsError: there are no credentials to ask with, so nothing was asked.
type credentialsError struct {
	err       error
	permanent bool
}

func (e *credentialsError) Error() string   { return e.err.Error() }
func (e *credentialsError) Permanent() bool { return e.permanent }

var errNoCredentials = errors.New("no credentials for S3 were found: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE to a profile in ~/.aws/credentials")

// Retrieve implements credentials.Provider.
func (c *credentialChain) Retrieve() (credentials.Value, error) {
	return c.RetrieveWithCredContext(nil)
}

// RetrieveWithCredContext implements credentials.Provider.
func (c *credentialChain) RetrieveWithCredContext(cc *credentials.CredContext) (credentials.Value, error) {
	if c.current != nil {
		return c.again(cc)
	}
	for i := range c.sources {
		s := &c.sources[i]
		v, err := s.ask(cc)
		switch {
		case err != nil && (s.set || errors.Is(err, errHalf)):
			return credentials.Value{}, &credentialsError{err, !s.remote}
		case err == nil && v.AccessKeyID != "":
			c.current, c.value = s, v
			return v, nil
		}
	}
	return credentials.Value{}, &credentialsError{errNoCredentials, true}
}

// again renews the credentials.
func (c *credentialChain) again(cc *credentials.CredContext) (credentials.Value, error) {
	v, err := c.current.ask(cc)
	if err == nil && v.AccessKeyID == "" {
		err = fmt.Errorf("get credentials for S3 from %s: there are none any more", c.current.name)
	}
	now := time.Now()
	switch {
	case err == nil:
		c.value, c.renew = v, time.Time{}
	case now.Before(c.value.Expiration):
		c.renew = now.Add(renewDelay)
	default:
		return credentials.Value{}, &credentialsError{err, false}
	}
	return c.value, nil
}

// IsExpired implements credentials.Provider.
func (c *credentialChain) IsExpired() bool {
	now := time.Now()
	if now.Before(c.renew) && now.Before(c.value.Expiration) {
		return false
	}
	return c.current == nil || c.current.provider.IsExpired()
}

// errHalf says that only one half of a pair of keys is there.
var errHalf = errors.New("the credentials are not complete: an access key and its secret are needed")

// ask asks a source, which may have no credentials.
func (s *source) ask(cc *credentials.CredContext) (credentials.Value, error) {
	v, err := credentials.Value{}, s.err
	if err == nil {
		v, err = s.provider.RetrieveWithCredContext(cc)
	}
	if err == nil && (v.AccessKeyID == "") != (v.SecretAccessKey == "") {
		err = errHalf
	}
	if err != nil {
		return credentials.Value{}, fmt.Errorf("get credentials for S3 from %s: %w", s.name, ownWords(err))
	}
	return v, nil
}

// ownWords is the error of a source, fit to be shown: without the URL of a request,
// which may hold a token, and with what a program that failed has said.
func ownWords(err error) error {
	var (
		ue   *url.Error
		exit *exec.ExitError
	)
	switch {
	case errors.Is(err, errHalf):
		return err
	case errors.As(err, &ue):
		return errors.New(printable(ue.Err.Error(), 300))
	case errors.As(err, &exit):
		return errors.New(printable(err.Error()+": "+string(exit.Stderr), 300))
	}
	return errors.New(printable(err.Error(), 300))
}
