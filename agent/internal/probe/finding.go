package probe

import (
	"fmt"
	"net/http"
	"regexp"
	"strings"

	"github.com/adit-tunnel/adit/shared/ident"
)

const segmentLength = ident.SegmentLength

// finding names the app behind an HTTP answer.
type finding struct {
	port     uint16
	pathForm bool   // the tunnel's address is a path on a shared host
	best     answer // the answer of the app that tells most
	public   answer // the answer for the public host
	more     func(path string) answer

	app  string
	page answer // the page that told, for warnings
}

// mark is one sign of an app; all parts that are set must be there.
type mark struct {
	app      string
	body     string // contained in the body
	header   string // "Name: text": contained in that header
	location string // contained in a redirect's target
}

// marks are tried from top to bottom: what is special before what is general.
// Each was taken from the app's own answers.
var marks = []mark{
	{app: "comfyui", body: "<title>ComfyUI"},
	{app: "comfyui", body: "comfyui-frontend"},
	{app: "comfyui", body: "/scripts/app.js", header: "Server: aiohttp"},
	{app: "gradio", body: "window.gradio_config"},
	{app: "gradio", body: "<gradio-app"},
	{app: "streamlit", body: "<title>Streamlit</title>"},
	{app: "tensorboard", body: "<title>TensorBoard</title>"},
	{app: "tensorboard", body: "<tf-tensorboard"},
	{app: "code-server", body: "<title>code-server"},
	{app: "code-server", body: "vscode-workbench-web-configuration"},
	{app: "vscode", body: "vscode-workbench"},
	{app: "jupyter", body: "jupyter-config-data"},
	{app: "jupyter", body: "<title>Jupyter"},
	{app: "jupyter", body: "/static/logo/logo.png", header: "Server: TornadoServer"},
	{app: "jupyter", header: "Content-Security-Policy: /api/security/csp-report"},
	{app: "jupyter", header: "Server: TornadoServer", location: "/lab"},
	{app: "jupyter", header: "Server: TornadoServer", location: "/tree"},
	{app: "jupyter", header: "Server: TornadoServer", location: "/login?next="},
	{app: "ollama", body: "Ollama is running"},
	{app: "prometheus", body: "<title>Prometheus Time Series"},
	{app: "grafana", body: "<title>Grafana</title>"},
	{app: "grafana", body: "grafanaBootData"},
	{app: "novnc", body: "<title>noVNC</title>"},
	{app: "novnc", body: "vnc_lite.html"},
	{app: "novnc", header: "Server: WebSockify"},
	{app: "vite", body: "/@vite/client"},
	{app: "vite", body: "server.allowedHosts"},
	{app: "vite", body: "preview.allowedHosts"},
	{app: "nginx", header: "Server: nginx"},
}

// name looks for marks in the best answer, then where the app redirects to, then
// in what only a few apps answer.
func (f *finding) name() {
	f.page = f.best
	if f.app = match(f.best); f.app != "" && f.app != "nginx" {
		f.follow(func(answer) bool { return false })
		return
	}
	general := f.app // nginx may stand before anything
	f.follow(func(a answer) bool {
		if app := match(a); app != "" && app != "nginx" {
			f.app, general = app, app
			return true
		}
		return false
	})
	if f.app = general; f.app == "" && f.looksLikeAPI() {
		// vLLM has no page; its list of models names it.
		if a := f.more("/v1/models"); a.err == nil && strings.Contains(a.body, `"owned_by":"vllm"`) || strings.Contains(a.body, `"owned_by": "vllm"`) {
			f.app = "vllm"
		} else if a := f.more("/version"); f.port == 8000 && a.status == http.StatusOK && strings.HasPrefix(strings.TrimSpace(a.body), `{"version":`) {
			f.app = "vllm" // started with an API key, it shows its version only
		}
	}
}

// follow goes where the app redirects to, within the app, until enough says stop.
func (f *finding) follow(enough func(answer) bool) {
	a := f.best
	for range maxFollow {
		path := a.redirect()
		if path == "" {
			return
		}
		if a = f.more(path); a.err != nil {
			return
		}
		f.page = a
		if enough(a) {
			return
		}
	}
}

// looksLikeAPI says whether the app has no page at its root but speaks JSON.
func (f *finding) looksLikeAPI() bool {
	return f.best.err == nil && strings.HasPrefix(f.best.header.Get("Content-Type"), "application/json") ||
		strings.Contains(f.best.header.Get("Server"), "uvicorn")
}

func match(a answer) string {
	if a.err != nil {
		return ""
	}
	for _, m := range marks {
		if m.in(a) {
			return m.app
		}
	}
	return ""
}

func (m mark) in(a answer) bool {
	if m.body != "" && !strings.Contains(a.body, m.body) {
		return false
	}
	if m.header != "" {
		name, text, _ := strings.Cut(m.header, ": ")
		if !strings.Contains(a.header.Get(name), text) {
			return false
		}
	}
	return m.location == "" || strings.Contains(a.header.Get("Location"), m.location)
}

// rooted finds addresses in a page that begin at the host's root: in the path
// form they miss the tunnel's prefix.
var rooted = regexp.MustCompile(`(?i)<(?:script|link|img|iframe|form)\b[^>]*?\b(?:src|href|action)\s*=\s*["']?/[^/"'\s>]`)

// warnings says what the user of a tunnel to this app should know.
func (f *finding) warnings() []string {
	var out []string
	if f.pathForm {
		switch f.app {
		case "jupyter":
			out = append(out, "Jupyter needs the subdomain form, or --ServerApp.base_url set to the tunnel's path: its pages and WebSockets have absolute paths")
		case "tensorboard":
			out = append(out, "TensorBoard works best in the subdomain form; in the path form start it with --path_prefix")
		case "vite":
			out = append(out, "vite needs the subdomain form, or `base` set to the tunnel's path: its modules and its WebSocket have absolute paths")
		case "streamlit":
			out = append(out, "Streamlit needs the subdomain form, or --server.baseUrlPath: its WebSocket has an absolute path")
		case "grafana":
			out = append(out, "Grafana needs the subdomain form, or server.root_url with serve_from_sub_path")
		case "prometheus":
			out = append(out, "Prometheus needs the subdomain form, or --web.external-url and --web.route-prefix")
		case "comfyui", "code-server", "gradio", "novnc": // their addresses are relative
		default:
			if rooted.MatchString(f.page.body) {
				out = append(out, "this page uses absolute paths: it may need the subdomain form")
			}
		}
	}
	if f.app == "" && !accepted(f.best) {
		out = append(out, fmt.Sprintf("the app on port %d answers %s itself, whatever the Host", f.port, f.best.text()))
	}
	if f.app == "streamlit" && !refused(f.public) {
		out = append(out, "if Streamlit's page stays empty, start it with --server.enableCORS false or name the tunnel's host in browser.serverAddress")
	}
	return out
}
