package audit_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/adit-tunnel/adit/relay/internal/audit"
	"github.com/adit-tunnel/adit/shared/ident"
)

const (
	teamA = ident.TeamID("0b9d3d9e-64cf-4d2b-9f3c-0e1a3a5b0001")
	teamB = ident.TeamID("0b9d3d9e-64cf-4d2b-9f3c-0e1a3a5b0002")
)

func open(t testing.TB, cfg audit.Config) *audit.Log {
	t.Helper()
	if cfg.Dir == "" {
		cfg.Dir = t.TempDir()
	}
	if cfg.Relay == "" {
		cfg.Relay = "relay-1.example"
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	l, err := audit.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

func read(t testing.TB, dir string, f audit.Filter) []audit.Record {
	t.Helper()
	var out []audit.Record
	for rec, err := range audit.Read(dir, f) {
		if err != nil {
			t.Fatalf("read: %v", err)
		}
		out = append(out, rec)
	}
	return out
}

func tasks(rs []audit.Record) string {
	var out []string
	for _, r := range rs {
		out = append(out, string(r.Task))
	}
	return strings.Join(out, " ")
}

func TestAppendedRecordIsOnDiskWithEveryField(t *testing.T) {
	dir := t.TempDir()
	l := open(t, audit.Config{Dir: dir, Relay: "r1"})
	want := audit.Record{Event: audit.TaskAdmitted, Actor: "sk:ci", Team: teamA, Agent: "gpu-1", Session: "0123456789abcdef0123456789abcdef",
		Task: "task-1", Fencing: 7, Epoch: 3, Revision: 99, Detail: "train <b>", RequestID: "req-1", RemoteAddr: "203.0.113.9:4711"}
	if err := l.Append(t.Context(), want); err != nil {
		t.Fatal(err)
	}
	got := read(t, dir, audit.Filter{})
	if len(got) != 1 {
		t.Fatalf("%d records, want 1", len(got))
	}
	if d := time.Since(got[0].Time); d < 0 || d > time.Minute || got[0].Time.Location() != time.UTC {
		t.Errorf("time is %v", got[0].Time)
	}
	want.Time, want.Relay, want.Seq = got[0].Time, "r1", 1
	if got[0] != want {
		t.Errorf("got  %+v\nwant %+v", got[0], want)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if info, err := e.Info(); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v (%v), want 0600", e.Name(), info.Mode(), err)
		}
	}
}

func TestUnknownEventIsRefused(t *testing.T) {
	if err := open(t, audit.Config{}).Append(t.Context(), audit.Record{Event: "made_up"}); err == nil {
		t.Error("an event outside the list was recorded")
	}
}

func TestConcurrentAppendsShareSyncsAndKeepOrder(t *testing.T) {
	dir, reg := t.TempDir(), prometheus.NewRegistry()
	l := open(t, audit.Config{Dir: dir, Registerer: reg})
	var wg sync.WaitGroup
	for g := range 32 {
		wg.Go(func() {
			for i := range 20 {
				if err := l.Append(t.Context(), audit.Record{Event: audit.TaskRenewed, Agent: ident.AgentID(fmt.Sprint("a", g)), Fencing: uint64(i)}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	next := make(map[ident.AgentID]uint64)
	got := read(t, dir, audit.Filter{})
	for i, r := range got {
		if r.Seq != uint64(i+1) {
			t.Fatalf("record %d has seq %d", i, r.Seq)
		}
		if r.Fencing != next[r.Agent] {
			t.Fatalf("agent %s: record %d comes where %d should", r.Agent, r.Fencing, next[r.Agent])
		}
		next[r.Agent]++
	}
	if len(got) != 640 {
		t.Errorf("%d records, want 640", len(got))
	}
	syncs, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range syncs {
		if f.GetName() == "adit_relay_audit_write_seconds" {
			n := f.GetMetric()[0].GetHistogram().GetSampleCount()
			t.Logf("640 appends of 32 callers took %d syncs", n)
			if n == 0 || n >= 640 {
				t.Errorf("%d syncs for 640 concurrent appends: they are not shared", n)
			}
		}
	}
}

func TestRotationKeepsOrderAndTheNewestFiles(t *testing.T) {
	dir := t.TempDir()
	l := open(t, audit.Config{Dir: dir, MaxBytes: 1000, Keep: 3})
	for i := range 60 {
		if err := l.Append(t.Context(), audit.Record{Event: audit.TaskAdmitted, Fencing: uint64(i)}); err != nil {
			t.Fatal(err)
		}
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.jsonl"))
	if err != nil || len(files) != 3 {
		t.Fatalf("%d files (%v), want 3", len(files), err)
	}
	for _, f := range files {
		if info, err := os.Stat(f); err != nil || info.Size() > 1000 {
			t.Errorf("%s: %v, %v: larger than allowed", f, info, err)
		}
	}
	got := read(t, dir, audit.Filter{})
	for i, r := range got {
		if want := uint64(60 - len(got) + i); r.Fencing != want {
			t.Fatalf("record %d is number %d, want %d: the newest ones, in order", i, r.Fencing, want)
		}
	}
	if len(got) < 8 {
		t.Errorf("only %d records kept", len(got))
	}
}

func TestOpenRepairsATornLineAndGoesOnCounting(t *testing.T) {
	for name, tail := range map[string]string{
		"half a record":                      `{"time":"2026-01-01T00:00:00Z","relay":"r1","seq":4,"eve`,
		"zeros":                              strings.Repeat("\x00", 5000),
		"a whole record without its newline": `{"time":"2026-01-01T00:00:00Z","relay":"r1","seq":4,"event":"task_admitted"}`,
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			l := open(t, audit.Config{Dir: dir, Relay: "r1"})
			for i := range 3 {
				if err := l.Append(t.Context(), audit.Record{Event: audit.TaskAdmitted, Task: ident.TaskID(fmt.Sprint(i))}); err != nil {
					t.Fatal(err)
				}
			}
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			files, _ := filepath.Glob(filepath.Join(dir, "*.jsonl"))
			f, err := os.OpenFile(files[0], os.O_APPEND|os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := f.WriteString(tail); err != nil {
				t.Fatal(err)
			}
			f.Close()
			if got := tasks(read(t, dir, audit.Filter{})); got != "0 1 2" {
				t.Errorf("before the repair one reads %q, want the complete records", got)
			}
			l = open(t, audit.Config{Dir: dir, Relay: "r1"})
			if err := l.Append(t.Context(), audit.Record{Event: audit.TaskAdmitted, Task: "3"}); err != nil {
				t.Fatal(err)
			}
			got := read(t, dir, audit.Filter{})
			if tasks(got) != "0 1 2 3" || got[3].Seq != 4 {
				t.Errorf("after the repair: %q, newest seq %d", tasks(got), got[len(got)-1].Seq)
			}
		})
	}
}

func TestDamageInTheMiddleIsReportedAndPassedOver(t *testing.T) {
	dir := t.TempDir()
	l := open(t, audit.Config{Dir: dir, Relay: "r1"})
	appendTask := func(task string) {
		if err := l.Append(t.Context(), audit.Record{Event: audit.TaskAdmitted, Task: ident.TaskID(task)}); err != nil {
			t.Fatal(err)
		}
	}
	appendTask("0")
	files, _ := filepath.Glob(filepath.Join(dir, "*.jsonl"))
	f, err := os.OpenFile(files[0], os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(f, "garbage\n%s\n", strings.Repeat("x", 200_000))
	f.Close()
	appendTask("1")
	var lines []int
	var got []audit.Record
	for rec, err := range audit.Read(dir, audit.Filter{}) {
		if bad, ok := errors.AsType[*audit.LineError](err); ok {
			lines = append(lines, bad.Line)
			continue
		}
		got = append(got, rec)
	}
	if tasks(got) != "0 1" || !slices.Equal(lines, []int{2, 3}) {
		t.Errorf("read %q and damage in lines %v, want 0 1 and 2, 3", tasks(got), lines)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l = open(t, audit.Config{Dir: dir, Relay: "r1"})
	appendTask("2")
}

func TestTheDirectoryHasOneWriterPerRelay(t *testing.T) {
	dir := t.TempDir()
	open(t, audit.Config{Dir: dir, Relay: "r1"})
	if _, err := audit.Open(audit.Config{Dir: dir, Relay: "r1", Logger: slog.New(slog.DiscardHandler)}); err == nil {
		t.Error("the same log was opened twice")
	}
	open(t, audit.Config{Dir: dir, Relay: "r2"})
	if _, err := audit.Open(audit.Config{Dir: dir, Relay: "../r3", Logger: slog.New(slog.DiscardHandler)}); err == nil {
		t.Error("a relay id that is a path was accepted")
	}
}

func TestFilters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		l1, l2 := open(t, audit.Config{Dir: dir, Relay: "r1", MaxBytes: 300, Keep: 100}), open(t, audit.Config{Dir: dir, Relay: "r2"})
		start := time.Now()
		const session = ident.SessionID("0123456789abcdef0123456789abcdef")
		for i, r := range []audit.Record{
			{Event: audit.TunnelOpened, Team: teamA, Agent: "gpu-1", Session: session},
			{Event: audit.TaskAdmitted, Team: teamA, Agent: "gpu-1"},
			{Event: audit.TaskAdmitted, Team: teamB, Agent: "gpu-1"},
			{Event: audit.TunnelClosed, Team: teamA, Agent: "gpu-1", Session: session},
			{Event: audit.TaskReleased, Team: teamA, Agent: "gpu-10"},
		} {
			l := []*audit.Log{l1, l2}[i%2]
			r.Task = ident.TaskID(fmt.Sprint(i))
			if err := l.Append(t.Context(), r); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Minute)
		}
		for _, c := range []struct {
			f    audit.Filter
			want string
		}{
			{audit.Filter{}, "0 1 2 3 4"},
			{audit.Filter{Team: teamA}, "0 1 3 4"},
			{audit.Filter{Agent: "gpu-1"}, "0 1 2 3"},
			{audit.Filter{Session: session}, "0 3"},
			{audit.Filter{Task: "2"}, "2"},
			{audit.Filter{Relay: "r2"}, "1 3"},
			{audit.Filter{Relay: "r3"}, ""},
			{audit.Filter{Since: start.Add(2 * time.Minute)}, "2 3 4"},
			{audit.Filter{Since: start.Add(time.Minute), Until: start.Add(3 * time.Minute)}, "1 2"},
			{audit.Filter{Event: audit.TaskReleased}, "4"},
			{audit.Filter{Team: teamA, Agent: "gpu-1", Event: audit.TaskAdmitted}, "1"},
		} {
			if got := tasks(read(t, dir, c.f)); got != c.want {
				t.Errorf("%+v: got %q, want %q", c.f, got, c.want)
			}
		}
		for range audit.Read(dir, audit.Filter{}) {
			break // leaves no reader behind (goleak)
		}
	})
}

func TestReadSkipsFilesWrittenBeforeSince(t *testing.T) {
	dir := t.TempDir()
	l := open(t, audit.Config{Dir: dir, Relay: "r1"})
	if err := l.Append(t.Context(), audit.Record{Event: audit.TaskAdmitted, Task: "1"}); err != nil {
		t.Fatal(err)
	}
	if got := read(t, dir, audit.Filter{Since: time.Now().Add(-time.Hour)}); len(got) != 1 {
		t.Errorf("%d records of the last hour, want 1", len(got))
	}
	if got := read(t, dir, audit.Filter{Since: time.Now().Add(time.Hour)}); len(got) != 0 {
		t.Errorf("%d records of the future", len(got))
	}
}

func TestEventsNobodyWaitsForAreWrittenWithinASecondAndOnClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		l := open(t, audit.Config{Dir: dir})
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { _ = l.Run(ctx) })
		must := func(task string) {
			if err := l.Append(t.Context(), audit.Record{Event: audit.AgentConnected, Task: ident.TaskID(task)}); err != nil {
				t.Fatal(err)
			}
		}
		must("1")
		if got := read(t, dir, audit.Filter{}); len(got) != 0 {
			t.Errorf("an event that nobody waits for was synced at once")
		}
		time.Sleep(1100 * time.Millisecond)
		if got := tasks(read(t, dir, audit.Filter{})); got != "1" {
			t.Errorf("after a second the log has %q, want 1", got)
		}
		must("2")
		n := 0
		for range l.Read(audit.Filter{}) {
			n++
		}
		if n != 2 {
			t.Errorf("the log's own reader sees %d records, want what was appended before: 2", n)
		}
		must("3")
		cancel()
		wg.Wait()
		must("4")
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		if got := tasks(read(t, dir, audit.Filter{})); got != "1 2 3 4" {
			t.Errorf("after closing the log has %q", got)
		}
		if err := l.Append(t.Context(), audit.Record{Event: audit.AgentConnected}); !errors.Is(err, audit.ErrClosed) {
			t.Errorf("append after close: %v", err)
		}
	})
}

func TestNoSecretAndNoEndlessTextGetsIn(t *testing.T) {
	dir := t.TempDir()
	l := open(t, audit.Config{Dir: dir})
	canary := ident.NewSecret(ident.PrefixIntegration).Reveal()
	jwt := "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJjYW5hcnktY2FuYXJ5In0.c2lnbmF0dXJlLWNhbmFyeQ"
	segment := string(ident.ClusterKey{1}.Segment("0123456789abcdef0123456789abcdef"))
	for _, s := range []string{canary, "Authorization: Bearer " + canary, jwt, "GET /tunnel/" + segment + "/x", strings.Repeat("long ", 100_000)} {
		r := audit.Record{Event: audit.TaskAdmitted, Actor: s, Agent: ident.AgentID(s), Session: ident.SessionID(s), Task: ident.TaskID(s), Detail: s,
			RequestID: ident.RequestID(s), RemoteAddr: s}
		if err := l.Append(t.Context(), r); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Append(t.Context(), audit.Record{Event: audit.TaskAdmitted, Actor: "sk:ci runner", Detail: "user:alice dk:bob/laptop \xff\x00"}); err != nil {
		t.Fatal(err)
	}
	files, _ := filepath.Glob(filepath.Join(dir, "*.jsonl"))
	b, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	for _, secret := range []string{canary, canary[8:], "c2lnbmF0dXJl", segment[33:]} {
		if bytes.Contains(b, []byte(secret)) {
			t.Errorf("the log holds the secret %q", secret)
		}
	}
	if len(b) > 40_000 {
		t.Errorf("the log has %d bytes: long texts are not cut", len(b))
	}
	got := read(t, dir, audit.Filter{})
	if last := got[len(got)-1]; last.Actor != "sk:ci runner" || !strings.HasPrefix(last.Detail, "user:alice dk:bob/laptop ") {
		t.Errorf("ordinary names were cut: %+v", last)
	}
}

func TestAppendEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	gone := errors.New("the caller is gone")
	cancel(gone)
	l := open(t, audit.Config{})
	// Either the turn was free and the record is written, or the caller is told.
	if err := l.Append(ctx, audit.Record{Event: audit.TaskAdmitted}); err != nil && !errors.Is(err, gone) {
		t.Errorf("append: %v", err)
	}
}

func BenchmarkAppend(b *testing.B) {
	for _, callers := range []int{1, 8, 64} {
		b.Run(fmt.Sprint("callers=", callers), func(b *testing.B) {
			l := open(b, audit.Config{})
			b.SetParallelism(max(1, callers/2))
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if err := l.Append(context.Background(), audit.Record{Event: audit.TaskAdmitted, Actor: "sk:ci", Team: teamA, Agent: "gpu-1", Task: "task-1", Fencing: 7}); err != nil {
						b.Error(err)
					}
				}
			})
		})
	}
}

func BenchmarkRead(b *testing.B) {
	dir := b.TempDir()
	l := open(b, audit.Config{Dir: dir})
	for range 50_000 {
		if err := l.Append(b.Context(), audit.Record{Event: audit.AgentConnected, Team: teamA, Agent: "gpu-1"}); err != nil {
			b.Fatal(err)
		}
	}
	if err := l.Close(); err != nil {
		b.Fatal(err)
	}
	for _, f := range []audit.Filter{{}, {Agent: "gpu-2"}} {
		b.Run(fmt.Sprintf("agent=%q", f.Agent), func(b *testing.B) {
			for b.Loop() {
				for range audit.Read(dir, f) {
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/50_000, "ns/record")
		})
	}
}
