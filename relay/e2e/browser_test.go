package e2e

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"

	"github.com/adit-tunnel/adit/relay/e2e/world"
)

// demo starts the demo app and returns its port.
func demo(w *world.World) int {
	w.T.Helper()
	port := w.FreePort()
	w.Start("demoapp", nil, filepath.Join(w.Bin, "demoapp"), "-listen", fmt.Sprintf("127.0.0.1:%d", port))
	w.WaitPort(port, 10*time.Second)
	return port
}

// The demo app checks Host and Origin as ComfyUI does.
func TestDemoPageInABrowser(t *testing.T) {
	t.Parallel()
	w := world.New(t)
	r := w.Relay(world.PathForm)
	w.Agent(r, "gpu-1")
	sk := r.Credential("integration", world.Team)
	tun := r.Open(sk, "gpu-1", map[string]any{"target_port": demo(w)})
	upload := w.WriteFile("picture.bin", strings.Repeat("adit ", 200000))
	ctx := w.Browser(2 * time.Minute)
	for form, url := range map[string]string{"subdomain": r.HostURL(tun), "path": r.PathURL(tun)} {
		tab := w.Tab(ctx)
		w.Do(tab, form+" form: the page, its requests, its WebSocket and its image work",
			world.Navigate(url),
			world.Until(`document.getElementById("relative").className === "ok"`),
			world.Until(`document.getElementById("absolute").className === "ok"`),
			world.Until(`document.getElementById("socket").textContent === "connected, echoed hello"`),
			world.Until(`document.getElementById("image").naturalWidth > 0`),
		)
		w.Do(tab, form+" form: a run shows its progress", chromedp.Click("#run"), world.Until(`document.getElementById("progress").textContent.endsWith("done")`))
		w.Do(tab, form+" form: an upload arrives whole", chromedp.SetUploadFiles("#file", []string{upload}),
			world.Until(`document.getElementById("upload").textContent.includes("equal at both ends")`))
	}

	// A link clicked in a chat on another site.
	chat := app(t, func(rw http.ResponseWriter, _ *http.Request) {
		rw.Header().Set("Content-Type", "text/html")
		fmt.Fprintf(rw, `<a id="host" href="%s">ComfyUI</a> <a id="path" href="%s">ComfyUI</a>`, r.HostURL(tun), r.PathURL(tun))
	})
	for _, link := range []string{"#host", "#path"} {
		tab := w.Tab(ctx)
		w.Do(tab, "the link "+link+" clicked on another site opens the page", world.Navigate(fmt.Sprintf("http://127.0.0.1:%d/", chat)),
			chromedp.Click(link), world.Until(`document.title === "Adit demo" && document.getElementById("relative").className === "ok"`))
	}
}

func TestJupyterInABrowser(t *testing.T) {
	t.Parallel()
	w := world.New(t)
	r := w.Relay()
	w.Agent(r, "gpu-1")
	sk := r.Credential("integration", world.Team)
	port, token := w.Jupyter()
	tun := r.Open(sk, "gpu-1", map[string]any{"target_port": port})
	ctx := w.Browser(3 * time.Minute)
	w.Do(ctx, "Jupyter asks for its token and lets us in",
		world.Navigate(r.HostURL(tun)),
		chromedp.WaitVisible("#password_input"),
		chromedp.SendKeys("#password_input", token),
		chromedp.Click("#login_submit"),
		chromedp.WaitVisible("#notebook_list"),
	)
	// A notebook by the app's own API, from its own page: cookies, _xsrf and Origin as in real use.
	w.Do(ctx, "a notebook is made from Jupyter's own page", evaluate(`fetch("/api/contents/test.ipynb", {method: "PUT", headers: {"Content-Type": "application/json",
		"X-XSRFToken": (document.cookie.match(/_xsrf=([^;]*)/) || [])[1]}, body: JSON.stringify({type: "notebook", format: "json", content: {nbformat: 4, nbformat_minor: 2,
		metadata: {kernelspec: {name: "python3", display_name: "Python 3"}}, cells: [{cell_type: "code", source: "print(6*7, 'from', 'the kernel')", metadata: {}, outputs: [], execution_count: null}]}})}).then(r => { if (!r.ok) throw new Error(r.status) })`),
		world.Navigate(r.HostURL(tun)+"notebooks/test.ipynb"),
		world.Until(`window.Jupyter && Jupyter.notebook && Jupyter.notebook.kernel && Jupyter.notebook.kernel.is_connected()`),
	)
	w.Do(ctx, "a cell runs in the kernel, over its WebSocket", evaluate(`void Jupyter.notebook.execute_all_cells()`),
		world.Until(`document.querySelector(".output") && document.querySelector(".output").textContent.includes("42 from the kernel")`))

	// 50 MB up and down by the page's own session, with equal hashes at both ends.
	w.Do(ctx, "50 MB go up and come down with equal hashes", evaluate(`(async () => {
		const xsrf = (document.cookie.match(/_xsrf=([^;]*)/) || [])[1];
		const data = new Uint8Array(50 << 20); for (let i = 0; i < data.length; i += 65536) crypto.getRandomValues(data.subarray(i, i + 65536));
		const hash = async b => [...new Uint8Array(await crypto.subtle.digest("SHA-256", b))].map(x => x.toString(16).padStart(2, "0")).join("");
		let b64 = await new Promise(ok => { const f = new FileReader(); f.onload = () => ok(f.result.split(",")[1]); f.readAsDataURL(new Blob([data])); });
		const up = await fetch("/api/contents/big.bin", {method: "PUT", headers: {"Content-Type": "application/json", "X-XSRFToken": xsrf}, body: JSON.stringify({type: "file", format: "base64", content: b64})});
		if (!up.ok) throw new Error("upload: " + up.status + await up.text());
		const down = await fetch("/files/big.bin"); if (!down.ok) throw new Error("download: " + down.status);
		const here = await hash(data), there = await hash(await down.arrayBuffer());
		if (here !== there) throw new Error("hashes differ");
		document.title = "equal " + here;
	})()`))
	title, err := chromedp.Run(ctx, chromedp.Title())
	if err != nil {
		t.Fatal(err)
	}
	if disk := fileSum(t, filepath.Join(w.Dir, "jupyter", "big.bin")); title != "equal "+disk {
		t.Errorf("the file on the machine has another hash: page %q, disk %s", title, disk)
	}
}

func TestNoVNCInABrowser(t *testing.T) {
	t.Parallel()
	w := world.New(t)
	r := w.Relay(world.PathForm)
	w.Agent(r, "gpu-1")
	sk := r.Credential("integration", world.Team)
	vnc, web := w.VNC()
	tun := r.Open(sk, "gpu-1", map[string]any{"target_port": web})
	ctx := w.Browser(2 * time.Minute)
	connected := world.Until(`document.getElementById("status").textContent.startsWith("Connected")`)
	w.Do(ctx, "noVNC shows a real X server, subdomain form", world.Navigate(r.HostURL(tun)+"vnc_lite.html"), connected)
	w.Do(ctx, "noVNC shows a real X server, path form", world.Navigate(r.PathURL(tun)+"vnc_lite.html?path="+strings.TrimPrefix(pathOf(r.PathURL(tun)), "/")+"websockify"), connected)

	// noVNC's own WebSocket client, on a tcp tunnel straight to VNC.
	raw := r.Open(sk, "gpu-1", map[string]any{"target_port": vnc, "tunnel_protocol": "tcp", "allow_origins": []string{strings.TrimSuffix(r.HostURL(tun), "/")}})
	host, path, _ := strings.Cut(strings.TrimPrefix(raw.TunnelURL, "ws://"), "/")
	name, port, _ := strings.Cut(host, ":")
	w.Do(ctx, "noVNC's client speaks to a tcp tunnel", world.Navigate(fmt.Sprintf("%svnc_lite.html?host=%s&port=%s&path=%s", r.HostURL(tun), name, port, path)), connected)
}

func pathOf(url string) string {
	_, rest, _ := strings.Cut(url, "://")
	_, path, _ := strings.Cut(rest, "/")
	return "/" + path
}

func TestPrometheusInABrowser(t *testing.T) {
	t.Parallel()
	w := world.New(t)
	r := w.Relay()
	w.Agent(r, "gpu-1")
	sk := r.Credential("integration", world.Team)
	tun := r.Open(sk, "gpu-1", map[string]any{"target_port": w.Prometheus()})
	ctx := w.Browser(2 * time.Minute)
	w.Do(ctx, "Prometheus's own UI opens", world.Navigate(r.HostURL(tun)+"classic/graph?g0.expr=up&g0.tab=1"), world.Until(`document.title.includes("Prometheus")`))
	w.Do(ctx, "a query is answered", evaluate(`(async () => { for (let i = 0; i < 100; i++) {
		const j = await (await fetch("/api/v1/query?query=up", {method: "POST"})).json(); if (j.status === "success") { document.title = "answered"; return; }
		await new Promise(r => setTimeout(r, 100)); } throw new Error("no answer"); })()`), world.Until(`document.title === "answered"`))
}

func TestViteInABrowser(t *testing.T) {
	t.Parallel()
	w := world.New(t)
	r := w.Relay()
	w.Agent(r, "gpu-1")
	sk := r.Credential("integration", world.Team)
	apps := world.AppsDir(w)
	dir := filepath.Join(w.Dir, "site")
	if err := os.CopyFS(dir, os.DirFS(filepath.Join(apps, "vite"))); err != nil {
		t.Fatal(err)
	}
	port := w.FreePort()
	w.StartIn(dir, "vite", nil, filepath.Join(apps, "node_modules", ".bin", "vite"), "--port", fmt.Sprint(port), "--strictPort", "--host", "127.0.0.1")
	w.WaitPort(port, 60*time.Second)
	tun := r.Open(sk, "gpu-1", map[string]any{"target_port": port})
	ctx := w.Browser(2 * time.Minute)
	text := func(s string) chromedp.Action[chromedp.Void] {
		return world.Until(fmt.Sprintf("document.getElementById('text').textContent === %q", s))
	}
	w.Do(ctx, "vite's page and modules load", world.Navigate(r.HostURL(tun)), text("first text"), evaluate(`window.mark = "same page"`))
	w.WriteFile("site/text.js", `export const text = "second text";`)
	w.Do(ctx, "an edited module is replaced without a reload", text("second text"), world.Until(`window.mark === "same page"`))
}

func TestSocketIOInABrowser(t *testing.T) {
	t.Parallel()
	w := world.New(t)
	r := w.Relay()
	w.Agent(r, "gpu-1")
	sk := r.Credential("integration", world.Team)
	port := w.FreePort()
	w.Node("socketio.mjs", fmt.Sprint(port))
	w.WaitPort(port, 20*time.Second)
	tun := r.Open(sk, "gpu-1", map[string]any{"target_port": port})
	ctx := w.Browser(2 * time.Minute)
	w.Do(ctx, "socket.io connects, is answered, and upgrades to WebSocket", world.Navigate(r.HostURL(tun)),
		world.Until(`document.getElementById("state").textContent === "echo: hello over the tunnel"`), world.Until(`document.title === "upgraded to websocket"`))
}
