package edge

import (
	"strings"

	"github.com/adit-tunnel/adit/relay/internal/tunnels"
	"github.com/adit-tunnel/adit/shared/ident"
)

// ownSecret says whether an Authorization field holds a secret of Adit's own: one
// sent to a tunnel by mistake, by a client that was given the wrong base URL. The
// app is trusted with nothing, least of all the team's credential. The form is
// compared whole, since apps have keys that begin with sk- too.
func ownSecret(v string) bool {
	scheme, secret, _ := strings.Cut(strings.Trim(v, " \t"), " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return false
	}
	secret = strings.TrimLeft(secret, " ")
	if body, ok := strings.CutPrefix(secret, ident.PrefixBrowser); ok && len(body) > 2*bearerPart && strings.Count(body, "-") == 2 {
		return true
	}
	for _, prefix := range [...]string{ident.PrefixIntegration, ident.PrefixDevice, ident.PrefixAgent, ident.PrefixAdmin, ident.PrefixLease, ident.PrefixEnroll, ident.PrefixSignIn, ident.PrefixInvite} {
		if body, ok := strings.CutPrefix(secret, prefix); ok && len(body) == secretBody && strings.Trim(body, "abcdefghijklmnopqrstuvwxyz234567") == "" {
			return true
		}
	}
	return false
}

// bearerPart is the length of each of the two hashes in the bearer of a page.
const bearerPart = 64

// secretBody is the length of what follows the prefix in ident.NewSecret.
const secretBody = 40

// betrays says whether an Origin or Referer names another tunnel: its address is
// access to it, and in path form all tunnels are one origin, so browsers send it.
func (x *exchange) betrays(v string) bool {
	origin, path, ok := splitURL(v)
	if !ok {
		return false
	}
	if segment, _, ok := tunnels.SplitPath(path); ok && x.stranger(segment) {
		return true
	}
	_, host, _ := strings.Cut(origin, "://")
	label, _, _ := strings.Cut(host, ".")
	return x.stranger(ident.Segment(strings.ToLower(label)))
}

func (x *exchange) stranger(s ident.Segment) bool {
	id, _, err := s.Split()
	if l := x.route.Link; l != nil && string(id) == string(l.ID) {
		return false // its own address
	}
	return err == nil && id != x.route.Record.Session
}
