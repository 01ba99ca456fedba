package issuer

import (
	"crypto/rand"
	"crypto/sha256"
	"net/http"
	"strings"
)

// Grant is what a code stands for, once.
type Grant struct {
	ClientID  string // empty: Audience
	Secret    string // of the client; empty: it has none
	Redirect  string // exactly as the browser was sent here with
	Challenge string // PKCE, S256
	IDToken   string
	UserInfo  Claims // what more the issuer says; nil: nothing
	Status    int    // of the answer, if it goes wrong; 0: it does not
}

// Grant makes a code, as the issuer does for a person who signs in and agrees.
func (i *Issuer) Grant(g Grant) string {
	if g.ClientID == "" {
		g.ClientID = Audience
	}
	code := rand.Text()
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.grants == nil {
		i.grants, i.infos = map[string]Grant{}, map[string]Claims{}
	}
	i.grants[code] = g
	return code
}

// CodeRequests counts how often a code was to be exchanged.
func (i *Issuer) CodeRequests() int { return int(i.codes.Load()) }

// token exchanges a code (RFC 6749, section 4.1.3; RFC 7636, section 4.6).
func (i *Issuer) token(w http.ResponseWriter, r *http.Request) {
	i.codes.Add(1)
	code := r.PostFormValue("code")
	i.mu.Lock()
	g, ok := i.grants[code]
	delete(i.grants, code)
	i.mu.Unlock()
	client, secret, basic := r.BasicAuth()
	if !basic {
		client, secret = r.PostFormValue("client_id"), r.PostFormValue("client_secret")
	}
	sum := sha256.Sum256([]byte(r.PostFormValue("code_verifier")))
	refuse := func(status int, text string) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		_, _ = w.Write([]byte(`{"error":"` + text + `"}`))
	}
	switch {
	case !ok || r.PostFormValue("grant_type") != "authorization_code" || r.PostFormValue("redirect_uri") != g.Redirect || encode(sum[:]) != g.Challenge:
		refuse(http.StatusBadRequest, "invalid_grant")
		return
	case client != g.ClientID || secret != g.Secret:
		refuse(http.StatusUnauthorized, "invalid_client")
		return
	case g.Status != 0:
		refuse(g.Status, "server_error")
		return
	}
	access := rand.Text()
	i.mu.Lock()
	i.infos[access] = g.UserInfo
	i.mu.Unlock()
	answer := map[string]any{"access_token": access, "token_type": "Bearer", "expires_in": 60}
	if g.IDToken != "" {
		answer["id_token"] = g.IDToken
	}
	i.write(w, answer)
}

// userInfo says more of a person, to who has the access token.
func (i *Issuer) userInfo(w http.ResponseWriter, r *http.Request) {
	i.mu.Lock()
	info, ok := i.infos[strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")]
	i.mu.Unlock()
	if !ok {
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	if info == nil {
		info = Claims{"sub": "alice"}
	}
	i.write(w, info)
}
