// SPDX-License-Identifier: Apache-2.0

package s3

import (
	"net/http"
	"net/url"
	"strings"

	"golang.org/x/net/http/httpproxy"

	"github.com/imgbackup/imgbackup/internal/usage"
)

// proxies are the settings of the environment. The variables are the AWS tools' and
// curl's, HTTPS_PROXY, HTTP_PROXY and NO_PROXY, of which those in small letters count
// first.
func proxies(getenv func(string) string) httpproxy.Config {
	either := func(name string) string { return first(getenv(strings.ToLower(name)), getenv(name)) }
	return httpproxy.Config{HTTPProxy: either("HTTP_PROXY"), HTTPSProxy: either("HTTPS_PROXY"), NoProxy: either("NO_PROXY")}
}

// proxyOf returns what finds the proxy of a request to the endpoint. A setting that
// can't be read is wrong usage, where it would count: not "no proxy", which is what the
// library makes of it.
func proxyOf(endpoint *url.URL, c httpproxy.Config) (func(*http.Request) (*url.URL, error), error) {
	name, value := "HTTP_PROXY", &c.HTTPProxy
	if endpoint.Scheme == "https" {
		name, value = "HTTPS_PROXY", &c.HTTPSProxy
	}
	if *value == "" {
		return nil, nil
	}
	u := parseProxy(*value)
	if u != nil {
		*value = u.String()
	} else {
		*value = "http://unreadable.invalid"
	}
	find := c.ProxyFunc()
	if p, err := find(endpoint); u == nil && (p != nil || err != nil) {
		return nil, usage.Errorf("the proxy that %s names can't be read: it is something like http://proxy.example.org:3128 (in a user's name or password, %% and other special characters are written as %%25 and so on)", name)
	}
	return func(r *http.Request) (*url.URL, error) { return find(r.URL) }, nil
}

// parseProxy reads a URL, or a host and a port; nil is neither.
func parseProxy(text string) *url.URL {
	if !strings.Contains(text, "://") {
		text = "http://" + text
	}
	u, err := url.Parse(text)
	if err != nil || u.Hostname() == "" {
		return nil
	}
	switch u.Scheme {
	case "http", "https", "socks5", "socks5h":
		return u
	}
	return nil
}
