package world

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"time"
)

// OIDC is a real OpenID Connect issuer with people in it, whose passwords are their
// names. It is at another site than the relay, as issuers are.
type OIDC struct {
	*Process
	W    *World
	URL  string
	port int
	args []string
}

// The issuer's client.
const (
	oidcClient = "adit"
	oidcSecret = "client-secret-of-the-relay"
)

// NewOIDC prepares an issuer for the console of a relay that is not started yet, and
// tells the relay of it.
func (w *World) NewOIDC(r *Relay, people ...string) *OIDC {
	w.T.Helper()
	type user struct {
		ID, Username, Password, FirstName, LastName, Email string
		EmailVerified                                      bool
	}
	users := map[string]user{}
	for _, name := range people {
		users[name] = user{name, name, name, name, "of the issuer", name + "@example.com", true}
	}
	b, err := json.Marshal(users)
	if err != nil {
		w.T.Fatal(err)
	}
	o := &OIDC{W: w, port: w.FreePort()}
	o.URL = fmt.Sprintf("http://127.0.0.1:%d", o.port)
	o.args = []string{
		"-listen", fmt.Sprintf("127.0.0.1:%d", o.port), "-issuer", o.URL, "-client", oidcClient, "-secret", oidcSecret,
		"-redirect", r.URL + "/auth/callback", "-users", w.WriteFile(fmt.Sprintf("people-%d.json", o.port), string(b)),
	}
	r.Env = append(r.Env, "ADIT_AUTH_OIDC_ISSUER="+o.URL, "ADIT_AUTH_OIDC_CLIENT_ID="+oidcClient,
		"ADIT_AUTH_OIDC_CLIENT_SECRET_FILE="+w.WriteFile(fmt.Sprintf("secret-%d", o.port), oidcSecret+"\n"))
	return o
}

// Start starts it, also again after Kill: it then has other keys.
func (o *OIDC) Start() {
	o.W.T.Helper()
	o.Process = o.W.Start("issuer", nil, o.W.Tool("oidc-issuer"), o.args...)
	o.W.WaitPort(o.port, 20*time.Second)
}

// Control changes its people's teams, the life of its tokens or its keys; see
// .tools/oidc.
func (o *OIDC) Control(change map[string]any) {
	o.W.T.Helper()
	b, err := json.Marshal(change)
	if err != nil {
		o.W.T.Fatal(err)
	}
	req, err := http.NewRequestWithContext(o.W.T.Context(), http.MethodPost, o.URL+"/control", bytes.NewReader(b))
	if err != nil {
		o.W.T.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		o.W.T.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusNoContent {
		o.W.T.Fatalf("the issuer does not take %s: %d", b, resp.StatusCode)
	}
}
