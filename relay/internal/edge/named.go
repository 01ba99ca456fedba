package edge

import (
	"context"
	"errors"
	"net/http"

	"github.com/adit-tunnel/adit/relay/internal/access"
	"github.com/adit-tunnel/adit/relay/internal/namedlinks"
	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/relay/internal/usage"
	"github.com/adit-tunnel/adit/shared/api"
)

// Links is the rule of named links; namedlinks.Links is one.
type Links interface {
	// Open says whether a link has a place for a viewer; it uses nothing up.
	Open(ctx context.Context, link store.LinkRecord, viewer usage.Party) bool
	// Admitted says whether a viewer has been let in before.
	Admitted(link store.LinkRecord, viewer usage.Party) bool
	// Admit lets a viewer in. The error is namedlinks.ErrOver or a problem.
	Admit(ctx context.Context, link store.LinkRecord, viewer usage.Party) error
	// Previewed notes a preview, which uses nothing up.
	Previewed(ctx context.Context, link store.LinkRecord, viewer usage.Party)
}

// party is the viewer that asks, with who they are once that is known.
func (x *exchange) party() usage.Party {
	p := usage.Party{Remote: x.remote.user, UserAgent: x.r.UserAgent()}
	if l := x.route.Link; l != nil {
		p.Link = l.ID
	}
	if v := x.viewer; v != nil {
		p.User, p.Name = v.User, v.Name
		if v.How == access.ByKnock && v.Name != "" { // anybody could say so
			p.Name = v.Name + " (as they say)"
		}
	}
	return p
}

// mayEnter looks, before anything of the tunnel shows, whether who came by a named
// link may. Where uses are counted, a preview is answered here and never reaches the
// app: it names itself, so anybody could come in as one.
func (x *exchange) mayEnter() bool {
	link := x.route.Link
	if link == nil {
		return true
	}
	if x.e.config.Links == nil || !x.e.config.Links.Open(x.r.Context(), *link, x.party()) {
		x.problem(errNoTunnel())
		return false
	}
	if link.MaxUses > 0 && namedlinks.Preview(x.r) && !x.e.config.Links.Admitted(*link, x.party()) {
		x.previewed(*link)
		x.preview()
		return false
	}
	return true
}

// admit uses up one of a named link's uses, if the viewer is a new one. A preview of
// a link without limit passes and is no use.
func (x *exchange) admit() bool {
	link := x.route.Link
	if link == nil {
		return true
	}
	if link.MaxUses == 0 && namedlinks.Preview(x.r) {
		x.previewed(*link)
		return true
	}
	err := x.e.config.Links.Admit(x.r.Context(), *link, x.party())
	var p *api.Problem
	switch {
	case err == nil:
		return true
	case errors.As(err, &p):
		x.problem(p)
	default:
		x.problem(errNoTunnel().WithCause(err))
	}
	return false
}

func (x *exchange) previewed(link store.LinkRecord) {
	x.e.metrics.previews.Inc()
	x.e.config.Links.Previewed(x.r.Context(), link, x.party())
}

const previewPage = `<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="robots" content="noindex,nofollow">
<meta property="og:title" content="A private link"><meta property="og:description" content="Open it in a browser. It works a limited number of times; this preview used none.">
<title>A private link</title></head>
<body><p>Open this link in a browser. It works a limited number of times; this preview used none.</p></body></html>
`

// preview answers a chat's bot, or a browser ahead of its user, in the app's place.
func (x *exchange) preview() {
	h := x.w.Header()
	h.Set("Cache-Control", "no-store")
	h.Set("X-Robots-Tag", "noindex, nofollow")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Content-Security-Policy", api.StrictPolicy)
	h.Set("Content-Type", "text/html; charset=utf-8")
	x.status = http.StatusOK
	if namedlinks.Prefetch(x.r) {
		x.status = http.StatusServiceUnavailable // so that the browser asks again when its user comes
	}
	x.w.WriteHeader(x.status)
	if x.r.Method != http.MethodHead {
		_, _ = x.w.Write([]byte(previewPage)) // nobody is left to tell
	}
}
