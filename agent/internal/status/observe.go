package status

import (
	"context"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/adit-tunnel/adit/shared/metric"
	"github.com/adit-tunnel/adit/shared/wire"
)

const (
	gpuTimeout    = 8 * time.Second // nvidia-smi is slow while the driver wakes up
	askTimeout    = 3 * time.Second
	maxAnswer     = 1 << 20
	mebibyte      = 1 << 20
	unhealthySays = 256 // bytes of a health check's fault
)

// ObserverConfig is what an Observer needs.
type ObserverConfig struct {
	Board      *Board
	ComfyUI    []string      // base addresses to ask for /system_stats
	Health     []string      // URLs that must answer 2xx or 3xx
	NvidiaSMI  string        // command; default "nvidia-smi" of PATH
	Interval   time.Duration // default wire.HeartbeatInterval
	Logger     *slog.Logger
	Registerer prometheus.Registerer
}

// Observer looks at the machine from time to time and puts what it sees on the
// board.
type Observer struct {
	conf    ObserverConfig
	client  *http.Client
	healthy prometheus.Gauge
}

// NewObserver returns an Observer. A machine with health checks counts as unhealthy
// until they have answered: a start must not open a gap for tasks.
func NewObserver(conf ObserverConfig) *Observer {
	if conf.NvidiaSMI == "" {
		conf.NvidiaSMI = "nvidia-smi"
	}
	if conf.Interval == 0 {
		conf.Interval = wire.HeartbeatInterval
	}
	o := &Observer{
		conf: conf,
		client: &http.Client{
			Timeout: askTimeout,
			// Machines with HTTPS_PROXY set would send their health checks out otherwise.
			Transport:     &http.Transport{Proxy: nil, DisableKeepAlives: true, DialContext: (&net.Dialer{Timeout: askTimeout}).DialContext},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
		healthy: metric.In(conf.Registerer).Gauge("adit_agent_healthy", "1 when all health checks pass, or none is configured; else 0."),
	}
	if len(conf.Health) > 0 {
		o.setHealth("the health checks have not answered yet")
	}
	return o
}

// Run observes until ctx ends.
func (o *Observer) Run(ctx context.Context) error {
	tick := time.NewTicker(o.conf.Interval)
	defer tick.Stop()
	for {
		o.Observe(ctx)
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// Observe looks at everything once, all at the same time, and returns when the
// board has it.
func (o *Observer) Observe(ctx context.Context) {
	var (
		wg    sync.WaitGroup
		gpus  []wire.GPU
		stats *systemStats
	)
	wg.Go(func() { gpus = o.gpus(ctx) })
	wg.Go(func() { stats = o.comfyUI(ctx) })
	wg.Go(func() { // tasks wait for this: it does not wait for the slower others
		if unhealthy := o.health(ctx); ctx.Err() == nil {
			o.setHealth(unhealthy)
		}
	})
	wg.Wait()
	if ctx.Err() != nil {
		return // what was cut short says nothing about the machine
	}
	o.conf.Board.Update(func(f *wire.Facts) {
		*f = wire.Facts{Hooks: f.Hooks, GPUs: gpus, Unhealthy: f.Unhealthy}
		if stats != nil {
			stats.fill(f)
		}
	})
}

func (o *Observer) setHealth(unhealthy string) {
	o.healthy.Set(1)
	if unhealthy != "" {
		o.healthy.Set(0)
	}
	o.conf.Board.Update(func(f *wire.Facts) { f.Unhealthy = unhealthy })
}

// gpus asks nvidia-smi. A machine without it, or whose driver does not answer,
// has no known GPUs.
func (o *Observer) gpus(ctx context.Context) []wire.GPU {
	ctx, cancel := context.WithTimeout(ctx, gpuTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, o.conf.NvidiaSMI, "--query-gpu=name,memory.total,memory.free", "--format=csv,noheader,nounits")
	cmd.WaitDelay = time.Second
	out, err := cmd.Output()
	if err != nil {
		if !errors.Is(err, exec.ErrNotFound) {
			o.conf.Logger.Debug("ask nvidia-smi", "error", err)
		}
		return nil
	}
	gpus, err := parseGPUs(string(out))
	if err != nil {
		o.conf.Logger.Debug("read nvidia-smi", "error", err)
	}
	return gpus
}

func parseGPUs(out string) ([]wire.GPU, error) {
	r := csv.NewReader(strings.NewReader(out))
	r.TrimLeadingSpace = true
	r.FieldsPerRecord = 3
	rows, err := r.ReadAll()
	if err != nil {
		return nil, err
	}
	var gpus []wire.GPU
	for _, row := range rows {
		g := wire.GPU{Name: strings.TrimSpace(row[0]), Type: "cuda"}
		// "[N/A]" stands where a device does not say, as on machines with unified memory.
		g.VRAMTotal = mebibytes(row[1])
		g.VRAMFree = mebibytes(row[2])
		gpus = append(gpus, g)
	}
	return gpus, nil
}

func mebibytes(s string) uint64 {
	n, err := strconv.ParseUint(strings.TrimSpace(s), 10, 40)
	if err != nil {
		return 0
	}
	return n * mebibyte
}

// systemStats is what ComfyUI answers at /system_stats, as far as it is used.
type systemStats struct {
	System struct {
		OS      string `json:"os"`
		ComfyUI string `json:"comfyui_version"`
		PyTorch string `json:"pytorch_version"`
	} `json:"system"`
	Devices []struct {
		Name      string  `json:"name"`
		Type      string  `json:"type"`
		VRAMTotal float64 `json:"vram_total"`
		VRAMFree  float64 `json:"vram_free"`
	} `json:"devices"`
}

// comfyUI asks the configured addresses in turn; the first that answers counts.
func (o *Observer) comfyUI(ctx context.Context) *systemStats {
	for _, base := range o.conf.ComfyUI {
		body, err := o.get(ctx, strings.TrimRight(base, "/")+"/system_stats")
		if err != nil {
			continue // usually nothing listens, which is no news
		}
		var s systemStats
		if err := json.Unmarshal(body, &s); err != nil || (s.System.OS == "" && s.System.ComfyUI == "" && s.System.PyTorch == "" && len(s.Devices) == 0) {
			continue // something else answers there
		}
		return &s
	}
	return nil
}

func (s *systemStats) fill(f *wire.Facts) {
	f.Tool, f.ToolVersion = "comfyui", s.System.ComfyUI
	f.ComfyUIVersion, f.PyTorchVersion, f.OSType = s.System.ComfyUI, s.System.PyTorch, s.System.OS
	if len(f.GPUs) > 0 {
		return // nvidia-smi sees all devices, ComfyUI those it uses
	}
	for _, d := range s.Devices {
		if d.Type == "cpu" {
			continue
		}
		f.GPUs = append(f.GPUs, wire.GPU{Name: d.Name, Type: d.Type, VRAMTotal: uint64(max(0, d.VRAMTotal)), VRAMFree: uint64(max(0, d.VRAMFree))})
	}
}

// health says which check fails and how, or returns "".
func (o *Observer) health(ctx context.Context) string {
	faults := make([]string, len(o.conf.Health))
	var wg sync.WaitGroup
	for i, u := range o.conf.Health {
		wg.Go(func() {
			if _, err := o.get(ctx, u); err != nil {
				faults[i] = err.Error()
			}
		})
	}
	wg.Wait()
	var failing []string
	for _, f := range faults {
		if f != "" {
			failing = append(failing, f)
		}
	}
	text := strings.Join(failing, "; ")
	return strings.ToValidUTF8(text[:min(len(text), unhealthySays)], "")
}

func (o *Observer) get(ctx context.Context, url string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("User-Agent", "adit-agent")
	resp, err := o.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode >= http.StatusBadRequest {
		return nil, fmt.Errorf("%s answers %s", req.URL.Redacted(), resp.Status)
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", req.URL.Redacted(), err)
	}
	return body, nil
}
