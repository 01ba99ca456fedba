// Package creds owns who is calling: it turns a request's bearer secret, a
// user-session JWT or a stored credential, into a Principal, says what that
// principal may do, and tells whoever holds something open for it when the secret
// stops being good. It also makes and revokes stored credentials.
//
// It never reads a request beyond its Authorization and X-Team-ID headers, never
// knows a route, and never puts a secret or a part of one into an error, a log or
// a metric.
package creds
