package store_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/ident"
)

// childEnv names the data directory to a child process.
const childEnv = "ADIT_STORE_TEST_CHILD"

// child opens tunnels as fast as it can and says which were acknowledged, until it
// is killed.
func child(dir string) int {
	s, err := store.New(store.Config{DataDir: dir, QuotaBytes: 2 << 30, Relay: store.RelayRecord{ID: "relay-1"}, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	go func() {
		if err := s.Run(ctx); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}()
	if err := s.Ready(ctx); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	var wg sync.WaitGroup
	for i := range 4 {
		key := ident.AgentKey{Team: teamA, Agent: ident.AgentID(fmt.Sprintf("gpu-%d", i))}
		wg.Go(func() {
			for ctx.Err() == nil {
				tu := tunnelOf(key, time.Now())
				r, err := s.UpdateAgent(ctx, key, open(tu))
				if err != nil {
					fmt.Fprintln(os.Stderr, err)
					return
				}
				// One write: a line is whole or missing.
				fmt.Fprintf(os.Stdout, "%s %s %d\n", key.Agent, tu.Session, r.N)
				if r.N%20 == 0 { // a record of thousands of tunnels is another test
					if _, err := s.UpdateAgent(ctx, key, func(_ time.Time, r *store.AgentRecord) (store.Effects, error) {
						clear(r.Tunnels)
						return store.Effects{}, nil
					}); err != nil {
						return
					}
				}
			}
		})
	}
	wg.Wait()
	return 0
}

// Whatever was acknowledged survives a kill at any moment.
func TestKill(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	acknowledged := map[ident.SessionID]ident.AgentID{}
	highest := map[ident.AgentID]uint64{}
	for round := range 3 {
		cmd := exec.CommandContext(t.Context(), os.Args[0])
		cmd.Env = append(os.Environ(), childEnv+"="+dir)
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := 0
		for scan := bufio.NewScanner(out); scan.Scan(); {
			var agent ident.AgentID
			var session ident.SessionID
			var n uint64
			if _, err := fmt.Sscan(scan.Text(), &agent, &session, &n); err != nil {
				continue // cut by the kill
			}
			acknowledged[session], highest[agent] = agent, max(highest[agent], n)
			if lines++; lines == 60+40*round {
				if err := cmd.Process.Signal(syscall.SIGKILL); err != nil {
					t.Fatal(err)
				}
			}
		}
		_ = cmd.Wait() // its error is the kill
		if status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || status.Signal() != syscall.SIGKILL {
			t.Fatalf("round %d: the child ended by itself: %v %s", round, cmd.ProcessState, &stderr)
		}
		if s := stderr.String(); s != "" {
			t.Fatalf("round %d: the store wrote to stderr: %s", round, s)
		}
		if lines == 0 {
			t.Fatalf("round %d: the child acknowledged nothing", round)
		}
	}
	w := &world{t: t, dir: dir}
	s := w.relay()
	missing := 0
	for session, agent := range acknowledged {
		if tu, ok := s.Tunnel(session); !ok || tu.Agent != agent {
			missing++
		}
	}
	t.Logf("%d acknowledged tunnels after 3 kills", len(acknowledged))
	if missing > 0 {
		t.Errorf("%d of %d acknowledged tunnels are gone", missing, len(acknowledged))
	}
	for agent, n := range highest {
		if r, _ := s.Agent(ident.AgentKey{Team: teamA, Agent: agent}); r.N < n {
			t.Errorf("the record of %s is at change %d, %d was acknowledged", agent, r.N, n)
		}
	}
	if r, ok := s.Relay("relay-1"); !ok || strings.TrimSpace(string(r.ID)) == "" {
		t.Error("the relay that came back is not known")
	}
}
