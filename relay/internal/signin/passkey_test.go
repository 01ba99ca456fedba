package signin_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/adit-tunnel/adit/relay/internal/signin"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
)

// device makes passkeys, as a phone does, and signs what it is told to sign.
type device struct {
	t      *testing.T
	key    *ecdsa.PrivateKey
	id     []byte
	handle []byte
	count  uint32
	// What a device and a browser say; changed for attacks.
	origin, host string
	verified     bool
	synced       bool // with the person's other devices, and so without a count
}

func newDevice(t *testing.T) *device {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	id := make([]byte, 16)
	_, _ = rand.Read(id)
	return &device{t: t, key: key, id: id, origin: origin, host: "relay.example.com", verified: true}
}

func b64(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

// cborBytes is a byte string of CBOR (RFC 8949).
func cborBytes(b []byte) []byte {
	return append([]byte{0x59, byte(len(b) >> 8), byte(len(b))}, b...)
}

// data is the authenticator data (WebAuthn, section 6.1).
func (d *device) data(attested bool) []byte {
	if !d.synced {
		d.count++
	}
	sum := sha256.Sum256([]byte(d.host))
	flags := byte(0x01) // present
	if d.verified {
		flags |= 0x04
	}
	if attested {
		flags |= 0x40
	}
	out := append(sum[:], flags)
	out = binary.BigEndian.AppendUint32(out, d.count)
	if !attested {
		return out
	}
	out = append(out, make([]byte, 16)...) // no make
	out = binary.BigEndian.AppendUint16(out, uint16(len(d.id)))
	out = append(out, d.id...)
	point, err := d.key.PublicKey.Bytes()
	if err != nil {
		d.t.Fatal(err)
	}
	out = append(out, 0xa5, 0x01, 0x02, 0x03, 0x26, 0x20, 0x01, 0x21, 0x58, 0x20) // EC2, ES256, P-256, x
	out = append(out, point[1:33]...)
	out = append(out, 0x22, 0x58, 0x20) // y
	return append(out, point[33:]...)
}

func (d *device) client(kind, challenge string) []byte {
	b, err := json.Marshal(map[string]any{"type": kind, "challenge": challenge, "origin": d.origin, "crossOrigin": false})
	if err != nil {
		d.t.Fatal(err)
	}
	return b
}

// options are what a ceremony begins with.
type options struct {
	PublicKey struct {
		Challenge        string `json:"challenge"`
		RPID             string `json:"rpId"`
		UserVerification string `json:"userVerification"`
		User             struct {
			ID          string `json:"id"`
			DisplayName string `json:"displayName"`
		} `json:"user"`
		Exclude []struct {
			ID string `json:"id"`
		} `json:"excludeCredentials"`
		Selection struct {
			ResidentKey      string `json:"residentKey"`
			UserVerification string `json:"userVerification"`
		} `json:"authenticatorSelection"`
	} `json:"publicKey"`
	Ticket string `json:"ticket"`
}

func (b *browser) begins(path string) options {
	b.h.t.Helper()
	resp := b.post(path, struct{}{})
	var o options
	if body := text(resp); resp.StatusCode != http.StatusOK || json.Unmarshal([]byte(body), &o) != nil || len(o.PublicKey.Challenge) < 22 || o.Ticket == "" {
		b.h.t.Fatalf("%s begins: %d %s", path, resp.StatusCode, body)
	}
	return o
}

// makes answers a ceremony that adds a passkey.
func (d *device) makes(o options) signin.Ended {
	handle, err := base64.RawURLEncoding.DecodeString(o.PublicKey.User.ID)
	if err != nil {
		d.t.Fatal(err)
	}
	d.handle = handle
	object := []byte{0xa3, 0x63, 'f', 'm', 't', 0x64, 'n', 'o', 'n', 'e', 0x67, 'a', 't', 't', 'S', 't', 'm', 't', 0xa0, 0x68, 'a', 'u', 't', 'h', 'D', 'a', 't', 'a'}
	return d.ended(o, map[string]any{"clientDataJSON": b64(d.client("webauthn.create", o.PublicKey.Challenge)), "attestationObject": b64(append(object, cborBytes(d.data(true))...))})
}

// signs answers a ceremony that signs in.
func (d *device) signs(o options) signin.Ended {
	data, client := d.data(false), d.client("webauthn.get", o.PublicKey.Challenge)
	sum := sha256.Sum256(client)
	digest := sha256.Sum256(append(bytes.Clone(data), sum[:]...))
	signature, err := ecdsa.SignASN1(rand.Reader, d.key, digest[:])
	if err != nil {
		d.t.Fatal(err)
	}
	return d.ended(o, map[string]any{"clientDataJSON": b64(client), "authenticatorData": b64(data), "signature": b64(signature), "userHandle": b64(d.handle)})
}

func (d *device) ended(o options, response map[string]any) signin.Ended {
	b, err := json.Marshal(map[string]any{"id": b64(d.id), "rawId": b64(d.id), "type": "public-key", "clientExtensionResults": map[string]any{}, "response": response})
	if err != nil {
		d.t.Fatal(err)
	}
	return signin.Ended{Ticket: o.Ticket, Credential: b, Name: "phone"}
}

// invited is a browser of somebody who came by an invitation.
func (h *house) invited(name string) *browser {
	h.t.Helper()
	secret := ident.NewSecret(ident.PrefixInvite)
	h.town.invites[secret.Hash()] = name
	b := h.browser()
	if resp := b.post("/auth/invite", map[string]string{"invite": secret.Reveal()}); resp.StatusCode != http.StatusOK {
		h.t.Fatalf("%s comes in: %d %s", name, resp.StatusCode, text(resp))
	}
	return b
}

// withPasskey is a house with somebody who has one.
func withPasskey(t *testing.T, synced bool) (*house, *browser, *device) {
	t.Helper()
	h := newHouse(t)
	b, d := h.invited("alice"), newDevice(t)
	d.synced = synced
	o := b.begins("/auth/passkey/register/begin")
	if s := o.PublicKey.Selection; s.ResidentKey != "required" || s.UserVerification != "required" || o.PublicKey.User.DisplayName != "alice" {
		t.Errorf("a passkey is asked for as it must be: %+v", o.PublicKey)
	}
	resp := b.post("/auth/passkey/register/finish", d.makes(o))
	var key api.Passkey
	if body := text(resp); resp.StatusCode != http.StatusOK || json.Unmarshal([]byte(body), &key) != nil || key.PasskeyID != b64(d.id) || key.Name != "phone" {
		t.Fatalf("a passkey is added: %d %s", resp.StatusCode, body)
	}
	if kept := string(h.town.users["adit:alice"].Passkeys[0].Credential); len(kept) > 1000 || strings.Contains(kept, "clientDataJSON") && !strings.Contains(kept, `"attestation":{}`) {
		t.Errorf("more than the key and its state is kept: %s", kept)
	}
	return h, b, d
}

func TestPasskeySignsIn(t *testing.T) {
	h, first, d := withPasskey(t, false)
	b := h.browser()
	for range 2 { // it counts
		o := b.begins("/auth/passkey/begin")
		if o.PublicKey.RPID != "relay.example.com" || o.PublicKey.UserVerification != "required" {
			t.Errorf("a passkey is asked for as it must be: %+v", o.PublicKey)
		}
		if resp := b.post("/auth/passkey/finish", d.signs(o)); resp.StatusCode != http.StatusNoContent || !b.signedIn() {
			t.Fatalf("a passkey signs in: %d %s", resp.StatusCode, text(resp))
		}
	}
	if !first.signedIn() {
		t.Error("the browser of before stays signed in")
	}
	if again := first.begins("/auth/passkey/register/begin"); len(again.PublicKey.Exclude) != 1 || again.PublicKey.Exclude[0].ID != b64(d.id) {
		t.Errorf("a device is not asked for a second passkey: %+v", again.PublicKey.Exclude)
	}
}

func TestPasskeysThatAreRefused(t *testing.T) {
	for name, attack := range map[string]func(h *house, b *browser, d *device) *reply{
		"twice the same": func(_ *house, b *browser, d *device) *reply {
			end := d.signs(b.begins("/auth/passkey/begin"))
			if resp := b.post("/auth/passkey/finish", end); resp.StatusCode != http.StatusNoContent {
				return nil
			}
			b.post("/auth/logout", struct{}{})
			return b.post("/auth/passkey/finish", end)
		},
		"a ticket of another browser": func(h *house, b *browser, d *device) *reply {
			end := d.signs(h.browser().begins("/auth/passkey/begin"))
			b.begins("/auth/passkey/begin")
			return b.post("/auth/passkey/finish", end)
		},
		"a browser without its cookie": func(h *house, b *browser, d *device) *reply {
			return h.browser().post("/auth/passkey/finish", d.signs(b.begins("/auth/passkey/begin")))
		},
		"after five minutes": func(h *house, b *browser, d *device) *reply {
			end := d.signs(b.begins("/auth/passkey/begin"))
			h.wait(5*time.Minute + time.Second)
			return b.post("/auth/passkey/finish", end)
		},
		"another ceremony's challenge": func(_ *house, b *browser, d *device) *reply {
			end := d.signs(b.begins("/auth/passkey/begin"))
			end.Ticket = b.begins("/auth/passkey/begin").Ticket
			return b.post("/auth/passkey/finish", end)
		},
		"a ticket for adding one": func(h *house, _ *browser, d *device) *reply {
			alice := h.invited("carol")
			end := d.signs(alice.begins("/auth/passkey/register/begin"))
			return alice.post("/auth/passkey/finish", end)
		},
		"a ticket that was changed": func(_ *house, b *browser, d *device) *reply {
			end := d.signs(b.begins("/auth/passkey/begin"))
			end.Ticket = end.Ticket[:len(end.Ticket)-2] + "xx"
			return b.post("/auth/passkey/finish", end)
		},
		"a page of another origin": func(_ *house, b *browser, d *device) *reply {
			d.origin = "https://relay.example.com.evil.example"
			return b.post("/auth/passkey/finish", d.signs(b.begins("/auth/passkey/begin")))
		},
		"a page of a sibling": func(_ *house, b *browser, d *device) *reply {
			d.origin = "https://app.relay.example.com"
			return b.post("/auth/passkey/finish", d.signs(b.begins("/auth/passkey/begin")))
		},
		"a passkey of another host": func(_ *house, b *browser, d *device) *reply {
			d.host = "evil.example.com"
			return b.post("/auth/passkey/finish", d.signs(b.begins("/auth/passkey/begin")))
		},
		"an owner who did not show that it is them": func(_ *house, b *browser, d *device) *reply {
			d.verified = false
			return b.post("/auth/passkey/finish", d.signs(b.begins("/auth/passkey/begin")))
		},
		"another device's signature": func(_ *house, b *browser, d *device) *reply {
			d.key = newDevice(d.t).key
			return b.post("/auth/passkey/finish", d.signs(b.begins("/auth/passkey/begin")))
		},
		"nobody's handle": func(_ *house, b *browser, d *device) *reply {
			d.handle = []byte("nobody")
			return b.post("/auth/passkey/finish", d.signs(b.begins("/auth/passkey/begin")))
		},
		"no handle": func(_ *house, b *browser, d *device) *reply {
			d.handle = nil
			return b.post("/auth/passkey/finish", d.signs(b.begins("/auth/passkey/begin")))
		},
		"somebody else's handle": func(h *house, b *browser, d *device) *reply {
			bob, other := h.invited("bob"), newDevice(d.t)
			bob.post("/auth/passkey/register/finish", other.makes(bob.begins("/auth/passkey/register/begin")))
			d.handle = other.handle
			return b.post("/auth/passkey/finish", d.signs(b.begins("/auth/passkey/begin")))
		},
		"a copy, which counts back": func(_ *house, b *browser, d *device) *reply {
			d.count += 5
			if resp := b.post("/auth/passkey/finish", d.signs(b.begins("/auth/passkey/begin"))); resp.StatusCode != http.StatusNoContent {
				return nil
			}
			b.post("/auth/logout", struct{}{})
			d.count -= 4
			return b.post("/auth/passkey/finish", d.signs(b.begins("/auth/passkey/begin")))
		},
		"nothing that was signed": func(_ *house, b *browser, _ *device) *reply {
			return b.post("/auth/passkey/finish", signin.Ended{Ticket: b.begins("/auth/passkey/begin").Ticket, Credential: json.RawMessage(`{}`)})
		},
	} {
		t.Run(name, func(t *testing.T) {
			h, _, d := withPasskey(t, name == "twice the same")
			b := h.browser()
			resp := attack(h, b, d)
			if resp == nil {
				t.Fatal("the passkey should have worked before the attack")
			}
			wantProblem(t, name, resp, api.CodePasskeyRefused)
			if b.signedIn() {
				t.Error("somebody came in")
			}
		})
	}
}

func TestWhoMayAddAPasskey(t *testing.T) {
	h := newHouse(t)
	stranger := h.browser()
	wantProblem(t, "nobody", stranger.post("/auth/passkey/register/begin", struct{}{}), api.CodeNotSignedIn)
	wantProblem(t, "nobody", stranger.post("/auth/passkey/register/finish", signin.Ended{}), api.CodeNotSignedIn)
	ofIssuer := h.browser()
	ofIssuer.enter()
	wantProblem(t, "whom the issuer lets in", ofIssuer.post("/auth/passkey/register/begin", struct{}{}), api.CodeForbidden)

	alice := h.invited("alice")
	says := func(who string, b *browser, may, has bool) {
		t.Helper()
		resp := b.post("/auth/token", struct{}{})
		var token api.BrowserToken
		if body := text(resp); json.Unmarshal([]byte(body), &token) != nil || token.Token == "" || token.MayAddPasskey != may || token.HasPasskey != has {
			t.Errorf("the page of %s is told %s, want %t, %t", who, body, may, has)
		}
	}
	says("whom the issuer lets in", ofIssuer, false, false)
	says("whom an invitation let in", alice, true, false)
	end := newDevice(t).makes(alice.begins("/auth/passkey/register/begin"))
	bob := h.invited("bob")
	bob.cookies["__Host-adit-browser"] = alice.cookies["__Host-adit-browser"]
	wantProblem(t, "with somebody else's ticket", bob.post("/auth/passkey/register/finish", end), api.CodePasskeyRefused)
	if resp := alice.post("/auth/passkey/register/finish", end); resp.StatusCode != http.StatusOK {
		t.Errorf("whose ticket it is: %d %s", resp.StatusCode, text(resp))
	}
	says("who has one", alice, true, true)
	wantProblem(t, "twice", alice.post("/auth/passkey/register/finish", end), api.CodePasskeyRefused)
	d := newDevice(t)
	d.origin = "https://evil.example.com"
	wantProblem(t, "for a page of elsewhere", alice.post("/auth/passkey/register/finish", d.makes(alice.begins("/auth/passkey/register/begin"))), api.CodePasskeyRefused)
	if n := len(h.town.users["adit:alice"].Passkeys) + len(h.town.users["adit:bob"].Passkeys); n != 1 {
		t.Errorf("%d passkeys, want the one", n)
	}
}

func TestAPasskeyOfSomebodyInNoTeam(t *testing.T) {
	h, _, d := withPasskey(t, false)
	delete(h.town.members, "adit:alice")
	b := h.browser()
	wantProblem(t, "removed meanwhile", b.post("/auth/passkey/finish", d.signs(b.begins("/auth/passkey/begin"))), api.CodeNotAMember)
	if b.signedIn() {
		t.Error("they came in")
	}
	address := newHouse(t, func(c *signin.Config) { c.Origin = "http://127.0.0.1:8080" })
	wantProblem(t, "at an address", address.browser().post("/auth/passkey/begin", struct{}{}, "Origin", "http://127.0.0.1:8080"), api.CodeSignInOff)
}
