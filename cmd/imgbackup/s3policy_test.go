// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"github.com/imgbackup/imgbackup/internal/testkit"
	"github.com/imgbackup/imgbackup/objstore/s3test"
)

// policied is a repository in a bucket, and programs that work on it with the rights of a policy.
type policied struct {
	*testing.T
	server      *s3test.Server
	bucket, dir string
}

func (p *policied) place() string { return "s3://" + p.bucket + "/site" }

// as runs the program with credentials; nil: with all rights.
func (p *policied) as(who *credentials.Credentials, key string, status int, args ...string) string {
	p.Helper()
	cmd := exec.Command("imgbackup", append(args, "-r", p.place(), "--identity", filepath.Join(p.dir, key))...)
	cmd.Env = append(cmd.Environ(), p.server.Env()...)
	if who != nil {
		v, err := who.GetWithContext(nil)
		if err != nil {
			p.Fatal(err)
		}
		cmd.Env = append(cmd.Env, "AWS_ACCESS_KEY_ID="+v.AccessKeyID, "AWS_SECRET_ACCESS_KEY="+v.SecretAccessKey, "AWS_SESSION_TOKEN="+v.SessionToken)
	}
	out, _ := cmd.CombinedOutput()
	if got := cmd.ProcessState.ExitCode(); got != status {
		p.Fatalf("imgbackup %v: exit status %d, want %d: %s", args, got, status, out)
	}
	return string(out)
}

// TestPolicies: with what key policy prints, and no more rights, real servers let a host live, with
// and without a right to delete, and a manager keep order; and refuse what is not theirs.
func TestPolicies(t *testing.T) {
	t.Parallel()
	for _, kind := range s3test.Kinds() {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			server := s3test.StartUsers(t, kind)
			for _, more := range []string{"", "--no-delete"} {
				p := &policied{T: t, server: server, bucket: server.Bucket(), dir: t.TempDir()}
				p.hostLives(kind, more)
			}
		})
	}
}

func (p *policied) hostLives(kind s3test.Kind, more string) {
	p.Helper()
	testkit.Tool(p, "age-keygen", "-o", p.dir+"/me.key")
	domain, hide := "web*", []string(nil)
	if more != "" { // one of the two ways hides names
		domain, hide = "web.test", []string{"--hide-names"}
	}
	cmd := []string{"init", "--encrypt", "--recipient", strings.TrimSpace(testkit.Tool(p, "age-keygen", "-y", p.dir+"/me.key"))}
	p.as(nil, "me.key", exitDone, append(cmd, hide...)...)
	p.as(nil, "me.key", exitDone, "key", "add", "web1", "--role", "host", "--domain", domain, "--out", p.dir+"/web1.key")
	p.as(nil, "me.key", exitDone, "key", "add", "mgr", "--role", "manager", "--out", p.dir+"/mgr.key")
	user := "web1" + strings.Trim(more, "-")
	args := append([]string{"key", "policy", "web1", "--role", "host", "--domain", domain, "--for", string(kind)}, hide...)
	if more != "" {
		args = append(args, more)
	}
	if kind == s3test.VersityGW {
		args = append(args, "--user", user)
	}
	host := p.server.User(user, p.bucket, p.as(nil, "me.key", exitDone, args...))

	image := filepath.Join(p.dir, "a.qcow2")
	testkit.Tool(p, "qemu-img", "create", "-q", "-f", "qcow2", image, "4M")
	backup := func(name string, mode ...string) {
		p.Helper()
		testkit.Guest(p, image, "write -P "+name[1:]+" 1M 128k")
		p.as(host, "web1.key", exitDone, append([]string{"backup", "web.test", "--disk", "vda=" + image + ",format=qcow2", "--checkpoint", name}, mode...)...)
	}
	backup("c1")
	backup("c2", "--mode", "incremental")
	backup("c3", "--mode", "full")
	backup("c4")
	if out := p.as(host, "web1.key", exitDone, "list", "web.test"); !strings.Contains(out, "c4") {
		p.Errorf("it lists %s", out)
	}
	p.as(host, "web1.key", exitDone, "check")
	p.as(nil, "me.key", exitDone, "restore", "web.test", "--to", "vda="+p.dir+"/out.raw")
	testkit.Tool(p, "qemu-img", "compare", "-f", "raw", "-F", "qcow2", p.dir+"/out.raw", image)

	// Neither another domain, nor anything of anybody else, nor what it stored itself.
	if out := p.as(host, "web1.key", exitKey, "backup", "db", "--disk", "vda="+image+",format=qcow2", "--checkpoint", "c1"); !strings.Contains(out, "may not store domain db") {
		p.Errorf("it says %s", out)
	}
	p.refused(host, more != "")

	// A manager forgets and prunes; what a host may not delete it settles.
	if more == "" && kind == s3test.MinIO {
		policy := p.as(nil, "me.key", exitDone, "key", "policy", "mgr", "--role", "manager", "--for", string(kind))
		mgr := p.server.User("mgr", p.bucket, policy)
		p.as(mgr, "mgr.key", exitDone, "forget", "web.test", "--keep-last", "1")
		p.as(mgr, "mgr.key", exitDone, "prune")
		p.as(mgr, "mgr.key", exitDone, "check", "--read-data")
	}
}

// refused tries by hand what a host must not be able to do.
func (p *policied) refused(host *credentials.Credentials, noDelete bool) {
	p.Helper()
	c, err := minio.New(strings.TrimPrefix(p.server.Endpoint, "http://"), &minio.Options{Creds: host, Region: s3test.Region})
	if err != nil {
		p.Fatal(err)
	}
	tried := 0
	for o := range p.server.Client().ListObjects(p.Context(), p.bucket, minio.ListObjectsOptions{Prefix: "site/", Recursive: true}) {
		if o.Err != nil {
			p.Fatal(o.Err)
		}
		key := strings.TrimPrefix(o.Key, "site/")
		own := strings.HasPrefix(key, "leases/web1/") || strings.HasPrefix(key, "domains/web.test/intents/")
		if !own || noDelete {
			tried++
			if err := c.RemoveObject(p.Context(), p.bucket, o.Key, minio.RemoveObjectOptions{}); minio.ToErrorResponse(err).Code != minio.AccessDenied {
				p.Errorf("to delete %s: %v", key, err)
			}
		}
	}
	if tried < 10 {
		p.Errorf("only %d objects were tried", tried)
	}
	for _, key := range []string{"imgbackup.json", "keys/roster/2.json", "domains/db/checkpoints/c1.json", "leases/other/x.json", "index/other/x", "prune/mark.json"} {
		_, err := c.PutObject(p.Context(), p.bucket, "site/"+key, strings.NewReader("x"), 1, minio.PutObjectOptions{})
		if minio.ToErrorResponse(err).Code != minio.AccessDenied {
			p.Errorf("to store %s: %v", key, err)
		}
	}
}
