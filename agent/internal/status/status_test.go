package status_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/adit-tunnel/adit/agent/internal/status"
	"github.com/adit-tunnel/adit/shared/testkit"
	"github.com/adit-tunnel/adit/shared/wire"
)

func TestMain(m *testing.M) { testkit.LeakCheck(m) }

func board(t *testing.T, path string) *status.Board {
	t.Helper()
	b := status.NewBoard(path)
	if err := b.Load(); err != nil {
		t.Fatal(err)
	}
	return b
}

func TestStateSurvivesRestart(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.json")
	b := board(t, path)
	changed, cancel := b.Subscribe()
	defer cancel()
	percent := 12.5
	if err := errors.Join(b.SetPaused(true), b.Declare("syncing", "models", &percent)); err != nil {
		t.Fatal(err)
	}
	select {
	case <-changed:
	default:
		t.Error("a subscriber did not hear of the change")
	}
	again := board(t, path).State()
	if !again.Paused || again.SyncPhase != "syncing" || again.SyncDetail != "models" || *again.SyncPercent != 12.5 {
		t.Errorf("after a restart the state is %+v", again)
	}
	if err := b.Declare("IDLE", "nothing", &percent); err != nil {
		t.Fatal(err)
	}
	if s := b.State(); s.SyncPhase != "" || s.SyncDetail != "" || s.SyncPercent != nil || !s.Paused {
		t.Errorf("idle left %+v", s)
	}
}

func TestRebootEndsDeclaredPhaseButNotThePause(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.json")
	if err := os.WriteFile(path, []byte(`{"boot_id":"another","state":{"sync_phase":"syncing","paused":true}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if s := board(t, path).State(); s.SyncPhase != "" || !s.Paused {
		t.Errorf("after a reboot the state is %+v", s)
	}
}

func TestUnreadableStateCountsAsPaused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.json")
	if err := os.WriteFile(path, []byte(`{"state":{"pau`), 0o600); err != nil {
		t.Fatal(err)
	}
	b := status.NewBoard(path)
	if err := b.Load(); err == nil || !b.Paused() {
		t.Errorf("a broken state file gives %v, paused %v", err, b.Paused())
	}
}

func TestPauseHoldsEvenWhenItCannotBeSaved(t *testing.T) {
	b := status.NewBoard(filepath.Join(t.TempDir(), "missing", "state.json"))
	if err := b.SetPaused(true); err == nil || !b.Paused() {
		t.Errorf("error %v, paused %v", err, b.Paused())
	}
}

func TestDeclareRefuses(t *testing.T) {
	b := board(t, filepath.Join(t.TempDir(), "state.json"))
	for _, p := range []float64{-1, 100.1, math.NaN(), math.Inf(1)} {
		if err := b.Declare("syncing", "", &p); !errors.Is(err, status.ErrInvalid) {
			t.Errorf("percent %v gives %v", p, err)
		}
	}
	if err := b.Declare(strings.Repeat("x", 100), "", nil); !errors.Is(err, status.ErrInvalid) {
		t.Errorf("a long phase gives %v", err)
	}
}

// observer has a machine with a fake nvidia-smi and a fake ComfyUI.
func observer(t *testing.T, b *status.Board, smi, comfy string, health ...string) *status.Observer {
	t.Helper()
	return status.NewObserver(status.ObserverConfig{
		Board: b, ComfyUI: []string{"http://127.0.0.1:1", comfy}, Health: health, NvidiaSMI: smi,
		Interval: 20 * time.Millisecond, Logger: testkit.Logger(t), Registerer: prometheus.NewRegistry(),
	})
}

func script(t *testing.T, body string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "nvidia-smi")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+body), 0o700); err != nil {
		t.Fatal(err)
	}
	return path
}

const systemStats = `{"system":{"os":"posix","comfyui_version":"0.3.40","pytorch_version":"2.7.0+cu128"},
"devices":[{"name":"cuda:0 NVIDIA L4","type":"cuda","vram_total":23622320128,"vram_free":2e10},{"name":"cpu","type":"cpu"}]}`

func TestFacts(t *testing.T) {
	comfy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/system_stats" {
			http.NotFound(w, r)
			return
		}
		fmt.Fprint(w, systemStats)
	}))
	defer comfy.Close()
	b := board(t, filepath.Join(t.TempDir(), "state.json"))
	smi := script(t, `[ "$1" = --query-gpu=name,memory.total,memory.free ] && echo 'NVIDIA A100, 81920, 80000
NVIDIA A100, "81920", [N/A]'`)
	observer(t, b, smi, comfy.URL).Observe(t.Context())
	f := b.Facts()
	if len(f.GPUs) != 2 || f.GPUs[0] != (wire.GPU{Name: "NVIDIA A100", Type: "cuda", VRAMTotal: 81920 << 20, VRAMFree: 80000 << 20}) || f.GPUs[1].VRAMFree != 0 {
		t.Errorf("the GPUs are %+v", f.GPUs)
	}
	if f.Tool != "comfyui" || f.ToolVersion != "0.3.40" || f.ComfyUIVersion != "0.3.40" || f.PyTorchVersion != "2.7.0+cu128" || f.OSType != "posix" {
		t.Errorf("the facts are %+v", f)
	}
	// Without nvidia-smi, ComfyUI knows its devices.
	observer(t, b, "/does/not/exist", comfy.URL).Observe(t.Context())
	if f := b.Facts(); len(f.GPUs) != 1 || f.GPUs[0].Name != "cuda:0 NVIDIA L4" || f.GPUs[0].VRAMFree != 2e10 {
		t.Errorf("ComfyUI's GPUs are %+v", f.GPUs)
	}
	// With neither, nothing is invented.
	observer(t, b, "/does/not/exist", "http://127.0.0.1:1").Observe(t.Context())
	if f := b.Facts(); len(f.GPUs) != 0 || f.Tool != "" || f.OSType != "" {
		t.Errorf("a bare machine has %+v", f)
	}
}

func TestStrangeAnswers(t *testing.T) {
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"hello":1}`) }))
	defer other.Close()
	b := board(t, filepath.Join(t.TempDir(), "state.json"))
	for _, smi := range []string{"echo 'NVIDIA-SMI has failed'; exit 9", "echo one,two", "echo garbage; echo 'a,b,c,d'"} {
		observer(t, b, script(t, smi), other.URL).Observe(t.Context())
		if f := b.Facts(); len(f.GPUs) != 0 || f.Tool != "" {
			t.Errorf("%q gave %+v", smi, f)
		}
	}
}

func TestHealth(t *testing.T) {
	var sick atomic.Bool
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if sick.Load() {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}))
	defer app.Close()
	b := board(t, filepath.Join(t.TempDir(), "state.json"))
	changed, cancelSub := b.Subscribe()
	defer cancelSub()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	o := observer(t, b, "/does/not/exist", "http://127.0.0.1:1", app.URL+"/ok")
	go func() { defer close(done); _ = o.Run(ctx) }()
	defer func() { cancel(); <-done }()
	sick.Store(true)
	testkit.Eventually(t, "the failing check is named", func() bool {
		u := b.Facts().Unhealthy
		return strings.Contains(u, app.URL) && strings.Contains(u, "503")
	})
	select {
	case <-changed:
	default:
		t.Error("a subscriber did not hear that the machine is unhealthy")
	}
	sick.Store(false)
	testkit.Eventually(t, "the machine is healthy again", func() bool { return b.Facts().Unhealthy == "" })
}

func TestFreeMemoryAloneIsNoNews(t *testing.T) {
	b := board(t, filepath.Join(t.TempDir(), "state.json"))
	b.Update(func(f *wire.Facts) { f.GPUs = []wire.GPU{{Name: "a", VRAMFree: 1}} })
	changed, cancel := b.Subscribe()
	defer cancel()
	b.Update(func(f *wire.Facts) { f.GPUs = []wire.GPU{{Name: "a", VRAMFree: 2}} })
	select {
	case <-changed:
		t.Error("free memory that changes wakes the link")
	default:
	}
	if b.Facts().GPUs[0].VRAMFree != 2 {
		t.Error("the new value is not there")
	}
}

func TestMetricNames(t *testing.T) {
	reg := prometheus.NewRegistry()
	status.NewObserver(status.ObserverConfig{Registerer: reg})
	if problems, err := testutil.GatherAndLint(reg); err != nil || len(problems) > 0 {
		t.Errorf("%v %v", problems, err)
	}
}
