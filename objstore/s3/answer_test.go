// SPDX-License-Identifier: Apache-2.0

package s3

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/imgbackup/imgbackup/objstore"
)

// What is no S3 server's answer is refused, in words that say what came; what
// is one passes as it is.
func TestJudge(t *testing.T) {
	t.Parallel()
	const (
		object   = "http://store/bucket/key"
		listing  = "http://store/bucket/?list-type=2&prefix=a"
		location = "http://store/bucket/?location="
		deletes  = "http://store/bucket/?delete="
		versions = "http://store/bucket/?versions=&prefix=a"
		rule     = "http://store/bucket/?object-lock="
		retain   = "http://store/bucket/key?retention=&versionId=1"
		noKey    = "<Error><Code>NoSuchKey</Code></Error>"
		list     = `<?xml version="1.0"?><!-- of a bucket --><ListBucketResult><Name>bucket</Name></ListBucketResult>`
	)
	tag := map[string]string{"ETag": `"1"`, "Content-Type": "application/octet-stream"}
	page := map[string]string{"ETag": `"1"`, "Content-Type": "text/html; charset=utf-8"}
	for _, c := range []struct {
		method, url string
		status      int
		header      map[string]string
		body        string
		refused     string // with this text; "" is not
	}{
		{"PUT", object, 200, tag, "", ""},
		{"PUT", object, 200, nil, "", "lacks what such an answer has"},
		{"PUT", object, 200, tag, " <Error><Code>SlowDown</Code><Message>later</Message></Error>", "the error SlowDown: later"},
		{"PUT", object, 200, page, "<title>Log in</title>", `a page that says "Log in"`},
		{"PUT", object, 204, tag, "", "204"},
		{"PUT", object, 412, nil, "<Error><Code>PreconditionFailed</Code></Error>", ""},
		{"PUT", object, 412, nil, "", "412"},
		{"PUT", object, 503, nil, "<html>", ""},
		{"GET", object, 200, tag, "<Error><Code>of an object</Code></Error>", ""},
		{"GET", object, 206, tag, "part", ""},
		{"GET", object, 200, map[string]string{"Last-Modified": "then", "X-Amz-Request-Id": "1"}, "object", ""},
		{"GET", object, 200, map[string]string{"X-Amz-Request-Id": "1"}, "<Error><Code>InternalError</Code><Message>m</Message></Error>", "InternalError"},
		{"GET", object, 200, page, "<p>Log in", "Log in"},
		{"GET", object, 200, nil, "hello", `it says "hello"`},
		{"GET", object, 204, tag, "", "204"},
		{"GET", object, 404, nil, noKey, ""},
		{"GET", object, 404, nil, "<Error><Message>of another kind</Message></Error>", "404"},
		{"GET", object, 302, map[string]string{"Location": "http://portal/"}, "", `it leads to "http://portal/"`},
		{"GET", object, 304, tag, "", "304"},
		{"GET", object, 407, nil, "", "the proxy asks who you are"},
		{"PUT", object, 413, nil, "<html>", "client_max_body_size"},
		{"PUT", object, 417, nil, "", "417"},
		{"POST", deletes, 200, nil, "<DeleteResult></DeleteResult>", ""},
		{"POST", deletes, 200, nil, "", "200"},
		{"POST", deletes, 200, nil, "<Error><Code>SlowDown</Code><Message>later</Message></Error>", "the error SlowDown: later"},
		{"POST", deletes, 200, page, "<DeleteResult></DeleteResult>", "200"},
		{"POST", object, 200, nil, "<DeleteResult></DeleteResult>", "200"},
		{"HEAD", object, 200, tag, "", ""},
		{"HEAD", object, 200, page, "", "200"},
		{"HEAD", object, 200, nil, "", "200"},
		{"HEAD", object, 404, nil, "", ""}, // the caller asks again
		{"DELETE", object, 204, nil, "", ""},
		{"DELETE", object, 200, nil, "", "200"},
		{"DELETE", object, 404, nil, noKey, ""},
		{"DELETE", object, 404, nil, "<html></html>", "404"},
		{"GET", listing, 200, nil, list, ""},
		{"GET", listing, 200, nil, "<Error><Code>SlowDown</Code><Message>later</Message></Error>", "SlowDown"},
		{"GET", listing, 200, tag, `<html xmlns="http://www.w3.org/1999/xhtml"><p>Log in</p></html>`, "Log in"},
		{"GET", listing, 200, nil, "<script>let x = 1</script>&nbsp;", "200"},
		{"GET", listing, 200, nil, "", "200"},
		{"GET", listing, 202, nil, list, "202"},
		{"GET", location, 200, nil, "<LocationConstraint>eu-west-1</LocationConstraint>", ""},
		{"GET", location, 200, nil, "<html/>", "200"},
		{"GET", versions, 200, nil, "<ListVersionsResult></ListVersionsResult>", ""},
		{"GET", versions, 200, nil, list, "200"},
		{"GET", rule, 200, nil, "<ObjectLockConfiguration/>", ""},
		{"GET", rule, 200, tag, "an object", "200"},
		{"PUT", rule, 200, map[string]string{"X-Amz-Request-Id": "1"}, "", ""},
		{"PUT", rule, 200, nil, "", "lacks what such an answer has"},
		{"PUT", retain, 200, map[string]string{"X-Amz-Request-Id": "1"}, "", ""},
		{"PUT", retain, 200, map[string]string{"X-Amz-Request-Id": "1"}, "<p>Log in", "Log in"},
		{"PUT", retain, 204, map[string]string{"X-Amz-Request-Id": "1"}, "", "204"},
		{"GET", location, 403, nil, "<html/>", "403"},
	} {
		req, err := http.NewRequest(c.method, c.url, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp := &http.Response{
			StatusCode: c.status, Status: fmt.Sprint(c.status, " ", http.StatusText(c.status)), Header: make(http.Header),
			Body: io.NopCloser(strings.NewReader(c.body)), Request: req,
		}
		for name, value := range c.header {
			resp.Header.Set(name, value)
		}
		got, err := judge(req, resp)
		var protocol *protocolError
		switch {
		case c.refused != "" && !errors.As(err, &protocol):
			t.Errorf("%s %s, %d %q: %v, want it refused", c.method, c.url, c.status, c.body, err)
		case c.refused != "":
			forGood := c.status == http.StatusProxyAuthRequired || c.status == http.StatusRequestEntityTooLarge
			if !strings.Contains(err.Error(), c.refused) || objstore.Permanent(err) != forGood {
				t.Errorf("%s %s, %d %q: %v, want %q, and an outage unless it stays so", c.method, c.url, c.status, c.body, err, c.refused)
			}
		case err != nil:
			t.Errorf("%s %s, %d %q: %v, want it to pass", c.method, c.url, c.status, c.body, err)
		default:
			if body, err := io.ReadAll(got.Body); string(body) != c.body || err != nil || got.Body.Close() != nil {
				t.Errorf("%s %s: the body is %q, %v, want %q", c.method, c.url, body, err, c.body)
			}
		}
	}
}
