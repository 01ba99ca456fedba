package cli_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"unicode"

	"github.com/adit-tunnel/adit/agent/internal/fakerelay"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/testkit"
	"github.com/adit-tunnel/adit/shared/wire"
)

// A relay that is hostile does not steer the terminal of who looks at the agent:
// neither by what tunnels are called, nor by why it refuses.
func TestARelayDoesNotSteerTheTerminal(t *testing.T) {
	const title = "lab\x1b]0;owned\a\u009b2J\u202eel"
	relay := fakerelay.Start(t)
	relay.SetTunnels(wire.TunnelNotice{Session: "0123456789abcdef0123456789abcdef", Port: 8188, Protocol: "http", Label: title, OpenedBy: title})
	dir, err := os.MkdirTemp("", "adit") //nolint:usetesting // a socket's path must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	command := func(out *bytes.Buffer, args ...string) *exec.Cmd {
		cmd := exec.CommandContext(t.Context(), self, args...)
		cmd.Env = append(os.Environ(), "ADIT_TEST_CLI=1", "GORACE="+noRaceWait, "ADIT_RELAY_URL="+relay.URL, "ADIT_AGENT_ID=box", "ADIT_CREDENTIAL="+fakerelay.Token.Reveal(),
			"ADIT_STATE_DIR="+filepath.Join(dir, "state"), "ADIT_LOCAL_SOCKET="+filepath.Join(dir, "s"), "ADIT_METRICS_LISTEN=127.0.0.1:0", "ADIT_LOG_FORMAT=text")
		cmd.Stdout, cmd.Stderr = out, out
		return cmd
	}
	var log bytes.Buffer
	agent := command(&log, "run")
	if err := agent.Start(); err != nil {
		t.Fatal(err)
	}
	shown := map[string]string{}
	run := func(args ...string) string {
		var out bytes.Buffer
		_ = command(&out, args...).Run() // what it prints is looked at, however it ends
		shown[strings.Join(args, " ")] = out.String()
		return out.String()
	}
	testkit.Eventually(t, "the agent lists the relay's tunnel", func() bool { return strings.Contains(run("status"), "port 8188") })
	if got := shown["status"]; strings.Count(got, "lab?]0;owned??2J?el") != 2 {
		t.Errorf("label and name are shown, but for what steers: %q", got)
	}
	if got := run("status", "--json"); !strings.Contains(got, `lab\u001b]0;owned\u0007\u009b2J\u202eel`) {
		t.Errorf("the document says the label, escaped: %q", got)
	}
	relay.Refuse(func() *api.Problem { return api.NewProblem(api.CodeForbidden, title) })
	if got := run("doctor"); !strings.Contains(got, "lab?]0;owned??2J?el") {
		t.Errorf("doctor shows the relay's refusal, but for what steers: %q", got)
	}
	run("doctor", "--json")
	if err := agent.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = agent.Wait()
	shown["run"] = log.String()
	for what, out := range shown {
		for _, r := range out {
			if r != '\n' && (unicode.IsControl(r) || unicode.Is(unicode.Cf, r)) {
				t.Errorf("%s prints %U: %q", what, r, out)
				break
			}
		}
	}
}
