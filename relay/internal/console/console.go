// Package console owns where the relay's console is: one page, the same for
// everybody, that calls the public interface with the secret its user types in. It
// knows no secret, no team and no tunnel.
package console

import (
	"net/http"

	"github.com/adit-tunnel/adit/relay/internal/web"
	"github.com/adit-tunnel/adit/shared/api"
)

// Path is the console's address.
const Path = api.ConsolePath

// Routes are the patterns of http.ServeMux that the console serves.
func Routes(pages *web.Assets) map[string]http.Handler {
	return map[string]http.Handler{
		"GET " + Path: pages.Page("console"),
		"GET " + Path + "/{$}": http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Cache-Control", "no-store")
			http.Redirect(w, r, Path, http.StatusPermanentRedirect)
		}),
	}
}
