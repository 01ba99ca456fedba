package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/adit-tunnel/adit/relay/e2e/world"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/testkit"
	"github.com/adit-tunnel/adit/shared/testkit/issuer"
	"github.com/adit-tunnel/adit/shared/wire"
)

// canaries are secrets by the name of what they are. Each is searched for without
// its prefix, as it is, in hexadecimal and in base64.
type canaries struct {
	t     *testing.T
	value map[string]string
}

func (c *canaries) add(name, secret string) string {
	c.t.Helper()
	for _, prefix := range []string{"sk-", "dk-", "ak-", "adm-", "lt-", "tc-", "tr-", "pc-", "si-", "inv-", "ps-"} {
		secret = strings.TrimPrefix(secret, prefix)
	}
	if len(secret) < 16 {
		c.t.Fatalf("%s is too short to be searched for: %q", name, secret)
	}
	c.value[name] = secret
	return secret
}

// tunnel adds the secrets of a tunnel and returns its whole segment.
func (c *canaries) tunnel(name string, r *world.Relay, tun api.Tunnel) string {
	c.add("admin token of "+name, tun.AdminToken)
	segment := world.Segment(tun)
	c.add("access token of "+name, segment[33:])
	return segment
}

// pairing lets a program in and adds what it gets, and the code of one that waits in vain.
func (c *canaries) pairing(r *world.Relay, person string) {
	c.t.Helper()
	c.add("device code of a pairing that nobody confirmed", started(r, "").DeviceCode)
	s := started(r, `{"client":"canary","keys":["device","agent"],"agent_id":"gpu-5"}`)
	c.add("device code", s.DeviceCode)
	if a := confirm(r, person, world.Team, s.UserCode, "laptop"); a.Status != 200 {
		c.t.Fatalf("confirm: %s %s", a, a.Body)
	}
	a := polled(r, s)
	got := decode[api.PairPolled](c.t, []byte(a.Body))
	if a.Status != 200 || got.Status != "approved" {
		c.t.Fatalf("take the keys: %s %s", a, a.Body)
	}
	c.add("key of a device that was paired", got.RawKey)
	c.add("key of a machine that was paired", got.AgentKey)
}

// doors lets a guest in by a PIN, and another who knocks, and adds what they bring and get.
func (c *canaries) doors(r *world.Relay, sk string) {
	c.t.Helper()
	const pin, wrong = "canary-pin-right-0123456789", "canary-pin-wrong-9876543210"
	c.add("PIN", pin)
	c.add("wrong PIN", wrong)
	client := r.W.HTTP()
	post := func(tun api.Tunnel, path string, form url.Values) {
		req, err := http.NewRequestWithContext(c.t.Context(), http.MethodPost, r.HostURL(tun)+path, strings.NewReader(form.Encode()))
		if err != nil {
			c.t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		resp, err := client.Do(req)
		if err != nil {
			c.t.Fatal(err)
		}
		_ = resp.Body.Close()
		for _, cookie := range resp.Cookies() {
			_, secret, _ := strings.Cut("."+cookie.Value, ".")
			if _, rest, ok := strings.Cut(secret, "."); ok {
				secret = rest // of a knock: its id is not secret
			}
			c.add("cookie that "+path+" sets", secret)
		}
		if resp.StatusCode >= 500 {
			c.t.Errorf("POST %s: %s", path, resp.Status)
		}
	}
	tun := r.Open(sk, "gpu-1", map[string]any{"target_port": r.W.FreePort(), "access": "pin", "pin": pin})
	post(tun, "_adit/pin", url.Values{"pin": {wrong}})
	post(tun, "_adit/pin", url.Values{"pin": {pin}})
	post(r.Open(sk, "gpu-1", map[string]any{"target_port": r.W.FreePort(), "access": "knock"}), "_adit/knock", url.Values{"name": {"Guest"}})
	for _, want := range []string{"cookie that _adit/pin sets", "cookie that _adit/knock sets"} {
		if c.value[want] == "" {
			c.t.Errorf("there is no %s", want)
		}
	}
}

// search reports every canary in a text, but for those allowed there.
func (c *canaries) search(where string, text []byte, allowed ...string) {
	c.t.Helper()
	for name, secret := range c.value {
		if slices.Contains(allowed, name) {
			continue
		}
		for _, form := range []string{secret, strings.ToUpper(secret), hex.EncodeToString([]byte(secret)), base64.StdEncoding.EncodeToString([]byte(secret))[:16]} {
			if i := bytes.Index(text, []byte(form)); i >= 0 {
				c.t.Errorf("the %s shows in %s: …%q", name, where, bytes.ReplaceAll(text[max(0, i-120):min(len(text), i+60)], []byte(form), []byte("<CANARY>")))
				break
			}
		}
	}
}

// recorder is an app that keeps every request as it came.
type recorder struct {
	mu   sync.Mutex
	seen []*http.Request
	dump [][]byte
}

func (a *recorder) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	dump, _ := httputil.DumpRequest(r, true)
	a.mu.Lock()
	a.seen, a.dump = append(a.seen, r), append(a.dump, dump)
	a.mu.Unlock()
	if r.Header.Get("Upgrade") != "" {
		c, err := websocket.Accept(w, r, &websocket.AcceptOptions{InsecureSkipVerify: true})
		if err != nil {
			return
		}
		defer func() { _ = c.CloseNow() }()
		if typ, b, err := c.Read(r.Context()); err == nil {
			_ = c.Write(r.Context(), typ, b)
		}
		return
	}
	switch r.URL.Path {
	case "/redirect":
		http.Redirect(w, r, "/elsewhere", http.StatusFound)
	case "/cut":
		panic(http.ErrAbortHandler)
	default:
		http.SetCookie(w, &http.Cookie{Name: "app", Value: "cookie", Path: "/"})
		fmt.Fprintln(w, "hello")
	}
}

// TestNoSecretLeaks lives a day of a team, with all that goes wrong in one, and then
// looks for every secret of that day wherever it must not be.
func TestNoSecretLeaks(t *testing.T) {
	t.Parallel()
	w := world.New(t)
	is := issuer.Start(t)
	c := &canaries{t: t, value: map[string]string{}}
	r := w.Relay(append(oidcEnv(is), "ADIT_TUNNEL_HOLD=300ms", world.PathForm)...)
	agent := w.NewAgent(r, "gpu-1", "ADIT_ALLOW_PORTS=1024-65535")
	text, err := os.ReadFile(filepath.Join(agent.StateDir, "credential"))
	if err != nil {
		t.Fatal(err)
	}
	c.add("agent's credential in a file", strings.TrimSpace(string(text)))
	second := w.NewAgent(r, "gpu-2")
	inEnv := r.Credential("agent", world.Team, "--agent", "gpu-2", "--name", "env")
	c.add("agent's credential in its environment", inEnv)
	second.Env = slices.DeleteFunc(second.Env, func(kv string) bool { return strings.HasPrefix(kv, "ADIT_CREDENTIAL_FILE=") })
	second.Env = append(second.Env, "ADIT_CREDENTIAL="+inEnv)
	agent.Start()
	second.Start()
	sk := r.Credential("integration", world.Team)
	c.add("integration credential", sk)
	agent.WaitOnline(r, sk, 15*time.Second)
	second.WaitOnline(r, sk, 15*time.Second)
	jwt := is.Token(members(world.Team))
	c.add("session", jwt[strings.LastIndexByte(jwt, '.')+1:])
	dk := created(r, jwt, world.Team, `{"kind":"device","name":"laptop"}`)
	c.add("device credential", dk.Secret)
	c.pairing(r, jwt)
	c.doors(r, sk)
	key, err := os.ReadFile(filepath.Join(r.DataDir, "cluster.key"))
	if err != nil {
		t.Fatal(err)
	}
	c.add("cluster key", strings.TrimSpace(string(key)))

	apps := &recorder{}
	srv := httptest.NewServer(apps)
	t.Cleanup(srv.Close)
	port := srv.Listener.Addr().(*net.TCPAddr).Port
	tun := r.Open(sk, "gpu-1", map[string]any{"target_port": port, "label": "day"})
	other := r.Open(sk, "gpu-2", map[string]any{"target_port": port, "host_header": "local"})
	segment, otherSegment := c.tunnel("tunnel 1", r, tun), c.tunnel("tunnel 2", r, other)
	d := &day{t: t, w: w, r: r, c: c, sk: sk, jwt: jwt, dk: dk.Secret, is: is, port: port, tun: tun, segment: segment, otherSegment: otherSegment}
	d.api()
	d.traffic()
	cli := d.cli()
	d.raw()

	t.Run("process arguments", func(t *testing.T) {
		c.t = t
		for name, p := range map[string]*world.Process{"relay": r.Process, "agent gpu-1": agent.Process, "agent gpu-2": second.Process, "adit connect": cli} {
			for _, file := range []string{"cmdline", "comm", "environ"} {
				b, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", p.Cmd.Process.Pid, file))
				if err != nil {
					t.Fatal(err)
				}
				var allowed []string
				if file == "environ" { // where their owners put them
					switch name {
					case "agent gpu-2":
						allowed = []string{"agent's credential in its environment"}
					case "adit connect":
						allowed = []string{"access token of the tcp tunnel"}
					}
				}
				c.search("/proc/"+file+" of "+name, b, allowed...)
			}
		}
	})
	t.Run("metrics", func(t *testing.T) {
		c.t = t
		for name, port := range map[string]int{"relay": r.Metrics, "agent gpu-1": agent.Metrics, "agent gpu-2": second.Metrics} {
			status, body := world.Get(w.HTTP(), fmt.Sprintf("http://127.0.0.1:%d/metrics", port))
			if status != 200 || !strings.Contains(body, "go_goroutines") {
				t.Fatalf("the metrics of %s: %d", name, status)
			}
			c.search("the metrics of "+name, []byte(body))
			for _, id := range []string{string(tun.SessionID), world.Team, "gpu-1", "localhost:"} {
				if strings.Contains(body, `"`+id) {
					t.Errorf("the metrics of %s have a label for %s", name, id)
				}
			}
		}
	})
	t.Run("diagnostic bundles", func(t *testing.T) {
		c.t = t
		d.bundles(agent, second)
	})
	// What was buffered is written when they stop, and the last words are logged too.
	agent.Kill()
	d.offline()
	if err := second.Stop(10 * time.Second); err != nil {
		t.Errorf("the agent stops: %v", err)
	}
	if err := r.Stop(30 * time.Second); err != nil {
		t.Errorf("the relay stops: %v", err)
	}
	t.Run("logs", func(t *testing.T) {
		c.t = t
		for name, p := range map[string]*world.Process{"relay": r.Process, "agent gpu-1": agent.Process, "agent gpu-2": second.Process, "adit connect": cli} {
			if name != "adit connect" && len(p.Log()) < 500 {
				t.Errorf("the log of %s at level debug has only %d bytes: nothing was tested", name, len(p.Log()))
			}
			c.search("the log of "+name, []byte(p.Log()))
		}
	})
	t.Run("files", func(t *testing.T) {
		c.t = t
		for _, dir := range []string{r.DataDir, agent.StateDir, second.StateDir} {
			c.files(dir)
		}
	})
	t.Run("answers", func(t *testing.T) {
		c.t = t
		for what, body := range d.pages {
			c.search("the answer to "+what, []byte(body))
		}
		if len(d.pages) < 12 {
			t.Errorf("only %d answers were looked at", len(d.pages))
		}
	})
	t.Run("apps", func(t *testing.T) { c.t = t; apps.check(c, segment, otherSegment) })
}

// files searches a directory: contents, and names, which core dumps and lists show.
func (c *canaries) files(dir string) {
	n, audits := 0, 0
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		c.search("a file name", []byte(path))
		if !e.Type().IsRegular() {
			return nil
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		var allowed []string
		switch filepath.Base(path) {
		case "cluster.key":
			allowed = []string{"cluster key"}
		case "credential":
			allowed = []string{"agent's credential in a file"}
		}
		if info, err := e.Info(); err == nil && info.Mode().Perm()&0o077 != 0 && (allowed != nil || strings.Contains(path, "etcd") || strings.Contains(path, "audit")) {
			c.t.Errorf("%s is open to others: %s", strings.TrimPrefix(path, dir), info.Mode())
		}
		if strings.HasSuffix(path, ".jsonl") {
			audits++
		}
		n++
		c.search("the file "+strings.TrimPrefix(path, dir), b, allowed...)
		return nil
	})
	if err != nil || n == 0 {
		c.t.Errorf("read %s: %d files, %v", dir, n, err)
	}
	if strings.Contains(dir, "relay-") && audits == 0 {
		c.t.Errorf("the day left no audit file")
	}
}

// check looks at what the app was told. It may learn its own tunnel's address, which
// the browser itself sends (Host, Origin, Referer) or which path form needs
// (X-Forwarded-Prefix): it is behind that tunnel anyway. Nothing else of the relay's.
func (a *recorder) check(c *canaries, own, other string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.seen) < 10 {
		c.t.Fatalf("the app saw %d requests only", len(a.seen))
	}
	addressed := map[string]bool{}
	tokens := map[string]string{own: "access token of tunnel 1", other: "access token of tunnel 2"}
	for i, r := range a.seen {
		mine := own
		if r.Header.Get("X-Which") == "2" {
			mine = other
		}
		if strings.HasPrefix(r.UserAgent(), "adit-agent") { // the probe, for one of the tunnels to this port, with its Host
			a.dump[i] = bytes.Replace(a.dump[i], []byte(r.Host), nil, 1)
			mine = "none" + strings.Repeat(" ", 59)
		}
		c.search("a request that the app saw", a.dump[i], tokens[mine], "session") // a session may be the app's own kind of token
		if strings.Contains(r.RequestURI, mine[33:]) {
			c.t.Errorf("the segment is in the path that the app sees")
		}
		for name, values := range r.Header {
			if !strings.Contains(strings.Join(values, " "), mine[33:]) {
				continue
			}
			addressed[name] = true
			switch name {
			case "X-Forwarded-Prefix", "X-Forwarded-Host", "Origin", "Referer", "Cookie":
			default:
				c.t.Errorf("the app reads the tunnel's address in %s", name)
			}
		}
		if r.Header.Get("X-Own") != "" && !strings.HasPrefix(r.Header.Get("Authorization"), "Bearer sk-proj-") {
			c.t.Errorf("the app's own key does not reach it: %q", r.Header.Get("Authorization"))
		}
		for name := range r.Header {
			if strings.HasPrefix(name, "X-Adit-") || strings.HasPrefix(name, "Proxy-") {
				c.t.Errorf("the app is sent %s", name)
			}
		}
	}
	c.t.Logf("the app saw %d requests; its own tunnel's address came in Host and %v", len(a.seen), addressed)
}

// day is one day of traffic.
type day struct {
	t                     *testing.T
	w                     *world.World
	r                     *world.Relay
	c                     *canaries
	is                    *issuer.Issuer
	sk, dk, jwt           string
	port                  int
	tun                   api.Tunnel
	segment, otherSegment string
	pages                 map[string]string // answers of the relay itself
}

// api calls the interface, rightly and wrongly.
func (d *day) api() {
	d.pages = map[string]string{}
	note := func(what string, a answer, status int) {
		d.t.Helper()
		if a.Status != status {
			d.t.Errorf("%s: expected %d, got %s %s", what, status, a, a.Body)
		}
		d.pages[what] = a.Body + fmt.Sprint(a.Header)
	}
	auth := func(secret string) []string { return []string{"Authorization", "Bearer " + secret} }
	var lease api.TaskLease
	gate := "/agents/gpu-9/tasks"
	if status, _ := d.r.API(d.sk, "POST", gate, map[string]any{}, nil); status != 404 {
		d.t.Errorf("a task on no agent: %d", status)
	}
	closeAll(d.r, d.sk, "gpu-2", api.Tunnel{SessionID: d.open("gpu-2").SessionID})
	pin := d.c.add("PIN of a tunnel", "0123456789 the canary's pin")
	closeAll(d.r, d.sk, "gpu-2", d.r.Open(d.sk, "gpu-2", map[string]any{"target_port": d.port, "access": "pin", "pin": pin}))
	third := d.w.Agent(d.r, "gpu-3")
	status, p := d.r.API(d.sk, "POST", "/agents/gpu-3/tasks", map[string]any{"task_id": "train", "ttl": "60s"}, &lease)
	if status != 201 {
		d.t.Fatalf("take a lease: %d %v", status, p)
	}
	d.c.add("lease token", lease.LeaseToken)
	renew := func(token string) answer {
		return call(d.r, "PUT", api.Base+"/agents/gpu-3/tasks/train", fmt.Sprintf(`{"lease_token":%q}`, token), auth(d.sk)...)
	}
	if a := renew(lease.LeaseToken); a.Status != 200 {
		d.t.Errorf("renew: %s", a)
	}
	wrongLease := "lt-" + strings.Repeat("k", 20) + "canarycanarycanaryca"
	d.c.add("lease token that was wrong", wrongLease)
	if a := renew(wrongLease); a.Status < 400 {
		d.t.Errorf("renew with a wrong token: %s", a)
	} else {
		note("a renewal with a wrong token", a, a.Status)
	}
	a := call(d.r, "DELETE", api.Base+"/agents/gpu-3/tasks/train", "", append(auth(d.sk), "X-Lease-Token", lease.LeaseToken)...)
	note("the release of a lease", a, 204)
	third.Kill()

	wrongSK, wrongJWT := "sk-canarycanarycanarycanarycanarycanary7777", d.is.TokenWrong(issuer.ForeignKey, members(world.Team))
	d.c.add("integration credential that was wrong", wrongSK)
	d.c.add("session that was wrong", wrongJWT[strings.LastIndexByte(wrongJWT, '.')+1:])
	note("a wrong credential", call(d.r, "GET", api.Base+"/agents", "", auth(wrongSK)...), 401)
	note("a wrong session", call(d.r, "GET", api.Base+"/agents", "", auth(wrongJWT)...), 401)
	note("a wrong link", call(d.r, "GET", "/agent/v1/link", "", append(auth(wrongSK), linkUpgrade...)...), 401)
	note("a credential as a query", call(d.r, "GET", api.Base+"/agents?access_token="+d.sk, ""), 401)
	note("a credential where none is taken", call(d.r, "GET", api.Base+"/agents/"+d.dk+"/tunnel", "", auth(d.sk)...), 404)
	bad := call(d.r, "POST", api.Base+"/agents/gpu-1/tunnel", `{"`+wrongSK+`":1}`, auth(d.sk)...)
	if bad.Status != 400 {
		d.t.Errorf("an unknown field: %s", bad)
	}
	note("a port that the agent refuses", call(d.r, "POST", api.Base+"/agents/gpu-1/tunnel", `{"target_port":22}`, auth(d.sk)...), 403)
	note("a session", asPerson(d.r, d.jwt, world.Team, "GET", "/credentials", ""), 200)
	note("a list of agents", call(d.r, "GET", api.Base+"/agents", "", auth(d.dk)...), 200)
	note("the viewers, by admin token", call(d.r, "GET", api.Base+"/tunnels/"+string(d.tun.SessionID)+"/viewers", "", auth(d.tun.AdminToken)...), 200)
	note("the viewers, by the wrong admin token", call(d.r, "GET", api.Base+"/tunnels/"+d.otherSegment[:32]+"/viewers", "", auth(d.tun.AdminToken)...), 401)
	idem := call(d.r, "POST", api.Base+"/agents/gpu-1/tunnel", fmt.Sprintf(`{"target_port":%d}`, d.port), append(auth(d.sk), "Idempotency-Key", d.c.add("idempotency key", "canary-idempotency-key-0123456789"))...)
	if idem.Status != 201 {
		d.t.Errorf("open with a key: %s", idem)
	}
	var again api.Tunnel
	_ = json.Unmarshal([]byte(idem.Body), &again)
	d.c.tunnel("the tunnel with a key", d.r, again)
	d.watchOnce(auth(d.sk))
	d.terminal(auth)
}

// terminal makes codes, uses one, and sends them where they do not belong.
func (d *day) terminal(auth func(string) []string) {
	path := api.Base + "/tunnels/" + string(d.tun.SessionID) + "/terminal"
	mint := func(name, secret string) string {
		d.t.Helper()
		a := call(d.r, "POST", path, "", auth(secret)...)
		_, code, ok := strings.Cut(a.Body, "#code=")
		code, _, _ = strings.Cut(code, `"`)
		if a.Status != 201 || !ok {
			d.t.Fatalf("a terminal's code: %s %s", a, a.Body)
		}
		d.c.add(name, code)
		return code
	}
	code := mint("terminal code that was used", d.tun.AdminToken)
	mint("terminal code that nobody used", d.sk)
	for range 2 {
		c, err := dialTerminal(d.t, d.r, string(d.tun.SessionID), d.r.URL, wire.TerminalAttach{Code: code})
		if err != nil {
			d.t.Fatal(err)
		}
		if _, b, err := c.Read(d.t.Context()); err == nil {
			var ready wire.TerminalReady
			if err := json.Unmarshal(b, &ready); err != nil || ready.Right == "" {
				d.t.Fatalf("a code is answered %s %v", b, err)
			}
			d.c.add("right to a terminal", ready.Right)
			if end := terminalEnd(d.t, c); end.Code != wire.CloseDenied {
				d.t.Errorf("a machine without terminals: %v", end)
			}
		}
	}
	for _, path := range []string{"/terminal/" + string(d.tun.SessionID) + "?code=" + code, "/terminal/" + code, "/terminal/" + code + "/ws"} {
		a := call(d.r, "GET", path, "")
		d.pages["a code in a path or query "+path[:12]] = a.Body + fmt.Sprint(a.Header)
	}
	a := call(d.r, "POST", path, `{"`+code+`":1}`, auth(d.sk)...)
	if a.Status != 400 {
		d.t.Errorf("a code as a field: %s", a)
	}
}

func (d *day) open(agent string) api.Tunnel {
	tun := d.r.Open(d.sk, agent, map[string]any{"target_port": d.port})
	d.c.tunnel("a closed tunnel", d.r, tun)
	return tun
}

func (d *day) watchOnce(header []string) {
	ctx, cancel := context.WithTimeout(d.t.Context(), testkit.Patience)
	defer cancel()
	req, _ := http.NewRequestWithContext(ctx, "GET", fmt.Sprintf("http://127.0.0.1:%d/api/v1/agents/watch", d.r.Port), nil)
	req.Header.Set(header[0], header[1])
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		d.t.Error(err)
		return
	}
	defer resp.Body.Close()
	_, _ = bufio.NewReader(resp.Body).ReadString('\n')
}

// traffic uses the tunnels in every form, with secrets wherever people put them.
func (d *day) traffic() {
	base := fmt.Sprintf("http://localhost:%d", d.r.Port)
	host := fmt.Sprintf("%s.localhost:%d", d.segment, d.r.Port)
	path := "/tunnel/" + d.segment
	get := func(what string, status int, path string, header ...string) {
		d.t.Helper()
		a := call(d.r, "GET", path, "", append(header, "Accept", "text/html")...)
		if a.Status != status {
			d.t.Errorf("%s: expected %d, got %s", what, status, a)
		}
		if status >= 400 || status == 307 {
			if status == 307 { // it tells the browser where it is, which the browser knows
				a.Header.Del("Location")
			}
			d.pages[what] = a.Body + fmt.Sprint(a.Header)
		}
	}
	get("path form", 200, path+"/a?x=1")
	get("subdomain form", 200, "/a", "Host", host, "Referer", "http://"+host+"/page", "Cookie", "session="+d.segment[:33])
	get("own address as Referer", 200, path+"/b", "Referer", base+path+"/page")
	get("another tunnel's address as Referer, path form", 200, path+"/b", "Referer", base+"/tunnel/"+d.otherSegment+"/page")
	get("another tunnel's address as Referer, subdomain form", 200, "/b", "Host", host, "Referer", "http://"+strings.Replace(host, d.segment, d.otherSegment, 1)+"/page")
	get("another tunnel's address as Origin", 200, "/b", "Host", host, "Origin", "http://"+strings.Replace(host, d.segment, d.otherSegment, 1))
	for _, secret := range []string{d.sk, d.dk, d.tun.AdminToken} {
		get("a secret of the relay's sent to the app", 200, path+"/c", "Authorization", "Bearer "+secret)
		get("a secret of the relay's sent to the app, in lower case", 200, "/c", "Host", host, "Authorization", "bearer  "+secret)
	}
	get("the app's own key", 200, path+"/c", "Authorization", "Bearer sk-proj-0123456789ABCDEFabcdef0123456789abcdef", "X-Own", "1")
	get("a page of host mode local", 200, "/tunnel/"+d.otherSegment+"/", "X-Which", "2", "Referer", base+"/tunnel/"+d.otherSegment+"/x")
	get("an absolute path", 307, "/static/app.js", "Referer", base+path+"/page")
	get("a wrong token", 404, path[:len(path)-1]+"/", "Referer", base+path+"/")
	get("a page of nowhere", 404, "/nothing/"+d.segment)
	get("a redirect of the app's", 302, path+"/redirect")
	get("an answer cut short", 502, path+"/cut")
	for what, origin := range map[string]string{"another site's": "https://evil.example", "no": "null", "a sibling's": "http://" + strings.Replace(host, d.segment, d.otherSegment, 1)} {
		a := call(d.r, "POST", "/x", "{}", "Host", host, "Origin", origin)
		if a.Status != 403 {
			d.t.Errorf("a POST from %s page: %s", what, a)
		}
		d.pages["a POST from "+what+" page"] = a.Body
	}
	ws, _, err := websocket.Dial(d.t.Context(), "ws"+strings.TrimPrefix(base, "http")+path+"/ws", &websocket.DialOptions{HTTPClient: d.w.HTTP()})
	if err != nil {
		d.t.Fatalf("a WebSocket: %v", err)
	}
	_ = ws.Write(d.t.Context(), websocket.MessageText, []byte("hi"))
	_, _, _ = ws.Read(d.t.Context())
	_ = ws.Close(websocket.StatusNormalClosure, "")

	refused := d.r.Open(d.sk, "gpu-1", map[string]any{"target_port": d.w.FreePort()})
	s := d.c.tunnel("a tunnel to a port where nothing listens", d.r, refused)
	get("a port where nothing listens", 502, "/tunnel/"+s+"/")
	closeAll(d.r, d.sk, "gpu-1", refused)
	get("a closed tunnel", 404, "/tunnel/"+s+"/")
}

// cli forwards a port as people do, and leaves it running.
func (d *day) cli() *world.Process {
	tcp := d.r.Open(d.sk, "gpu-1", map[string]any{"target_port": d.port, "tunnel_protocol": "tcp"})
	s := d.c.tunnel("the tcp tunnel", d.r, tcp)
	local := d.w.FreePort()
	p := d.w.Start("adit connect", []string{"ADIT_TUNNEL_URL=" + tcp.TunnelURL}, filepath.Join(d.w.Bin, "adit"), "connect", "-L", fmt.Sprintf("127.0.0.1:%d", local))
	d.w.WaitPort(local, 10*time.Second)
	if status, _ := world.Get(d.w.HTTP(), fmt.Sprintf("http://127.0.0.1:%d/", local)); status != 200 {
		d.t.Errorf("the forwarded port: %d", status)
	}
	a := call(d.r, "GET", "/tunnel/"+s+"/", "", "Accept", "text/html")
	if a.Status != 426 {
		d.t.Errorf("a tcp tunnel in a browser: %s", a)
	}
	d.pages["a tcp tunnel in a browser"] = a.Body
	ws, _, err := websocket.Dial(d.t.Context(), fmt.Sprintf("ws://localhost:%d/tunnel/%s/", d.r.Port, s), &websocket.DialOptions{HTTPClient: d.w.HTTP()})
	if err != nil {
		d.t.Fatalf("a WebSocket to a tcp tunnel: %v", err)
	}
	_ = ws.Write(d.t.Context(), websocket.MessageText, []byte("text is refused"))
	_, _, _ = ws.Read(d.t.Context())
	_ = ws.CloseNow()
	return p
}

// raw sends what no HTTP library would, with secrets in it: servers log such lines.
func (d *day) raw() {
	for _, line := range []string{
		"GET /tunnel/" + d.segment + "/ HTTP/9.9\r\n\r\n",
		"GET /tunnel/" + d.segment + "/\x01 HTTP/1.1\r\nHost: x\r\n\r\n",
		"BAD /tunnel/" + d.segment + "/ with spaces HTTP/1.1\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: " + d.segment + ".localhost\r\nHost: b\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: x\r\nAuthorization : Bearer " + d.sk + "\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + d.sk + "\x00\r\n\r\n",
		"CONNECT " + d.segment + ".localhost:80 HTTP/1.1\r\nHost: x\r\n\r\n",
		"GET http://" + d.segment + ".localhost/ HTTP/1.1\r\nHost: x\r\n\r\n",
	} {
		conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", d.r.Port))
		if err != nil {
			d.t.Fatal(err)
		}
		_ = conn.SetDeadline(time.Now().Add(testkit.Patience))
		_, _ = conn.Write([]byte(line))
		b := make([]byte, 4096)
		n, _ := io.ReadAtLeast(conn, b, 12)
		_ = conn.Close()
		d.pages["a request that is none: "+regexp.MustCompile(`[^A-Za-z /]`).ReplaceAllString(line[:4], "")+fmt.Sprint(len(line))] = string(b[:n])
	}
}

// offline asks for a tunnel whose machine is gone, as a browser and as a program.
func (d *day) offline() {
	for _, accept := range []string{"text/html", "*/*"} {
		a := call(d.r, "GET", "/tunnel/"+d.segment+"/", "", "Accept", accept)
		if a.Status != 503 {
			d.t.Errorf("a machine that is gone: %s", a)
		}
		d.pages["a machine that is gone, for "+accept] = a.Body
	}
}
