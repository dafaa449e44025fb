// SPDX-License-Identifier: Apache-2.0

package s3

import (
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/minio/minio-go/v7/pkg/credentials"

	"github.com/imgbackup/imgbackup/objstore"
)

// metadataTimeout bounds the look for a role of the container or the instance.
const metadataTimeout = 5 * time.Second

// awsCredentials are those that the AWS tools would find: of the environment,
// then of the profile in the shared files, then of the container's or the
// instance's role. A profile that was named with the place comes first.
func awsCredentials(profile string, getenv func(string) string) *credentials.Credentials {
	file := &credentials.FileAWSCredentials{Profile: profile}
	chain := &credentialChain{}
	if profile == "" {
		chain.add("the environment", &credentials.EnvAWS{})
	}
	chain.add("the AWS tools' files", file)
	if getenv("AWS_EC2_METADATA_DISABLED") != "true" || getenv("AWS_CONTAINER_CREDENTIALS_FULL_URI") != "" ||
		getenv("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI") != "" || getenv("AWS_WEB_IDENTITY_TOKEN_FILE") != "" {
		chain.add("a role of this machine", &credentials.IAM{Client: &http.Client{Timeout: metadataTimeout}})
	}
	return credentials.New(chain)
}

// credentialChain asks one provider after the other. Unlike minio-go's it does
// not go on without any credentials, but says that there are none.
type credentialChain struct {
	names     []string
	providers []credentials.Provider
	current   credentials.Provider
}

func (c *credentialChain) add(name string, p credentials.Provider) {
	c.names = append(c.names, name)
	c.providers = append(c.providers, p)
}

// errNoCredentials: what each provider says is not shown, it might be a secret.
var errNoCredentials = errors.New("no credentials for S3 were found: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE to a profile in ~/.aws/credentials")

// Retrieve implements credentials.Provider.
func (c *credentialChain) Retrieve() (credentials.Value, error) {
	return c.RetrieveWithCredContext(nil)
}

// RetrieveWithCredContext implements credentials.Provider.
func (c *credentialChain) RetrieveWithCredContext(cc *credentials.CredContext) (credentials.Value, error) {
	for i, p := range c.providers {
		v, err := p.RetrieveWithCredContext(cc)
		if err != nil || v.AccessKeyID == "" && v.SecretAccessKey == "" {
			continue
		}
		if v.AccessKeyID == "" || v.SecretAccessKey == "" {
			return credentials.Value{}, objstore.MarkPermanent(fmt.Errorf("the credentials of %s are not complete: an access key and its secret are needed", c.names[i]))
		}
		c.current = p
		return v, nil
	}
	return credentials.Value{}, objstore.MarkPermanent(errNoCredentials)
}

// IsExpired implements credentials.Provider.
func (c *credentialChain) IsExpired() bool {
	return c.current == nil || c.current.IsExpired()
}
