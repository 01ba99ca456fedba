package lab

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strings"
	"time"

	"github.com/adit-tunnel/adit/relay/e2e/bench/load"
	"github.com/adit-tunnel/adit/shared/api"
)

// Target is one way to the origin.
type Target struct {
	Name     string
	Endpoint load.Endpoint
	Relay    *Process // nil: none; of a plain proxy, it is the relay
	Agent    *Process
	// Profiles are the addresses that serve Go profiles of relay and agent.
	Profiles map[string]Profile
	Idle     struct{ Relay, Agent Memory } // before any load
}

// Profile is where a process of Go serves profiles.
type Profile struct {
	Place Place
	Addr  string
}

// PIDs are those of the target's processes.
func (t *Target) PIDs() []int {
	var out []int
	for _, p := range []*Process{t.Relay, t.Agent} {
		if p != nil {
			out = append(out, p.PID)
		}
	}
	return out
}

// The targets.
const (
	Direct   = "direct"
	Nginx    = "nginx"
	NginxTLS = "nginx-tls"
	SSH      = "ssh -R"
	Adit     = "adit"
	AditTLS  = "adit-tls"
)

// Targets are all of them, in the order of tables.
var Targets = []string{Direct, Nginx, NginxTLS, SSH, Adit, AditTLS}

// StartTarget starts one of the targets. The origin must run.
func (l *Lab) StartTarget(ctx context.Context, name string) (*Target, error) {
	switch name {
	case Direct:
		addr := l.Far.Addr() + ":" + l.origin
		return &Target{Name: name, Endpoint: load.Endpoint{Addr: addr, Host: addr}}, nil
	case Nginx, NginxTLS:
		return l.nginx(name, name == NginxTLS)
	case SSH:
		return l.ssh(ctx)
	case Adit, AditTLS:
		return l.adit(ctx, name, name == AditTLS)
	}
	return nil, fmt.Errorf("no such target: %q (there are %s)", name, strings.Join(Targets, ", "))
}

// program finds a program that may be outside of an ordinary user's path.
func program(name, pkg string) (string, error) {
	if path, err := exec.LookPath(name); err == nil {
		return path, nil
	}
	path := "/usr/sbin/" + name
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("%s is not installed (Debian package %s)", name, pkg)
	}
	return path, nil
}

// nginx is a reverse proxy as its manual and the manuals of such apps describe it:
// kept connections to the upstream, WebSockets, and bodies that are passed on as they
// come, both ways (with proxy_buffering an event would wait for the next ones).
func (l *Lab) nginx(name string, secure bool) (*Target, error) {
	bin, err := program("nginx", "nginx-light")
	if err != nil {
		return nil, err
	}
	port, err := FreePort(l.Near)
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(l.Dir, name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	user, tls := "", ""
	if os.Geteuid() == 0 {
		user = "user root;" // its files are in a directory of the bench's own
	}
	if secure {
		cert, err := l.certificate()
		if err != nil {
			return nil, err
		}
		tls = fmt.Sprintf("ssl_certificate %s; ssl_certificate_key %s;", cert.chain, cert.key)
		port += " ssl"
	}
	conf := fmt.Sprintf(`daemon off; pid %[1]s/pid; error_log stderr; worker_processes auto; %[2]s
events { worker_connections 4096; }
http {
  access_log off;
  client_body_temp_path %[1]s/body; proxy_temp_path %[1]s/proxy; fastcgi_temp_path %[1]s/fcgi; uwsgi_temp_path %[1]s/uwsgi; scgi_temp_path %[1]s/scgi;
  client_max_body_size 0; keepalive_requests 1000000000;
  upstream origin { server %[3]s:%[4]s; keepalive 128; keepalive_requests 1000000000; }
  map $http_upgrade $connection_upgrade { default upgrade; '' ''; }
  server {
    listen 127.0.0.1:%[5]s; %[6]s
    location / {
      proxy_pass http://origin; proxy_http_version 1.1; proxy_buffering off; proxy_request_buffering off;
      proxy_set_header Host $http_host; proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection $connection_upgrade;
      proxy_set_header X-Forwarded-For $remote_addr; proxy_read_timeout 1h; proxy_send_timeout 1h;
    }
  }
}
`, dir, user, l.Far.Addr(), l.origin, port, tls)
	path := filepath.Join(dir, "nginx.conf")
	if err := os.WriteFile(path, []byte(conf), 0o600); err != nil {
		return nil, err
	}
	port, _, _ = strings.Cut(port, " ")
	p, err := l.Start(l.Near, name, nil, bin, "-e", "stderr", "-c", path)
	if err != nil {
		return nil, err
	}
	addr := "127.0.0.1:" + port
	return &Target{Name: name, Endpoint: load.Endpoint{Addr: addr, Host: "localhost:" + port, TLS: secure}, Relay: p}, WaitPort(l.Near, port, p)
}

// ssh is a remote forwarding of OpenSSH: sshd near, ssh far.
func (l *Lab) ssh(ctx context.Context) (*Target, error) {
	sshd, err := program("sshd", "openssh-server")
	if err != nil {
		return nil, err
	}
	client, err := program("ssh", "openssh-client")
	if err != nil {
		return nil, err
	}
	door, err := FreePort(l.Near)
	if err != nil {
		return nil, err
	}
	port, err := FreePort(l.Near)
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(l.Dir, "ssh")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	for _, name := range []string{"host", "user"} {
		if _, err := l.Run(ctx, Loopback{}, nil, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", filepath.Join(dir, name)); err != nil {
			return nil, err
		}
	}
	if os.Geteuid() == 0 {
		if err := os.MkdirAll("/run/sshd", 0o755); err != nil { // sshd insists on it
			return nil, err
		}
	}
	conf := filepath.Join(dir, "config")
	text := fmt.Sprintf("ListenAddress %s\nHostKey %s/host\nAuthorizedKeysFile %s/user.pub\nPidFile none\nStrictModes no\nPermitRootLogin yes\nPasswordAuthentication no\nUsePAM no\nAllowTcpForwarding yes\n",
		listen(l.Near, door), dir, dir)
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		return nil, err
	}
	me, err := user.Current()
	if err != nil {
		return nil, err
	}
	t := &Target{Name: SSH, Endpoint: load.Endpoint{Addr: "127.0.0.1:" + port, Host: "127.0.0.1:" + port}}
	if t.Relay, err = l.Start(l.Near, "sshd", nil, sshd, "-D", "-e", "-f", conf); err != nil {
		return nil, err
	}
	if err := WaitPort(l.Near, door, t.Relay); err != nil {
		return nil, err
	}
	t.Agent, err = l.Start(l.Far, "ssh", nil, client, "-F", "none", "-N", "-i", filepath.Join(dir, "user"), "-p", door, "-l", me.Username,
		"-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "BatchMode=yes", "-o", "ExitOnForwardFailure=yes", "-o", "LogLevel=ERROR",
		"-R", "127.0.0.1:"+port+":127.0.0.1:"+l.origin, l.Near.Addr())
	if err != nil {
		return nil, err
	}
	return t, WaitPort(l.Near, port, t.Agent)
}

// team is the team of the bench's agents.
const team = "be9c0000-0000-4000-8000-000000000001"

// adit is a relay, an agent and a tunnel in subdomain form.
func (l *Lab) adit(ctx context.Context, name string, secure bool) (*Target, error) {
	r, err := l.StartRelay(ctx, name, secure)
	if err != nil {
		return nil, err
	}
	secret, err := r.Credential(ctx, "agent", "--agent", "bench")
	if err != nil {
		return nil, err
	}
	watch, err := FreePort(l.Far)
	if err != nil {
		return nil, err
	}
	env := []string{
		"ADIT_RELAY_URL=" + r.scheme() + "://" + l.Near.Addr() + ":" + r.Port, "ADIT_AGENT_ID=bench", "ADIT_CREDENTIAL=" + secret,
		"ADIT_STATE_DIR=" + filepath.Join(l.Dir, name+"-agent"), "ADIT_METRICS_LISTEN=127.0.0.1:" + watch, "ADIT_METRICS_PPROF=true",
	}
	if secure {
		env = append(env, "ADIT_TLS_CA_FILE="+r.CA)
	}
	if l.Links > 0 {
		env = append(env, fmt.Sprintf("ADIT_LINKS=%d", l.Links))
	}
	t := &Target{Name: name, Relay: r.Process, Profiles: map[string]Profile{"relay": {l.Near, r.Metrics}, "agent": {l.Far, "127.0.0.1:" + watch}}}
	if t.Agent, err = l.Start(l.Far, name+"-agent", env, filepath.Join(l.Bin, "adit-agent"), "run"); err != nil {
		return nil, err
	}
	opened, err := r.Open(ctx, "bench", l.origin)
	if err != nil {
		return nil, fmt.Errorf("%w\n%s", err, t.Agent.Log())
	}
	u, err := url.Parse(opened.TunnelURL)
	if err != nil {
		return nil, err
	}
	t.Endpoint = load.Endpoint{Addr: "127.0.0.1:" + r.Port, Host: u.Host, TLS: secure}
	return t, nil
}

// Relay is a running relay.
type Relay struct {
	*Process
	Port    string
	Metrics string // address
	CA      string // file; empty: no TLS
	dir     string
	lab     *Lab
	token   string
}

func (r *Relay) scheme() string {
	if r.CA != "" {
		return "https"
	}
	return "http"
}

// StartRelay starts a relay, near, and waits until it is ready.
func (l *Lab) StartRelay(ctx context.Context, name string, secure bool, more ...string) (*Relay, error) {
	r := &Relay{lab: l, dir: filepath.Join(l.Dir, name+"-relay")}
	var err error
	if r.Port, err = FreePort(l.Near); err != nil {
		return nil, err
	}
	metrics, err := FreePort(l.Near)
	if err != nil {
		return nil, err
	}
	r.Metrics = "127.0.0.1:" + metrics
	var env []string
	if secure {
		cert, err := l.certificate()
		if err != nil {
			return nil, err
		}
		r.CA = cert.ca
		env = append(env, "ADIT_TLS_CERT_FILE="+cert.chain, "ADIT_TLS_KEY_FILE="+cert.key)
	}
	env = append(env, "ADIT_LISTEN="+listen(l.Near, r.Port), "ADIT_PUBLIC_URL="+r.scheme()+"://localhost:"+r.Port, "ADIT_WILDCARD_DOMAIN=localhost",
		"ADIT_DATA_DIR="+r.dir, "ADIT_METRICS_LISTEN="+r.Metrics, "ADIT_METRICS_PPROF=true", "ADIT_DRAIN_TIMEOUT=1s")
	env = append(env, more...)
	if r.Process, err = l.Start(l.Near, name+"-relay", env, filepath.Join(l.Bin, "adit-relay"), "serve"); err != nil {
		return nil, err
	}
	if err := WaitPort(l.Near, r.Port, r.Process); err != nil {
		return nil, err
	}
	// The port may be open before the store is ready; the first credential waits for it.
	deadline := time.Now().Add(30 * time.Second)
	for {
		if r.token, err = r.Credential(ctx, "integration", "--name", "bench"); err == nil {
			return r, nil
		}
		if alive := r.Alive(); alive != nil {
			return nil, alive
		}
		if time.Now().After(deadline) {
			return nil, err
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// Store is the address of the relay's own store.
func (r *Relay) Store() string { return "unix://" + filepath.Join(r.dir, "run", "etcd.sock") }

// Token is the secret of the credential that opens tunnels.
func (r *Relay) Token() string { return r.token }

// Credential makes a credential and returns its secret.
func (r *Relay) Credential(ctx context.Context, kind string, more ...string) (string, error) {
	args := append([]string{"credential", "create", "--socket", filepath.Join(r.dir, "admin.sock"), "--team", team, "--kind", kind}, more...)
	out, err := r.lab.Run(ctx, r.lab.Near, nil, filepath.Join(r.lab.Bin, "adit-relay"), args...)
	return strings.TrimSpace(string(out)), err
}

// Open opens a tunnel once the agent is there.
func (r *Relay) Open(ctx context.Context, agent, port string) (api.Tunnel, error) {
	env := []string{"ADIT_URL=" + r.scheme() + "://localhost:" + r.Port, "ADIT_TOKEN=" + r.token, "XDG_CONFIG_HOME=" + r.dir}
	if r.CA != "" {
		env = append(env, "ADIT_CA_FILE="+r.CA)
	}
	deadline := time.Now().Add(30 * time.Second)
	for {
		out, err := r.lab.Run(ctx, r.lab.Near, env, filepath.Join(r.lab.Bin, "adit"), "open", agent, "--port", port, "--expires", "24h", "--idle", "24h", "--json")
		if err == nil {
			var t api.Tunnel
			return t, json.Unmarshal(out, &t)
		}
		if time.Now().After(deadline) || ctx.Err() != nil {
			return api.Tunnel{}, err
		}
		time.Sleep(100 * time.Millisecond)
	}
}
