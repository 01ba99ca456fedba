package e2e

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/adit-tunnel/adit/relay/e2e/world"
	"github.com/adit-tunnel/adit/shared/api"
)

// peakMemory is the most memory that a process ever had resident, in MiB.
func peakMemory(t *testing.T, p *world.Process) int {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.Cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`(?m)^VmHWM:\s+(\d+) kB`).FindSubmatch(b)
	if m == nil {
		t.Fatalf("no VmHWM in %s", b)
	}
	kb, err := strconv.Atoi(string(m[1]))
	if err != nil {
		t.Fatal(err)
	}
	return kb >> 10
}

// endless is an app that answers as much as is taken, whatever it is asked.
func endless(w http.ResponseWriter, _ *http.Request) {
	block := make([]byte, 256<<10)
	for {
		if _, err := w.Write(block); err != nil {
			return
		}
	}
}

// blob is an app that answers so many bytes as its path says.
func blob(w http.ResponseWriter, r *http.Request) {
	n, err := strconv.Atoi(strings.TrimPrefix(r.URL.Path, "/"))
	if err != nil {
		hello(w, r)
		return
	}
	w.Header().Set("Content-Length", strconv.Itoa(n))
	block := make([]byte, 64<<10)
	for n > 0 {
		k, err := w.Write(block[:min(n, len(block))])
		if err != nil {
			return
		}
		n -= k
	}
}

// bystander is the other tenant: it downloads, asks for small things and opens
// tunnels all the while.
type bystander struct {
	r   *world.Relay
	sk  string
	url string
	c   *http.Client

	mu        sync.Mutex
	whole     int
	small     []time.Duration
	opened    []time.Duration
	faults    []string
	downloads int
}

func newBystander(r *world.Relay) *bystander {
	b := &bystander{r: r, sk: r.Credential("integration", world.Team), c: r.W.HTTP()}
	b.url = b.r.Open(b.sk, "gpu-1", map[string]any{"target_port": app(r.W.T, blob), "host_header": "public"}).TunnelURL
	return b
}

func (b *bystander) fault(format string, args ...any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.faults = append(b.faults, fmt.Sprintf(format, args...))
}

const blobSize = 32 << 20

func (b *bystander) download() {
	b.mu.Lock()
	b.downloads++
	b.mu.Unlock()
	resp, err := b.c.Get(b.url + strconv.Itoa(blobSize))
	if err != nil {
		b.fault("download: %v", err)
		return
	}
	defer resp.Body.Close()
	n, err := io.Copy(io.Discard, resp.Body)
	if err != nil || n != blobSize || resp.StatusCode != http.StatusOK {
		b.fault("download: %d, %d of %d bytes: %v", resp.StatusCode, n, blobSize, err)
		return
	}
	b.mu.Lock()
	b.whole++
	b.mu.Unlock()
}

func (b *bystander) ask() {
	start := time.Now()
	status, body := world.Get(b.c, b.url+"x")
	took := time.Since(start)
	if status != http.StatusOK || body != "hello from /x" {
		b.fault("small request: %d %.100s", status, body)
	}
	b.mu.Lock()
	b.small = append(b.small, took)
	b.mu.Unlock()
}

func (b *bystander) open() {
	start := time.Now()
	var t api.Tunnel
	status, p := b.r.API(b.sk, http.MethodPost, "/agents/gpu-1/tunnel", map[string]any{"target_port": 9, "host_header": "public"}, &t)
	took := time.Since(start)
	if status != http.StatusCreated {
		b.fault("open: %d %v", status, p)
		return
	}
	if status, p := b.r.API(b.sk, http.MethodDelete, "/agents/gpu-1/tunnel?session_id="+string(t.SessionID), nil, nil); status >= 300 {
		b.fault("close: %d %v", status, p)
	}
	b.mu.Lock()
	b.opened = append(b.opened, took)
	b.mu.Unlock()
}

// use uses the relay until it has so many downloads.
func (b *bystander) use(ctx context.Context, downloads int) {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	every := func(d time.Duration, f func()) {
		wg.Go(func() {
			for ctx.Err() == nil {
				f()
				select {
				case <-ctx.Done():
				case <-time.After(d):
				}
			}
		})
	}
	every(20*time.Millisecond, b.ask)
	every(time.Second, b.open)
	for range downloads {
		b.download()
	}
	cancel()
	wg.Wait()
}

// take returns and forgets what it saw.
func (b *bystander) take() (text string, p99 time.Duration, whole int, faults []string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	slices.Sort(b.small)
	slices.Sort(b.opened)
	p99 = percentile(b.small, 0.99)
	text = fmt.Sprintf("%d of %d downloads whole; %d small requests, p99 %s, median %s; %d tunnels opened, median %s; %d faults",
		b.whole, b.downloads, len(b.small), p99, percentile(b.small, 0.5), len(b.opened), percentile(b.opened, 0.5), len(b.faults))
	whole, faults = b.whole, b.faults
	b.whole, b.downloads, b.small, b.opened, b.faults = 0, 0, nil, nil, nil
	return text, p99, whole, faults
}

// notReading opens a connection that sends a request and never reads.
func notReading(t *testing.T, addr, request string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if _, err := io.WriteString(c, request); err != nil {
		t.Fatal(err)
	}
	return c
}

// linksLost is how many links of agents this relay lost.
func linksLost(t *testing.T, r *world.Relay) float64 {
	return gauge(t, r.Metrics, `adit_relay_link_disconnects_total\{reason="lost"\}`)
}

// TestOneTenantCannotStarveAnother has one tenant fill the relay's memory with what
// its users do not take. The other one must not notice.
func TestOneTenantCannotStarveAnother(t *testing.T) {
	w := world.New(t)
	budget, connections := 256, 150
	if long() {
		budget, connections = 1024, 200 // the default
	}
	r := w.Relay(append([]string{fmt.Sprintf("ADIT_LIMITS_MEMORY_BYTES=%d", budget<<20)}, quiet...)...)
	w.Agent(r, "gpu-1", quiet...)
	hostile := tenantAgent(w, r, otherTeam, "gpu-1")
	_ = hostile
	b := newBystander(r)
	sk := r.Credential("integration", otherTeam)
	tun := r.Open(sk, "gpu-1", map[string]any{"target_port": app(t, endless), "host_header": "public"})
	u := r.PathURL(tun)
	path := u[strings.Index(u, "/tunnel/"):]

	b.use(t.Context(), 5)
	text, p99before, _, faults := b.take()
	t.Logf("before: %s; memory %d MiB", text, rss(t, r.Process))
	if len(faults) > 0 {
		t.Fatalf("before any flood: %v", faults)
	}

	for range connections {
		notReading(t, r.Addr(), "GET "+path+" HTTP/1.1\r\nHost: localhost\r\n\r\n")
	}
	b.use(t.Context(), 10)
	text, p99, whole, faults := b.take()
	t.Logf("in the flood: %s; %.0f MiB unread, memory at most %d MiB of a budget of %d", text, gauge(t, r.Metrics, "adit_relay_link_unread_bytes")/(1<<20), peakMemory(t, r.Process), budget)
	t.Logf("links lost: %.0f; p99 %.1f times what it was", linksLost(t, r), float64(p99)/float64(p99before))
	if len(faults) > 0 || whole != 10 {
		t.Errorf("the other tenant noticed: %d downloads whole, %d faults such as %s", whole, len(faults), faults[0])
	}
	if n := linksLost(t, r); n > 0 {
		t.Errorf("%.0f links were lost", n)
	}
}
