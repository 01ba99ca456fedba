// Package config owns the relay's configuration: its keys, their defaults and
// what is allowed. It reads no file and no environment (shared/conf does) and
// opens nothing that a key names.
package config

import (
	"maps"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/conf"
	"github.com/adit-tunnel/adit/shared/ident"
)

// Relay is the configuration of adit-relay. Its zero value is useless: begin with
// Default.
type Relay struct {
	Listen         string   `conf:"listen" help:"address of the public listener: users, agents and the API"`
	PublicURL      string   `conf:"public_url" help:"URL under which users and agents reach this relay or the load balancer before it"`
	AgentURL       string   `conf:"agent_url" help:"URL under which agents reach this very relay and no other of its pool, past a load balancer (default: public_url)"`
	WildcardDomain string   `conf:"wildcard_domain" help:"domain whose subdomains all reach this relay; gives each tunnel a host of its own, as Jupyter and many others need ('localhost' by default when public_url is localhost)"`
	DataDir        string   `conf:"data_dir" help:"directory of the store, keys, audit and the admin socket"`
	RelayID        string   `conf:"relay_id" help:"name of this relay in its pool (default: host name)"`
	ClusterKeyFile string   `conf:"cluster_key_file" help:"file of the 32-byte key (64 hexadecimal digits) behind the access tokens, the same on every relay of a pool (default: <data_dir>/cluster.key, made at the first start)"`
	TrustedProxies []string `conf:"trusted_proxies" help:"networks (CIDR) of reverse proxies whose X-Forwarded-* headers are believed"`
	ReleaseDir     string   `conf:"release_dir" help:"directory of a release's agent packages and install script, which new machines fetch from this relay (GET /install); empty: none"`
	ConsoleURL     string   `conf:"console_url" help:"URL whose host is for the console and the terminals alone, as https://console.example.com, for relays with path_form: no app's script then shares an origin with them; empty: they are at public_url"`
	PathForm       string   `conf:"path_form" help:"whether tunnels to web apps have addresses of the form public_url/tunnel/…, where an app's script shares an origin with the other apps and, without console_url, with the console: on, off (such an address leads to the tunnel's own host), or auto: on only without wildcard_domain"`
	PathFallback   string   `conf:"path_fallback" help:"'cookie' lets a cookie choose the tunnel for absolute paths in path form, for deployments without wildcard DNS; a page of one tunnel can then reach another one that the same browser opened; 'none' otherwise"`

	TLS     TLS     `conf:"tls"`
	Auth    Auth    `conf:"auth"`
	Store   Store   `conf:"store"`
	Peer    Peer    `conf:"peer"`
	Metrics Metrics `conf:"metrics"`
	Tunnel  Tunnel  `conf:"tunnel"`
	Access  Access  `conf:"access"`
	Limits  Limits  `conf:"limits"`
	Drain   Drain   `conf:"drain"`
	Trace   Trace   `conf:"trace"`
	Log     Log     `conf:"log"`
}

// Trace says where OpenTelemetry traces go.
type Trace struct {
	Endpoint string  `conf:"endpoint" help:"base URL of an OpenTelemetry collector (OTLP over HTTP), as http://127.0.0.1:4318; empty: what OTEL_EXPORTER_OTLP_ENDPOINT says, else no traces"`
	Ratio    float64 `conf:"ratio" help:"share of requests whose trace is sent, 0 to 1"`
}

// TLS is the certificate of the public listener.
type TLS struct {
	CertFile string `conf:"cert_file" help:"PEM certificate chain of the public listener; without it the listener speaks plain HTTP, for use behind a proxy"`
	KeyFile  string `conf:"key_file" help:"PEM private key of the certificate"`
	ACME     ACME   `conf:"acme"`
}

// ACME asks an authority for certificates of the public listener.
type ACME struct {
	Enabled      bool     `conf:"enabled" help:"ask an ACME authority for the certificate of public_url's name, and of agent_url's; by asking, you agree to its terms"`
	Email        string   `conf:"email" help:"where the authority can reach you; required"`
	DirectoryURL string   `conf:"directory_url" help:"the authority's directory (default: Let's Encrypt)"`
	CAFile       string   `conf:"ca_file" help:"PEM certificates that sign the authority's own https, for a private one"`
	CacheDir     string   `conf:"cache_dir" help:"directory of the account and the certificates; by default they are in the store, sealed with the cluster key, for all relays of a pool"`
	HTTPListen   string   `conf:"http_listen" help:"address that the names' port 80 leads to: it answers HTTP-01 challenges and sends browsers to https; empty: none, only TLS-ALPN-01 through the public listener"`
	DNSHook      []string `conf:"dns_hook" help:"program, with arguments, that proves names by DNS-01 instead, and so gets a certificate for *.wildcard_domain too: it is called with 'set' or 'clear', a record's name and its TXT value"`
}

// Auth says whose user sessions are accepted.
type Auth struct {
	OIDC OIDC `conf:"oidc"`
	JWT  JWT  `conf:"jwt"`
}

// OIDC accepts user sessions of an OpenID Connect issuer.
type OIDC struct {
	Issuer      string            `conf:"issuer" help:"URL of the OpenID Connect issuer of user sessions (discovery and JWKS)"`
	Audience    string            `conf:"audience" help:"audience that its tokens must name"`
	TeamsClaim  string            `conf:"teams_claim" help:"claim that lists the user's teams"`
	GroupsClaim string            `conf:"groups_claim" help:"claim that lists the user's groups, for access people; empty: none is read"`
	RolesClaim  string            `conf:"roles_claim" help:"claim that says the user's role: one, a list, or an object from team to these; empty: the store alone does"`
	Roles       map[string]string `conf:"roles" help:"what the claim's values mean: value to viewer, member, admin or owner"`

	ClientID         string   `conf:"client_id" help:"client as which the relay lets people sign in at the issuer, with the redirect URI <console_url or public_url>/auth/callback; empty: nobody signs in so"`
	ClientSecretFile string   `conf:"client_secret_file" help:"file of the client's secret, read at each sign-in; empty: a public client"`
	Scopes           []string `conf:"scopes" help:"what is asked of the issuer at a sign-in; openid is among them"`
}

// JWT accepts user sessions signed by a key from a file.
type JWT struct {
	PublicKeyFile string            `conf:"public_key_file" help:"file of public keys (PEM or JWKS) that sign user sessions, instead of an issuer"`
	Issuer        string            `conf:"issuer" help:"issuer that such tokens must name"`
	Audience      string            `conf:"audience" help:"audience that such tokens must name"`
	TeamsClaim    string            `conf:"teams_claim" help:"claim that lists the user's teams"`
	RolesClaim    string            `conf:"roles_claim" help:"claim that says the user's role, as with oidc"`
	Roles         map[string]string `conf:"roles" help:"what the claim's values mean, as with oidc"`
}

// Store says where state lives.
type Store struct {
	Endpoints []string `conf:"endpoints" help:"etcd endpoints that the relays of a pool share; empty: a store inside this relay, in data_dir"`
	TLS       StoreTLS `conf:"tls"`
	Quota     int64    `conf:"quota_bytes" help:"size limit of the store inside this relay, in bytes"`
}

// StoreTLS is mutual TLS towards external etcd.
type StoreTLS struct {
	CAFile   string `conf:"ca_file" help:"PEM certificates that sign the etcd servers'"`
	CertFile string `conf:"cert_file" help:"PEM client certificate for etcd"`
	KeyFile  string `conf:"key_file" help:"PEM private key of the client certificate"`
}

// Peer is the relay's door for the other relays of a pool.
type Peer struct {
	Listen string  `conf:"listen" help:"address for the other relays of the pool; empty: none, for a relay that is alone"`
	URL    string  `conf:"url" help:"URL under which the other relays reach that address, as https://relay-1.internal:7443"`
	TLS    PeerTLS `conf:"tls"`
}

// PeerTLS is mutual TLS between relays.
type PeerTLS struct {
	CAFile   string `conf:"ca_file" help:"PEM certificates of the authority of the pool's relays"`
	CertFile string `conf:"cert_file" help:"PEM certificate of this relay, for server and client use, with relay_id as a DNS name"`
	KeyFile  string `conf:"key_file" help:"PEM private key of the certificate"`
}

// Metrics is the second listener.
type Metrics struct {
	Listen string `conf:"listen" help:"address of the metrics listener (Prometheus); keep it private; empty: none"`
	Pprof  bool   `conf:"pprof" help:"serve Go profiles under /debug/pprof/ on the metrics listener"`
}

// Tunnel holds the defaults and caps of tunnels.
type Tunnel struct {
	IdleTimeout    api.Duration `conf:"idle_timeout" help:"a tunnel closes when nobody used it for so long, unless opened with another value"`
	MaxIdleTimeout api.Duration `conf:"max_idle_timeout" help:"cap of idle_timeout"`
	ExpiresIn      api.Duration `conf:"expires_in" help:"a tunnel's hard end, unless opened with another value"`
	MaxExpiresIn   api.Duration `conf:"max_expires_in" help:"cap of expires_in"`
	Hold           api.Duration `conf:"hold" help:"how long a request waits for an agent that is away"`
	HeaderTimeout  api.Duration `conf:"header_timeout" help:"how long an app may think before the first byte of its answer"`
}

// Limits bound what one party can take.
type Limits struct {
	Agents           int          `conf:"agents" help:"agents on this relay"`
	MemoryBytes      int          `conf:"memory_bytes" help:"memory for data that waits to be taken, shared out fairly among teams, agents and tunnels; the process stays within a quarter more"`
	StreamsPerAgent  int          `conf:"streams_per_agent" help:"streams open on one agent at once"`
	StreamsPerTunnel int          `conf:"streams_per_tunnel" help:"streams open on one tunnel at once"`
	TunnelsPerAgent  int          `conf:"tunnels_per_agent" help:"tunnels open on one agent at once"`
	TunnelsPerTeam   int          `conf:"tunnels_per_team" help:"tunnels open in one team at once"`
	OpensPerMinute   float64      `conf:"opens_per_minute" help:"tunnels that one credential may open in a minute"`
	AgentsPerTeam    int          `conf:"agents_per_team" help:"agents of one team that the relay remembers; a new one is refused beyond it"`
	AgentRetention   api.Duration `conf:"agent_retention" help:"how long an agent that is gone is remembered"`
	ConnsPerAddress  int          `conf:"connections_per_address" help:"connections of one IP address at once on the public listener (trusted proxies excepted)"`
}

// Drain says how the relay stops.
type Drain struct {
	Delay   api.Duration `conf:"delay" help:"after SIGTERM, how long everything is still served while /readyz says no, for a load balancer to look elsewhere; longer than the interval of its checks"`
	Timeout api.Duration `conf:"timeout" help:"how long running requests may take to finish after SIGTERM"`
}

// Log says what is logged and how.
type Log struct {
	Level  string `conf:"level" help:"debug, info, warn or error"`
	Format string `conf:"format" help:"json, text, or auto: text on a terminal"`
}

// Default returns the defaults. They run as they are.
func Default() Relay {
	return Relay{
		Listen: ":8080", PublicURL: "http://localhost:8080", DataDir: defaultDataDir(), ReleaseDir: "/usr/share/adit/release",
		PathForm: PathFormAuto, PathFallback: "none", Access: Access{Minimum: string(api.AccessAnyone)},
		Auth:  Auth{OIDC: OIDC{TeamsClaim: "teams", GroupsClaim: "groups", Scopes: []string{"openid", "profile", "email"}}, JWT: JWT{TeamsClaim: "teams"}},
		TLS:   TLS{ACME: ACME{DirectoryURL: "https://acme-v02.api.letsencrypt.org/directory", HTTPListen: ":80"}},
		Store: Store{Quota: 2 << 30}, Metrics: Metrics{Listen: "127.0.0.1:9464"},
		Tunnel: Tunnel{
			IdleTimeout: api.Duration(30 * time.Minute), MaxIdleTimeout: api.Duration(24 * time.Hour),
			ExpiresIn: api.Duration(24 * time.Hour), MaxExpiresIn: api.Duration(7 * 24 * time.Hour),
			Hold: api.Duration(10 * time.Second), HeaderTimeout: api.Duration(15 * time.Minute),
		},
		Limits: Limits{
			Agents: 20000, MemoryBytes: 1 << 30, StreamsPerAgent: 4096, StreamsPerTunnel: 1024, TunnelsPerAgent: 64, TunnelsPerTeam: 1000,
			OpensPerMinute: 60, AgentsPerTeam: 5000, AgentRetention: api.Duration(30 * 24 * time.Hour), ConnsPerAddress: 2048,
		},
		Drain: Drain{Timeout: api.Duration(20 * time.Second)},
		Trace: Trace{Ratio: 1},
		Log:   Log{Level: "info", Format: "auto"},
	}
}

// defaultDataDir is systemd's state directory where there is one.
func defaultDataDir() string {
	if dir := os.Getenv("STATE_DIRECTORY"); dir != "" {
		return dir
	}
	if os.Geteuid() == 0 {
		return "/var/lib/adit-relay"
	}
	if dir, err := os.UserHomeDir(); err == nil {
		return filepath.Join(dir, ".local", "state", "adit-relay")
	}
	return "adit-relay-data"
}

// Complete fills in what depends on other keys. Call it before Validate.
func (c *Relay) Complete() {
	if c.WildcardDomain == "" {
		if u, err := url.Parse(c.PublicURL); err == nil && u.Hostname() == "localhost" {
			c.WildcardDomain = "localhost"
		}
	}
	c.WildcardDomain = strings.ToLower(strings.TrimPrefix(strings.TrimPrefix(c.WildcardDomain, "*"), "."))
	if c.RelayID == "" {
		if name, err := os.Hostname(); err == nil {
			c.RelayID = name
		}
	}
	if c.AgentURL == "" {
		c.AgentURL = c.PublicURL
	}
	if c.Auth.OIDC.Audience == "" {
		c.Auth.OIDC.Audience = c.Auth.OIDC.ClientID
	}
	c.Access.complete()
	if c.ClusterKeyFile == "" {
		c.ClusterKeyFile = filepath.Join(c.DataDir, "cluster.key")
	}
}

// AdminSocket is the path of the admin socket.
func (c *Relay) AdminSocket() string { return filepath.Join(c.DataDir, "admin.sock") }

// Public returns the parsed public URL of a valid configuration.
func (c *Relay) Public() *url.URL {
	u, err := url.Parse(c.PublicURL)
	if err != nil {
		return &url.URL{}
	}
	return u
}

// Console returns the parsed console URL of a valid configuration; nil: there is none.
func (c *Relay) Console() *url.URL {
	u, err := url.Parse(c.ConsoleURL)
	if err != nil || c.ConsoleURL == "" {
		return nil
	}
	return u
}

// ServesPathForm says whether tunnels to web apps have addresses in path form.
func (c *Relay) ServesPathForm() bool {
	return c.PathForm == PathFormOn || c.PathForm == PathFormAuto && c.WildcardDomain == ""
}

// Proxies returns the trusted networks of a valid configuration.
func (c *Relay) Proxies() []netip.Prefix {
	var out []netip.Prefix
	for _, s := range c.TrustedProxies {
		if p, err := parsePrefix(s); err == nil {
			out = append(out, p)
		}
	}
	return out
}

func parsePrefix(s string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(s); err == nil {
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	return netip.ParsePrefix(s)
}

// Validate returns every fault, each with its key.
func (c *Relay) Validate() error {
	var faults []error
	fault := func(key, format string, args ...any) {
		faults = append(faults, conf.Faultf(key, format, args...))
	}
	address := func(key, v string, optional bool) {
		if v == "" && optional {
			return
		}
		if _, _, err := net.SplitHostPort(v); err != nil {
			fault(key, "%q is no address; write it as host:port or :port", v)
		}
	}
	address("listen", c.Listen, false)
	address("metrics.listen", c.Metrics.Listen, true)
	if u, err := url.Parse(c.PublicURL); err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
		fault("public_url", "%q is no http or https URL", c.PublicURL)
	} else if strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.User != nil {
		fault("public_url", "%q must be scheme and host only", c.PublicURL)
	}
	if u, err := url.Parse(c.AgentURL); err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
		fault("agent_url", "%q is no http or https URL", c.AgentURL)
	}
	if c.WildcardDomain != "" && strings.ContainsAny(c.WildcardDomain, ":/ ") {
		fault("wildcard_domain", "%q is no domain; write it as tunnels.example.com", c.WildcardDomain)
	}
	if c.DataDir == "" {
		fault("data_dir", "it must name a directory")
	}
	if _, err := ident.ParseRelayID(c.RelayID); err != nil {
		fault("relay_id", "%v", err)
	}
	for _, s := range c.TrustedProxies {
		if _, err := parsePrefix(s); err != nil {
			fault("trusted_proxies", "%q is no network; write it as 10.0.0.0/8", s)
		}
	}
	c.validateOrigins(fault)
	if (c.TLS.CertFile == "") != (c.TLS.KeyFile == "") {
		fault("tls", "cert_file and key_file go together")
	}
	c.validateACME(fault, address)
	c.validateAuth(fault)
	c.validateSignIn(fault)
	c.validateStore(fault)
	c.validateTunnel(fault)
	c.validateAccess(fault)
	for _, l := range []struct {
		key string
		n   int
	}{
		{"agents", c.Limits.Agents}, {"streams_per_agent", c.Limits.StreamsPerAgent}, {"streams_per_tunnel", c.Limits.StreamsPerTunnel},
		{"tunnels_per_agent", c.Limits.TunnelsPerAgent}, {"tunnels_per_team", c.Limits.TunnelsPerTeam}, {"agents_per_team", c.Limits.AgentsPerTeam}, {"connections_per_address", c.Limits.ConnsPerAddress},
	} {
		if l.n < 1 {
			fault("limits."+l.key, "%d is below 1", l.n)
		}
	}
	if c.Limits.TunnelsPerAgent > 64 {
		fault("limits.tunnels_per_agent", "%d is above 64, the most that one agent has", c.Limits.TunnelsPerAgent)
	}
	if c.Limits.MemoryBytes < 16<<20 {
		fault("limits.memory_bytes", "%d is below 16777216 (16 MiB)", c.Limits.MemoryBytes)
	}
	if c.Limits.AgentRetention < api.Duration(time.Hour) {
		fault("limits.agent_retention", "%s is below 1h", c.Limits.AgentRetention)
	}
	if c.Limits.OpensPerMinute <= 0 {
		fault("limits.opens_per_minute", "it must be above 0")
	}
	if c.Drain.Timeout < 0 {
		fault("drain.timeout", "it must not be negative")
	}
	if c.Drain.Delay < 0 {
		fault("drain.delay", "it must not be negative")
	}
	c.validatePeer(fault, address)
	if u, err := url.Parse(c.Trace.Endpoint); c.Trace.Endpoint != "" && (err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "") {
		fault("trace.endpoint", "it is no URL; write it as http://127.0.0.1:4318")
	}
	if c.Trace.Ratio < 0 || c.Trace.Ratio > 1 {
		fault("trace.ratio", "%v is not within 0 to 1", c.Trace.Ratio)
	}
	return conf.Join(faults...)
}

type faultFunc func(key, format string, args ...any)

func (c *Relay) validateAuth(fault faultFunc) {
	o, j := c.Auth.OIDC, c.Auth.JWT
	if o.Issuer != "" {
		if u, err := url.Parse(o.Issuer); err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
			fault("auth.oidc.issuer", "%q is no URL", o.Issuer)
		}
		if o.Audience == "" {
			fault("auth.oidc.audience", "it is required with an issuer: without it a token made for another application would be accepted")
		}
	}
	if j.PublicKeyFile != "" && j.Audience == "" {
		fault("auth.jwt.audience", "it is required with a key file: without it a token made for another application would be accepted")
	}
	if j.PublicKeyFile != "" && j.Issuer == "" {
		fault("auth.jwt.issuer", "it is required with a key file")
	}
	if o.TeamsClaim == "" {
		fault("auth.oidc.teams_claim", "it must name a claim")
	}
	if j.TeamsClaim == "" {
		fault("auth.jwt.teams_claim", "it must name a claim")
	}
	roles := func(key string, of map[string]string) {
		for _, value := range slices.Sorted(maps.Keys(of)) {
			if _, err := api.ParseRole(of[value]); err != nil {
				fault(key, "%q: %v", value, err)
			}
		}
	}
	roles("auth.oidc.roles", o.Roles)
	roles("auth.jwt.roles", j.Roles)
}

func (c *Relay) validateStore(fault faultFunc) {
	for _, e := range c.Store.Endpoints {
		if u, err := url.Parse(e); err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
			fault("store.endpoints", "%q is no URL; write it as https://etcd-1:2379", e)
		}
	}
	if (c.Store.TLS.CertFile == "") != (c.Store.TLS.KeyFile == "") {
		fault("store.tls", "cert_file and key_file go together")
	}
	if c.Store.Quota < 64<<20 {
		fault("store.quota_bytes", "%d is below 67108864 (64 MiB)", c.Store.Quota)
	}
}

func (c *Relay) validatePeer(fault faultFunc, address func(key, v string, optional bool)) {
	p := c.Peer
	if p.Listen == "" {
		if p.URL != "" || p.TLS != (PeerTLS{}) {
			fault("peer.listen", "it is required with the other keys of peer")
		}
		return
	}
	address("peer.listen", p.Listen, false)
	if u, err := url.Parse(p.URL); err != nil || u.Scheme != "https" || u.Host == "" || strings.Trim(u.Path, "/") != "" {
		fault("peer.url", "%q is no URL of the form https://relay-1.internal:7443", p.URL)
	}
	if p.TLS.CAFile == "" || p.TLS.CertFile == "" || p.TLS.KeyFile == "" {
		fault("peer.tls", "ca_file, cert_file and key_file are required: relays trust each other by certificates only")
	}
	if len(c.Store.Endpoints) == 0 {
		fault("peer.listen", "a store inside this relay cannot be shared with others; set store.endpoints")
	}
}

func (c *Relay) validateTunnel(fault faultFunc) {
	for _, d := range []struct {
		key    string
		v, cap api.Duration
	}{
		{"tunnel.idle_timeout", c.Tunnel.IdleTimeout, c.Tunnel.MaxIdleTimeout},
		{"tunnel.expires_in", c.Tunnel.ExpiresIn, c.Tunnel.MaxExpiresIn},
	} {
		if d.v < api.Duration(time.Minute) {
			fault(d.key, "%s is below 1m", d.v)
		}
		if d.v > d.cap {
			fault(d.key, "%s is above its cap of %s", d.v, d.cap)
		}
	}
	if c.Tunnel.Hold < 0 || c.Tunnel.Hold > api.Duration(5*time.Minute) {
		fault("tunnel.hold", "%s is not within 0s to 5m", c.Tunnel.Hold)
	}
	if c.Tunnel.HeaderTimeout < api.Duration(time.Second) {
		fault("tunnel.header_timeout", "%s is below 1s", c.Tunnel.HeaderTimeout)
	}
}
