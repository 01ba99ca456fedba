package signin

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"time"

	"github.com/go-webauthn/webauthn/protocol"
	"github.com/go-webauthn/webauthn/webauthn"

	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
)

const ticketTime = 5 * time.Minute // from the first step to the last

// passkeys are the ceremonies (WebAuthn).
type passkeys struct{ web *webauthn.WebAuthn }

// newPasskeys returns nil for a host that browsers have no passkeys for: an address.
func newPasskeys(origin *url.URL) *passkeys {
	web, err := webauthn.New(&webauthn.Config{
		RPID: origin.Hostname(), RPDisplayName: "Adit", RPOrigins: []string{origin.Scheme + "://" + origin.Host},
		AttestationPreference: protocol.PreferNoAttestation, // whose make a key is, is nobody's business here
		AuthenticatorSelection: protocol.AuthenticatorSelection{
			ResidentKey: protocol.ResidentKeyRequirementRequired, RequireResidentKey: protocol.ResidentKeyRequired(),
			UserVerification: protocol.VerificationRequired, // it is the only proof, so it must be two: the key, and its owner
		},
	})
	if err != nil {
		return nil
	}
	return &passkeys{web}
}

// ticket is one ceremony that has begun. It is sealed and works once, in the browser
// that it was made for.
type ticket struct {
	ID      string               `json:"id"`
	Browser string               `json:"browser"` // hash of its cookie
	User    ident.UserID         `json:"user,omitempty"`
	Session webauthn.SessionData `json:"session"`
	Ends    time.Time            `json:"ends"`
}

// Begun is what a ceremony begins with: the options for the browser, and a ticket for
// its end.
type Begun struct {
	PublicKey any    `json:"publicKey"`
	Ticket    string `json:"ticket"`
}

// Ended is what the browser ends a ceremony with.
type Ended struct {
	Ticket     string          `json:"ticket"`
	Credential json.RawMessage `json:"credential"`
	Name       string          `json:"name,omitempty"` // of a new passkey
}

// holder is a person, as the library asks for one.
type holder struct{ store.UserRecord }

// WebAuthnID is the handle.
func (h holder) WebAuthnID() []byte { return h.Handle }

// WebAuthnName is what the browser shows in its list of passkeys.
func (h holder) WebAuthnName() string { return h.WebAuthnDisplayName() }

// WebAuthnDisplayName is the person's name.
func (h holder) WebAuthnDisplayName() string {
	if h.Name != "" {
		return h.Name
	}
	return string(h.ID)
}

// WebAuthnCredentials are the person's passkeys.
func (h holder) WebAuthnCredentials() []webauthn.Credential {
	var out []webauthn.Credential
	for _, key := range h.Passkeys {
		var c webauthn.Credential
		if json.Unmarshal(key.Credential, &c) == nil {
			out = append(out, c)
		}
	}
	return out
}

// errNoPasskeys is for hosts that browsers have none for.
func (d *Door) errNoPasskeys() *api.Problem {
	return api.Problemf(api.CodeSignInOff, "there are no passkeys at %s, which is an address: open the console by a name", d.cfg.Origin)
}

func passkeyRefused(detail string, cause error) *api.Problem {
	return api.NewProblem(api.CodePasskeyRefused, detail).WithCause(cause)
}

func (d *Door) passkeyBegin(w http.ResponseWriter, r *http.Request) (any, error) {
	if d.keys == nil {
		return nil, d.errNoPasskeys()
	}
	options, session, err := d.keys.web.BeginDiscoverableLogin()
	if err != nil {
		return nil, api.Internal(err)
	}
	sealed, err := d.ticket(w, r, sealPasskey, ticket{Session: *session})
	return Begun{PublicKey: options.Response, Ticket: sealed}, err
}

// ticket seals a ticket for the request's browser.
func (d *Door) ticket(w http.ResponseWriter, r *http.Request, purpose string, t ticket) (string, error) {
	browser, ok := d.cookies.get(r, cookieBrowser)
	if !ok {
		browser = ident.NewSecret("").Reveal()
	}
	d.cookies.set(w, cookieBrowser, browser, ticketTime)
	t.ID, t.Browser, t.Ends = ident.NewSecret("").Reveal(), ident.Secret(browser).Hash(), d.cfg.Now().Add(ticketTime)
	return d.seals.seal(purpose, t)
}

// ended reads the end of a ceremony and opens its ticket.
func (d *Door) ended(w http.ResponseWriter, r *http.Request, purpose string) (Ended, ticket, error) {
	var (
		in Ended
		t  ticket
	)
	if err := read(w, r, &in); err != nil {
		return in, t, err
	}
	browser, ok := d.cookies.get(r, cookieBrowser)
	if !ok || !d.seals.open(purpose, in.Ticket, &t) || !ident.Secret(browser).Matches(t.Browser) || !d.cfg.Now().Before(t.Ends) {
		return in, t, passkeyRefused("this was begun in another browser, or took longer than 5 minutes: begin again", nil)
	}
	return in, t, nil
}

// use uses a ticket up. It comes after the passkey was checked: whoever has none writes
// nothing.
func (d *Door) use(ctx context.Context, t ticket) error {
	err := d.cfg.Store.UseTicket(ctx, ident.Secret(t.ID).Hash(), t.Ends)
	if errors.Is(err, store.ErrExists) {
		return passkeyRefused("this was done already: begin again", nil)
	}
	return err
}

func (d *Door) passkeyFinish(w http.ResponseWriter, r *http.Request) (any, error) {
	if d.keys == nil {
		return nil, d.errNoPasskeys()
	}
	in, t, err := d.ended(w, r, sealPasskey)
	if err != nil {
		return nil, err
	}
	const detail = "the passkey is not known here, or what it signed does not fit: sign in another way, and look at your passkeys in the console"
	parsed, err := protocol.ParseCredentialRequestResponseBytes(in.Credential)
	if err != nil {
		return nil, passkeyRefused(detail, err)
	}
	var user store.UserRecord
	_, key, err := d.keys.web.ValidatePasskeyLogin(func(_, handle []byte) (webauthn.User, error) {
		var ok bool
		if user, ok = d.cfg.People.ByHandle(r.Context(), handle); !ok {
			return nil, errors.New("nobody has this handle")
		}
		return holder{user}, nil
	}, t.Session, parsed)
	if err != nil {
		return nil, passkeyRefused(detail, err)
	}
	if key.Authenticator.CloneWarning {
		return nil, passkeyRefused("the passkey counts back, as a copy of one does: sign in another way, and remove it in the console", errors.New("a passkey's counter went back"))
	}
	if len(d.cfg.Creds.TeamsOfSignIn(store.SignInRecord{User: user.ID})) == 0 {
		return nil, api.NewProblem(api.CodeNotAMember, "you are in no team of this relay any more: ask for an invitation")
	}
	if err := d.use(r.Context(), t); err != nil {
		return nil, err
	}
	ctx := context.WithoutCancel(r.Context()) // from here on not half-way
	if err := d.cfg.People.UsePasskey(ctx, user.ID, keyID(key.ID), encode(key)); err != nil {
		return nil, err
	}
	return nil, d.enter(w, r.WithContext(ctx), user.ID, methodPasskey, nil, nil)
}

// registering is who adds a passkey.
func (d *Door) registering(r *http.Request) (store.UserRecord, error) {
	if d.keys == nil {
		return store.UserRecord{}, d.errNoPasskeys()
	}
	rec, ok := d.signedIn(r)
	if !ok {
		return store.UserRecord{}, notSignedIn()
	}
	return d.cfg.People.Handle(r.Context(), rec.User)
}

func (d *Door) registerBegin(w http.ResponseWriter, r *http.Request) (any, error) {
	user, err := d.registering(r)
	if err != nil {
		return nil, err
	}
	h := holder{user}
	options, session, err := d.keys.web.BeginRegistration(h, webauthn.WithExclusions(webauthn.Credentials(h.WebAuthnCredentials()).CredentialDescriptors()))
	if err != nil {
		return nil, api.Internal(err)
	}
	sealed, err := d.ticket(w, r, sealRegister, ticket{User: user.ID, Session: *session})
	return Begun{PublicKey: options.Response, Ticket: sealed}, err
}

func (d *Door) registerFinish(w http.ResponseWriter, r *http.Request) (any, error) {
	user, err := d.registering(r)
	if err != nil {
		return nil, err
	}
	in, t, err := d.ended(w, r, sealRegister)
	if err != nil {
		return nil, err
	}
	if t.User != user.ID {
		return nil, passkeyRefused("somebody else has signed in to this browser since: begin again", nil)
	}
	const detail = "the browser's passkey could not be taken: try again, or another device"
	parsed, err := protocol.ParseCredentialCreationResponseBytes(in.Credential)
	if err != nil {
		return nil, passkeyRefused(detail, err)
	}
	key, err := d.keys.web.CreateCredential(holder{user}, t.Session, parsed)
	if err != nil {
		return nil, passkeyRefused(detail, err)
	}
	if err := d.use(r.Context(), t); err != nil {
		return nil, err
	}
	name := line(in.Name)
	if name == "" {
		name = "Passkey"
	}
	rec := store.PasskeyRecord{ID: keyID(key.ID), Name: name, Credential: encode(key), CreatedAt: d.cfg.Now().UTC()}
	if err := d.cfg.People.AddPasskey(context.WithoutCancel(r.Context()), user.ID, rec); err != nil {
		return nil, err
	}
	return api.Passkey{PasskeyID: rec.ID, Name: rec.Name, CreatedAt: rec.CreatedAt}, nil
}

func keyID(id []byte) string { return base64.RawURLEncoding.EncodeToString(id) }

// encode writes the public key and its state. What proved its make is left out: nobody
// looks at it again, and it is by far the longest part.
func encode(key *webauthn.Credential) json.RawMessage {
	plain := *key
	plain.Attestation = webauthn.CredentialAttestation{}
	b, err := json.Marshal(plain)
	if err != nil {
		panic(err) // a struct of texts and numbers
	}
	return b
}
