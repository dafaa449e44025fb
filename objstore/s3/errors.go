// SPDX-License-Identifier: Apache-2.0

package s3

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"strings"
	"syscall"
	"unicode"

	"github.com/minio/minio-go/v7"

	"github.com/imgbackup/imgbackup/objstore"
)

// Codes of S3's error responses that something is decided by. See
// https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html
const (
	codeNoSuchKey          = "NoSuchKey"
	codeNoSuchVersion      = "NoSuchVersion"
	codeNoSuchBucket       = "NoSuchBucket"
	codePreconditionFailed = "PreconditionFailed"
	codeAccessDenied       = "AccessDenied"
)

// response is the error response that err is, or an empty one.
func response(err error) minio.ErrorResponse {
	var r minio.ErrorResponse
	errors.As(err, &r)
	return r
}

func isCode(err error, code string) bool  { return err != nil && response(err).Code == code }
func isStatus(err error, status int) bool { return err != nil && response(err).StatusCode == status }
func httpStatus(err error) int            { return response(err).StatusCode }

// Error is a store's answer that it did not do what it was asked for.
type Error struct {
	Code    string // S3's error code, such as AccessDenied
	Status  int    // of HTTP
	Message string // the server's, made fit to be printed
	hint    string // what to do about it
}

// Is reports whether target is fs.ErrPermission, and that what lacks.
func (e *Error) Is(target error) bool {
	return target == fs.ErrPermission && e.Status == http.StatusForbidden && e.Code == codeAccessDenied
}

// Answered says that the store is there.
func (e *Error) Answered() bool { return true }

func (e *Error) Error() string {
	text := "the store answers " + e.Code
	if e.Message != "" && e.Message != e.Code {
		text += ": " + strings.TrimSuffix(e.Message, ".")
	}
	if e.hint != "" {
		text += " (" + e.hint + ")"
	}
	return text
}

// temporaryCodes are those of 4xx answers that another try may not get.
var temporaryCodes = map[string]bool{
	"ConditionalRequestConflict":  true, // another PUT of the key was in progress
	"OperationAborted":            true, // likewise
	"Conflict":                    true, // likewise, without words
	"RequestTimeout":              true, // the server did not see the body in time
	"ExistingObjectIsDirectory":   true, // versitygw, when a folder that the object goes to vanished meanwhile
	"IncompleteBody":              true, // the body was cut on its way
	"BadDigest":                   true, // what arrived is not what was sent
	"XAmzContentChecksumMismatch": true, // likewise, MinIO
	"XAmzContentSHA256Mismatch":   true, // likewise
	"Throttling":                  true,
	"ThrottlingException":         true,
	"RequestLimitExceeded":        true,
	"SlowDown":                    true,
	"TooManyRequests":             true,
}

// fullCodes say that nothing more can be stored.
var fullCodes = map[string]bool{
	"QuotaExceeded":                  true, // Ceph, versitygw
	"XMinioAdminBucketQuotaExceeded": true, // MinIO
	"XMinioStorageFull":              true, // MinIO
	"InsufficientStorage":            true,
	"StorageQuotaExceeded":           true,
}

// Busy reports whether the store is asked for too much at once, which [objstore.Busy] tells.
func (e *Error) Busy() bool {
	return isBusyStatus(e.Status) || strings.HasPrefix(e.Code, "SlowDown") || e.Code == "TooManyRequests"
}

// Permanent reports whether asking again is in vain.
func (e *Error) Permanent() bool {
	switch {
	case fullCodes[e.Code], e.Status == http.StatusNotImplemented, e.Status == http.StatusInsufficientStorage:
		return true
	case temporaryCodes[e.Code], e.Status == http.StatusRequestTimeout, e.Status == http.StatusTooManyRequests,
		e.Status == 499: // what some proxies say for a closed connection
		return false
	}
	return e.Status < 500
}

// refused reports whether err is the store's own word that it has not done what it
// was asked for. What else there is in answers, such as 500, or 502 and 504 of
// a proxy, tells nothing.
func refused(err error) bool {
	r := response(err)
	switch {
	case fullCodes[r.Code], strings.HasPrefix(r.Code, "SlowDown"): // MinIO has several
		return true
	case r.StatusCode == http.StatusRequestTimeout, r.StatusCode == 499:
		return r.Code == "RequestTimeout"
	}
	return 400 <= r.StatusCode && r.StatusCode < 500
}

// protocolError is an answer that no S3 store gives: something on the way does.
type protocolError struct {
	what      string
	permanent bool // it will be answered so again
}

func (e *protocolError) Error() string   { return e.what }
func (e *protocolError) Permanent() bool { return e.permanent }

// cutError is a body that ended too early.
type cutError struct{ missing int64 }

func (e *cutError) Error() string {
	return fmt.Sprintf("the answer was cut off, %d bytes are missing", e.missing)
}
func (e *cutError) Permanent() bool { return false }
func (e *cutError) Unwrap() error   { return io.ErrUnexpectedEOF }

// bodyError is the failure to read what is to be stored.
type bodyError struct{ err error }

func (e *bodyError) Error() string   { return "read what is to be stored: " + e.err.Error() }
func (e *bodyError) Permanent() bool { return true }
func (e *bodyError) Unwrap() error   { return e.err }

// failed tells what failed, and what to do. Only the store's own word that
// there is no such object is ErrNotFound.
func (s *Store) failed(ctx context.Context, verb, key string, err error) error {
	if cerr := ctx.Err(); cerr != nil {
		return fmt.Errorf("%s %s: %w", verb, key, cerr)
	}
	return fmt.Errorf("%s %s: %w", verb, key, s.explain(verb, key, err))
}

func (s *Store) explain(verb, key string, err error) error {
	r := response(err)
	switch {
	case (r.Code == codeNoSuchKey || r.Code == codeNoSuchVersion) && r.StatusCode == http.StatusNotFound:
		return objstore.MarkNotFound(errors.New("there is no such object"))
	case r.Code != "" || r.StatusCode != 0:
		e := &Error{Code: printable(r.Code, 60), Status: r.StatusCode, Message: printable(r.Message, 200)}
		if e.Code == "" {
			e.Code = http.StatusText(e.Status)
		}
		e.hint = s.hint(verb, key, e, printable(r.Region, 60))
		return e
	}
	return s.explainNet(err)
}

// noSentinel makes of an error response one that is none of the sentinels.
func noSentinel(err error) error {
	r := response(err)
	return &Error{Code: printable(r.Code, 60), Status: r.StatusCode, Message: printable(r.Message, 200)}
}

// hint says what a person can do about an answer.
func (s *Store) hint(verb, key string, e *Error, region string) string {
	switch {
	case e.Code == codeNoSuchBucket:
		return fmt.Sprintf("there is no bucket %s at %s: correct the name, or make the bucket first", s.bucket, s.endpoint)
	case e.Code == "InvalidAccessKeyId", e.Code == "XAdminUserNotFound": // versitygw
		return "it does not know this access key: check AWS_ACCESS_KEY_ID, or the profile in ~/.aws/credentials"
	case e.Code == "SignatureDoesNotMatch":
		return "the secret key is not the access key's: check AWS_SECRET_ACCESS_KEY, or the profile in ~/.aws/credentials"
	case e.Code == "ExpiredToken", e.Code == "InvalidToken", e.Code == "InvalidTokenId", e.Code == "ExpiredTokenException":
		return "the temporary credentials have ended: get new ones (AWS_SESSION_TOKEN)"
	case e.Code == "RequestTimeTooSkewed":
		return "this machine's clock is too far from the server's: set the right time, for example by NTP"
	case e.Code == "AuthorizationHeaderMalformed", e.Code == "InvalidRegion", e.Code == "PermanentRedirect", e.Code == "IllegalLocationConstraintException":
		if region != "" {
			return fmt.Sprintf("the bucket is in another region: set AWS_REGION=%s", region)
		}
		return "the bucket is in another region: set AWS_REGION to it"
	case e.Code == "ExistingObjectIsDirectory":
		return "it can't make a folder for the object; is its disk full?"
	case fullCodes[e.Code], e.Status == http.StatusInsufficientStorage:
		return fmt.Sprintf("bucket %s is full: make room or raise its quota, and try again", s.bucket)
	case e.Code == "InvalidObjectState":
		return fmt.Sprintf("the object lies in a cold storage class and can't be read before it has been brought back, which takes its time:"+
			" aws s3api restore-object --bucket %s --key %s%s --restore-request Days=7, or as your provider says; it is neither missing nor damaged", s.bucket, s.prefix, key)
	case e.Code == "InvalidStorageClass":
		return fmt.Sprintf("it has no storage class %s: see packclass, mapclass and indexclass", s.classes.of(key))
	case e.Code == codeAccessDenied && speaksOfLock(e.Message):
		return "object lock keeps what is there, and the bucket has no versions that would let it be replaced or removed: wait until the retention ends, or use a bucket that has no default retention"
	case e.Code == codeAccessDenied && speaksOfRights(e.Message):
		needs := permissions[verb]
		if verb == "store" && s.sse == nil {
			needs += ", or the bucket demands encryption: sse=AES256 or aws:kms"
		}
		return fmt.Sprintf("the credentials do not allow to %s in bucket %s: they need %s", verb, s.bucket, needs)
	case e.Status == http.StatusNotImplemented:
		return "this store lacks something that imgbackup needs; see imgbackup init"
	}
	return ""
}

// speaksOfRights reports whether a server that denies access says nothing else. Some
// deny it for other reasons, such as a cap on what may be stored, and say so.
func speaksOfRights(message string) bool {
	m := strings.ToLower(strings.Trim(message, " ."))
	return m == "" || m == "forbidden" || m == strings.ToLower(codeAccessDenied) || strings.HasPrefix(m, "access denied") ||
		strings.Contains(m, "not authorized to perform")
}

// speaksOfLock reports whether access is denied because an object is retained.
func speaksOfLock(message string) bool {
	m := strings.ToLower(message)
	return strings.Contains(m, "object lock") || strings.Contains(m, "worm protected")
}

// permissions are what the operations need, by the words of AWS's policies.
var permissions = map[string]string{
	"store":    "s3:PutObject",
	"read":     "s3:GetObject and s3:ListBucket",
	"look for": "s3:GetObject and s3:ListBucket",
	"list":     "s3:ListBucket",
	"delete":   "s3:DeleteObject",

	"list versions in":        "s3:ListBucketVersions",
	"read a version of":       "s3:GetObjectVersion",
	"delete a version of":     "s3:DeleteObjectVersion",
	"retain":                  "s3:PutObjectRetention",
	"read the object lock of": "s3:GetBucketObjectLockConfiguration",
	"set the object lock of":  "s3:PutBucketObjectLockConfiguration",
}

// errHungUp stands for what minio-go makes of an io.EOF, a text with the URL in
// it, which begins like this.
var errHungUp = errors.New("the connection was closed before there was an answer")

const closedText = "Connection closed by foreign host"

// explainNet is about what failed before the store could answer.
func (s *Store) explainNet(err error) error {
	var (
		ue       *url.Error
		own      interface{ Permanent() bool }
		dns      *net.DNSError
		op       *net.OpError
		unknown  x509.UnknownAuthorityError
		host     x509.HostnameError
		invalid  x509.CertificateInvalidError
		noTLS    tls.RecordHeaderError
		noTLSErr = "server gave HTTP response to HTTPS client"
	)
	if errors.As(err, &ue) {
		err = ue.Err // the URL tells nothing more than the key and the place
	}
	if errors.As(err, &own) {
		return err
	}
	hinted := func(hint string) error {
		return objstore.MarkPermanent(fmt.Errorf("%s: %w (%s)", s.endpoint, err, hint))
	}
	switch {
	case strings.HasPrefix(err.Error(), closedText):
		return fmt.Errorf("%s: %w", s.endpoint, errHungUp)
	case errors.As(err, &unknown):
		return hinted("the server's certificate is from an authority that is not known here: set IMGBACKUP_S3_CA_FILE or AWS_CA_BUNDLE to its PEM file")
	case errors.As(err, &host), errors.As(err, &invalid):
		return hinted("the server's certificate is not valid for this endpoint, now")
	case errors.As(err, &noTLS), strings.Contains(err.Error(), noTLSErr):
		return hinted("the server does not speak TLS: if that is meant, give the endpoint as http://")
	case errors.As(err, &dns) && dns.IsNotFound:
		return fmt.Errorf("%s: %w (check the endpoint and the bucket's name)", s.endpoint, err)
	case errors.As(err, &op) && op.Op == "proxyconnect":
		return fmt.Errorf("%s: %w (it is reached through the proxy that HTTPS_PROXY or HTTP_PROXY names; NO_PROXY excepts hosts)", s.endpoint, err)
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("%s: %w (is the server running, and is this its address?)", s.endpoint, err)
	}
	return fmt.Errorf("%s: %w", s.endpoint, err)
}

// printable makes a server's text fit for a terminal and a single line.
func printable(text string, limit int) string {
	text = strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, strings.ToValidUTF8(text, "?"))
	text = strings.Join(strings.Fields(text), " ")
	if r := []rune(text); len(r) > limit {
		text = string(r[:limit]) + "…"
	}
	return text
}
