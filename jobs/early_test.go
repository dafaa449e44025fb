// SPDX-License-Identifier: Apache-2.0

package jobs

import (
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/imgbackup/imgbackup/config"
)

// clonedBackup is a backup that clones: it gives the images up, and ends only when the VM runs again, or would have long since.
const clonedBackup = `
cd "$1"
echo backup >>done
[ "$(cat vm)" = off ] || { echo 'imgbackup: it is in use' >&2; exit 5; }
echo '{"event":"step","step":"clone"}' >&3
if [ "$(cat vm)" = on ]; then echo early >>done; fi
echo '{"event":"step","step":"released"}' >&3
i=0
while [ "$(cat vm)" != on ] && [ $i -lt 600 ]; do i=$((i+1)); sleep 0.1; done
echo "read while it is $(cat vm)" >>done
echo 'imgbackup: the store is away' >&2
exit $2
`

// A VM whose images are cloned is started as soon as they are given up, while the backup goes on; and stays on, whatever comes
// of that, which is told.
func TestStartedWhileClonesAreRead(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		clone, ends string
		status      int
	}{{"always", "0", 0}, {"auto", "3", 3}} {
		v := newVM(t)
		o := options(v.dir)
		job := o.Config.Jobs["vms"]
		job.Backup = config.Backup{Clone: c.clone}
		o.Config.Jobs["vms"] = job
		o.Self = func(args ...string) *exec.Cmd {
			if !strings.Contains(strings.Join(args, " "), "--clone "+c.clone) {
				t.Errorf("the backup is %q", args)
			}
			return exec.Command("sh", "-c", clonedBackup, "backup", v.dir, c.ends)
		}
		r, err := Execute(t.Context(), o, "vms")
		if err != nil || r.Status != c.status {
			t.Fatalf("%s: %+v, %v", c.clone, r, err)
		}
		if done := v.text("done"); v.text("vm") != "on" || v.noted() || !strings.Contains(done, "read while it is on") ||
			strings.Contains(done, "early") || strings.Count(done, "start") != 1 {
			t.Errorf("%s: the VM is %s, noted %v, after %s", c.clone, v.text("vm"), v.noted(), done)
		}
		var what []string
		for _, s := range r.Steps {
			what = append(what, s.What)
			if s.What == StepBackup && (s.Status != c.status || s.Status != 0 && !strings.Contains(s.Error, "the store is away")) {
				t.Errorf("the backup: %+v", s)
			}
		}
		if slices.Sort(what); !slices.Equal(what, []string{StepBackup, StepShutdown, StepStart}) {
			t.Errorf("the steps are %q", what)
		}
	}
}
