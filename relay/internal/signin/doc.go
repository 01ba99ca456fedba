// Package signin is the door by which people come in with a browser: it owns everything
// under /auth/, the cookie of a browser that is signed in, the talk with the issuer
// (OpenID Connect, authorization code with PKCE), invitations as they are opened, and
// the ceremonies of passkeys. The cookie opens nothing but this door, which exchanges
// it for a bearer of minutes; no other package reads or writes it.
//
// It never decides what somebody may do, never keeps a record (people does), and never
// answers a request of another origin than the relay's own pages.
package signin
