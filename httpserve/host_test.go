// SPDX-License-Identifier: Apache-2.0

package httpserve

import (
	"net/http"
	"testing"
)

// TestHosts: a page in a browser on this machine can't read disks by a name of its own that leads here.
func TestHosts(t *testing.T) {
	t.Parallel()
	w := serveDisks(t, Options{Name: "node7"}, diskOf(make([]byte, 4096), -1))
	token := serveDisks(t, Options{Token: "secret"}, diskOf(make([]byte, 4096), -1))
	ask := func(w *world, host string) int {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, w.url+"/", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Host = host
		req.Header.Set("Authorization", "Bearer secret")
		r, err := w.client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = r.Body.Close()
		return r.StatusCode
	}
	for _, host := range []string{"localhost", "LOCALHOST:8080", "127.0.0.1:1", "[::1]:8080", "10.1.2.3", "Node7:8080", "localhost."} {
		if code := ask(w, host); code != http.StatusOK {
			t.Errorf("%s: %d", host, code)
		}
	}
	for _, host := range []string{"page.example", "page.example:8080", "localhost.page.example"} {
		if code := ask(w, host); code != http.StatusMisdirectedRequest {
			t.Errorf("%s: %d", host, code)
		}
		if code := ask(token, host); code != http.StatusOK {
			t.Errorf("%s, with a token: %d", host, code)
		}
	}
}
