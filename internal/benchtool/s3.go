// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
	"golang.org/x/sync/errgroup"
)

// s3Tool is what the S3 part of the benchmarks needs, over plain minio-go: the
// floors put and get whole objects, with nothing around it, no checksums and no
// retries. The server and its keys come from the environment, as the AWS tools
// have them.
type s3Tool struct {
	core     *minio.Core
	endpoint *url.URL
}

const s3Usage = "usage: benchtool s3 bucket BUCKET | put DIR BUCKET PARALLEL | get BUCKET PREFIX PARALLEL | objects BUCKET PREFIX | requests"

func runS3(args []string) error {
	t, err := newS3Tool(os.Getenv("AWS_ENDPOINT_URL_S3"))
	if err != nil {
		return err
	}
	ctx := context.Background()
	switch {
	case len(args) == 2 && args[0] == "bucket":
		return t.makeBucket(ctx, args[1])
	case len(args) == 4 && args[0] == "put":
		return t.put(ctx, args[1], args[2], args[3])
	case len(args) == 4 && args[0] == "get":
		return t.get(ctx, args[1], args[2], args[3])
	case len(args) == 3 && args[0] == "objects":
		return t.objects(ctx, args[1], args[2])
	case len(args) == 1 && args[0] == "requests":
		return t.requests(ctx)
	}
	return errors.New(s3Usage)
}

func newS3Tool(endpoint string) (*s3Tool, error) {
	u, err := url.Parse(endpoint)
	if err != nil || u.Host == "" {
		return nil, fmt.Errorf("AWS_ENDPOINT_URL_S3 is %q, and no URL", endpoint)
	}
	core, err := minio.NewCore(u.Host, &minio.Options{
		Creds:      credentials.NewEnvAWS(),
		Region:     "us-east-1",
		MaxRetries: 1,
		// Buffers as large as those of the program that is compared.
		Transport: &http.Transport{MaxIdleConnsPerHost: 64, DisableCompression: true, ReadBufferSize: 128 << 10, WriteBufferSize: 128 << 10},
	})
	if err != nil {
		return nil, err
	}
	return &s3Tool{core: core, endpoint: u}, nil
}

// makeBucket waits until the server answers.
func (t *s3Tool) makeBucket(ctx context.Context, bucket string) error {
	for begin := time.Now(); ; time.Sleep(50 * time.Millisecond) {
		err := t.core.MakeBucket(ctx, bucket, minio.MakeBucketOptions{})
		if err == nil || time.Since(begin) > time.Minute {
			return err
		}
	}
}

// put stores every file under dir, each by one PUT.
func (t *s3Tool) put(ctx context.Context, dir, bucket, parallel string) error {
	var files []string
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() {
			files = append(files, path)
		}
		return err
	})
	if err != nil {
		return err
	}
	return t.each(ctx, files, parallel, func(ctx context.Context, path string) error {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer func() { _ = f.Close() }() // opened for reading only
		st, err := f.Stat()
		if err != nil {
			return err
		}
		key, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		_, err = t.core.PutObject(ctx, bucket, key, f, st.Size(), "", "", minio.PutObjectOptions{DisableContentSha256: true})
		return err
	})
}

// get reads every object under a prefix, each by one GET.
func (t *s3Tool) get(ctx context.Context, bucket, prefix, parallel string) error {
	var keys []string
	for info := range t.core.Client.ListObjects(ctx, bucket, minio.ListObjectsOptions{Prefix: prefix, Recursive: true}) {
		if info.Err != nil {
			return info.Err
		}
		keys = append(keys, info.Key)
	}
	return t.each(ctx, keys, parallel, func(ctx context.Context, key string) error {
		body, info, _, err := t.core.GetObject(ctx, bucket, key, minio.GetObjectOptions{})
		if err != nil {
			return err
		}
		n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, body, make([]byte, 1<<20))
		if err == nil && n != info.Size {
			err = fmt.Errorf("%s: %d of %d bytes", key, n, info.Size)
		}
		return errors.Join(err, body.Close())
	})
}

func (t *s3Tool) each(ctx context.Context, names []string, parallel string, do func(context.Context, string) error) error {
	n, err := strconv.Atoi(parallel)
	if err != nil || n < 1 {
		return errors.New(s3Usage)
	}
	if len(names) == 0 {
		return errors.New("nothing to do")
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(n)
	for _, name := range names {
		g.Go(func() error { return do(ctx, name) })
	}
	return g.Wait()
}

// objects prints how many objects there are under each first part of a key.
func (t *s3Tool) objects(ctx context.Context, bucket, prefix string) error {
	counts := make(map[string]int)
	for info := range t.core.Client.ListObjects(ctx, bucket, minio.ListObjectsOptions{Prefix: prefix, Recursive: true}) {
		if info.Err != nil {
			return info.Err
		}
		first, _, _ := strings.Cut(strings.TrimPrefix(info.Key, prefix), "/")
		counts[first]++
	}
	return printCounts(counts)
}

// requests prints how many requests of each kind MinIO has served so far, as it
// counts them itself.
func (t *s3Tool) requests(ctx context.Context) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, t.endpoint.JoinPath("minio/metrics/v3/api/requests").String(), nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }() // read to its end
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("metrics: %s", resp.Status)
	}
	counts := make(map[string]int)
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		rest, ok := strings.CutPrefix(lines.Text(), `minio_api_requests_total{name="`)
		if !ok {
			continue
		}
		api, rest, _ := strings.Cut(rest, `"`)
		_, value, _ := strings.Cut(rest, "} ")
		n, err := strconv.ParseFloat(value, 64)
		if err != nil {
			return fmt.Errorf("metrics: %q", lines.Text())
		}
		counts[api] += int(n)
	}
	return cmp.Or(lines.Err(), printCounts(counts))
}

func printCounts(counts map[string]int) error {
	for _, name := range slices.Sorted(maps.Keys(counts)) {
		if _, err := fmt.Println(name, counts[name]); err != nil {
			return err
		}
	}
	return nil
}
