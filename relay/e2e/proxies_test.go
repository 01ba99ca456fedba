package e2e

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/adit-tunnel/adit/relay/e2e/world"
	"github.com/adit-tunnel/adit/shared/api"
)

// front is a reverse proxy of an example in configs/, with addresses and files of the test's.
type front struct {
	w         *world.World
	port      int
	relay     string
	cert, key string
}

// example reads an example and changes what an operator changes: each text to be
// replaced must be there.
func (f front) example(name string, change ...string) string {
	f.w.T.Helper()
	text := read(f.w.T, filepath.Join(configsDir, name))
	for i := 0; i+1 < len(change); i += 2 {
		if !strings.Contains(text, change[i]) {
			f.w.T.Fatalf("%s lost %q, which this test replaces", name, change[i])
		}
		text = strings.ReplaceAll(text, change[i], change[i+1])
	}
	return text
}

func (f front) nginx() {
	dir := filepath.Join(f.w.Dir, "nginx")
	site := f.example("nginx.conf.example",
		"listen 443 ssl;", fmt.Sprintf("listen 127.0.0.1:%d ssl;", f.port), "	listen [::]:443 ssl;\n", "",
		"listen 80;", fmt.Sprintf("listen 127.0.0.1:%d;", f.w.FreePort()), "	listen [::]:80;\n", "",
		"127.0.0.1:8080", f.relay, "/etc/adit/tls/fullchain.pem", f.cert, "/etc/adit/tls/privkey.pem", f.key, "/var/log/nginx/", dir+"/")
	conf := f.w.WriteFile("nginx/nginx.conf", fmt.Sprintf(`daemon off; pid %[1]s/pid; error_log stderr; worker_processes 1; master_process off;
events { worker_connections 512; }
http {
client_body_temp_path %[1]s/body; proxy_temp_path %[1]s/proxy; fastcgi_temp_path %[1]s/fcgi; uwsgi_temp_path %[1]s/uwsgi; scgi_temp_path %[1]s/scgi;
%[2]s
}
`, dir, site))
	program := f.w.Program("nginx", "nginx-light", "/usr/sbin/nginx")
	f.w.Run(nil, program, "-t", "-c", conf)
	f.w.Start("nginx", nil, program, "-c", conf)
}

func (f front) caddy() {
	home := filepath.Join(f.w.Dir, "caddy")
	conf := f.w.WriteFile("caddy/Caddyfile", f.example("Caddyfile.example",
		"{\n	# A tunnel's address", fmt.Sprintf("{\n	admin off\n	http_port %d\n	https_port %d\n	# A tunnel's address", f.w.FreePort(), f.port),
		"127.0.0.1:8080", f.relay, "/etc/adit/tls/fullchain.pem", f.cert, "/etc/adit/tls/privkey.pem", f.key))
	env := []string{"HOME=" + home, "XDG_DATA_HOME=" + home, "XDG_CONFIG_HOME=" + home}
	program := f.w.Program("caddy", "caddy")
	f.w.Run(env, program, "validate", "--adapter", "caddyfile", "--config", conf)
	f.w.Start("caddy", env, program, "run", "--adapter", "caddyfile", "--config", conf)
}

func (f front) haproxy() {
	pem := f.w.WriteFile("haproxy/gateway.pem", read(f.w.T, f.cert)+read(f.w.T, f.key))
	conf := f.w.WriteFile("haproxy/haproxy.cfg", f.example("haproxy.cfg.example",
		"bind :443", fmt.Sprintf("bind 127.0.0.1:%d", f.port), "/etc/adit/tls/gateway.pem", pem,
		"maxconn 50000", "maxconn 500", "10.0.0.11:8080", f.relay, "	server relay-2 10.0.0.12:8080\n", "", "	server relay-3 10.0.0.13:8080\n", ""))
	program := f.w.Program("haproxy", "haproxy", "/usr/sbin/haproxy")
	f.w.Run(nil, program, "-c", "-f", conf)
	f.w.Start("haproxy", nil, program, "-db", "-f", conf)
}

// forgeries are the fields by which proxies tell apps who the user is, where from, and
// what was asked for: those of the relay's own kind, and those of other proxies.
var forgeries = strings.Fields(`Forwarded X-Real-IP
	X-Forwarded-User X-Forwarded-Email X-Forwarded-Groups X-Forwarded-Preferred-Username X-Forwarded-Access-Token X-Forwarded-Port X-Forwarded-Ssl
	X-Forwarded-Scheme X-Forwarded-Client-Cert X-Forwarded-Uri X-Forwarded-Method X-Forwarded-Prefix X-Forwarded-Server X-Adit-User Proxy-Authorization
	X-Auth-Request-User X-Auth-Request-Email X-Auth-Request-Groups X-Auth-Request-Preferred-Username X-Auth-Request-Access-Token
	X-WEBAUTH-USER X-WEBAUTH-ROLE X-WEBAUTH-GROUPS Remote-User Remote-Email Remote-Groups X-Remote-User X-Remote-Group X-Authenticated-User
	X-Authentik-Username X-Goog-IAP-JWT-Assertion X-Amzn-Oidc-Data X-Ms-Client-Principal X-Pomerium-Jwt-Assertion Cf-Access-Jwt-Assertion
	Client-Cert X-Client-Cert X-SSL-Client-Cert X-SSL-Client-Verify Client-IP X-Client-IP X-Cluster-Client-IP True-Client-IP CF-Connecting-IP
	X-Original-URL X-Original-URI X-Original-Host X-Rewrite-URL X-Scheme Front-End-Https`)

// nothingForged sends a client's own of all that apps believe of proxies, in several
// spellings at once, to an app that answers with the header it got.
func nothingForged(t *testing.T, c *http.Client, address string) {
	t.Helper()
	const value = "believe-me"
	var sent []string
	for _, name := range forgeries {
		sent = append(sent, name, value, strings.ToLower(name), value, strings.ReplaceAll(name, "-", "_"), value, strings.Replace(name, "-", "_", 1), value)
	}
	status, body := world.Get(c, address, sent...)
	var got http.Header
	if err := json.Unmarshal([]byte(body), &got); status != http.StatusOK || err != nil {
		t.Fatalf("the app answers %d %q: %v", status, body, err)
	}
	for name, values := range got {
		if strings.Contains(strings.Join(values, " "), value) {
			t.Errorf("the app believes the client: %s: %q", name, values)
		}
	}
}

// TestReverseProxyExamples loads each example into the program it is for: a page, a
// WebSocket, the API and an agent's link through it, and who came is known behind it.
func TestReverseProxyExamples(t *testing.T) {
	t.Parallel()
	for name, start := range map[string]func(front){"nginx": front.nginx, "caddy": front.caddy, "haproxy": front.haproxy} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := world.New(t)
			ca, cert, key, pool := certificate(w, "gateway.example.com", "*.tunnels.example.com")
			r := w.NewRelay()
			f := front{w: w, port: w.FreePort(), relay: fmt.Sprintf("127.0.0.1:%d", r.Port), cert: cert, key: key}
			base := fmt.Sprintf("https://gateway.example.com:%d", f.port)
			r.Env = append(r.Env, "ADIT_PUBLIC_URL="+base, "ADIT_WILDCARD_DOMAIN=tunnels.example.com", "ADIT_TRUSTED_PROXIES=127.0.0.1/32")
			r.Start()
			r.WaitReady(60 * time.Second)
			start(f)

			// The user's address is another one than the proxy's.
			const user = "127.0.0.9"
			d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(user)}}
			tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, ForceAttemptHTTP2: true, DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
				return d.DialContext(ctx, network, fmt.Sprintf("127.0.0.1:%d", f.port))
			}}
			t.Cleanup(tr.CloseIdleConnections)
			c := &http.Client{Transport: tr, Timeout: 30 * time.Second}
			w.Eventually(60*time.Second, name+" leads to the relay", func() bool { s, _ := world.Get(c, base+"/readyz"); return s == http.StatusOK })

			proxy, _ := connectProxy(t, f.port)
			a := w.NewAgent(r, "gpu-1", "ADIT_RELAY_URL="+base, "ADIT_TLS_CA_FILE="+ca, "HTTPS_PROXY="+proxy)
			a.Start()
			sk := r.Credential("integration", world.Team)
			port := app(t, func(rw http.ResponseWriter, req *http.Request) {
				if req.URL.Path == "/ws" {
					ws, err := websocket.Accept(rw, req, &websocket.AcceptOptions{InsecureSkipVerify: true})
					if err != nil {
						return
					}
					defer func() { _ = ws.CloseNow() }()
					for {
						kind, b, err := ws.Read(req.Context())
						if err != nil || ws.Write(req.Context(), kind, b) != nil {
							return
						}
					}
				}
				if req.URL.Path == "/headers" {
					_ = json.NewEncoder(rw).Encode(req.Header)
					return
				}
				fmt.Fprintf(rw, "%s %s %s %s", req.Header.Get("X-Forwarded-For"), req.Header.Get("X-Forwarded-Proto"), req.Header.Get("X-Forwarded-Host"), req.URL.EscapedPath())
			})
			var tun api.Tunnel
			w.Eventually(60*time.Second, "the agent links through "+name+", and a tunnel opens", func() bool {
				return callAPI(t, c, base, sk, http.MethodPost, "/agents/gpu-1/tunnel", map[string]any{"target_port": port, "host_header": "public"}, &tun) == http.StatusCreated
			})
			host := strings.TrimSuffix(strings.TrimPrefix(tun.TunnelURL, "https://"), "/")
			for _, forged := range []string{"", "192.0.2.7"} {
				var header []string
				if forged != "" {
					header = []string{"X-Forwarded-For", forged, "X-Real-IP", forged, "Forwarded", "for=" + forged}
				}
				want := fmt.Sprintf("%s, 127.0.0.1 https %s /a//b%%2Fc", user, host) // the proxy adds the user, the relay the proxy
				if status, body := world.Get(c, tun.TunnelURL+"a//b%2Fc", header...); status != http.StatusOK || body != want {
					t.Errorf("the app hears %d %q, want %q", status, body, want)
				}
			}
			nothingForged(t, c, tun.TunnelURL+"headers")
			ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
			defer cancel()
			h1 := tr.Clone()
			h1.ForceAttemptHTTP2, h1.TLSClientConfig = false, &tls.Config{RootCAs: pool, NextProtos: []string{"http/1.1"}}
			t.Cleanup(h1.CloseIdleConnections)
			ws, _, err := websocket.Dial(ctx, strings.Replace(tun.TunnelURL, "https", "wss", 1)+"ws", &websocket.DialOptions{HTTPClient: &http.Client{Transport: h1}})
			if err != nil {
				t.Fatalf("a WebSocket through %s: %v", name, err)
			}
			defer func() { _ = ws.CloseNow() }()
			for _, text := range []string{"a", strings.Repeat("b", 30000)} {
				err := ws.Write(ctx, websocket.MessageText, []byte(text))
				var got []byte
				if err == nil {
					_, got, err = ws.Read(ctx)
				}
				if err != nil || string(got) != text {
					t.Errorf("a message of %d bytes came back as %d, %v", len(text), len(got), err)
				}
			}
			var viewers api.ViewerList
			if status := callAPI(t, c, base, sk, http.MethodGet, "/tunnels/"+string(tun.SessionID)+"/viewers", nil, &viewers); status != http.StatusOK || len(viewers.Viewers) == 0 {
				t.Errorf("the viewers: %d %+v", status, viewers)
			}
			for _, v := range viewers.Viewers {
				if v.RemoteAddr != user {
					t.Errorf("a viewer is at %s, want %s", v.RemoteAddr, user)
				}
			}
			log := w.Run(nil, filepath.Join(w.Bin, "adit-relay"), "audit", "--event", "tunnel_opened", "--socket", filepath.Join(r.DataDir, "admin.sock"))
			if !strings.Contains(log, `"remote_addr":"`+user+`"`) {
				t.Errorf("the audit log has the user's address: %s", log)
			}
			// What the proxy logged gives no tunnel away.
			segment, _, _ := strings.Cut(host, ".")
			for _, pattern := range []string{"nginx/*.log", "caddy/*"} {
				files, _ := filepath.Glob(filepath.Join(w.Dir, pattern))
				for _, file := range files {
					if info, err := os.Stat(file); err == nil && info.Mode().IsRegular() && strings.Contains(read(t, file), segment[33:]) {
						t.Errorf("%s holds a tunnel's address", file)
					}
				}
			}
		})
	}
}
