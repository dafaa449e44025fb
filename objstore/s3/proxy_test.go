// SPDX-License-Identifier: Apache-2.0

package s3

import (
	"errors"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/imgbackup/imgbackup/internal/usage"
)

// A proxy's setting counts, or is an error that does not show the password.
func TestProxies(t *testing.T) {
	t.Parallel()
	const refused = "refused"
	for _, c := range []struct {
		endpoint string
		env      []string
		want     string // the proxy's URL, "" for none
	}{
		{"https://store:9000", nil, ""},
		{"https://store:9000", []string{"HTTP_PROXY=http://p:1"}, ""},
		{"https://store:9000", []string{"HTTPS_PROXY=http://p:1"}, "http://p:1"},
		{"http://store", []string{"HTTP_PROXY=p:1"}, "http://p:1"},
		{"http://store", []string{"HTTP_PROXY=http://a:1", "http_proxy=http://b:1"}, "http://b:1"},
		{"http://store", []string{"http_proxy=socks5h://u:pw@b:1"}, "socks5h://u:pw@b:1"},
		{"http://store", []string{"HTTP_PROXY=http://bob:hunter%25zz@p:3128"}, "http://bob:hunter%25zz@p:3128"},
		{"http://store", []string{"HTTP_PROXY=http://bob:hunter2%zz@p:3128"}, refused},
		{"http://store", []string{"HTTP_PROXY=bob:hunter2%zz@p:3128"}, refused},
		{"https://store", []string{"https_proxy=http://bob:hunter2#@p:3128"}, refused},
		{"https://store", []string{"HTTPS_PROXY=ftp://p:1"}, refused},
		{"https://store", []string{"HTTPS_PROXY=http://"}, refused},
		{"https://store.here", []string{"HTTPS_PROXY=http://p:1", "NO_PROXY=.here"}, ""},
		{"https://store.here", []string{"HTTPS_PROXY=http://hunter2%zz@p:1", "no_proxy=.here"}, ""}, // it does not count
		{"http://127.0.0.1:9000", []string{"HTTP_PROXY=%zz"}, ""},
		{"https://store", []string{"HTTP_PROXY=%zz"}, ""},
	} {
		env := make(map[string]string)
		for _, pair := range c.env {
			name, value, _ := strings.Cut(pair, "=")
			env[name] = value
		}
		endpoint, err := url.Parse(c.endpoint)
		if err != nil {
			t.Fatal(err)
		}
		find, err := proxyOf(endpoint, proxies(func(name string) string { return env[name] }))
		if c.want == refused {
			if !errors.Is(err, usage.ErrWrong) || !strings.Contains(err.Error(), "_PROXY") || strings.Contains(err.Error(), "hunter2") {
				t.Errorf("%s with %q: %v, want it refused, without the password", c.endpoint, c.env, err)
			}
			continue
		}
		got := ""
		if err == nil && find != nil {
			var u *url.URL
			if u, err = find(&http.Request{URL: endpoint}); u != nil {
				got = u.String()
			}
		}
		if got != c.want || err != nil {
			t.Errorf("%s with %q: %q, %v, want %q", c.endpoint, c.env, got, err, c.want)
		}
	}
}
