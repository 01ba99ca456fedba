package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"image/png"
	"io"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/adit-tunnel/adit/shared/testkit"
)

func TestMain(m *testing.M) { testkit.LeakCheck(m) }

// call makes a request and returns the whole answer; a body makes it a POST.
func call(t *testing.T, url, kind string, body io.Reader) (int, []byte) {
	t.Helper()
	method := http.MethodGet
	if body != nil {
		method = http.MethodPost
	}
	req, err := http.NewRequestWithContext(t.Context(), method, url, body)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", kind)
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, b
}

// start runs the demo as main does and returns its address.
func start(t *testing.T) string {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	r, w := io.Pipe()
	done := make(chan error, 1)
	go func() { done <- run(ctx, "127.0.0.1:0", w, testkit.Logger(t)) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("the demo ended with %v", err)
		}
		http.DefaultClient.CloseIdleConnections()
	})
	line, err := bufio.NewReader(r).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimPrefix(strings.TrimSpace(line), "listening on ")
}

func TestRefusesWhatComfyUIRefuses(t *testing.T) {
	h := originOnly(testkit.Logger(t), http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(204) }))
	for _, tc := range []struct {
		name, host, origin, site string
		status                   int
	}{
		{"no browser", "127.0.0.1:8188", "", "", 204},
		{"its own page", "127.0.0.1:8188", "http://127.0.0.1:8188", "same-origin", 204},
		{"another page on a loopback host", "127.0.0.1:8188", "https://evil.example", "", 403},
		{"another port on loopback", "127.0.0.1:8188", "http://127.0.0.1:9999", "", 403},
		{"a tunnel's origin before a local host", "127.0.0.1:8188", "http://x.localhost:8080", "", 403},
		{"localhost by name", "x.localhost:8080", "http://y.localhost:8080", "", 403},
		{"a public host is not checked", "gpu.example.com", "https://evil.example", "", 204},
		{"origin without port", "127.0.0.1:8188", "http://127.0.0.1", "", 204},
		{"host without port", "127.0.0.1", "http://127.0.0.1:8188", "", 204},
		{"null origin", "127.0.0.1:8188", "null", "", 204},
		{"cross-site, whatever the host", "gpu.example.com", "", "cross-site", 403},
		{"same-site", "gpu.example.com", "", "same-site", 204},
	} {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/", nil)
		r.Host = tc.host
		if tc.origin != "" {
			r.Header.Set("Origin", tc.origin)
		}
		if tc.site != "" {
			r.Header.Set("Sec-Fetch-Site", tc.site)
		}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code != tc.status {
			t.Errorf("%s: answered %d, ComfyUI answers %d", tc.name, w.Code, tc.status)
		}
	}
}

func TestARunReportsProgressOnTheSocket(t *testing.T) {
	base := start(t)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	c, _, err := websocket.Dial(
		ctx, "ws"+strings.TrimPrefix(base, "http")+"/ws?clientId=me", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.CloseNow() }()
	if err := c.Write(ctx, websocket.MessageText, []byte("hello")); err != nil {
		t.Fatal(err)
	}
	if status, _ := call(t, base+"/prompt", "application/json", strings.NewReader("{}")); status != http.StatusOK {
		t.Fatalf("POST /prompt answered %d", status)
	}
	seen := map[string]int{}
	for seen["executed"] == 0 {
		_, b, err := c.Read(ctx)
		if err != nil {
			t.Fatalf("after %v: %v", seen, err)
		}
		var m struct{ Type string }
		if err := json.Unmarshal(b, &m); err != nil {
			t.Fatal(err)
		}
		seen[m.Type]++
	}
	if seen["status"] != 1 || seen["echo"] != 1 || seen["progress"] != steps {
		t.Errorf("messages were %v; expected a status, an echo and %d of progress", seen, steps)
	}
}

func TestUploadIsHashedAndShownAgain(t *testing.T) {
	base := start(t)
	want := bytes.Repeat([]byte("adit"), 1<<18)
	var body bytes.Buffer
	form := multipart.NewWriter(&body)
	_ = form.WriteField("type", "input")
	part, _ := form.CreateFormFile("image", "cat.bin")
	_, _ = part.Write(want)
	_ = form.Close()
	_, doc := call(t, base+"/upload/image", form.FormDataContentType(), &body)
	var got struct {
		Size   int
		SHA256 string
	}
	err := json.Unmarshal(doc, &got)
	sum := sha256.Sum256(want)
	if err != nil || got.Size != len(want) || got.SHA256 != hex.EncodeToString(sum[:]) {
		t.Errorf("answered %+v, %v", got, err)
	}
	for path, check := range map[string]func([]byte) error{
		"/view?filename=cat.bin": func(b []byte) error {
			if !bytes.Equal(b, want) {
				return errors.New("the upload came back changed")
			}
			return nil
		},
		"/api/view?filename=new.png": func(b []byte) error { _, err := png.Decode(bytes.NewReader(b)); return err },
		"/system_stats": func(b []byte) error {
			var s struct{ Devices []struct{ Name string } }
			err := json.Unmarshal(b, &s)
			if len(s.Devices) != 1 {
				t.Errorf("system_stats names %d devices", len(s.Devices))
			}
			return err
		},
	} {
		_, b := call(t, base+path, "", nil)
		if err := check(b); err != nil {
			t.Errorf("%s: %v", path, err)
		}
	}
}
