package probe_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/adit-tunnel/adit/agent/internal/forward"
	"github.com/adit-tunnel/adit/agent/internal/probe"
	"github.com/adit-tunnel/adit/shared/ident"
	"github.com/adit-tunnel/adit/shared/testkit"
	"github.com/adit-tunnel/adit/shared/wire"
)

func TestMain(m *testing.M) { testkit.LeakCheck(m) }

const pathHost = "gateway.example.com"

var subHost = string(ident.ClusterKey{}.Segment("0123456789abcdef0123456789abcdef")) + ".tunnels.example.com"

// patient is a limit for answers that a busy machine gives late.
const patient = 5 * probe.Limit

// prober has the product's own limits: for what does not answer.
func prober() *probe.Prober { return proberOf(probe.Limit) }

func proberOf(limit time.Duration) *probe.Prober {
	return probe.New(probe.Config{
		Limit:   limit,
		Allowed: func(port uint16) bool { return port != 9465 },
		Dial: func(ctx context.Context, port uint16) (net.Conn, error) {
			c, err := forward.Dial(ctx, port)
			if err != nil {
				return nil, err
			}
			return c, nil
		},
	})
}

func serve(t *testing.T, h http.HandlerFunc) uint16 {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	u, _ := url.Parse(s.URL)
	port, _ := strconv.Atoi(u.Port())
	return uint16(port)
}

func isLocal(host string) bool {
	h, _, err := net.SplitHostPort(host)
	return err == nil && (h == "127.0.0.1" || h == "localhost")
}

// The apps below answer GET / as the real ones do, as far as the probe looks.

func jupyter(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Server", "TornadoServer/6.4")
	w.Header().Set("Content-Security-Policy", "frame-ancestors 'self'; report-uri /api/security/csp-report")
	if r.URL.Path == "/" { // the redirect looks at no Host
		http.Redirect(w, r, "/lab?", http.StatusFound)
		return
	}
	if !isLocal(r.Host) { // allow_remote_access is off
		w.WriteHeader(http.StatusForbidden)
		fmt.Fprint(w, "<title>Jupyter Server</title> Blocking request with non-local 'Host'")
		return
	}
	fmt.Fprint(w, `<title>JupyterLab</title><script id="jupyter-config-data"></script><script src="/static/lab/main.js">`)
}

func vite(w http.ResponseWriter, r *http.Request) {
	if !isLocal(r.Host) {
		w.WriteHeader(http.StatusForbidden)
		fmt.Fprintf(w, "Blocked request. This host (%q) is not allowed.\nTo allow this host, add %q to `server.allowedHosts` in vite.config.js.", r.Host, r.Host)
		return
	}
	if !strings.Contains(r.Header.Get("Accept"), "text/html") {
		http.NotFound(w, r)
		return
	}
	fmt.Fprint(w, `<script type="module" src="/@vite/client"></script>`)
}

func ollama(w http.ResponseWriter, r *http.Request) {
	if !isLocal(r.Host) {
		w.WriteHeader(http.StatusForbidden)
		return
	}
	fmt.Fprint(w, "Ollama is running")
}

func comfyUI(w http.ResponseWriter, _ *http.Request) {
	fmt.Fprint(w, `<!doctype html><html><head><title>ComfyUI</title><link rel="stylesheet" href="user.css">`)
}

func codeServer(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/" {
		w.Header().Set("Location", "./login")
		w.WriteHeader(http.StatusFound)
		return
	}
	fmt.Fprint(w, "<title>code-server login</title>")
}

func grafana(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/" {
		http.Redirect(w, r, "/login", http.StatusFound)
		return
	}
	fmt.Fprint(w, "<title>Grafana</title>")
}

func vllm(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Server", "uvicorn")
	w.Header().Set("Content-Type", "application/json")
	if r.URL.Path == "/v1/models" {
		fmt.Fprint(w, `{"object":"list","data":[{"id":"m","object":"model","owned_by":"vllm"}]}`)
		return
	}
	w.WriteHeader(http.StatusNotFound)
	fmt.Fprint(w, `{"detail":"Not Found"}`)
}

func page(body string, header ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		for i := 0; i < len(header); i += 2 {
			w.Header().Set(header[i], header[i+1])
		}
		fmt.Fprint(w, body)
	}
}

func TestApps(t *testing.T) {
	tests := []struct {
		name     string
		app      http.HandlerFunc
		public   string // host; default pathHost
		want     string
		mode     string
		warnings string // in one of them; empty: none at all
	}{
		{"Jupyter in path form", jupyter, pathHost, "jupyter", "local", "ServerApp.base_url"},
		{"Jupyter in subdomain form", jupyter, subHost, "jupyter", "local", ""},
		{"vite", vite, subHost, "vite", "local", ""},
		{"vite in path form", vite, pathHost, "vite", "local", "`base`"},
		{"Ollama", ollama, pathHost, "ollama", "local", ""},
		{"ComfyUI", comfyUI, pathHost, "comfyui", "public", ""},
		{"code-server", codeServer, pathHost, "code-server", "public", ""},
		{"Grafana", grafana, subHost, "grafana", "public", ""},
		{"vLLM", vllm, pathHost, "vllm", "public", ""},
		{"Gradio", page(`<script>window.gradio_config = {};</script>`), pathHost, "gradio", "public", ""},
		{"Streamlit", page(`<title>Streamlit</title>`), pathHost, "streamlit", "public", "baseUrlPath"},
		{"TensorBoard", page(`<title>TensorBoard</title>`), pathHost, "tensorboard", "public", "path_prefix"},
		{"Prometheus", page(`<title>Prometheus Time Series Collection and Processing Server</title>`), subHost, "prometheus", "public", ""},
		{"noVNC", page(`<title>noVNC</title>`), pathHost, "novnc", "public", ""},
		{"noVNC's directory", page(`<a href="vnc_lite.html">`, "Server", "WebSockify Python/3.11"), pathHost, "novnc", "public", ""},
		{"nginx", page("<h1>Welcome</h1>", "Server", "nginx/1.24.0"), pathHost, "nginx", "public", ""},
		{"something unknown", page("hello"), pathHost, "", "public", ""},
		{"an unknown page with absolute paths", page(`<html><script defer src="/app.js"></script>`), pathHost, "", "public", "absolute paths"},
		{"a page with a CDN's address is not absolute", page(`<script src="//cdn.example.com/x.js"></script>`), pathHost, "", "public", ""},
		{"an app that wants a login", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusUnauthorized) }, pathHost, "", "public", ""},
		{"an app that is broken for all", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) }, pathHost, "", "public", "500"},
		{"a 421", func(w http.ResponseWriter, r *http.Request) {
			if !isLocal(r.Host) {
				w.WriteHeader(http.StatusMisdirectedRequest)
			}
		}, pathHost, "", "local", ""},
		{"a 404 is no refusal", func(w http.ResponseWriter, r *http.Request) {
			if !isLocal(r.Host) {
				w.WriteHeader(http.StatusNotFound)
			}
		}, pathHost, "", "public", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			start := time.Now()
			a := proberOf(patient).Probe(t.Context(), wire.Probe{ID: 9, Port: serve(t, tt.app), Protocol: "http", PublicHost: tt.public})
			if !a.Listening || !a.Allowed || a.ID != 9 || a.App != tt.want || a.HostHeader != tt.mode {
				t.Errorf("found %+v, expected app %q with host %q", a, tt.want, tt.mode)
			}
			all := strings.Join(a.Warnings, "\n")
			if tt.warnings == "" && all != "" || !strings.Contains(all, tt.warnings) {
				t.Errorf("the warnings are %q, expected %q", all, tt.warnings)
			}
			testkit.Took(t, "probing", time.Since(start), patient+5*time.Second)
		})
	}
}

func TestNeverLeavesTheApp(t *testing.T) {
	elsewhere := serve(t, func(http.ResponseWriter, *http.Request) { t.Error("the probe followed a redirect out of the app") })
	targets := []string{
		fmt.Sprintf("http://127.0.0.1:%d/", elsewhere), fmt.Sprintf("//127.0.0.1:%d/x", elsewhere),
		"http://169.254.169.254/latest/meta-data/", "file:///etc/passwd", "javascript:alert(1)", "https://gateway.example.com:444/", "::bad",
	}
	for _, target := range targets {
		var mu sync.Mutex
		var paths []string
		port := serve(t, func(w http.ResponseWriter, r *http.Request) {
			mu.Lock()
			paths = append(paths, r.URL.Path)
			mu.Unlock()
			w.Header().Set("Location", target)
			w.WriteHeader(http.StatusFound)
		})
		a := proberOf(patient).Probe(t.Context(), wire.Probe{Port: port, Protocol: "http", PublicHost: pathHost})
		if a.HostHeader != "public" {
			t.Errorf("a redirect to %s counts as %q; a redirect is no refusal", target, a.HostHeader)
		}
		mu.Lock()
		for _, p := range paths {
			if p != "/" {
				t.Errorf("redirected to %s the probe asked the app for %s", target, p)
			}
		}
		mu.Unlock()
	}
}

func TestOnlyGreets(t *testing.T) {
	port := serve(t, func(_ http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet {
			t.Errorf("the probe sent %s", r.Method)
		}
		if r.Header.Get("Authorization") != "" || r.Header.Get("Cookie") != "" {
			t.Error("the probe sent a secret")
		}
	})
	prober().Probe(t.Context(), wire.Probe{Port: port, Protocol: "http", PublicHost: pathHost})
}

func TestHungAndEndlessApps(t *testing.T) {
	stop := make(chan struct{})
	t.Cleanup(func() { close(stop) })
	hung := testkit.ServeTCP(t, func(c net.Conn) { _, _ = io.Copy(io.Discard, c) })
	endless := serve(t, func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, "<title>ComfyUI</title>")
		for {
			select {
			case <-stop:
				return
			case <-r.Context().Done():
				return
			default:
				if _, err := w.Write(make([]byte, 32<<10)); err != nil {
					return
				}
			}
		}
	})
	for name, port := range map[string]uint16{"hung": hung, "endless": endless} {
		start := time.Now()
		limit := probe.Limit
		if name == "endless" {
			limit = patient // it answers, if late
		}
		a := proberOf(limit).Probe(t.Context(), wire.Probe{Port: port, Protocol: "http", PublicHost: pathHost})
		testkit.Took(t, "probing a "+name+" app", time.Since(start), patient+5*time.Second)
		if !a.Listening {
			t.Errorf("a %s app is not seen listening", name)
		}
		if name == "hung" && (a.HostHeader != "" || !strings.Contains(a.Detail, "did not answer")) {
			t.Errorf("a hung app gives %+v", a)
		}
		if name == "endless" && a.App != "comfyui" {
			t.Errorf("an endless page gives %+v", a)
		}
	}
}

func TestPortPolicyAndNobodyThere(t *testing.T) {
	a := prober().Probe(t.Context(), wire.Probe{ID: 1, Port: 9465, Protocol: "http", PublicHost: pathHost})
	if a.Allowed || a.Listening || a.Detail == "" {
		t.Errorf("a port that is not allowed gives %+v", a)
	}
	port := uint16(testkit.FreePort(t))
	a = prober().Probe(t.Context(), wire.Probe{ID: 2, Port: port, Protocol: "http", PublicHost: pathHost})
	if !a.Allowed || a.Listening || !strings.Contains(a.Detail, fmt.Sprint(port)) || a.HostHeader != "" {
		t.Errorf("a port on which nothing listens gives %+v", a)
	}
}

func sshd(c net.Conn) {
	fmt.Fprint(c, "SSH-2.0-OpenSSH_9.6\r\n")
	_, _ = io.Copy(io.Discard, c)
}

func mysqld(version string) func(net.Conn) {
	return func(c net.Conn) {
		p := append([]byte{10}, version+"\x00rest"...)
		_, _ = c.Write(append([]byte{byte(len(p)), 0, 0, 0}, p...))
		_, _ = io.Copy(io.Discard, c)
	}
}

func redis(c net.Conn) {
	r := bufio.NewReader(c)
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return
		}
		if strings.TrimSpace(line) == "PING" {
			fmt.Fprint(c, "+PONG\r\n")
		} else {
			fmt.Fprint(c, "-ERR unknown command\r\n")
		}
	}
}

func postgres(c net.Conn) {
	b := make([]byte, 8)
	if _, err := io.ReadFull(c, b); err == nil && string(b[4:]) == "\x04\xd2\x16\x2f" {
		_, _ = c.Write([]byte("N"))
		_, _ = io.Copy(io.Discard, c)
	}
}

func TestTCP(t *testing.T) {
	httpPort := serve(t, comfyUI)
	tests := []struct {
		name, protocol string
		port           uint16
		want, warning  string
	}{
		{"ssh", "tcp", testkit.ServeTCP(t, sshd), "ssh", ""},
		{"ssh behind an http tunnel", "http", testkit.ServeTCP(t, sshd), "ssh", "tunnel_protocol tcp"},
		{"MySQL", "tcp", testkit.ServeTCP(t, mysqld("8.0.36")), "mysql", ""},
		{"MariaDB", "tcp", testkit.ServeTCP(t, mysqld("5.5.5-10.11.6-MariaDB")), "mariadb", ""},
		{"Redis", "tcp", testkit.ServeTCP(t, redis), "redis", ""},
		{"PostgreSQL", "tcp", testkit.ServeTCP(t, postgres), "postgres", ""},
		{"Redis behind an http tunnel", "http", testkit.ServeTCP(t, redis), "redis", "tunnel_protocol tcp"},
		{"PostgreSQL behind an http tunnel", "http", testkit.ServeTCP(t, postgres), "postgres", "tunnel_protocol tcp"},
		{"VNC", "tcp", testkit.ServeTCP(t, func(c net.Conn) { fmt.Fprint(c, "RFB 003.008\n"); _, _ = io.Copy(io.Discard, c) }), "vnc", ""},
		{"ComfyUI", "tcp", httpPort, "comfyui", "a browser can open it"},
		{"something silent", "tcp", testkit.ServeTCP(t, func(c net.Conn) { _, _ = io.Copy(io.Discard, c) }), "", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			start := time.Now()
			a := proberOf(patient).Probe(t.Context(), wire.Probe{Port: tt.port, Protocol: tt.protocol, PublicHost: pathHost})
			if !a.Listening || a.App != tt.want {
				t.Errorf("found %+v, expected %q", a, tt.want)
			}
			if all := strings.Join(a.Warnings, "\n"); tt.warning == "" && all != "" || !strings.Contains(all, tt.warning) {
				t.Errorf("the warnings are %q, expected %q", all, tt.warning)
			}
			testkit.Took(t, "probing", time.Since(start), patient+5*time.Second)
		})
	}
}
