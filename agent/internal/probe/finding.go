package probe

import (
	"fmt"
	"net/http"
	"regexp"
	"strings"

	"github.com/adit-tunnel/adit/shared/ident"
)

const segmentLength = ident.SegmentLength

// finding names the app behind HTTP answers.
type finding struct {
	port     uint16
	pathForm bool   // the tunnel's address is a path on a shared host
	visit    visit  // the answers that tell most
	public   answer // where the visit under the public host ended
	more     func(path string) answer

	app string
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

// name looks for marks in the answers, then in what only a few apps answer.
func (f *finding) name() {
	for _, a := range f.visit {
		switch app := match(a); {
		case app == "":
		case app != general:
			f.app = app
			return
		default:
			f.app = app // a better one may follow: it stands before many apps
		}
	}
	if f.app != "" || !f.looksLikeAPI() {
		return
	}
	// vLLM has no page; its list of models names it.
	if a := f.more("/v1/models"); a.err == nil && ownedByVLLM.MatchString(a.body) {
		f.app = "vllm"
		return
	}
	// Started with an API key, it shows its version only.
	if a := f.more("/version"); f.port == 8000 && a.status == http.StatusOK && strings.HasPrefix(strings.TrimSpace(a.body), `{"version":`) {
		f.app = "vllm"
	}
}

// general is a server that often stands before another app.
const general = "nginx"

var ownedByVLLM = regexp.MustCompile(`"owned_by":\s*"vllm"`)

// looksLikeAPI says whether the app has no page at its root but speaks JSON.
func (f *finding) looksLikeAPI() bool {
	a := f.visit.end()
	return strings.HasPrefix(a.header.Get("Content-Type"), "application/json") || strings.Contains(a.header.Get("Server"), "uvicorn")
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
			if rooted.MatchString(f.visit.end().body) {
				out = append(out, "this page uses absolute paths: it may need the subdomain form")
			}
		}
	}
	if end := f.visit.end(); f.app == "" && !accepted(end) {
		out = append(out, fmt.Sprintf("the app on port %d answers %s itself, whatever the Host", f.port, end.text()))
	}
	if f.app == "streamlit" && !refused(f.public) {
		out = append(out, "if Streamlit's page stays empty, start it with --server.enableCORS false or name the tunnel's host in browser.serverAddress")
	}
	return out
}
