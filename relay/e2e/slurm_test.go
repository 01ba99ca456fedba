package e2e

import (
	"crypto/rand"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/adit-tunnel/adit/relay/e2e/world"
)

// slurm is a cluster of this one machine, with its own directories, ports and key:
// what Debian ships, without its services.
type slurm struct {
	w    *world.World
	node string
	env  []string
}

func startSlurm(w *world.World) *slurm {
	t := w.T
	t.Helper()
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	node, _, _ := strings.Cut(host, ".")
	s := &slurm{w: w, node: node}
	dir := filepath.Join(w.Dir, "slurm")
	for _, d := range []string{"state", "spool", "munge"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	key := make([]byte, 1024)
	_, _ = rand.Read(key) // never fails
	keyFile, socket := filepath.Join(dir, "munge", "key"), filepath.Join(dir, "munge", "socket")
	if err := os.WriteFile(keyFile, key, 0o400); err != nil {
		t.Fatal(err)
	}
	w.Start("munged", nil, w.Program("munged", "munge"), "--foreground", "--force", "--num-threads=2", "--key-file="+keyFile, "--socket="+socket,
		"--pid-file="+filepath.Join(dir, "munge", "pid"), "--log-file="+filepath.Join(dir, "munge", "log"), "--seed-file="+filepath.Join(dir, "munge", "seed"))
	w.Eventually(20*time.Second, "munged listens", func() bool { _, err := os.Stat(socket); return err == nil })

	conf := w.WriteFile("slurm/slurm.conf", fmt.Sprintf(`ClusterName=adit
SlurmctldHost=%[1]s(127.0.0.1)
SlurmctldPort=%[3]d
SlurmdPort=%[4]d
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=%[5]s
CredType=cred/munge
StateSaveLocation=%[2]s/state
SlurmdSpoolDir=%[2]s/spool
SlurmctldPidFile=%[2]s/slurmctld.pid
SlurmdPidFile=%[2]s/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
ReturnToService=2
MailProg=/bin/true
NodeName=%[1]s NodeAddr=127.0.0.1 CPUs=1 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
`, node, dir, w.FreePort(), w.FreePort(), socket))
	s.env = []string{"SLURM_CONF=" + conf}
	w.Start("slurmctld", s.env, w.Program("slurmctld", "slurmctld"), "-D", "-f", conf)
	w.Start("slurmd", s.env, w.Program("slurmd", "slurmd"), "-D", "-f", conf)
	w.Eventually(60*time.Second, "Slurm's node is idle", func() bool { return s.state() == "idle" })
	return s
}

// state is the node's state in Slurm's short words.
func (s *slurm) state() string {
	out, err := s.w.Try(s.env, "sinfo", "--noheader", "--Node", "--format=%T")
	if err != nil {
		return err.Error()
	}
	return strings.Trim(strings.TrimSpace(out), "*")
}

func (s *slurm) waitState(what string, want ...string) {
	s.w.T.Helper()
	s.w.Eventually(30*time.Second, what, func() bool { return slices.Contains(want, s.state()) })
}

// job is a queued job that leaves a file when it ran.
type job struct {
	s    *slurm
	id   string
	file string
}

func (s *slurm) submit(name, command string) job {
	s.w.T.Helper()
	file := filepath.Join(s.w.Dir, name+".ran")
	out := s.w.Run(s.env, "sbatch", "--parsable", "--job-name="+name, "--chdir="+s.w.Dir, "--output="+filepath.Join(s.w.Dir, name+".log"),
		"--wrap", command+"; touch '"+file+"'")
	return job{s, strings.TrimSpace(out), file}
}

func (j job) ran() bool { _, err := os.Stat(j.file); return err == nil }

func (j job) state() string {
	out, err := j.s.w.Try(j.s.env, "squeue", "--noheader", "--jobs="+j.id, "--format=%T")
	if err != nil {
		return "" // not in the queue any more
	}
	return strings.TrimSpace(out)
}

// staysQueued watches for a while, which is the test itself.
func (j job) staysQueued(what string) {
	j.s.w.T.Helper()
	for range 6 {
		<-time.After(500 * time.Millisecond)
		if st := j.state(); st != "PENDING" || j.ran() {
			j.s.w.T.Fatalf("%s: the job is %q (ran: %v), want it to stay queued", what, st, j.ran())
		}
	}
}

func (j job) runs(what string) {
	j.s.w.T.Helper()
	j.s.w.Eventually(60*time.Second, what, j.ran)
}

func TestSlurmNodeIsDrainedWhileATunnelIsOpen(t *testing.T) {
	t.Parallel()
	w := world.New(t)
	s := startSlurm(w)
	hook, err := filepath.Abs("../../configs/hooks/slurm-drain")
	if err != nil {
		t.Fatal(err)
	}
	r := w.Relay()
	a := w.Agent(r, "gpu-1", append([]string{"ADIT_HOOKS_OPENED=" + hook, "ADIT_HOOKS_CLOSED=" + hook}, s.env...)...)
	sk := r.Credential("integration", world.Team)
	open := func() {
		t.Helper()
		r.Open(sk, "gpu-1", map[string]any{"target_port": app(t, hello)})
	}
	shut := func() {
		t.Helper()
		if status, p := r.API(sk, http.MethodDelete, "/agents/gpu-1/tunnel", nil, nil); status != http.StatusOK {
			t.Fatalf("close: %d %v", status, p)
		}
	}
	s.submit("first", "true").runs("without a tunnel a job runs")

	// A running job goes on, the next one waits for the tunnel's end.
	running := s.submit("running", "sleep 4")
	w.Eventually(20*time.Second, "the job is started", func() bool { return running.state() == "RUNNING" })
	open()
	s.waitState("opening a tunnel drains the node", "draining", "drained")
	queued := s.submit("queued", "true")
	running.runs("a job that ran when the tunnel was opened goes on to its end")
	queued.staysQueued("while the tunnel is open")
	if st := s.state(); st != "drained" {
		t.Errorf("the node is %s while the tunnel is open, want drained", st)
	}
	shut()
	queued.runs("closing the tunnel resumes the node, and the queued job runs")
	s.waitState("the node is free again", "idle")

	// The same with the agent killed while the tunnel is open.
	open()
	s.waitState("the node is drained", "drained")
	a.Kill()
	queued = s.submit("queued-2", "true")
	a.Start()
	a.WaitOnline(r, sk, 20*time.Second)
	queued.staysQueued("the agent came back while the tunnel is open")
	a.Kill()
	shut()
	queued.staysQueued("the tunnel was closed while the agent is dead")
	a.Start()
	queued.runs("the agent finds at its start that the tunnel is gone, and resumes the node")
	s.waitState("the node is free again", "idle")

	// And with the agent killed in the very moment of opening: the hook may have run,
	// half or not at all.
	for i := range 3 {
		open()
		<-time.After(time.Duration(i*30) * time.Millisecond) // a different moment each time
		a.Kill()
		shut()
		a.Start()
		a.WaitOnline(r, sk, 20*time.Second)
		s.submit(fmt.Sprint("after-kill-", i), "true").runs("a crash never leaves the node drained")
	}

	// What an administrator drained is theirs.
	w.Run(s.env, "scontrol", "update", "NodeName="+s.node, "State=DRAIN", "Reason=bad fan")
	open()
	w.Eventually(15*time.Second, "the hook ran", func() bool { return strings.Contains(a.Log(), `"hook":"opened"`) })
	shut()
	w.Eventually(15*time.Second, "the other hook ran", func() bool {
		_, after, _ := strings.Cut(a.Log(), `"hook":"opened"`)
		return strings.Contains(after, `"hook":"closed"`)
	})
	s.waitState("the job before has left the node, which is drained", "drained")
	if out := w.Run(s.env, "scontrol", "show", "node", s.node); s.state() != "drained" || !strings.Contains(out, "Reason=bad fan") {
		t.Errorf("an administrator's drain is not undone by a tunnel: %s\n%s", s.state(), out)
	}
}
