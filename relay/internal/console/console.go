// Package console owns where the relay's console is: one page, the same for
// everybody, that calls the public interface for whoever is signed in. It knows no
// secret, no person, no team and no tunnel.
package console

import (
	"net/http"

	"github.com/adit-tunnel/adit/relay/internal/web"
	"github.com/adit-tunnel/adit/shared/api"
)

// Path is the console's address.
const Path = api.ConsolePath

// pairPath is where a person confirms a device, as the published contract has it. The
// same page serves it.
const pairPath = "/desktop/pair"

// Routes are the patterns of http.ServeMux that the console serves.
func Routes(pages *web.Assets) map[string]http.Handler {
	page := pages.Page("console")
	return map[string]http.Handler{
		"GET " + Path:     page,
		"GET " + pairPath: page,
		"GET " + Path + "/{$}": http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Cache-Control", "no-store")
			http.Redirect(w, r, Path, http.StatusPermanentRedirect)
		}),
	}
}
