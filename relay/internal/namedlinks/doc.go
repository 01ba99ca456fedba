// Package namedlinks owns the rule of named links: further addresses of a tunnel,
// each with a name, an end and a number of uses of its own, that can be taken back
// without closing the tunnel. It says who may come in by one, counts uses, and cuts
// what came in by a link that is over. It never proxies and never finds a tunnel.
//
// A use is a new viewer: a remote address (of IPv6 the /64 network) and a user agent
// that this link has not admitted before. All that an admitted viewer does
// afterwards, for as long as the link lasts, is the same use: reloads, WebSockets,
// another relay, a restart of the relay.
package namedlinks
