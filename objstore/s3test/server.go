// SPDX-License-Identifier: Apache-2.0

// Package s3test starts real S3 servers for tests, on loopback, with data in
// the test's own folder, and puts proxies with faults before them. The servers
// are built by scripts/s3-servers.
package s3test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
	"golang.org/x/sys/unix"

	"github.com/imgbackup/imgbackup/internal/sys"
	"github.com/imgbackup/imgbackup/objstore/s3"
)

// Kind is a kind of server.
type Kind string

// The servers there are.
const (
	MinIO     Kind = "minio"
	VersityGW Kind = "versitygw"
)

// Kinds returns all kinds of servers.
func Kinds() []Kind { return []Kind{MinIO, VersityGW} }

// The keys of every server's root user; they protect nothing.
const (
	AccessKey = "imgbackuptest"
	SecretKey = "imgbackup-test-secret"
)

// KMSKey is the id of the key that MinIO's key service has.
const KMSKey = "imgbackup-test-key"

// Region of every server.
const Region = "us-east-1"

// Domain is what every server takes BUCKET.Domain for its bucket in, if that is
// what a request names as its host.
const Domain = "s3.test"

// startTime bounds how long a server may take until it answers.
const startTime = 60 * time.Second

// Server is a running server.
type Server struct {
	t        testing.TB
	kind     Kind
	program  string
	dir      string
	versions bool // VersityGW keeps old versions, which MinIO always can
	users    bool // VersityGW knows users
	address  string
	Endpoint string // its URL
	CAFile   string // its certificate, if it speaks TLS

	mu      sync.Mutex
	cmd     *exec.Cmd
	exited  chan struct{}
	how     error         // it has exited; killed in the end
	log     *bytes.Buffer // of cmd, once it has exited
	buckets atomic.Int64
}

// Start starts a server, which ends with the test.
func Start(t testing.TB, kind Kind) *Server {
	t.Helper()
	return start(t, kind, t.TempDir(), false, false)
}

// StartVersioned starts a server whose buckets can have versions.
func StartVersioned(t testing.TB, kind Kind) *Server {
	t.Helper()
	return start(t, kind, t.TempDir(), false, true)
}

// StartUsers starts a server that can have [Server.User].
func StartUsers(t testing.TB, kind Kind) *Server {
	t.Helper()
	s := prepare(t, kind, t.TempDir())
	s.users = true
	return s.begin("http://")
}

// StartVersionedUsers starts one that keeps versions, too.
func StartVersionedUsers(t testing.TB, kind Kind) *Server {
	t.Helper()
	s := prepare(t, kind, t.TempDir())
	s.users, s.versions = true, true
	return s.begin("http://")
}

// StartTLS starts a server that speaks TLS, with a certificate of its own.
func StartTLS(t testing.TB, kind Kind) *Server {
	t.Helper()
	return start(t, kind, t.TempDir(), true, false)
}

// StartIn starts a server that keeps its data in dir.
func StartIn(t testing.TB, kind Kind, dir string) *Server {
	t.Helper()
	return start(t, kind, dir, false, false)
}

func start(t testing.TB, kind Kind, dir string, tls, versions bool) *Server {
	t.Helper()
	s := prepare(t, kind, dir)
	s.versions = versions
	if tls {
		s.CAFile = makeCertificate(t, filepath.Join(dir, "certs"))
		return s.begin("https://")
	}
	return s.begin("http://")
}

func prepare(t testing.TB, kind Kind, dir string) *Server {
	t.Helper()
	s := &Server{t: t, kind: kind, program: find(t, kind), dir: dir}
	for _, sub := range []string{"data", "certs", "versions", "users"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

// begin has the server run.
func (s *Server) begin(scheme string) *Server {
	t := s.t
	t.Helper()
	t.Cleanup(s.Kill)
	s.address = ownAddress(t)
	s.Endpoint = scheme + s.address
	if err := s.run(); err != nil {
		t.Fatal(err)
	}
	return s
}

// find looks for a server in .cache/bin of the module.
func find(t testing.TB, kind Kind) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			break
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			t.Fatal("the test does not run inside of the module")
		}
		dir = parent
	}
	program := filepath.Join(dir, ".cache", "bin", string(kind))
	if _, err := os.Stat(program); err != nil {
		t.Fatalf("the tests need %s: run scripts/s3-servers, which builds it (%v)", kind, err)
	}
	return program
}

// ownAddress is an address at which only who is told of it listens until the test ends: while nobody
// does, before the server has begun to and while it is killed, the port is given to nobody else.
func ownAddress(t testing.TB) string {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) // as the server's, so that it can listen
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}})
	}
	var at unix.Sockaddr
	if err == nil {
		at, err = unix.Getsockname(fd)
	}
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("127.0.0.1:%d", at.(*unix.SockaddrInet4).Port)
}

// run starts the program and waits until it answers.
func (s *Server) run() error {
	data, certs := filepath.Join(s.dir, "data"), filepath.Join(s.dir, "certs")
	var args []string
	switch s.kind {
	case MinIO:
		args = []string{"server", "--quiet", "--address", s.address, "--certs-dir", certs, data}
	case VersityGW:
		args = []string{"--port", s.address, "--region", Region, "--quiet"}
		if s.CAFile != "" {
			args = append(args, "--cert", s.CAFile, "--key", filepath.Join(certs, "private.key"))
		}
		if s.users {
			args = append(args, "--iam-dir", filepath.Join(s.dir, "users"))
		}
		args = append(args, "posix")
		if s.versions {
			args = append(args, "--versioning-dir", filepath.Join(s.dir, "versions"))
		}
		args = append(args, data)
	}
	cmd := exec.Command(s.program, args...)
	cmd.Dir = s.dir
	cmd.Env = []string{
		"HOME=" + s.dir, "PATH=" + os.Getenv("PATH"),
		"MINIO_ROOT_USER=" + AccessKey, "MINIO_ROOT_PASSWORD=" + SecretKey,
		"MINIO_DOMAIN=" + Domain, "VGW_VIRTUAL_DOMAIN=" + Domain,
		"MINIO_KMS_SECRET_KEY=" + KMSKey + ":" + base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{7}, 32)),
		"MINIO_BROWSER=off", "MINIO_UPDATE=off", "MINIO_CI_CD=on",
		"ROOT_ACCESS_KEY=" + AccessKey, "ROOT_SECRET_KEY=" + SecretKey,
	}
	// A test that is killed leaves no server behind.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	log := new(bytes.Buffer)
	cmd.Stdout, cmd.Stderr = log, log
	started, ended := sys.StartChild(cmd)
	if err := <-started; err != nil {
		return err
	}
	exited := make(chan struct{})
	go func() {
		s.how = <-ended
		close(exited)
	}()
	s.mu.Lock()
	s.cmd, s.exited, s.log = cmd, exited, log
	s.mu.Unlock()
	return s.wait(exited)
}

// wait waits until the server answers, by making a bucket.
func (s *Server) wait(exited chan struct{}) error {
	ctx, cancel := context.WithTimeout(context.Background(), startTime)
	defer cancel()
	client := s.Client()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		_, err := client.ListBuckets(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-exited:
			return fmt.Errorf("%s has ended (%v):\n%s", s.kind, s.how, s.log)
		case <-ctx.Done():
			return fmt.Errorf("%s does not answer: %w", s.kind, err)
		}
	}
}

// Kill kills the server with SIGKILL and waits until it is gone.
func (s *Server) Kill() {
	s.mu.Lock()
	cmd, exited := s.cmd, s.exited
	s.mu.Unlock()
	if cmd == nil {
		return
	}
	_ = cmd.Process.Kill() // it may be gone
	<-exited
}

// Restart starts the server again, at the same address, after Kill.
func (s *Server) Restart() {
	s.t.Helper()
	if err := s.run(); err != nil {
		s.t.Fatalf("%v", err)
	}
}

// Client returns a client of the root user, for what tests do to a server.
func (s *Server) Client() *minio.Client {
	s.t.Helper()
	opts := &minio.Options{
		Creds:      credentials.NewStaticV4(AccessKey, SecretKey, ""),
		Region:     Region,
		MaxRetries: 1,
		Secure:     s.CAFile != "",
	}
	if s.CAFile != "" {
		opts.Transport = &http.Transport{TLSClientConfig: trust(s.t, s.CAFile)}
	}
	client, err := minio.New(s.address, opts)
	if err != nil {
		s.t.Fatal(err)
	}
	return client
}

// Bucket makes a new bucket and returns its name.
func (s *Server) Bucket() string {
	s.t.Helper()
	name := fmt.Sprintf("bucket-%d", s.buckets.Add(1))
	if err := s.Client().MakeBucket(context.Background(), name, minio.MakeBucketOptions{}); err != nil {
		s.t.Fatalf("make bucket %s: %v", name, err)
	}
	return name
}

// LockedBucket makes a new bucket with object lock and returns its name.
func (s *Server) LockedBucket() string {
	s.t.Helper()
	name := fmt.Sprintf("bucket-%d", s.buckets.Add(1))
	if err := s.Client().MakeBucket(context.Background(), name, minio.MakeBucketOptions{ObjectLocking: true}); err != nil {
		s.t.Fatalf("make bucket %s with object lock: %v", name, err)
	}
	return name
}

// Retain makes a bucket with object lock keep every object that is stored from now on for a
// day, and nobody may shorten that.
func (s *Server) Retain(bucket string) {
	s.t.Helper()
	mode, days, unit := minio.Compliance, uint(1), minio.Days
	if err := s.Client().SetObjectLockConfig(context.Background(), bucket, &mode, &days, &unit); err != nil {
		s.t.Fatalf("retain what is stored in bucket %s: %v", bucket, err)
	}
}

// Config is that of a store in a bucket of the server.
func (s *Server) Config(bucket, prefix string) s3.Config {
	return s3.Config{
		Bucket: bucket, Prefix: prefix, Endpoint: s.Endpoint, Region: Region, CAFile: s.CAFile,
		Credentials: credentials.NewStaticV4(AccessKey, SecretKey, ""),
	}
}

// Kind returns what kind of server it is.
func (s *Server) Kind() Kind { return s.kind }

// ReadOnly returns credentials that may only read in a bucket of a MinIO.
func (s *Server) ReadOnly(bucket string) *credentials.Credentials {
	s.t.Helper()
	return s.Restricted(Allow(bucket, "", "s3:GetObject", "s3:ListBucket"))
}

// AllowEncrypted is a statement of a policy: objects may be stored, if the server is
// asked to encrypt them so.
func AllowEncrypted(bucket, sse string) string {
	return fmt.Sprintf(`{"Effect":"Allow","Action":["s3:PutObject"],"Resource":["arn:aws:s3:::%s/*"],"Condition":{"StringEquals":{"s3:x-amz-server-side-encryption":"%s"}}}`, bucket, sse)
}

// Allow is a statement of a policy: these actions are allowed in a bucket and, of
// its objects, on those that the pattern matches; "" is all.
func Allow(bucket, pattern string, actions ...string) string {
	if pattern == "" {
		pattern = "*"
	}
	return fmt.Sprintf(`{"Effect":"Allow","Action":["%s"],"Resource":["arn:aws:s3:::%s","arn:aws:s3:::%s/%s"]}`,
		strings.Join(actions, `","`), bucket, bucket, pattern)
}

// Restricted returns credentials of a MinIO that may do what these statements of a
// policy say.
func (s *Server) Restricted(statements ...string) *credentials.Credentials {
	s.t.Helper()
	return s.assume(fmt.Sprintf(`{"Version":"2012-10-17","Statement":[%s]}`, strings.Join(statements, ",")))
}

func (s *Server) assume(policy string) *credentials.Credentials {
	s.t.Helper()
	var short bytes.Buffer // it may have 2,048 bytes
	if err := json.Compact(&short, []byte(policy)); err != nil {
		s.t.Fatal(err)
	}
	c, err := credentials.NewSTSAssumeRole(s.Endpoint, credentials.STSAssumeRoleOptions{
		AccessKey: AccessKey, SecretKey: SecretKey, Policy: short.String(), DurationSeconds: 3600,
	})
	if err != nil {
		s.t.Fatal(err)
	}
	v, err := c.GetWithContext(nil)
	if err != nil {
		s.t.Fatalf("credentials that may do %s: %v", policy, err)
	}
	return credentials.NewStaticV4(v.AccessKeyID, v.SecretAccessKey, v.SessionToken)
}

// User returns the credentials of a user of a bucket who may do what a policy says: in MinIO one of
// the user, in versitygw one of the bucket, that names the user.
func (s *Server) User(name, bucket, policy string) *credentials.Credentials {
	s.t.Helper()
	if s.kind == MinIO {
		return s.assume(policy)
	}
	const secret = "user-secret-key-of-tests"
	cmd := exec.Command(s.program, "admin", "--access", AccessKey, "--secret", SecretKey, "--region", Region, "--endpoint-url", s.Endpoint,
		"create-user", "--access", name, "--secret", secret, "--role", "user")
	if out, err := cmd.CombinedOutput(); err != nil {
		s.t.Fatalf("%v: %s", err, out)
	}
	if err := s.Client().SetBucketPolicy(s.t.Context(), bucket, policy); err != nil {
		s.t.Fatalf("%v: %s", err, policy)
	}
	return credentials.NewStaticV4(name, secret, "")
}

// Env is the environment, as NAME=VALUE, in which s3://BUCKET/PREFIX is in this
// server, and nothing else counts.
func (s *Server) Env() []string {
	env := []string{
		"AWS_ENDPOINT_URL_S3=" + s.Endpoint,
		"AWS_REGION=" + Region,
		"AWS_ACCESS_KEY_ID=" + AccessKey,
		"AWS_SECRET_ACCESS_KEY=" + SecretKey,
		"AWS_SESSION_TOKEN=", "AWS_PROFILE=",
		"AWS_CONFIG_FILE=" + os.DevNull, "AWS_SHARED_CREDENTIALS_FILE=" + os.DevNull,
		"AWS_EC2_METADATA_DISABLED=true",
		"IMGBACKUP_S3_ENDPOINT=", "IMGBACKUP_S3_REGION=", "IMGBACKUP_S3_STYLE=", "IMGBACKUP_S3_CHECKSUM=", "IMGBACKUP_S3_SSE=", "IMGBACKUP_S3_SSE_KMS_KEY=",
		"IMGBACKUP_S3_PACK_CLASS=", "IMGBACKUP_S3_MAP_CLASS=", "IMGBACKUP_S3_INDEX_CLASS=",
	}
	return append(env, "IMGBACKUP_S3_CA_FILE="+s.CAFile)
}
