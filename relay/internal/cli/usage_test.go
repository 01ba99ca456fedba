package cli

import (
	"net"
	"path/filepath"
	"strings"
	"testing"

	"github.com/adit-tunnel/adit/shared/testkit"
)

func TestMain(m *testing.M) { testkit.LeakCheck(m) }

func TestWrongUsageSaysWhatIsRight(t *testing.T) {
	for line, want := range map[string]string{
		"frob":                 `adit-relay has no command "frob"`,
		"tema list":            "did you mean adit-relay team?",
		"team frob":            `adit-relay team has no command "frob"`,
		"store":                "adit-relay store needs one of its commands: backup, move, restore",
		"credential revoke":    "adit-relay credential revoke needs ID",
		"store backup a b":     `adit-relay store backup takes FILE and no more, but got "b" too`,
		"version now":          `adit-relay version takes no arguments, but got "now"`,
		"status --nonsense":    "unknown flag: --nonsense",
		"diag a.tar.gz b.html": `takes [FILE] and no more`,
	} {
		var out, err strings.Builder
		if code := run(t.Context(), strings.Fields(line), &out, &err); code != exitUsage || out.Len() > 0 || !strings.Contains(err.String(), want) || !strings.Contains(err.String(), "hint: ") {
			t.Errorf("adit-relay %s: exit %d and %q, expected %d and %q with a hint", line, code, err.String(), exitUsage, want)
		}
	}
	var out, err strings.Builder
	if code := run(t.Context(), nil, &out, &err); code != exitDone || !strings.Contains(out.String(), "Available Commands") {
		t.Errorf("adit-relay alone: exit %d and %q, expected its help", code, out.String())
	}
}

func TestASocketWithoutARelaySaysWhatToDo(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "admin.sock")
	status := func() string {
		var out, err strings.Builder
		if code := run(t.Context(), []string{"status", "--socket", socket}, &out, &err); code != exitFault {
			t.Errorf("exit %d, expected %d", code, exitFault)
		}
		return err.String()
	}
	if got := status(); !strings.Contains(got, "no admin socket at "+socket) {
		t.Errorf("without a socket: %q", got)
	}
	ln, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	ln.(*net.UnixListener).SetUnlinkOnClose(false)
	if err := ln.Close(); err != nil { // as a relay that was killed leaves it
		t.Fatal(err)
	}
	if got := status(); !strings.Contains(got, "nobody answers at the admin socket "+socket) || !strings.Contains(got, "start it") {
		t.Errorf("with a socket that a dead relay left: %q", got)
	}
}
