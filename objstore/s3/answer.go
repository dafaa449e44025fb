// SPDX-License-Identifier: Apache-2.0

package s3

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"regexp"
	"strings"
)

// What is on the way to a store answers for it at times: a portal with its
// login page, a proxy with an error page or an empty one, a gateway with the
// status 200 before it knows that it has failed. None of these may be taken for
// the store's word: that an object is stored, that there is none, that a listing
// is empty.

// maxAnswer bounds how much is read of an answer to learn what it is, in bytes.
const maxAnswer = 64 << 10

// judge lets an answer pass that an S3 server gives to the request. Another one
// is a *protocolError, which says what came instead.
//
//   - PUT is done when the status is 200 and the object's entity tag is told.
//   - An object that is read or looked for has an entity tag (or, where a server
//     has none for it, its time beside headers of S3's), and is no HTML page,
//     which nothing in a repository is.
//   - A listing is a ListBucketResult, one of versions a ListVersionsResult, a bucket's
//     region a LocationConstraint, and its object lock an ObjectLockConfiguration.
//   - A retention, or a bucket's object lock, is set when the status is 200 and there are
//     headers of S3's, and nothing else.
//   - DELETE is done when the status is 204, and a batch of them (a POST) when a
//     DeleteResult says so.
//   - What is refused (3xx and 4xx) is so by an error document. The answer to
//     HEAD has no body; the caller asks again by GET.
//
// A failure of the server (5xx) says nothing, whoever tells it.
func judge(req *http.Request, resp *http.Response) (*http.Response, error) {
	status := resp.StatusCode
	switch {
	case status >= 500:
		return resp, nil
	case status >= 300 && req.Method == http.MethodHead:
		return resp, nil
	case status >= 300:
		return judgeRefusal(resp)
	}
	query := req.URL.Query()
	switch {
	case isHTML(resp.Header):
		return refuse(resp, nil)
	case req.Method == http.MethodPut && (query.Has("retention") || query.Has("object-lock")) && status == http.StatusOK && hasOwnHeader(resp.Header):
		return judgeStored(resp)
	case req.Method == http.MethodGet && query.Has("object-lock"):
		return judgeDocument(resp, "ObjectLockConfiguration")
	case req.Method == http.MethodGet && query.Has("versions"):
		return judgeDocument(resp, "ListVersionsResult")
	case req.Method == http.MethodPut && status == http.StatusOK && resp.Header.Get("ETag") != "":
		return judgeStored(resp)
	case req.Method == http.MethodDelete && status == http.StatusNoContent:
		return resp, nil
	case req.Method == http.MethodGet && query.Has("list-type"):
		return judgeDocument(resp, "ListBucketResult")
	case req.Method == http.MethodPost && query.Has("delete"):
		return judgeDocument(resp, "DeleteResult")
	case req.Method == http.MethodGet && query.Has("location"):
		return judgeDocument(resp, "LocationConstraint")
	case req.Method == http.MethodGet && (status == http.StatusOK || status == http.StatusPartialContent) && hasMark(resp.Header),
		req.Method == http.MethodHead && status == http.StatusOK && hasMark(resp.Header):
		return resp, nil
	}
	return refuse(resp, nil)
}

// judgeRefusal lets an error document pass.
func judgeRefusal(resp *http.Response) (*http.Response, error) {
	head, err := readHead(resp)
	if err != nil {
		return nil, err
	}
	if _, ok := errorDocument(head); !ok {
		return refuse(resp, head)
	}
	resp.Body = io.NopCloser(bytes.NewReader(head))
	return resp, nil
}

// judgeStored sees that no document comes with the word that an object is stored.
func judgeStored(resp *http.Response) (*http.Response, error) {
	head, err := readHead(resp)
	if err != nil {
		return nil, err
	}
	if bytes.HasPrefix(bytes.TrimSpace(head), []byte("<")) {
		return refuse(resp, head)
	}
	resp.Body = http.NoBody
	return resp, nil
}

// judgeDocument lets a document pass whose root element has this name. It reads
// no further than to there.
func judgeDocument(resp *http.Response, root string) (*http.Response, error) {
	var head bytes.Buffer
	name, err := rootElement(io.TeeReader(io.LimitReader(resp.Body, maxAnswer), &head))
	var syntax *xml.SyntaxError
	switch {
	case err != nil && err != io.EOF && !errors.As(err, &syntax):
		_ = resp.Body.Close() // it is broken
		return nil, err
	case name != root || resp.StatusCode != http.StatusOK:
		return refuse(resp, head.Bytes())
	}
	resp.Body = &rejoined{Reader: io.MultiReader(&head, resp.Body), Closer: resp.Body}
	return resp, nil
}

// rejoined is a body whose beginning has been looked at.
type rejoined struct {
	io.Reader
	io.Closer
}

// rootElement returns the name of a document's first element.
func rootElement(r io.Reader) (string, error) {
	d := xml.NewDecoder(r)
	for {
		token, err := d.RawToken()
		if err != nil {
			return "", err
		}
		if e, ok := token.(xml.StartElement); ok {
			return e.Name.Local, nil
		}
	}
}

// readHead reads an answer as far as it matters, and closes its body.
func readHead(resp *http.Response) ([]byte, error) {
	head, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	_ = resp.Body.Close() // read as far as it matters
	return head, err
}

// s3Code is what an error document says.
type s3Code struct {
	XMLName xml.Name `xml:"Error"`
	Code    string
	Message string
}

func errorDocument(data []byte) (s3Code, bool) {
	var e s3Code
	err := xml.Unmarshal(data, &e)
	return e, err == nil && e.Code != ""
}

func isHTML(h http.Header) bool {
	kind, _, err := mime.ParseMediaType(h.Get("Content-Type"))
	return err == nil && (kind == "text/html" || kind == "application/xhtml+xml")
}

// hasMark reports whether an answer is marked as one about an object in S3.
func hasMark(h http.Header) bool {
	if h.Get("ETag") != "" {
		return true
	}
	return h.Get("Last-Modified") != "" && hasOwnHeader(h)
}

// hasOwnHeader reports whether an answer has a header that only servers of S3 send.
func hasOwnHeader(h http.Header) bool {
	for name := range h {
		if strings.HasPrefix(name, "X-Amz-") {
			return true
		}
	}
	return false
}

// refuse is the error of an answer that no S3 server gives. head is what has
// been read of it; nil if nothing has.
func refuse(resp *http.Response, head []byte) (*http.Response, error) {
	if head == nil {
		head, _ = readHead(resp) // to say what it is
	} else {
		_ = resp.Body.Close() // not wanted
	}
	what := fmt.Sprintf("the answer %q is not an S3 server's: %s", resp.Status, describeAnswer(resp.Header, head))
	switch resp.StatusCode {
	case http.StatusProxyAuthRequired:
		return nil, &protocolError{what + ": the proxy asks who you are (HTTPS_PROXY=http://USER:PASSWORD@HOST:PORT)", true}
	case http.StatusRequestEntityTooLarge:
		return nil, &protocolError{what + ": a proxy takes no objects as large as this (packs have some 32 MiB, maps may have more; nginx: client_max_body_size)", true}
	}
	return nil, &protocolError{what: what + ": is the endpoint right, or is something on the way broken?"}
}

var markup = regexp.MustCompile(`(?is)<(script|style)\b.*?</(script|style)>|<[^>]*>`)

// describeAnswer says what an answer is, in a part of a line.
func describeAnswer(h http.Header, head []byte) string {
	const words = 100 // of what it says, in characters
	text := printable(markup.ReplaceAllString(string(head), " "), words)
	e, isError := errorDocument(head)
	switch {
	case isError:
		return fmt.Sprintf("it comes with the error %s: %s", printable(e.Code, 60), printable(e.Message, words))
	case text == "" && h.Get("Location") != "":
		return fmt.Sprintf("it leads to %q", printable(h.Get("Location"), words))
	case isHTML(h):
		return fmt.Sprintf("it is a page that says %q", text)
	case text == "":
		return "it lacks what such an answer has"
	}
	return fmt.Sprintf("it says %q", text)
}
