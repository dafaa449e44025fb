// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/confine"
	"github.com/imgbackup/imgbackup/drill/record"
	"github.com/imgbackup/imgbackup/internal/usage"
	"github.com/imgbackup/imgbackup/objstore"
)

func (a *app) drillsCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:         "drills [DOMAIN]",
		Short:       "List the records of drills, and prove them",
		Long:        `drills lists what drills of a domain, or of all, have left on record, oldest first.`,
		Annotations: exits(exitDamage, exitInterrupted),
		Example:     "  imgbackup drills web\n  imgbackup drills verify --allowed-signers ~/.ssh/allowed_signers",
		Args:        takes(cobra.MaximumNArgs(1), "at most one DOMAIN"),
		RunE: func(cmd *cobra.Command, args []string) error {
			_, all, broken, err := a.readDrills(cmd.Context(), args, true)
			if err != nil {
				return err
			}
			if err := a.printDrills(all); err != nil {
				return err
			}
			return errors.Join(broken...)
		},
	}
	cmd.AddCommand(a.drillsVerifyCommand())
	return cmd
}

// verifyOptions are the command line of drills verify.
type verifyOptions struct {
	allowed string
	signed  bool
}

func (a *app) drillsVerifyCommand() *cobra.Command {
	var o verifyOptions
	cmd := &cobra.Command{
		Use:   "verify [DOMAIN]",
		Short: "Prove records of drills against the repository as it is now",
		Long: `verify proves the seals and signatures of records, and compares each with its checkpoint as it is now:

    stands      the checkpoint is just as it was drilled
    revised     its description or tags have changed since, and its data is the same
    repacked    a prune or a repair has given it other maps since, or it is a copy with others: a new drill proves these
    copied      it was drilled in another repository, of which this has a copy: the same maps, or made of them
    forgotten   the checkpoint is gone; the record stays as evidence
    unread      nothing of the checkpoint could be read then: the record says nothing of its data
    contradict  the repository holds something else than was drilled

A record that is not signed proves that it is whole, not who made it: --signed wants a signature of each. In an encrypted
repository records are read with the data key: by roles admin and drill.

It ends with exit status 3 if anything is contradicted or damaged, or a signature is not good.`,
		Annotations: exits(exitDamage, exitInterrupted),
		Example:     "  imgbackup drills verify web --allowed-signers allowed_signers --signed",
		Args:        takes(cobra.MaximumNArgs(1), "at most one DOMAIN"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := notEmpty(cmd.Flags(), "allowed-signers"); err != nil {
				return err
			}
			if o.signed && o.allowed == "" {
				return usage.Errorf("--signed needs --allowed-signers, which says by whom")
			}
			return a.verifyDrills(cmd.Context(), args, o)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.allowed, "allowed-signers", "", "who may sign: a `FILE` as ssh-keygen(1) describes it")
	f.BoolVar(&o.signed, "signed", false, "a record that is not signed by one of them is not good")
	return cmd
}

// recordsAtOnce is how many records are read at once.
const recordsAtOnce = 32

// readDrills reads the records of a domain, or of all, oldest first; and what is wrong
// with those that cannot be read. alone: that is all that is done.
func (a *app) readDrills(ctx context.Context, args []string, alone bool) (*chain.Repository, []*record.Stored, []error, error) {
	domain := ""
	if len(args) > 0 {
		if domain = args[0]; chain.CheckDomain(domain) != nil {
			return nil, nil, nil, usage.Wrap(chain.CheckDomain(domain))
		}
	}
	repo, err := a.openRepo(ctx)
	if err == nil && alone {
		err = a.restrict(confine.Self{}, reads(repo))
	}
	if err != nil {
		return nil, nil, nil, err
	}
	listed, err := repo.Drills(ctx, domain)
	if err != nil {
		return nil, nil, nil, err
	}
	var keys []chain.Key
	for domain, ids := range listed {
		for _, id := range ids {
			keys = append(keys, chain.Key{Domain: domain, Name: id})
		}
	}
	all, errs := make([]*record.Stored, len(keys)), make([]error, len(keys))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(recordsAtOnce)
	for i, k := range keys {
		g.Go(func() error {
			r, err := record.Read(gctx, repo, k.Domain, k.Name)
			switch {
			case archive.IsDamage(err), errors.As(err, new(*chain.NewerError)):
				errs[i] = err
			case errors.Is(err, objstore.ErrNotFound): // removed since it was listed
			case err != nil:
				return err
			}
			all[i] = r
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, nil, nil, err
	}
	all = slices.DeleteFunc(all, func(r *record.Stored) bool { return r == nil })
	errs = slices.DeleteFunc(errs, func(err error) bool { return err == nil })
	slices.SortFunc(all, func(a, b *record.Stored) int { return a.Begun.Compare(b.Begun) })
	if domain != "" && len(all)+len(errs) == 0 {
		if _, err := allManifests(ctx, repo, domain); err != nil {
			return nil, nil, nil, err
		}
	}
	return repo, all, errs, nil
}

// storedDrillJSON is a record as drills --json shows it.
type storedDrillJSON struct {
	*record.Record
	Signed     bool   `json:"signed"`
	RecordedBy string `json:"recorded_by,omitempty"` // whose key of the repository has signed it
}

func (a *app) printDrills(all []*record.Stored) error {
	if a.json {
		out := []storedDrillJSON{}
		for _, r := range all {
			out = append(out, storedDrillJSON{r.Record, len(r.Signature) > 0, r.By})
		}
		return a.printJSON(map[string]any{"drills": out})
	}
	t := &table{out: a.out}
	if len(all) == 0 {
		a.note("there are no records of drills")
	}
	t.row("DOMAIN", "CHECKPOINT", "DRILLED", "VERDICT", "RESTORED IN", "BY", "SIGNED", "RECORD")
	for _, r := range all {
		took, signed := "-", "no"
		if ms := r.RTO.Restore; ms != nil {
			took = roundMS(*ms).String()
		}
		if len(r.Signature) > 0 {
			signed = "yes"
		}
		t.row(r.Domain, r.Checkpoint, shortTime(r.Begun), string(r.Verdict), took, oneLine(r.AskedBy+" on "+r.Host.Name), signed, r.UUID)
	}
	return t.print()
}

// verifiedDrill is what is found of a record.
type verifiedDrill struct {
	Domain     string       `json:"domain"`
	Checkpoint string       `json:"checkpoint"`
	UUID       string       `json:"uuid"`
	Begun      time.Time    `json:"begun"`
	Verdict    string       `json:"verdict"`
	State      record.State `json:"state"`
	Why        string       `json:"why"`
	Signed     bool         `json:"signed"`
	SignedBy   string       `json:"signed_by,omitempty"`
	Problem    string       `json:"problem,omitempty"`
}

func (a *app) verifyDrills(ctx context.Context, args []string, o verifyOptions) error {
	repo, all, broken, err := a.readDrills(ctx, args, false)
	if err != nil {
		return err
	}
	out := []verifiedDrill{}
	bad := len(broken)
	for _, r := range all {
		v, err := a.verifyDrill(ctx, repo, r, o)
		if err != nil {
			return err
		}
		if v.Problem != "" {
			bad++
		}
		out = append(out, v)
	}
	damaged := []string{}
	for _, err := range broken {
		damaged = append(damaged, err.Error())
	}
	if err := a.printVerified(out, damaged); err != nil {
		return err
	}
	if bad > 0 {
		return damageFound{fmt.Errorf("%d of %s cannot be relied on", bad, count(len(out)+len(broken), "record"))}
	}
	return nil
}

func (a *app) verifyDrill(ctx context.Context, repo *chain.Repository, r *record.Stored, o verifyOptions) (v verifiedDrill, err error) {
	v = verifiedDrill{Domain: r.Domain, Checkpoint: r.Checkpoint, UUID: r.UUID, Begun: r.Begun, Verdict: string(r.Verdict), Signed: len(r.Signature) > 0}
	v.State, v.Why, err = record.Compare(ctx, repo, r.Record)
	if archive.IsDamage(err) {
		v.State, v.Why, err = record.Contradict, "its manifest is damaged: "+err.Error(), nil
	}
	if err != nil {
		return v, err
	}
	if v.State == record.Contradict {
		v.Problem = v.Why
	}
	var notGood *record.SignatureError
	switch {
	case !v.Signed && o.signed:
		v.Problem = "it is not signed"
	case !v.Signed:
	case o.allowed == "":
		err = record.CheckSignature(r.Data, r.Signature)
	default:
		v.SignedBy, err = record.VerifySignature(ctx, o.allowed, r.Data, r.Signature)
	}
	if errors.As(err, &notGood) {
		v.Problem, err = notGood.Error(), nil
	}
	return v, err
}

func (a *app) printVerified(all []verifiedDrill, damaged []string) error {
	if a.json {
		return a.printJSON(map[string]any{"records": all, "damaged": damaged})
	}
	w := &checkedWriter{w: a.out}
	for _, v := range all {
		signed := "not signed"
		switch {
		case v.SignedBy != "":
			signed = "signed by " + v.SignedBy
		case v.Signed:
			signed = "signed (by whom, --allowed-signers tells)"
		}
		w.printf("%s  %s at %s, %s %s: %s, %s\n", v.UUID, v.Domain, v.Checkpoint, v.Verdict, shortTime(v.Begun), v.State, oneLine(signed))
		switch {
		case v.Problem != "":
			w.printf("  NOT GOOD: %s\n", oneLine(v.Problem))
		case v.State != record.Stands:
			w.printf("  %s\n", oneLine(v.Why))
		}
	}
	for _, text := range damaged {
		w.printf("DAMAGED %s\n", oneLine(text))
	}
	return w.err
}

// lastDrillJSON says when a checkpoint was drilled last, and how, as list and show have it.
type lastDrillJSON struct {
	UUID    string         `json:"uuid"`
	Begun   time.Time      `json:"begun"`
	Verdict record.Verdict `json:"verdict"`
}

// lastDrill is that of a checkpoint; nil: it was never drilled.
func lastDrill(names []record.Name, checkpoint string) *lastDrillJSON {
	n, ok := record.Last(names, checkpoint)
	if !ok {
		return nil
	}
	return &lastDrillJSON{UUID: n.UUID, Begun: n.Begun, Verdict: n.Verdict}
}

func (d *lastDrillJSON) String() string {
	return fmt.Sprintf("drilled %s: %s", d.Begun.Local().Format("2006-01-02"), d.Verdict)
}
