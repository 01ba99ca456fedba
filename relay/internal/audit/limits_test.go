package audit_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/adit-tunnel/adit/relay/internal/audit"
	"github.com/adit-tunnel/adit/shared/ident"
)

// bubble runs a log in fake time. stop ends its Run.
func bubble(t *testing.T, cfg audit.Config, test func(t *testing.T, dir string, l *audit.Log, stop func())) {
	synctest.Test(t, func(t *testing.T) {
		cfg.Dir = t.TempDir()
		l := open(t, cfg)
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { _ = l.Run(ctx) })
		stop := func() { cancel(); wg.Wait() }
		defer stop()
		test(t, cfg.Dir, l, stop)
	})
}

func put(t *testing.T, l *audit.Log, r audit.Record) {
	t.Helper()
	if err := l.Append(t.Context(), r); err != nil {
		t.Fatal(err)
	}
}

// counted adds up what records say for themselves and for those left out.
func counted(rs []audit.Record) (written int, all uint64) {
	for _, r := range rs {
		all += r.LeftOut
		if r.LeftOut == 0 || r.RequestID != "" { // a summary is of no request
			written, all = written+1, all+1
		}
	}
	return written, all
}

func TestAFloodOfRefusalsIsCountedNotWritten(t *testing.T) {
	reg := prometheus.NewRegistry()
	bubble(t, audit.Config{Registerer: reg}, func(t *testing.T, dir string, l *audit.Log, _ func()) {
		for range 100_000 {
			put(t, l, audit.Record{Event: audit.AuthRefused, RemoteAddr: "2001:db8::9", Detail: "api: unauthenticated"})
		}
		// Meanwhile all that matters is recorded as ever, and what others do.
		put(t, l, audit.Record{Event: audit.TunnelOpened})
		put(t, l, audit.Record{Event: audit.AuthRefused, RemoteAddr: "203.0.113.10", Detail: "api: unauthenticated"})
		put(t, l, audit.Record{Event: audit.AuthRefused, RemoteAddr: "2001:db8::9", Detail: "enroll: unauthenticated"})
		time.Sleep(65 * time.Second)
		got := read(t, dir, audit.Filter{Event: audit.AuthRefused})
		if n := len(got); n != 23 || got[n-1].LeftOut != 99_980 || got[n-1].RemoteAddr != "2001:db8::9" {
			t.Errorf("%d records, the last is %+v; want 20 of the flood, one of another address, one of another door, and the count of 99980 left out", n, got[n-1])
		}
		if n := len(read(t, dir, audit.Filter{Event: audit.TunnelOpened})); n != 1 {
			t.Errorf("%d tunnels opened, want 1", n)
		}
		if problems, err := testutil.GatherAndLint(reg); err != nil || len(problems) > 0 {
			t.Errorf("metric names: %v %v", problems, err)
		}
	})
}

// An agent that connects again and again for a day leaves a few thousand records, and
// none of its connects uncounted.
func TestAConnectLoopIsCountedNotWritten(t *testing.T) {
	bubble(t, audit.Config{}, func(t *testing.T, dir string, l *audit.Log, stop func()) {
		const connects = 24 * 3600 / 5 // one in five seconds
		for i := range connects {
			for _, event := range []audit.Event{audit.AgentConnected, audit.AgentGone} {
				put(t, l, audit.Record{Event: event, Team: teamA, Agent: "gpu-1", Actor: "ak:gpu-1", Epoch: uint64(i + 1), RemoteAddr: "203.0.113.9:4711",
					RequestID: "r", Detail: "the link ended: read tcp 192.0.2.1:443: connection reset by peer"})
			}
			time.Sleep(5 * time.Second)
		}
		put(t, l, audit.Record{Event: audit.AgentConnected, Team: teamA, Agent: "gpu-2", Actor: "ak:gpu-1", RequestID: "r"})
		stop()
		bytes := size(t, dir)
		for event, others := range map[audit.Event]uint64{audit.AgentConnected: 1, audit.AgentGone: 0} {
			got := read(t, dir, audit.Filter{Event: event})
			if n, all := counted(got); all != connects+others || n > 3000 {
				t.Errorf("%s: %d records speak for %d, want all %d in fewer than 3000", event, n, all, connects+others)
			}
		}
		if got := read(t, dir, audit.Filter{Agent: "gpu-2"}); len(got) != 1 {
			t.Errorf("another agent of the same credential has %d records, want 1", len(got))
		}
		t.Logf("a connect loop writes %.2f MB a day: it would turn the default 1 GiB over in %.0f years", float64(bytes)/1e6, float64(1<<30)/float64(bytes)/365)
		if bytes > 1<<30/365 {
			t.Errorf("one agent writes %d bytes a day", bytes)
		}
	})
}

func TestTheNextRecordSaysHowManyWereLeftOut(t *testing.T) {
	bubble(t, audit.Config{}, func(t *testing.T, dir string, l *audit.Log, stop func()) {
		view := func(session ident.SessionID, from string) {
			put(t, l, audit.Record{Event: audit.TunnelViewed, Team: teamA, Session: session, Actor: "viewer", RemoteAddr: from, RequestID: "r"})
		}
		for range 25 {
			view("0123456789abcdef0123456789abcdef", "203.0.113.9")
		}
		view("0123456789abcdef0123456789abcdef", "203.0.113.10")
		view("fedcba9876543210fedcba9876543210", "203.0.113.9")
		time.Sleep(31 * time.Second)
		view("0123456789abcdef0123456789abcdef", "203.0.113.9")
		view("0123456789abcdef0123456789abcdef", "203.0.113.9") // beyond again: told at the stop
		stop()
		got := read(t, dir, audit.Filter{})
		if len(got) != 24 || got[22].LeftOut != 5 || got[23].LeftOut != 1 {
			t.Fatalf("%d records; want 20 and 2 of others, one that tells of the 5 left out, and one at the stop", len(got))
		}
		if n, all := counted(got); n != 23 || all != 29 {
			t.Errorf("%d records speak for %d views, want 23 for 29", n, all)
		}
	})
}

// Who comes from more addresses than are kept apart is still counted, and writes no
// more than all strangers together may.
func TestStrangersOfManyAddressesAreCountedToo(t *testing.T) {
	bubble(t, audit.Config{}, func(t *testing.T, dir string, l *audit.Log, stop func()) {
		const addresses = 20_000
		for i := range addresses {
			for range 3 {
				put(t, l, audit.Record{Event: audit.AuthRefused, RemoteAddr: fmt.Sprintf("2001:db8:%x:%x::1", i>>8, i&255), RequestID: "r"})
			}
		}
		put(t, l, audit.Record{Event: audit.AgentConnected, Team: teamA, Agent: "gpu-1", RequestID: "r"})
		stop()
		got := read(t, dir, audit.Filter{Event: audit.AuthRefused})
		if n, all := counted(got); n > 200 || all != 3*addresses {
			t.Errorf("%d records speak for %d refusals, want all %d in 200 at most", n, all, 3*addresses)
		}
	})
}

// A team that floods the log with what is always written, and be it for days, leaves
// the other teams' history where it is; so does one beside it.
func TestATeamsFloodLeavesTheOthersHistory(t *testing.T) {
	bubble(t, audit.Config{MaxBytes: 6000, Keep: 8}, func(t *testing.T, dir string, l *audit.Log, stop func()) {
		task := func(team ident.TeamID, n uint64) {
			put(t, l, audit.Record{Event: audit.TaskAdmitted, Team: team, Agent: "gpu-1", Fencing: n})
		}
		for i := range 20 {
			task(teamB, uint64(i))
		}
		for i := range 1000 {
			task(teamA, uint64(i))
			if i%200 == 0 {
				task(teamB, uint64(20+i/200))
				put(t, l, audit.Record{Event: audit.RelayDraining})
				time.Sleep(6 * time.Hour)
			}
		}
		stop()
		if got := read(t, dir, audit.Filter{Team: teamB}); len(got) != 25 || got[0].Fencing != 0 {
			t.Errorf("%d records of the quiet team are left, want all 25", len(got))
		}
		all := read(t, dir, audit.Filter{})
		if !slices.IsSortedFunc(all, func(a, b audit.Record) int { return int(a.Seq) - int(b.Seq) }) {
			t.Error("the records are read in the order in which they were written")
		}
		if last := all[len(all)-1]; last.Seq != 1030 || last.Fencing != 999 {
			t.Errorf("the newest record is of the flood, it is %+v", last)
		}
		if got := read(t, dir, audit.Filter{Event: audit.RelayDraining}); len(got) != 5 {
			t.Errorf("%d records of the relay itself are left, want 5", len(got))
		}
		files, _ := filepath.Glob(filepath.Join(dir, "*.jsonl"))
		if len(files) != 8 || size(t, dir) > 8*6000 {
			t.Errorf("%d files of %d bytes, want 8 of 48000 at most", len(files), size(t, dir))
		}
		// It goes on where it was, in both lanes.
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		l = open(t, audit.Config{Dir: dir, MaxBytes: 6000, Keep: 8})
		task(teamB, 100)
		if all = read(t, dir, audit.Filter{}); all[len(all)-1].Seq != 1031 {
			t.Errorf("after a restart the count goes on at %d, want 1031", all[len(all)-1].Seq)
		}
	})
}

// size is how many bytes there are of the log.
func size(t *testing.T, dir string) (n int64) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		info, err := os.Stat(f)
		if err != nil {
			t.Fatal(err)
		}
		n += info.Size()
	}
	return n
}
