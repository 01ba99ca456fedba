package signin

import (
	"context"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	strict "github.com/go-jose/go-jose/v4/json" // case-sensitive and strict about duplicate members, unlike the standard one
	"golang.org/x/oauth2"
	"golang.org/x/sync/singleflight"

	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
	"github.com/adit-tunnel/adit/shared/printable"
)

// Issuer says whom the relay asks who somebody is, and as which client.
type Issuer struct {
	URL        string // exactly as in its tokens
	ClientID   string
	SecretFile string // of the client; empty: it has none, and PKCE alone protects the code
	Scopes     []string
	Groups     string       // claim that lists a person's groups; empty: none is read
	HTTPClient *http.Client // nil: the usual one
}

const (
	leeway      = 60 * time.Second // how far the issuer's clock may be off
	askTime     = 10 * time.Second // that it may take to answer
	knownFor    = time.Hour        // how long what it says of itself is not asked again
	retryAfter  = 2 * time.Second  // it was down: how long it is not asked again
	maxAnswer   = 1 << 20
	maxSubject  = 255
	maxEmail    = 254
	maxName     = 64
	maxGroups   = 200     // of a person: Entra ID names no more
	maxGroup    = 200     // bytes of one: so many may be named in people, with group: before it
	madeHere    = "adit:" // begins the id of people whom no issuer knows
	maxRedirect = 3
)

// algorithms are those that only the issuer's private key makes.
var algorithms = []string{
	oidc.RS256, oidc.RS384, oidc.RS512, oidc.PS256, oidc.PS384, oidc.PS512, oidc.ES256, oidc.ES384, oidc.EdDSA,
}

// relyingParty is the relay towards an issuer.
type relyingParty struct {
	cfg      Issuer
	name     string // for people
	redirect string
	client   *http.Client
	now      func() time.Time

	flight singleflight.Group
	mu     sync.Mutex
	known  *discovered // nil: not yet
	until  time.Time   // when it is asked again
}

// discovered is what the issuer says of itself.
type discovered struct {
	provider *oidc.Provider
	verifier *oidc.IDTokenVerifier
	style    oauth2.AuthStyle
}

func newRelyingParty(cfg Issuer, redirect string, now func() time.Time) (*relyingParty, error) {
	u, err := url.Parse(cfg.URL)
	if err != nil || u.Host == "" {
		return nil, errors.New("auth.oidc.issuer: it is required with client_id, and must be a URL")
	}
	rp := &relyingParty{cfg: cfg, name: u.Host, redirect: redirect, now: now}
	if _, err := rp.secret(); err != nil { // not only at the first sign-in
		return nil, err
	}
	c := http.Client{}
	if cfg.HTTPClient != nil {
		c = *cfg.HTTPClient
	}
	transport := c.Transport
	if transport == nil {
		transport = http.DefaultTransport
	}
	c.Transport, c.Timeout = bounded{transport}, askTime
	c.CheckRedirect = func(req *http.Request, via []*http.Request) error {
		switch {
		case via[0].Method != http.MethodGet: // it holds a code and the client's secret
			return http.ErrUseLastResponse
		case len(via) > maxRedirect:
			return errors.New("more than 3 redirects")
		}
		return sameSecurity(u.Scheme, req.URL.String())
	}
	rp.client = &c
	return rp, nil
}

// bounded bounds answers: an issuer's are small documents.
type bounded struct{ http.RoundTripper }

// RoundTrip is http.RoundTripper's.
func (b bounded) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := b.RoundTripper.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	resp.Body = http.MaxBytesReader(nil, resp.Body, maxAnswer)
	return resp, nil
}

func sameSecurity(scheme, other string) error {
	if scheme == "https" && !strings.HasPrefix(other, "https://") {
		return errors.New("an https issuer points to something that is not https")
	}
	return nil
}

// secret reads the client's secret each time, so that a new one needs no restart.
func (rp *relyingParty) secret() (ident.Secret, error) {
	if rp.cfg.SecretFile == "" {
		return "", nil
	}
	b, err := os.ReadFile(rp.cfg.SecretFile)
	if err != nil {
		return "", fmt.Errorf("read auth.oidc.client_secret_file: %w", err)
	}
	secret := ident.Secret(strings.TrimSpace(string(b)))
	if secret == "" {
		return "", fmt.Errorf("read auth.oidc.client_secret_file: %s is empty", rp.cfg.SecretFile)
	}
	return secret, nil
}

// away says that the issuer cannot be asked now.
func (rp *relyingParty) away(cause error) *api.Problem {
	return api.Problemf(api.CodeIssuerUnavailable, "%s, where people sign in, does not answer the relay as it should: try again in a moment", rp.name).
		WithRetry(10 * time.Second).WithCause(cause)
}

// discover returns what the issuer says of itself. What is known already is good enough
// while it does not answer.
func (rp *relyingParty) discover(ctx context.Context) (*discovered, error) {
	rp.mu.Lock()
	known, due := rp.known, !rp.now().Before(rp.until)
	rp.mu.Unlock()
	if !due && known != nil {
		return known, nil
	}
	if !due {
		return nil, rp.away(errors.New("it did not answer a moment ago"))
	}
	v, err, _ := rp.flight.Do("", func() (any, error) {
		// Not a request's context: others wait for the answer too.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), askTime)
		defer cancel()
		fresh, err := rp.ask(ctx)
		rp.mu.Lock()
		defer rp.mu.Unlock()
		if err == nil {
			rp.known, rp.until = fresh, rp.now().Add(knownFor)
			return fresh, nil
		}
		rp.until = rp.now().Add(retryAfter)
		if rp.known != nil {
			return rp.known, nil
		}
		return nil, rp.away(err)
	})
	if err != nil {
		return nil, err
	}
	return v.(*discovered), nil
}

func (rp *relyingParty) ask(ctx context.Context) (*discovered, error) {
	provider, err := oidc.NewProvider(oidc.ClientContext(ctx, rp.client), rp.cfg.URL)
	if err != nil {
		return nil, fmt.Errorf("discover issuer: %w", brief(err))
	}
	var doc struct {
		Methods []string `json:"token_endpoint_auth_methods_supported"`
		UserID  string   `json:"userinfo_endpoint"`
		Keys    string   `json:"jwks_uri"`
	}
	if err := provider.Claims(&doc); err != nil {
		return nil, fmt.Errorf("discover issuer: %w", brief(err))
	}
	e := provider.Endpoint()
	for _, address := range []string{e.AuthURL, e.TokenURL, doc.Keys} {
		if u, err := url.Parse(address); err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" {
			return nil, errors.New("discover issuer: it has no usable authorization_endpoint, token_endpoint or jwks_uri")
		}
	}
	scheme, _, _ := strings.Cut(rp.cfg.URL, "://")
	for _, address := range []string{e.AuthURL, e.TokenURL, doc.Keys, doc.UserID} {
		if err := sameSecurity(scheme, address); err != nil && address != "" {
			return nil, fmt.Errorf("discover issuer: %w", err)
		}
	}
	found := &discovered{provider: provider, style: oauth2.AuthStyleInHeader}
	// Not found out by trying, as the library would: a try may cost the code.
	if len(doc.Methods) > 0 && !slices.Contains(doc.Methods, "client_secret_basic") || rp.cfg.SecretFile == "" {
		found.style = oauth2.AuthStyleInParams
	}
	found.verifier = provider.VerifierContext(oidc.ClientContext(context.Background(), rp.client), &oidc.Config{
		ClientID: rp.cfg.ClientID, SupportedSigningAlgs: algorithms,
		Now: func() time.Time { return rp.now().Add(-leeway) }, // as late as it may be for the token's end
	})
	return found, nil
}

func (rp *relyingParty) oauth(d *discovered) (*oauth2.Config, error) {
	secret, err := rp.secret()
	if err != nil {
		return nil, err
	}
	e := d.provider.Endpoint()
	e.AuthStyle = d.style
	return &oauth2.Config{ClientID: rp.cfg.ClientID, ClientSecret: secret.Reveal(), Endpoint: e, RedirectURL: rp.redirect, Scopes: rp.cfg.Scopes}, nil
}

// person is who the issuer says it is.
type person struct {
	id          ident.UserID
	name, email string
	groups      []string
	claims      json.RawMessage // of the id token, and what else the issuer says
	more        func(context.Context) (json.RawMessage, error)
}

// exchange turns a code into the person that it stands for.
func (rp *relyingParty) exchange(ctx context.Context, code string, a attempt) (person, error) {
	d, err := rp.discover(ctx)
	if err != nil {
		return person{}, err
	}
	client, err := rp.oauth(d)
	if err != nil {
		return person{}, err
	}
	ctx = oidc.ClientContext(ctx, rp.client)
	token, err := client.Exchange(ctx, code, oauth2.VerifierOption(a.Verifier))
	if refused, ok := errors.AsType[*oauth2.RetrieveError](err); ok {
		cause := fmt.Errorf("exchange a code: status %d, error %q", refused.Response.StatusCode, printable.Text(cut(refused.ErrorCode, 60)))
		if refused.Response.StatusCode >= http.StatusInternalServerError {
			return person{}, rp.away(cause)
		}
		return person{}, rp.unfit(cause)
	}
	if err != nil {
		return person{}, rp.away(fmt.Errorf("exchange a code: %w", brief(err)))
	}
	raw, ok := token.Extra("id_token").(string)
	if !ok {
		return person{}, rp.unfit(errors.New("the issuer sent no id token: does the client have the scope openid?"))
	}
	id, err := d.verifier.Verify(ctx, raw)
	if err != nil {
		return person{}, rp.unfit(fmt.Errorf("verify the id token: %w", brief(err)))
	}
	var p person
	if err := id.Claims(&p.claims); err != nil {
		return person{}, rp.unfit(fmt.Errorf("read the id token: %w", err))
	}
	if err := rp.meant(id, p.claims, a.Nonce); err != nil {
		return person{}, rp.unfit(err)
	}
	p.id = ident.UserID(id.Subject)
	p.describe(rp.cfg.Groups)
	p.more = func(ctx context.Context) (json.RawMessage, error) {
		return rp.userInfo(oidc.ClientContext(ctx, rp.client), d.provider, token, id.Subject)
	}
	return p, nil
}

// meant checks that a token is for this client, this attempt, and about somebody.
func (rp *relyingParty) meant(id *oidc.IDToken, raw json.RawMessage, nonce string) error {
	var claims struct {
		Subject string `json:"sub"`
		Party   string `json:"azp"`
	}
	if err := strict.Unmarshal(raw, &claims); err != nil {
		return errors.New("the id token's claims are malformed")
	}
	switch {
	case claims.Subject != id.Subject: // the library takes any spelling of the name
		return errors.New("the id token's sub is not in the one place where it belongs")
	case subtle.ConstantTimeCompare([]byte(id.Nonce), []byte(nonce)) != 1:
		return errors.New("the id token is of another attempt to sign in: its nonce differs")
	case claims.Party != "" && claims.Party != rp.cfg.ClientID, claims.Party == "" && len(id.Audience) > 1:
		return errors.New("the id token was made for another client: its azp differs")
	case id.Subject == "" || len(id.Subject) > maxSubject || strings.TrimSpace(id.Subject) != id.Subject || printable.Text(id.Subject) != id.Subject:
		return errors.New("the id token has no usable sub")
	case strings.HasPrefix(id.Subject, madeHere):
		return errors.New("the id token's sub begins with " + madeHere + ", as only people do whom this relay made")
	}
	return nil
}

// userInfo asks for what the id token leaves out; nil without such an address.
func (rp *relyingParty) userInfo(ctx context.Context, provider *oidc.Provider, token *oauth2.Token, subject string) (json.RawMessage, error) {
	if provider.UserInfoEndpoint() == "" {
		return nil, nil
	}
	info, err := provider.UserInfo(ctx, oauth2.StaticTokenSource(token))
	if err != nil {
		return nil, rp.away(fmt.Errorf("ask for a person's claims: %w", brief(err)))
	}
	if info.Subject != subject { // OpenID Connect Core 1.0, section 5.3.2
		return nil, rp.unfit(errors.New("what the issuer says of the person is of another one: its sub differs"))
	}
	var claims json.RawMessage
	if err := info.Claims(&claims); err != nil {
		return nil, rp.unfit(fmt.Errorf("read a person's claims: %w", err))
	}
	return claims, nil
}

// unfit refuses what the issuer answered. Why is for the log: the person can only begin
// again.
func (rp *relyingParty) unfit(cause error) *api.Problem {
	return api.Problemf(api.CodeUnauthenticated, "what %s answered could not be taken as a sign-in: begin again; if that does not help, the relay's log says why", rp.name).WithCause(cause)
}

// describe reads the person's name, address and groups from the claims. An address that
// the issuer does not vouch for is left out: it may be somebody else's.
func (p *person) describe(groups string) {
	p.groups = groupsOf(p.claims, groups)
	var claims struct {
		Name      string `json:"name"`
		Preferred string `json:"preferred_username"`
		Email     string `json:"email"`
		Verified  any    `json:"email_verified"` // some issuers send "true"
	}
	if strict.Unmarshal(p.claims, &claims) != nil {
		return // a name of another type is no name
	}
	if p.name == "" {
		p.name = line(claims.Name)
	}
	if p.name == "" {
		p.name = line(claims.Preferred)
	}
	// Whole or not at all: a part of it is another address.
	if (claims.Verified == true || claims.Verified == "true") && len(claims.Email) <= maxEmail && printable.Text(claims.Email) == claims.Email {
		p.email = claims.Email
	}
}

// groupsOf reads the groups that a claim lists, or the one that it is. What is no name of
// one is left out, and never cut: that could be the name of another group.
func groupsOf(claims json.RawMessage, claim string) (out []string) {
	var all map[string]json.RawMessage
	if claim == "" || json.Unmarshal(claims, &all) != nil {
		return nil
	}
	var one string
	var list []any
	if json.Unmarshal(all[claim], &one) == nil && one != "" {
		list = []any{one}
	} else if json.Unmarshal(all[claim], &list) != nil {
		return nil
	}
	for _, v := range list {
		g, ok := v.(string)
		if ok && g != "" && len(g) <= maxGroup && len(out) < maxGroups && printable.Text(g) == g && !slices.Contains(out, g) {
			out = append(out, g)
		}
	}
	return out
}

// line makes a text from elsewhere fit to be shown in one line.
func line(s string) string { return strings.TrimSpace(printable.Text(cut(s, maxName))) }

// cut cuts a text to so many characters.
func cut(s string, most int) string {
	for i := range s {
		if most--; most < 0 {
			return s[:i]
		}
	}
	return s
}

// brief cuts an error of the library, which may quote a whole page of the issuer's.
func brief(err error) error { return errors.New(printable.Text(cut(err.Error(), 200))) }
