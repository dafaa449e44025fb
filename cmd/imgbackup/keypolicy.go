// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"net/url"
	"strings"

	"github.com/spf13/cobra"

	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/internal/usage"
	"github.com/imgbackup/imgbackup/keys"
	"github.com/imgbackup/imgbackup/objstore/hidden"
)

// policyOptions are the command line of key policy.
type policyOptions struct {
	name, role, server, user string
	domains                  []string
	noDelete                 bool
	hideNames                bool
	names                    *hidden.Names // nil: they are not hidden
	lockDays                 int           // 0: the bucket has no object lock
}

func (a *app) keyPolicyCommand() *cobra.Command {
	var o policyOptions
	cmd := &cobra.Command{
		Use:   "policy NAME --role ROLE --for SERVER",
		Short: "What a key's credentials must be allowed in a bucket, and no more",
		Long: `policy prints what the S3 credentials of who has the key NAME must be allowed in the bucket of --repo: for AWS
and MinIO a policy of a user, for versitygw one of the bucket, which names the user. A host reads all of the
repository (encrypted, most of it is closed to it), stores objects, and its own domains, indexes and leases; it
removes its own leases and intents, with --no-delete not even those (they stay, and a manager settles them).
A manager may not touch keys/ and imgbackup.json, and nobody but who runs init needs rights on the bucket.

NAME is the name of the key in an encrypted repository; in one that is not, the folder below leases/ that the
host has. With --object-lock DAYS a manager may extend what is locked, but for no longer than the
repository asks for; hosts need not. In a repository that hides names (init --hide-names) a host's folders
are called otherwise: --hide-names reads the keys, which takes an identity, and domains without * and ?.`,
		Annotations: exits(),
		Example: `  imgbackup key policy web1 -r s3://vm-backups/site1 --role host --domain 'web*' --for minio >web1.json
  mc admin policy create minio web1 web1.json && mc admin policy attach minio web1 --user web1
  imgbackup key policy mgr -r s3://vm-backups/site1 --role manager --for aws --object-lock 30`,
		Args: takes(cobra.ExactArgs(1), "a NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.name = args[0]
			return a.keyPolicy(cmd.Context(), &o)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.role, "role", "", "`ROLE` of the key: host, manager or drill")
	f.StringVar(&o.server, "for", "", "`SERVER`: aws, minio or versitygw")
	f.StringArrayVar(&o.domains, "domain", nil, "a `PATTERN` of domains that a host stores, with * and ?; may be repeated\n(default: all)")
	f.StringVar(&o.user, "user", "", "`USER` that a policy for versitygw names (default: NAME)")
	f.BoolVar(&o.noDelete, "no-delete", false, "a host removes nothing at all")
	f.BoolVar(&o.hideNames, "hide-names", false, "of a repository that hides names: a host's folders are called by digests")
	f.IntVar(&o.lockDays, "object-lock", 0, "a manager extends locks in a bucket with object lock, of a repository that\nkeeps checkpoints for so many `DAYS` (init --lock-for)")
	return cmd
}

// statement is one of a policy.
type statement struct {
	Effect    string         `json:"Effect"`
	Principal map[string]any `json:"Principal,omitempty"`
	Action    []string       `json:"Action"`
	Resource  []string       `json:"Resource"`
	Condition map[string]any `json:"Condition,omitempty"`
}

type policy struct {
	Version   string      `json:"Version"`
	Statement []statement `json:"Statement"`
}

func (a *app) keyPolicy(ctx context.Context, o *policyOptions) error {
	place, err := url.Parse(a.place())
	if err != nil || place.Scheme != "s3" || place.Host == "" {
		return usage.Errorf("policies are for a bucket: give --repo s3://BUCKET/PREFIX, not %q", a.place())
	}
	if err := o.check(); err != nil {
		return err
	}
	if o.hideNames {
		ring, _, err := a.openKeys(ctx)
		if err != nil {
			return err
		}
		if ring == nil || ring.Names() == nil {
			return usage.Errorf("--hide-names: %s hides no names", a.place())
		}
		o.names = ring.Names()
	}
	p := o.policy(place.Host, strings.Trim(place.Path, "/"))
	enc := json.NewEncoder(a.out)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	return enc.Encode(p)
}

func (o *policyOptions) check() error {
	if err := keys.CheckName(o.name); err != nil {
		return usage.Wrap(err)
	}
	switch o.role {
	case "host", "manager", "drill":
	default:
		return usage.Errorf("--role is host, manager or drill, not %q (an admin needs all rights)", o.role)
	}
	switch o.server {
	case "aws", "minio", "versitygw":
	default:
		return usage.Errorf("--for is aws, minio or versitygw, not %q", o.server)
	}
	if o.role != "host" && (len(o.domains) > 0 || o.noDelete) {
		return usage.Errorf("--domain and --no-delete are for a host")
	}
	if o.lockDays != 0 && (o.role != "manager" || o.lockDays < 1 || o.lockDays > chain.MaxLockDays) {
		return usage.Errorf("--object-lock is for a manager, 1 to %d days", chain.MaxLockDays)
	}
	if o.user != "" && o.server != "versitygw" {
		return usage.Errorf("--user is for versitygw: elsewhere a policy is attached to its user")
	}
	for _, d := range o.domains {
		if strings.ContainsAny(d, "[]\\/") || d == "" {
			return usage.Errorf("--domain %q: a bucket's policies know * and ? only", d)
		}
		if o.hideNames && strings.ContainsAny(d, "*?") {
			return usage.Errorf("--domain %q: digests of names have no pattern: name each domain, or none, which are all", d)
		}
	}
	return nil
}

// policy is what the key needs of a bucket, below a prefix.
func (o *policyOptions) policy(bucket, prefix string) policy {
	arn := "arn:aws:s3:::" + bucket
	under := arn + "/"
	if prefix != "" {
		under += prefix + "/"
	}
	of := func(patterns ...string) (all []string) {
		for _, p := range patterns {
			all = append(all, under+p)
		}
		return all
	}
	var p policy
	p.Version = "2012-10-17"
	allow := func(resources []string, actions ...string) *statement {
		s := statement{Effect: "Allow", Action: actions, Resource: resources}
		if o.server == "versitygw" {
			s.Principal = map[string]any{"AWS": []string{o.asUser()}}
		}
		p.Statement = append(p.Statement, s)
		return &p.Statement[len(p.Statement)-1]
	}
	allow([]string{arn}, "s3:GetBucketLocation", "s3:GetBucketVersioning", "s3:GetBucketObjectLockConfiguration")
	list := allow([]string{arn}, "s3:ListBucket", "s3:ListBucketVersions")
	if o.server != "versitygw" && prefix != "" { // in a statement of its own: MinIO refuses it beside others
		list.Condition = map[string]any{"StringLike": map[string]any{"s3:prefix": []string{prefix + "/*"}}}
	}
	allow(of("*"), "s3:GetObject", "s3:GetObjectVersion")
	put := []string{"s3:PutObject", "s3:AbortMultipartUpload", "s3:ListMultipartUploadParts"}
	switch o.role {
	case "host":
		allow(of(o.stores()...), put...)
		if !o.noDelete {
			allow(of(append([]string{"leases/" + o.folder() + "/*"}, o.ofDomains("/intents/*")...)...), "s3:DeleteObject")
		}
	case "manager":
		actions := append(put, "s3:DeleteObject")
		if o.lockDays > 0 {
			actions = append(actions, "s3:DeleteObjectVersion")
		}
		allow(of(managed()...), actions...)
		if o.lockDays > 0 {
			o.allowLocking(allow, of)
		}
	case "drill":
		allow(of("drills/*"), put...)
	}
	return p
}

// allowLocking is for who extends locks, and purges what is locked no more. Where the server can
// say so, nobody locks for longer than a repository may ask for.
func (o *policyOptions) allowLocking(allow func([]string, ...string) *statement, of func(...string) []string) {
	allow(of("*"), "s3:GetObjectRetention")
	extend := allow(of("*"), "s3:PutObjectRetention")
	if o.server != "versitygw" {
		extend.Condition = map[string]any{"NumericLessThanEquals": map[string]any{"s3:object-lock-remaining-retention-days": (&chain.ObjectLock{Days: o.lockDays}).KeptDays() + 1}}
	}
}

func (o *policyOptions) asUser() string {
	if o.user != "" {
		return o.user
	}
	return o.name
}

// managed is what a manager stores and removes: all but the keys and the configuration.
func managed() []string {
	return []string{"packs/*", "maps/*", "bitmaps/*", "clusters/*", "files/*", "index/*", "leases/*", "domains/*", "drills/*", "prune/*", "proofs/*"}
}

// stores is what a host stores.
func (o *policyOptions) stores() []string {
	all := []string{"packs/*", "maps/*", "bitmaps/*", "clusters/*", "files/*", "index/" + o.folder() + "/*", "leases/" + o.folder() + "/*"}
	for _, what := range []string{"/checkpoints/*", "/intents/*", "/seen.json"} { // and no list of what was forgotten
		all = append(all, o.ofDomains(what)...)
	}
	return all
}

// folder is where the leases and indexes of the key are.
func (o *policyOptions) folder() string {
	if o.names != nil {
		return o.names.Host(o.name)
	}
	return o.name
}

// ofDomains are keys of the domains of a host.
func (o *policyOptions) ofDomains(rest string) (all []string) {
	if len(o.domains) == 0 {
		return []string{"domains/*" + rest}
	}
	for _, d := range o.domains {
		part := encodePattern(d)
		if o.names != nil {
			part = o.names.Domain(part)
		}
		all = append(all, "domains/"+part+rest)
	}
	return all
}

// encodePattern is a pattern of domains as it matches their folders.
func encodePattern(pattern string) string {
	var b strings.Builder
	for i, c := range strings.Split(pattern, "") {
		switch {
		case c == "*", c == "?":
			b.WriteString(c)
		case i == 0:
			b.WriteString(chain.EncodeDomain(c))
		default: // a dot is itself where it does not begin the name
			b.WriteString(chain.EncodeDomain("x" + c)[1:])
		}
	}
	return b.String()
}
