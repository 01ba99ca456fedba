package edge

import (
	"net/http"

	"github.com/adit-tunnel/adit/relay/internal/access"
	"github.com/adit-tunnel/adit/relay/internal/identity"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
)

// Identity makes the fields that tell an app who uses it; identity.Identity is one.
type Identity interface {
	Fields(v *access.Viewer, session ident.SessionID) (string, error)
}

// identify finds what the app is told of the viewer. It reports false when it has answered.
func (x *exchange) identify() bool {
	if x.e.config.Identity == nil {
		return true
	}
	fields, err := x.e.config.Identity.Fields(x.viewer, x.route.Record.Session)
	if err != nil { // an app may let in whom it takes for nobody
		x.problem(api.Internal(err))
		return false
	}
	x.identity = fields
	return true
}

// appendIdentity appends what the app is told of the viewer, if it is known who that is.
func (x *exchange) appendIdentity(b []byte) []byte {
	if x.identity == "" {
		return b
	}
	b = append(b, x.identity...)
	if name := x.route.Record.IdentityHeader; name != "" {
		b = appendField(b, name, identity.Safe(string(x.viewer.User)))
	}
	return b
}

// namesViewer says whether a field is the one that the tunnel's opener chose to name the
// viewer, in whatever spelling: nobody but the relay sets it, whether it does or not.
func (x *exchange) namesViewer(name string) bool {
	chosen := x.route.Record.IdentityHeader
	return chosen != "" && folded(name) == folded(chosen)
}

// folded is a field's name as servers see it that take all but letters and digits for the
// same sign (CGI, WSGI), in one letter case.
func folded(name string) string {
	b := []byte(name)
	for i, c := range b {
		if !alphanumeric(c) {
			b[i] = '-'
		}
	}
	return http.CanonicalHeaderKey(string(b))
}

// odd says whether a name has a sign that is neither letter nor digit nor a dash.
func odd(name string) bool {
	for i := range len(name) {
		if c := name[i]; c != '-' && !alphanumeric(c) {
			return true
		}
	}
	return false
}

func alphanumeric(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
}
