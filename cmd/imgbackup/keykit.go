// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	htmltemplate "html/template"
	"os"
	"path/filepath"
	"strings"
	texttemplate "text/template"
	"time"

	"github.com/spf13/cobra"

	"github.com/imgbackup/imgbackup/internal/usage"
	"github.com/imgbackup/imgbackup/keys"
	"github.com/imgbackup/imgbackup/objstore"
)

//go:embed keykit.html
var kitHTML string

//go:embed keykit.txt
var kitText string

// kit is what the pages are made of.
type kit struct {
	Place, ID, RosterKey string
	Made                 string // a day
	Generation           int
	Members              []kitMember
	Config               string // imgbackup.json
	Kept                 []keys.Kept
	Roster               []keys.Revision
	Rotated              bool
	Hidden               bool   // names are
	Identity             string // the content of an identity file; empty: it is not printed
	Program              string
	FirstData, FirstMeta string // names of files, for the steps
}

type kitMember struct{ Name, Role, What string }

func (a *app) keyKitCommand() *cobra.Command {
	var html string
	var text, identity bool
	cmd := &cobra.Command{
		Use:   "kit {--html FILE | --text}",
		Short: "Pages to print, and to lay into a safe",
		Long: `kit writes what a recovery takes when all else is lost: where the repository is, its key files (an
identity opens nothing without them), and the steps with this program and without it. With
--with-identity also the identity itself, which then opens everything: such pages belong into a safe,
and no copy of them on a disk. They load nothing from elsewhere, and print on A4.`,
		Annotations: exits(exitDamage),
		Example:     "  imgbackup key kit --html kit.html\n  imgbackup key kit --text --with-identity --identity me.key | lp",
		Args:        takes(cobra.ExactArgs(0), "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if (html == "") == !text {
				return usage.Errorf("how? give --html FILE or --text")
			}
			return a.keyKit(cmd.Context(), html, identity)
		},
	}
	f := cmd.Flags()
	f.StringVar(&html, "html", "", "as a page: `FILE`, which must not exist, and which only its owner may read")
	f.BoolVar(&text, "text", false, "as text, to stdout")
	f.BoolVar(&identity, "with-identity", false, "with the content of --identity, which opens everything")
	return cmd
}

func (a *app) keyKit(ctx context.Context, html string, identity bool) error {
	k, err := a.makeKit(ctx, identity)
	if err != nil {
		return err
	}
	if html == "" {
		t, err := texttemplate.New("kit").Parse(kitText)
		if err != nil {
			return err
		}
		return t.Execute(a.out, k)
	}
	t, err := htmltemplate.New("kit").Parse(kitHTML)
	if err != nil {
		return err
	}
	var page bytes.Buffer
	if err := t.Execute(&page, k); err != nil {
		return err
	}
	out, err := a.newSecretFile("--html", html)
	if err != nil {
		return err
	}
	if err := out.finish(page.Bytes()); err != nil {
		return errors.Join(err, out.discard())
	}
	a.note(fmt.Sprintf("wrote %s: print it, lay it into a safe, and remove the file", html))
	return nil
}

// wherever is a place as it can be found from anywhere: a folder by its whole path.
func wherever(place string) string {
	if strings.Contains(place, "://") {
		return place
	}
	if abs, err := filepath.Abs(place); err == nil {
		return abs
	}
	return place
}

func (a *app) makeKit(ctx context.Context, identity bool) (*kit, error) {
	c, place, err := a.openConfig(ctx)
	if err != nil {
		return nil, err
	}
	r, err := keys.ReadRoster(ctx, place)
	if err != nil {
		return nil, err
	}
	k := &kit{
		Place: wherever(a.place()), ID: c.ID, RosterKey: c.Encryption.RosterKey, Made: time.Now().UTC().Format("2006-01-02"),
		Generation: r.Generation(), Program: version(),
	}
	config, err := objstore.ReadAll(ctx, place.Store, objstore.Marker, 1<<20)
	if err != nil {
		return nil, err
	}
	k.Config = string(config)
	if k.Kept, err = keys.Kit(ctx, place, r); err != nil {
		return nil, err
	}
	if k.Roster, err = keys.Revisions(ctx, place, r); err != nil {
		return nil, err
	}
	k.Rotated, k.Hidden = r.Generation() > 1, r.HideNames
	for i := range r.Members {
		if m := viewKey(&r.Members[i]); m.Until == 0 {
			k.Members = append(k.Members, kitMember{m.Name, string(m.Role), describeKey(&m)})
		}
	}
	for _, f := range k.Kept {
		switch keys.ParseKey(f.Key).Kind {
		case keys.DataObject:
			k.FirstData = f.Key
		case keys.MetadataObject:
			k.FirstMeta = f.Key
		}
	}
	if identity {
		k.Identity, err = a.identityText(ctx, place)
	}
	return k, err
}

// identityText is the content of the one identity file that was given, which must open the
// repository: a page with the wrong one would be found out too late.
func (a *app) identityText(ctx context.Context, place keys.Place) (string, error) {
	paths := a.keyFlags.identities
	if path := os.Getenv(identityVar); len(paths) == 0 && path != "" {
		paths = []string{path}
	}
	if len(paths) != 1 {
		return "", usage.Errorf("--with-identity prints the content of one --identity FILE, and %d are given", len(paths))
	}
	ids, err := a.identity(place.Repository)
	if err != nil {
		return "", err
	}
	ring, err := keys.Open(ctx, place, ids)
	if err != nil {
		return "", err
	}
	if !ring.Member.Role.ReadsData() {
		return "", &keys.Error{What: fmt.Sprintf("%s is a %s, whose identity opens no data: print an admin's", ring.Member.Name, ring.Member.Role)}
	}
	data, err := readSmall(paths[0], keys.MaxIdentityFile)
	return string(data), err
}
