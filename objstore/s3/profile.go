// SPDX-License-Identifier: Apache-2.0

package s3

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/minio/minio-go/v7/pkg/credentials"
	"gopkg.in/ini.v1"

	"github.com/imgbackup/imgbackup/internal/usage"
)

// profileFile is a file of the AWS tools.
type profileFile struct {
	path   string
	config bool // its sections are named "profile NAME"
}

func profileFiles(getenv func(string) string) []profileFile {
	var files []profileFile
	if path := awsFile("AWS_CONFIG_FILE", "config", getenv); path != "" {
		files = append(files, profileFile{path, true})
	}
	if path := awsFile("AWS_SHARED_CREDENTIALS_FILE", "credentials", getenv); path != "" {
		files = append(files, profileFile{path, false})
	}
	return files
}

// section returns a profile's section of the file, or nil where there is none.
func (f profileFile) section(profile string) (*ini.Section, error) {
	file, err := ini.LoadSources(ini.LoadOptions{AllowNestedValues: true, SkipUnrecognizableLines: true}, f.path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil { // its text might show a line of the file
		return nil, usage.Errorf("the AWS tools' file %s can't be read", f.path)
	}
	if f.config && profile != "default" {
		profile = "profile " + profile
	}
	s, err := file.GetSection(profile)
	if err != nil {
		return nil, nil
	}
	return s, nil
}

// readProfile returns the settings of a profile in the AWS tools' files, other
// than its credentials. Only a profile that was named has to be there.
func readProfile(name string, getenv func(string) string) (map[string]string, error) {
	settings := make(map[string]string)
	found := false
	for _, f := range profileFiles(getenv) {
		s, err := f.section(first(name, "default"))
		if err != nil {
			return nil, err
		}
		if s == nil {
			continue
		}
		found = true
		for _, key := range []string{"region", "endpoint_url", "ca_bundle"} {
			if v := s.Key(key).String(); v != "" {
				settings[key] = v
			}
		}
	}
	if name != "" && !found {
		return nil, usage.Errorf("the AWS tools' files have no profile %q", printable(name, 70))
	}
	return settings, nil
}

// profileSource is the credentials of a profile; "" is the one that the environment
// names. Its name says where they are set up, and how.
func profileSource(name string, getenv func(string) string) source {
	s := source{name: "the AWS tools' files", provider: &credentials.FileAWSCredentials{Profile: name}}
	name = first(name, getenv("AWS_PROFILE"), "default")
	role := ""
	for _, f := range profileFiles(getenv) {
		section, err := f.section(name)
		if err != nil || section == nil {
			continue // where settings are read this is told
		}
		place := fmt.Sprintf("profile %s in %s", printable(name, 70), f.path)
		switch program, _, _ := strings.Cut(strings.TrimSpace(section.Key("credential_process").String()), " "); {
		case section.HasKey("aws_access_key_id"), section.HasKey("aws_secret_access_key"):
			s.set, s.name = true, place
		case section.HasKey("sso_session"), section.HasKey("sso_start_url"), section.HasKey("sso_role_name"):
			s.set, s.name = true, place+" (SSO)"
		case program != "":
			s.set, s.name = true, fmt.Sprintf("%s (credential_process %s)", place, printable(program, 100))
		case section.HasKey("role_arn"):
			role = place
		}
	}
	if role != "" && !s.set {
		s.set, s.name = true, role
		s.err = errors.New("role_arn is not supported; a credential_process can take the role (such as: aws configure export-credentials --profile NAME)")
	}
	return s
}

// awsFile is the path of one of the AWS tools' files; "" when there is no home.
func awsFile(variable, name string, getenv func(string) string) string {
	if file := getenv(variable); file != "" {
		return file
	}
	if home := getenv("HOME"); home != "" {
		return filepath.Join(home, ".aws", name)
	}
	return ""
}
