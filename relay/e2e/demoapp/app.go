package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"io"
	"log/slog"
	"math"
	"net/http"
	"runtime"
	"strconv"
	"sync"
	"time"

	"github.com/coder/websocket"
)

//go:embed page.html
var page []byte

const (
	steps    = 20
	stepTime = 60 * time.Millisecond
)

// app is the state of the demo: who listens for progress, and what was uploaded.
type app struct {
	log    *slog.Logger
	end    context.Context // ends runs and sockets; an app has no other owner
	close  context.CancelFunc
	tasks  sync.WaitGroup
	mu     sync.Mutex
	queued int
	inputs map[string][]byte
	peers  map[chan []byte]bool
}

func newApp(log *slog.Logger) *app {
	ctx, cancel := context.WithCancel(context.Background())
	return &app{log: log, end: ctx, close: cancel, inputs: map[string][]byte{}, peers: map[chan []byte]bool{}}
}

// wait returns when no run and no socket is left.
func (a *app) wait() {
	a.close()
	a.tasks.Wait()
}

// routes are ComfyUI's, as far as the page needs them; like there, each is also
// found below /api.
func (a *app) routes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		w.Header().Set("Cache-Control", "no-cache")
		_, _ = w.Write(page)
	})
	for _, p := range []string{"", "/api"} {
		mux.HandleFunc("GET "+p+"/system_stats", a.systemStats)
		mux.HandleFunc("GET "+p+"/queue", a.queue)
		mux.HandleFunc("POST "+p+"/prompt", a.prompt)
		mux.HandleFunc("GET "+p+"/view", a.view)
		mux.HandleFunc("POST "+p+"/upload/image", a.upload)
		mux.HandleFunc("GET "+p+"/ws", a.socket)
	}
	return mux
}

func answer(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v)
}

func (a *app) systemStats(w http.ResponseWriter, _ *http.Request) {
	answer(w, http.StatusOK, map[string]any{
		"system": map[string]any{
			"os": runtime.GOOS, "ram_total": 68719476736, "ram_free": 51539607552, "comfyui_version": "0.3.40-demo",
			"python_version": "none (this is a demo)", "pytorch_version": "2.7.0-demo", "embedded_python": false, "argv": []string{"demoapp"},
		},
		"devices": []any{map[string]any{
			"name": "cuda:0 Demo GPU 24G : none", "type": "cuda", "index": 0, "vram_total": 25769803776, "vram_free": 21474836480,
			"torch_vram_total": 0, "torch_vram_free": 0,
		}},
	})
}

func (a *app) queue(w http.ResponseWriter, _ *http.Request) {
	a.mu.Lock()
	defer a.mu.Unlock()
	answer(w, http.StatusOK, map[string]any{"queue_running": []any{}, "queue_pending": []any{}, "queued": a.queued})
}

// prompt starts a run: its progress goes to every socket.
func (a *app) prompt(w http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, http.MaxBytesReader(w, r.Body, 1<<20)) // what is asked for does not matter
	a.mu.Lock()
	a.queued++
	id := "demo-" + strconv.Itoa(a.queued)
	a.mu.Unlock()
	a.tasks.Go(func() { a.work(id) })
	answer(w, http.StatusOK, map[string]any{"prompt_id": id, "number": 1, "node_errors": map[string]any{}})
}

func (a *app) work(id string) {
	t := time.NewTicker(stepTime)
	defer t.Stop()
	for n := 1; n <= steps; n++ {
		select {
		case <-t.C:
		case <-a.end.Done():
			return
		}
		a.tell("progress", map[string]any{"value": n, "max": steps, "prompt_id": id})
	}
	a.tell("executed", map[string]any{"prompt_id": id, "output": map[string]any{"images": []any{map[string]any{"filename": id + ".png"}}}})
}

func message(kind string, data any) []byte {
	b, err := json.Marshal(map[string]any{"type": kind, "data": data})
	if err != nil {
		panic(err) // only plain maps come here
	}
	return b
}

func (a *app) tell(kind string, data any) {
	b := message(kind, data)
	a.mu.Lock()
	defer a.mu.Unlock()
	for p := range a.peers {
		select {
		case p <- b:
		default: // a slow reader misses a step
		}
	}
}

// socket sends a status first and every message of every run then; what the peer
// sends comes back as "echo".
func (a *app) socket(w http.ResponseWriter, r *http.Request) {
	// originOnly decided already; the library's own check is stricter than ComfyUI.
	c, err := websocket.Accept(w, r, &websocket.AcceptOptions{InsecureSkipVerify: true})
	if err != nil {
		a.log.Info("websocket refused", "error", err)
		return
	}
	a.tasks.Add(1)
	defer a.tasks.Done()
	defer func() { _ = c.CloseNow() }()
	c.SetReadLimit(1 << 20)
	ctx, cancel := context.WithCancel(a.end)
	defer cancel()

	out := make(chan []byte, 64)
	out <- message("status", map[string]any{"sid": r.URL.Query().Get("clientId"), "status": map[string]any{"exec_info": map[string]any{"queue_remaining": 0}}})
	a.mu.Lock()
	a.peers[out] = true
	a.mu.Unlock()
	defer func() {
		a.mu.Lock()
		delete(a.peers, out)
		a.mu.Unlock()
	}()
	var reading sync.WaitGroup
	defer reading.Wait()
	reading.Go(func() {
		defer cancel()
		for {
			_, b, err := c.Read(ctx)
			if err != nil {
				return
			}
			select {
			case out <- message("echo", string(b)):
			case <-ctx.Done():
				return
			}
		}
	})
	for {
		select {
		case b := <-out:
			if c.Write(ctx, websocket.MessageText, b) != nil {
				cancel()
				return
			}
		case <-ctx.Done():
			if a.end.Err() != nil {
				_ = c.Close(websocket.StatusGoingAway, "the demo ends")
			}
			return
		}
	}
}

// view draws an image; an uploaded one is returned as it came.
func (a *app) view(w http.ResponseWriter, r *http.Request) {
	name := r.URL.Query().Get("filename")
	a.mu.Lock()
	b := a.inputs[name]
	a.mu.Unlock()
	if b == nil {
		var buf bytes.Buffer
		if err := png.Encode(&buf, picture(name)); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		b = buf.Bytes()
	}
	http.ServeContent(w, r, name, time.Time{}, bytes.NewReader(b))
}

func picture(seed string) image.Image {
	const size = 256
	sum := sha256.Sum256([]byte(seed))
	f := float64(sum[0])/40 + 2
	img := image.NewRGBA(image.Rect(0, 0, size, size))
	for y := range size {
		for x := range size {
			v := math.Sin(float64(x)/size*f) * math.Cos(float64(y)/size*f)
			img.Set(x, y, color.RGBA{uint8(128 + 120*v), uint8(x/2 + int(sum[1])/2), uint8(y/2 + int(sum[2])/2), 255})
		}
	}
	return img
}

// maxKept bounds what an upload may leave in memory; a larger one is only hashed.
const maxKept = 8 << 20

// upload hashes the form's file, of any size, and remembers small ones for view.
func (a *app) upload(w http.ResponseWriter, r *http.Request) {
	form, err := r.MultipartReader()
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	for {
		part, err := form.NextPart()
		if errors.Is(err, io.EOF) {
			http.Error(w, "the form holds no file named image", http.StatusBadRequest)
			return
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		if part.FormName() != "image" {
			continue
		}
		hash, kept := sha256.New(), &bytes.Buffer{}
		n, err := io.Copy(io.MultiWriter(hash, &capped{kept, maxKept}), part)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		name := part.FileName()
		if n <= maxKept {
			a.mu.Lock()
			a.inputs[name] = kept.Bytes()
			if len(a.inputs) > 16 {
				for k := range a.inputs { // any other
					if k != name {
						delete(a.inputs, k)
						break
					}
				}
			}
			a.mu.Unlock()
		}
		answer(w, http.StatusOK, map[string]any{"name": name, "subfolder": "", "type": "input", "size": n, "sha256": hex.EncodeToString(hash.Sum(nil))})
		return
	}
}

// capped keeps the first bytes and swallows the rest.
type capped struct {
	to   *bytes.Buffer
	left int
}

func (c *capped) Write(p []byte) (int, error) {
	n := min(len(p), c.left)
	c.left -= n
	if _, err := c.to.Write(p[:n]); err != nil {
		return 0, fmt.Errorf("keep upload: %w", err)
	}
	return len(p), nil
}
