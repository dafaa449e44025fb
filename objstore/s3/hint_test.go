// SPDX-License-Identifier: Apache-2.0

package s3

import (
	"errors"
	"io/fs"
	"strings"
	"testing"

	"github.com/minio/minio-go/v7"
)

// Access is denied for other reasons than missing rights, which are then not what a
// person is told to look for.
func TestHintsOfDenials(t *testing.T) {
	t.Parallel()
	s := &Store{bucket: "vms", endpoint: "https://store"}
	const rights = "the credentials do not allow"
	for _, c := range []struct {
		code, message, want string
		rights              bool
	}{
		{"AccessDenied", "Access Denied.", "s3:PutObject", true},
		{"AccessDenied", "", "s3:PutObject", true},
		{"AccessDenied", "User: arn:aws:iam::1:user/x is not authorized to perform: s3:PutObject on resource: y", "s3:PutObject", true},
		{"AccessDenied", "Cannot upload files, storage cap exceeded. See the Caps & Alerts page to increase your cap.", "storage cap exceeded", false},
		{"AccessDenied", "Access Denied because object protected by object lock", "until the retention ends", false},
		{"InvalidObjectState", "The operation is not valid for the object's storage class", "aws s3api restore-object --bucket vms --key packs/aa/x.zst ", false},
		{"AllAccessDisabled", "All access to this object has been disabled", "All access", false},
		{"AccountProblem", "There is a problem with your account", "your account", false},
	} {
		err := s.explain("store", "packs/aa/x.zst", minio.ErrorResponse{StatusCode: 403, Code: c.code, Message: c.message})
		if strings.Contains(err.Error(), rights) != c.rights || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s, %q: %q", c.code, c.message, err)
		}
		if got := errors.Is(err, fs.ErrPermission); got != (c.code == "AccessDenied") {
			t.Errorf("%s: a lack of permission: %v", c.code, got)
		}
	}
}
