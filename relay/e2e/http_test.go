package e2e

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"

	"github.com/adit-tunnel/adit/relay/e2e/world"
)

// evaluate runs JavaScript in the page and waits for its promise.
func evaluate(js string) chromedp.Action[chromedp.Void] {
	return func(ctx context.Context, t *chromedp.Target) (chromedp.Void, error) {
		return chromedp.Evaluate[chromedp.Void](js, chromedp.EvalAwaitPromise)(ctx, t)
	}
}

func fileSum(t *testing.T, path string) string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%x", h.Sum(nil))
}

func TestNginxRangesAndAGibibyte(t *testing.T) {
	t.Parallel()
	w := world.New(t)
	r := w.Relay()
	w.Agent(r, "gpu-1")
	sk := r.Credential("integration", world.Team)
	root := filepath.Join(w.Dir, "www")
	if err := os.Mkdir(root, 0o755); err != nil {
		t.Fatal(err)
	}
	// Not all zeros, and cheap to make: a random block, repeated with a count.
	big := filepath.Join(root, "model.safetensors")
	sum := patternFile(t, big, 1<<30)
	w.WriteFile("www/page.html", strings.Repeat("some text ", 1000))
	tun := r.Open(sk, "gpu-1", map[string]any{"target_port": w.Nginx(root)})
	c := w.HTTP()
	get := func(path string, header ...string) (*http.Response, []byte) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, tun.TunnelURL+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		for i := 0; i < len(header); i += 2 {
			req.Header.Set(header[i], header[i+1])
		}
		resp, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp, body
	}
	resp, body := get("model.safetensors", "Range", "bytes=1000-1999")
	if resp.StatusCode != http.StatusPartialContent || len(body) != 1000 || resp.Header.Get("Content-Range") != "bytes 1000-1999/1073741824" {
		t.Errorf("a range: %d, %d bytes, %s", resp.StatusCode, len(body), resp.Header.Get("Content-Range"))
	}
	resp, _ = get("page.html")
	etag := resp.Header.Get("ETag")
	if resp, _ := get("page.html", "If-None-Match", etag); resp.StatusCode != http.StatusNotModified || etag == "" {
		t.Errorf("a known ETag %q answers %d, want 304", etag, resp.StatusCode)
	}
	if resp, body := get("page.html", "Accept-Encoding", "gzip"); resp.Header.Get("Content-Encoding") != "gzip" || !bytes.HasPrefix(body, []byte{0x1f, 0x8b}) {
		t.Errorf("a compressed answer passes as it is: %v", resp.Header)
	}
	head, err := c.Head(tun.TunnelURL + "model.safetensors")
	if err != nil || head.ContentLength != 1<<30 {
		t.Errorf("HEAD says %d bytes, %v", head.ContentLength, err)
	} else {
		_ = head.Body.Close()
	}
	start := time.Now()
	full, err := c.Get(tun.TunnelURL + "model.safetensors")
	if err != nil {
		t.Fatal(err)
	}
	defer full.Body.Close()
	h := sha256.New()
	n, err := io.Copy(h, full.Body)
	if err != nil || n != 1<<30 || fmt.Sprintf("%x", h.Sum(nil)) != sum {
		t.Errorf("1 GiB arrives as %d bytes with another hash: %v", n, err)
	}
	t.Logf("1 GiB with hashing at both ends took %v", time.Since(start))
}

func patternFile(t *testing.T, path string, size int64) string {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w := bufio.NewWriterSize(f, 1<<20)
	h := sha256.New()
	block := bytes.Repeat([]byte{0}, 1<<20)
	for i := range block {
		block[i] = byte(i*7 + i>>8)
	}
	for n := int64(0); n < size; n += int64(len(block)) {
		copy(block, fmt.Sprintf("%016d", n))
		_, _ = io.MultiWriter(w, h).Write(block)
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%x", h.Sum(nil))
}

func TestServerSentEventsArriveOneByOne(t *testing.T) {
	t.Parallel()
	w := world.New(t)
	r := w.Relay(world.PathForm)
	w.Agent(r, "gpu-1")
	sk := r.Credential("integration", world.Team)
	next := make(chan int)
	port := app(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/events" { // the agent's probe asks for /
			return
		}
		w.Header().Set("Content-Type", "text/event-stream")
		rc := http.NewResponseController(w)
		_ = rc.Flush()
		for {
			select {
			case n := <-next:
				fmt.Fprintf(w, "data: %d\n\n", n)
				_ = rc.Flush()
			case <-r.Context().Done():
				return
			}
		}
	})
	tun := r.Open(sk, "gpu-1", map[string]any{"target_port": port, "host_header": "public"})
	for _, url := range []string{r.HostURL(tun), r.PathURL(tun)} {
		ctx, cancel := context.WithCancel(t.Context())
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url+"events", nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := w.HTTP().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(resp.Body)
		for n := range 5 {
			next <- n // the app sends the next event only when the one before was read
			if !lines.Scan() || lines.Text() != fmt.Sprintf("data: %d", n) {
				t.Errorf("event %d arrives as %q", n, lines.Text())
			}
			lines.Scan() // the empty line
		}
		cancel()
		_ = resp.Body.Close()
	}
}
