package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// runHook runs an example hook with a made-up tool in place of the scheduler's, and
// returns what the tool was asked to change.
func runHook(t *testing.T, hook, event, tool, script string, args ...string) []string {
	t.Helper()
	dir := t.TempDir()
	calls := filepath.Join(dir, "calls")
	if err := os.WriteFile(filepath.Join(dir, tool), []byte("#!/bin/sh\n"+script+"\necho \"$*\" >> '"+calls+"'\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("../../configs/hooks/"+hook, args...)
	cmd.Env = append(os.Environ(), "PATH="+dir+":"+os.Getenv("PATH"), "ADIT_EVENT="+event, "NODE_NAME=gpu-1")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s on %s: %v\n%s", hook, event, err, out)
	}
	b, err := os.ReadFile(calls)
	if err != nil {
		return nil
	}
	return strings.Split(strings.TrimSpace(string(b)), "\n")
}

func TestKubernetesHook(t *testing.T) {
	t.Parallel()
	node := func(unschedulable, mark string) string {
		return `case $* in
*unschedulable*) printf '` + unschedulable + `'; exit ;;
*annotations*) printf '` + mark + `'; exit ;;
esac`
	}
	const annotate, cordon = "annotate --overwrite node gpu-1 adit.dev/cordoned=true", "cordon gpu-1"
	for name, c := range map[string]struct {
		event, tool string
		want        []string
	}{
		"opened":                            {"opened", node("", ""), []string{annotate, cordon}},
		"opened again":                      {"opened", node("true", "true"), []string{annotate, cordon}},
		"opened on an administrator's node": {"opened", node("true", ""), nil},
		"closed":                            {"closed", node("true", "true"), []string{"uncordon gpu-1", "annotate node gpu-1 adit.dev/cordoned-"}},
		"closed on an administrator's node": {"closed", node("true", ""), nil},
	} {
		if got := runHook(t, "kubectl-cordon", c.event, "kubectl", c.tool); strings.Join(got, "\n") != strings.Join(c.want, "\n") {
			t.Errorf("%s: kubectl was asked for %q, want %q", name, got, c.want)
		}
	}
}

func TestUnitHooks(t *testing.T) {
	t.Parallel()
	loaded, masked := `case $1 in show) echo loaded; exit ;; esac`, `case $1 in show) echo masked; exit ;; esac`
	for hook, args := range map[string][]string{"systemctl-stop": {"batch.service"}, "ray-worker": nil} {
		unit := "ray-worker.service"
		if len(args) > 0 {
			unit = args[0]
		}
		if got := runHook(t, hook, "opened", "systemctl", loaded, args...); strings.Join(got, "\n") != "stop "+unit {
			t.Errorf("%s, opened: %q", hook, got)
		}
		if got := runHook(t, hook, "closed", "systemctl", loaded, args...); strings.Join(got, "\n") != "start "+unit {
			t.Errorf("%s, closed: %q", hook, got)
		}
		if got := runHook(t, hook, "closed", "systemctl", masked, args...); got != nil {
			t.Errorf("%s, closed while the unit is masked: %q, want it left alone", hook, got)
		}
	}
}
