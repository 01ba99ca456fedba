// Command oidc-issuer is the OpenID Connect issuer of the end-to-end tests: the provider
// of zitadel/oidc with its example's login page, people of the test's choice, and a door
// by which the test turns its keys, its clock and its people's teams.
package main

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"flag"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/zitadel/oidc/v3/example/server/exampleop"
	"github.com/zitadel/oidc/v3/example/server/storage"
	"github.com/zitadel/oidc/v3/pkg/oidc"
	"github.com/zitadel/oidc/v3/pkg/op"
)

// control is what POST /control changes.
type control struct {
	Teams    map[string][]string `json:"teams"`    // of a person, by id; in the userinfo
	Lifetime string              `json:"lifetime"` // of id tokens; below zero: expired already
	Rotate   bool                `json:"rotate"`   // new keys; the old ones are withdrawn
}

// store is the example's storage with what a test changes.
type store struct {
	*storage.Storage
	mu       sync.Mutex
	teams    map[string][]string
	lifetime time.Duration
	key      *key
}

type key struct {
	id      string
	private *rsa.PrivateKey
}

func newKey(n int) *key {
	private, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	return &key{fmt.Sprint("key-", n), private}
}

func (k *key) SignatureAlgorithm() jose.SignatureAlgorithm { return jose.RS256 }
func (k *key) Key() any                                    { return k.private }
func (k *key) ID() string                                  { return k.id }

type public struct{ *key }

func (p public) Algorithm() jose.SignatureAlgorithm { return jose.RS256 }
func (p public) Use() string                        { return "sig" }
func (p public) Key() any                           { return &p.private.PublicKey }

func (s *store) SigningKey(context.Context) (op.SigningKey, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.key, nil
}

func (s *store) KeySet(context.Context) ([]op.Key, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return []op.Key{public{s.key}}, nil
}

func (s *store) SetUserinfoFromToken(ctx context.Context, info *oidc.UserInfo, token, subject, origin string) error {
	if err := s.Storage.SetUserinfoFromToken(ctx, info, token, subject, origin); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	info.AppendClaims("teams", s.teams[subject])
	return nil
}

// client is the example's, but for the life of its tokens.
type client struct {
	op.Client
	lifetime time.Duration
}

func (c client) IDTokenLifetime() time.Duration { return c.lifetime }

func (s *store) GetClientByClientID(ctx context.Context, id string) (op.Client, error) {
	c, err := s.Storage.GetClientByClientID(ctx, id)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return client{c, s.lifetime}, nil
}

func (s *store) control(w http.ResponseWriter, r *http.Request) {
	var c control
	err := json.NewDecoder(r.Body).Decode(&c)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil && c.Lifetime != "" {
		s.lifetime, err = time.ParseDuration(c.Lifetime)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if c.Teams != nil {
		s.teams = c.Teams
	}
	if c.Rotate {
		var n int
		_, _ = fmt.Sscanf(s.key.id, "key-%d", &n)
		s.key = newKey(n + 1)
	}
	w.WriteHeader(http.StatusNoContent)
}

// deny is the button that the example's login page lacks: I do not agree.
func (s *store) deny(w http.ResponseWriter, r *http.Request) {
	request, err := s.AuthRequestByID(r.Context(), r.FormValue("authRequestID"))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	q := url.Values{"error": {"access_denied"}, "error_description": {"the person did not agree"}, "state": {request.GetState()}}
	http.Redirect(w, r, request.GetRedirectURI()+"?"+q.Encode(), http.StatusFound)
}

func main() {
	listen := flag.String("listen", "", "address on loopback")
	issuer := flag.String("issuer", "", "URL by which it is known")
	id := flag.String("client", "", "client")
	secret := flag.String("secret", "", "of the client")
	redirect := flag.String("redirect", "", "redirect URI of the client")
	users := flag.String("users", "", "file of people")
	flag.Parse()
	people, err := storage.StoreFromFile(*users)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	storage.RegisterClients(storage.WebClient(*id, *secret, *redirect))
	s := &store{Storage: storage.NewStorage(people), lifetime: time.Hour, key: newKey(1)}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /control", s.control)
	mux.HandleFunc("GET /deny", s.deny)
	mux.Handle("/", exampleop.SetupServer(*issuer, s, slog.New(slog.NewTextHandler(os.Stderr, nil)), false))
	fmt.Fprintln(os.Stderr, http.ListenAndServe(*listen, mux))
	os.Exit(1)
}
