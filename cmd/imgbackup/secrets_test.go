// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/imgbackup/imgbackup/internal/testkit"
	"github.com/imgbackup/imgbackup/objstore/s3test"
)

// audit runs commands, and looks for secrets in all that they leave and say.
type audit struct {
	testing.TB
	dir     string
	env     []string
	secrets map[string]string // what it is → the text
	said    bytes.Buffer      // by all commands
}

func (a *audit) at(name string) string { return filepath.Join(a.dir, name) }

func (a *audit) write(name, text string) string {
	if err := os.WriteFile(a.at(name), []byte(text), 0o600); err != nil {
		a.Fatal(err)
	}
	return a.at(name)
}

// run runs the program, and keeps what it says.
func (a *audit) run(code int, args ...string) {
	a.Helper()
	a.runWith(nil, code, args...)
}

func (a *audit) runWith(env []string, code int, args ...string) {
	a.Helper()
	cmd := exec.Command("imgbackup", args...)
	cmd.Env = append(append(os.Environ(), a.env...), env...)
	out, _ := cmd.CombinedOutput()
	fmt.Fprintf(&a.said, "$ imgbackup %s\n%s\n", args[0], out)
	if got := cmd.ProcessState.ExitCode(); got != code {
		a.Errorf("imgbackup %v: exit status %d, not %d: %s", args, got, code, out)
	}
	a.find("what "+strings.Join(args[:min(2, len(args))], " ")+" says", out)
}

// watched is run under strace, which tells the arguments and the environment of all that is started.
func (a *audit) watched(code int, args ...string) {
	a.Helper()
	logs := a.TempDir()
	cmd := exec.Command("strace", append([]string{"-ff", "-v", "-qq", "-s", "65536", "-e", "trace=execve", "-o", filepath.Join(logs, "log"), "imgbackup"}, args...)...)
	cmd.Env = append(os.Environ(), a.env...)
	out, _ := cmd.CombinedOutput()
	if got := cmd.ProcessState.ExitCode(); got != code {
		a.Errorf("imgbackup %v: exit status %d, not %d: %s", args, got, code, out)
	}
	a.find("what "+args[0]+" says", out)
	paths, err := filepath.Glob(filepath.Join(logs, "log.*"))
	if err != nil {
		a.Fatal(err)
	}
	others := 0
	call := regexp.MustCompile(`^execve\("([^"]*)", (\[.*\]), (\[.*\])\) += 0$`)
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			a.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			m := call.FindStringSubmatch(strings.TrimSpace(line))
			if m == nil {
				continue
			}
			a.find("the arguments of "+m[1], []byte(m[2]))
			if !strings.Contains(m[2], `["imgbackup"`) { // which needs them itself
				others++
				a.find("the environment of "+m[1], []byte(m[3]))
			}
		}
	}
	if others == 0 {
		a.Errorf("imgbackup %v has started nothing, as far as strace sees", args)
	}
}

// find fails the test if there are secrets in some text.
func (a *audit) find(where string, text []byte) {
	a.Helper()
	for what, secret := range a.secrets {
		if i := bytes.Index(text, []byte(secret)); i >= 0 {
			a.Errorf("%s is in %s: …%q…", what, where, text[max(0, i-100):min(len(text), i+len(secret)+20)])
		}
	}
}

// findBelow looks into all files of a folder.
func (a *audit) findBelow(name string) {
	a.Helper()
	files := 0
	err := filepath.WalkDir(a.at(name), func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		data, err := os.ReadFile(path)
		files++
		a.find(path, data)
		return err
	})
	if err != nil || files == 0 {
		a.Errorf("%s: %d files, %v", name, files, err)
	}
}

const auditConfig = `state: DIR/state
repositories:
  site: {place: PLACE, identity: DIR/admin.key}
  lost: {place: PLACE, identity: DIR/other.key}
  phrase: {place: DIR/phrase, passphrase: {file: DIR/phrase.txt}}
  wrong: {place: DIR/phrase, passphrase: {file: DIR/wrong.txt}}
  denied:
    place: PLACE
    credentials: {AWS_SECRET_ACCESS_KEY: {file: DIR/denied.txt}, AWS_SESSION_TOKEN: {environment: AUDIT_TOKEN}}
domains:
  web: {disks: ["vda=DIR/vda.qcow2,format=qcow2"]}
  sealed: {disks: ["vda=DIR/sealed.qcow2,format=qcow2,keyfile=DIR/luks.txt"]}
jobs:
  nightly:
    repository: site
    domains: [web, sealed]
    check: {read_data: true}
    drill: {scratch: DIR, skip: [source, filesystems, files, boot]}
    hooks: {before: ["true"]}
    notices: [mail, hook, ping, script]
  failing: {repository: lost, domains: [web], hooks: {on_failure: ["true"]}, notices: [mail, hook, ping, script]}
notices:
  mail:
    on: [success, failure, recovery]
    email: {server: "localhost:SMTP", tls: none, user: operator, password: {file: DIR/smtp.txt}, from: a@example.org, to: [b@example.org]}
  hook:
    on: [success, failure, recovery]
    webhook: {url: {file: DIR/webhook.txt}, headers: {Authorization: {file: DIR/bearer.txt}}}
  ping: {ping: {url: {environment: AUDIT_PING}}}
  script: {on: [success, failure, recovery], command: ["true"]}
metrics: {file: DIR/state/figures.prom}
`

// TestSecrets: no secret is in what commands say, also of what fails, as JSON, as events, and with --verbose; in
// the arguments and the environment of what they start; in histories, logs, figures, pages, caches and the bytes of
// repositories.
func TestSecrets(t *testing.T) {
	t.Parallel()
	server := s3test.Start(t, s3test.MinIO)
	bucket := newBucket(server)
	refuse := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Error(w, "refused: "+r.URL.String()+" "+r.Header.Get("Authorization"), http.StatusForbidden) // and says all that it was told
	}))
	defer refuse.Close()
	silent, err := net.Listen("tcp", "127.0.0.1:0") // stands for a mail server that says no
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	go func() {
		for {
			c, err := silent.Accept()
			if err != nil {
				return
			}
			fmt.Fprint(c, "554 no\r\n")
			_ = c.Close()
		}
	}()
	a := &audit{TB: t, dir: t.TempDir(), secrets: map[string]string{
		"the S3 key": s3test.SecretKey, "a denied S3 key": "marker-denied-s3-key", "a session token": "marker-session-token", "the passphrase": "marker-passphrase-of-repository",
		"a wrong passphrase": "marker-wrong-passphrase", "the passphrase of an image": "marker-passphrase-of-luks", "the password of the mail server": "marker-smtp-password",
		"the webhook's token": "marker-webhook-token", "a header": "marker-bearer-token", "the ping's token": "marker-ping-token",
		"a password in a URL": "marker-password-in-url", "an inline secret": "marker-inline-secret",
	}}
	s := a.secrets
	a.env = append(bucket.env(), "AUDIT_TOKEN="+s["a session token"], "AUDIT_PING="+refuse.URL+"/"+s["the ping's token"], cacheVar+"="+a.at("cache"))
	for name, text := range map[string]string{
		"phrase.txt": s["the passphrase"], "wrong.txt": s["a wrong passphrase"], "denied.txt": s["a denied S3 key"], "smtp.txt": s["the password of the mail server"],
		"webhook.txt": refuse.URL + "/hook?token=" + s["the webhook's token"], "bearer.txt": "Bearer " + s["a header"], "other-phrase.txt": s["a wrong passphrase"],
	} {
		a.write(name, text+"\n")
	}
	a.write("luks.txt", s["the passphrase of an image"])
	_, port, _ := net.SplitHostPort(silent.Addr().String())
	config := a.write("c.yaml", strings.NewReplacer("DIR", a.dir, "PLACE", bucket.String(), "SMTP", port).Replace(auditConfig))
	a.env = append(a.env, "IMGBACKUP_CONFIG="+config)
	for name, opts := range map[string][]string{"vda": nil, "sealed": {"--object", "secret,id=k,file=" + a.at("luks.txt"), "-o", "encrypt.format=luks,encrypt.iter-time=10,encrypt.key-secret=k"}} {
		testkit.Tool(t, "qemu-img", append(append([]string{"create", "-q", "-f", "qcow2"}, opts...), a.at(name+".qcow2"), "2M")...)
	}

	a.run(exitDone, "init", "-r", bucket.String(), "--encrypt", "--out", a.at("admin.key"))
	a.run(exitDone, "init", "-r", a.at("other"), "--encrypt", "--out", a.at("other.key"))
	a.run(exitDone, "init", "-r", a.at("phrase"), "--encrypt", "--passphrase-file", a.at("phrase.txt"))
	a.run(exitDone, "key", "add", "-r", "site", "web1", "--role", "host", "--out", a.at("host.key"))
	for _, name := range []string{"admin.key", "host.key", "other.key"} {
		text, err := os.ReadFile(a.at(name))
		keys := regexp.MustCompile(`(?m)^AGE-SECRET-KEY-\S+$`).FindAllString(string(text), -1)
		if err != nil || len(keys) == 0 {
			t.Fatalf("%s: %v: %q", name, err, text)
		}
		for i, key := range keys {
			s[fmt.Sprintf("%s, %d", name, i)] = key
		}
	}
	a.watched(exitFailed, "run", "nightly") // since receivers refuse; its steps are done
	a.run(exitFailed, "run", "failing", "--json")
	// With all that may be told.
	for _, more := range [][]string{{"--verbose"}, {"--json", "--verbose"}, {"--progress", "json"}} {
		a.run(exitDone, append([]string{"backup", "-r", "site", "web", "--disk", "vda=" + a.at("vda.qcow2") + ",format=qcow2"}, more...)...)
	}
	a.watched(exitDone, "restore", "-r", "site", "web", "--to", "vda="+a.at("out.vmdk"), "--format", "vmdk", "--verbose")
	a.watched(exitDone, "drill", "-r", "site", "web", "--scratch", a.dir, "--skip", "filesystems,files,boot,source", "--command", "true", "--verbose")
	for _, args := range [][]string{
		{"list", "-r", "site", "--json", "--verbose"}, {"show", "-r", "site", "web", "--json"}, {"check", "-r", "site", "--json"}, {"key", "list", "-r", "site", "--json"},
		{"key", "kit", "-r", "site", "--text"}, {"key", "policy", "-r", "site", "web1", "--for", "minio"}, {"report", "-r", "site", "--json", "--html", a.at("state/page.html")},
		{"leases", "-r", "site", "--json"}, {"drills", "-r", "site", "--json"}, {"prune", "-r", "site", "--json", "--verbose"}, {"copy", "-r", "site", "--to", "phrase", "--json"},
		{"key", "rotate", "-r", "site", "--json"}, {"runs", "--json"}, {"config", "show", "--json"}, {"config", "check", "--json"}, {"run", "--dry-run", "--json"},
		{"status", "--json"}, {"inspect", a.at("vda.qcow2"), "--json"}, {"version", "--json", "--verbose"},
	} {
		a.runAny(args...)
	}
	// What fails says why, and never by what.
	a.run(exitKey, "list", "-r", "lost", "--json", "--verbose")
	a.run(exitKey, "list", "-r", "wrong", "--verbose")
	a.run(exitFailed, "list", "-r", "denied", "--verbose")
	a.run(exitUsage, "list", "-r", bucket.String(), "--identity", s["admin.key, 0"]) // the key where its file was to be named
	a.runWith([]string{"IMGBACKUP_IDENTITY=" + s["admin.key, 0"]}, exitUsage, "list", "-r", bucket.String())
	a.run(exitFailed, "list", "-r", bucket.String(), "--identity", a.write("broken.key", s["admin.key, 0"]+"X\n"))
	for _, env := range []string{
		"AWS_ENDPOINT_URL_S3=http://user:" + s["a password in a URL"] + "@127.0.0.1:1", "AWS_ENDPOINT_URL_S3=http://user:" + s["a password in a URL"] + "@127.0.0.1:x",
		"HTTPS_PROXY=http://user:" + s["a password in a URL"] + "@127.0.0.1:1",
	} {
		a.runAnyWith([]string{env, patience + "=1ms"}, "list", "-r", bucket.String(), "--identity", a.at("admin.key"))
	}
	for i, text := range []string{
		"repositories: {x: {place: /x, credentials: {AWS_REGION: [SECRET]}}}", "repositories: {x: {place: /x, passphrase: {fil: SECRET}}}",
		"repositories: {x: {place: /x, passphrase: SECRET, identity: {a: SECRET}}}", "notices: {x: {webhook: {url: SECRET, headers: {Authorization: [SECRET]}}, command: [SECRET]}}",
		"notices: {x: {email: {server: h, password: {value: SECRET}}}}", "notices: {x: {ping: {url: 'SECRET', timeout: SECRET}}}",
	} {
		path := a.write(fmt.Sprintf("broken%d.yaml", i), strings.ReplaceAll(text, "SECRET", s["an inline secret"])+"\n")
		for _, args := range [][]string{{"config", "check", "--config", path}, {"config", "show", "--config", path, "--json"}} {
			code, out, stderr := runHere(args...)
			if a.find("what config says of "+text, []byte(out+stderr)); code == exitDone {
				t.Errorf("%s: taken for valid", text)
			}
		}
	}
	for _, folder := range []string{"state", "cache", "phrase"} {
		a.findBelow(folder)
	}
	for _, want := range []string{"notice hook: it answered 403", "notice mail: dial failed: 554", "notice ping: it answered 403", "has a user name in it"} {
		if !strings.Contains(a.said.String(), want) {
			t.Errorf("%q has not been tried", want)
		}
	}
}

// runAny is run, whatever comes of it.
func (a *audit) runAny(args ...string) {
	a.Helper()
	a.runAnyWith(nil, args...)
}

func (a *audit) runAnyWith(env []string, args ...string) {
	a.Helper()
	cmd := exec.Command("imgbackup", args...)
	cmd.Env = append(append(os.Environ(), a.env...), env...)
	out, _ := cmd.CombinedOutput()
	fmt.Fprintf(&a.said, "$ imgbackup %s: %d\n%s\n", strings.Join(args, " "), cmd.ProcessState.ExitCode(), out)
	a.find("what "+strings.Join(args[:min(2, len(args))], " ")+" says", out)
}
