// SPDX-License-Identifier: Apache-2.0

// Package open opens the place of a repository by its name.
package open

import (
	"fmt"
	"os"
	"regexp"
	"strings"

	"github.com/imgbackup/imgbackup/internal/usage"
	"github.com/imgbackup/imgbackup/objstore"
	"github.com/imgbackup/imgbackup/objstore/local"
	"github.com/imgbackup/imgbackup/objstore/pace"
	"github.com/imgbackup/imgbackup/objstore/retry"
	"github.com/imgbackup/imgbackup/objstore/s3"
)

// How many requests a bucket is asked at once.
const (
	DefaultConnections = pace.Default
	MaxConnections     = pace.Max
)

// Options say how to open a place.
type Options struct {
	// Create: a folder that is not there is made. Buckets never are.
	Create bool
	// Shared, with Create: the folder's group may read and write all that is in it.
	Shared bool
	// Note, if any, is told what a person should know about the place.
	Note func(msg string)
	// Connections bounds how many requests a bucket is asked at once, 1 to
	// MaxConnections; 0: DefaultConnections.
	Connections int
	// Getenv is the environment that settings of a bucket are taken from; nil: os.Getenv.
	Getenv func(string) string
	// Retry is for places that are reached over a network.
	Retry retry.Options
}

// Open opens the place of a repository: the path of a folder, or
// s3://BUCKET/PREFIX with the settings of the environment (see [s3.Parse]). In
// S3 nothing is asked before the first operation, and what fails there and then
// is tried again. What is no place at all is wrong usage.
func Open(place string, o Options) (objstore.Store, error) {
	scheme, _, ok := strings.Cut(place, "://")
	if !ok {
		if err := checkFolder(place); err != nil {
			return nil, err
		}
	}
	switch {
	case !ok && o.Create:
		return local.Create(place, local.Options{Note: o.Note, Shared: o.Shared})
	case !ok:
		return local.Open(place, local.Options{Note: o.Note})
	case scheme+"://" != s3.Scheme:
		return nil, usage.Errorf("repository: places are folders or begin with %s; this one begins with %.40q", s3.Scheme, scheme+"://")
	}
	if o.Shared {
		return nil, usage.Errorf("repository: only a folder is shared by a group; who may use a bucket is what its policy says")
	}
	s, err := openS3(place, o)
	if err != nil {
		return nil, fmt.Errorf("repository: %w", err)
	}
	return retry.New(s, o.Retry), nil
}

// foreign is how other programs begin the names of places that are no folders.
var foreign = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9+.-]*:`)

// checkFolder refuses a name that was most likely meant for a place elsewhere, as
// s3:HOST/BUCKET is by some programs: a folder would be made here, and be taken for it.
func checkFolder(place string) error {
	begin := foreign.FindString(place)
	if begin == "" {
		return nil
	}
	if fi, err := os.Stat(place); err == nil && fi.IsDir() {
		return nil
	}
	return usage.Errorf("repository: a place that begins with %q is no folder: a bucket is %sBUCKET/PREFIX, and a folder of that name ./%s…",
		begin, s3.Scheme, begin)
}

func openS3(place string, o Options) (*s3.Store, error) {
	getenv := o.Getenv
	if getenv == nil {
		getenv = os.Getenv
	}
	c, err := s3.Parse(place, getenv)
	if err != nil {
		return nil, err
	}
	c.Connections = o.Connections
	return s3.Open(c)
}
