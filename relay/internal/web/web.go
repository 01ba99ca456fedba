// Package web owns the pages that the relay serves to browsers, the terminal and
// the console: the files as scripts/build made them, and the headers with which
// they go out. It never knows what a page does, and no page holds anything that
// depends on who asks.
package web

import (
	"crypto/sha256"
	"embed"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"mime"
	"net/http"
	"net/url"
	"path"
	"strconv"
	"strings"

	"github.com/adit-tunnel/adit/relay/internal/problems"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
)

// The placeholder in dist keeps a Go build possible where the assets were not
// built; the pages then say so.
//
//go:embed all:dist
var built embed.FS

// Path is where Files serves. It is nobody's: apps in path form have absolute paths
// such as /assets/ of their own.
const Path = "/_adit/ui/"

// Assets are the files of one build. They are immutable.
type Assets struct {
	files  map[string]file
	policy string
	origin string                 // of the pages
	here   func(host string) bool // nil: pages are on every host
}

type file struct {
	data, zipped []byte // zipped: gzip, or nil
	kind         string // media type
	tag          string
}

// New reads the embedded files for a relay whose pages are at a URL.
func New(public *url.URL) (*Assets, error) {
	sub, err := fs.Sub(built, "dist")
	if err != nil {
		return nil, fmt.Errorf("read web assets: %w", err)
	}
	return Read(sub, public)
}

// Read is New for files from elsewhere.
func Read(dir fs.FS, public *url.URL) (*Assets, error) {
	if public == nil || public.Host == "" {
		return nil, errors.New("web: a public URL is needed")
	}
	a := &Assets{files: map[string]file{}, policy: policy(public), origin: public.Scheme + "://" + public.Host}
	entries, err := fs.ReadDir(dir, ".")
	if err != nil {
		return nil, fmt.Errorf("read web assets: %w", err)
	}
	for _, e := range entries {
		name := e.Name()
		if e.IsDir() || strings.HasPrefix(name, ".") || strings.HasSuffix(name, ".gz") {
			continue
		}
		f := file{kind: mediaType(name)}
		if f.data, err = fs.ReadFile(dir, name); err != nil {
			return nil, fmt.Errorf("read web asset %s: %w", name, err)
		}
		if f.zipped, err = fs.ReadFile(dir, name+".gz"); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("read web asset %s: %w", name, err)
		}
		sum := sha256.Sum256(f.data)
		f.tag = `"` + base64.RawURLEncoding.EncodeToString(sum[:12]) + `"`
		a.files[name] = f
	}
	return a, nil
}

// mediaType knows the few kinds by itself: the system's table may say otherwise.
func mediaType(name string) string {
	switch ext := path.Ext(name); ext {
	case ".html":
		return "text/html; charset=utf-8"
	case ".js":
		return "text/javascript; charset=utf-8"
	case ".css":
		return "text/css; charset=utf-8"
	case ".svg":
		return "image/svg+xml"
	default:
		if t := mime.TypeByExtension(ext); t != "" {
			return t
		}
		return "application/octet-stream"
	}
}

// policy is the Content-Security-Policy of every page. The WebSocket's origin is
// named since older browsers do not count it as 'self'.
func policy(public *url.URL) string {
	ws := "ws"
	if public.Scheme == "https" {
		ws = "wss"
	}
	return "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self' " + ws + "://" + public.Host +
		"; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
}

// Built says whether the assets are there.
func (a *Assets) Built() bool {
	for name := range a.files {
		if strings.HasSuffix(name, ".html") {
			return true
		}
	}
	return false
}

// Alone returns the assets for a relay whose pages have a host to themselves, which
// here knows: on every other host a page's address leads there.
func (a *Assets) Alone(here func(host string) bool) *Assets {
	alone := *a
	alone.here = here
	return &alone
}

// Page serves one page by name ("terminal"), always the same bytes.
func (a *Assets) Page(name string) http.Handler {
	f, ok := a.files[name+".html"]
	if !ok {
		f = file{data: []byte(notBuilt), kind: mediaType(".html"), tag: `"not-built"`}
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a.secure(w.Header())
		if a.here != nil && !a.here(r.Host) {
			// The path is that of one of our pages, and so begins with a single slash:
			// where it leads is the configuration's choice alone.
			w.Header().Set("Cache-Control", "no-store")
			http.Redirect(w, r, a.origin+r.URL.RequestURI(), http.StatusTemporaryRedirect)
			return
		}
		// By another name of the relay the page is here, too, but the relay's doors are
		// closed to it. So that it can say where they are not:
		w.Header().Set("Link", "<"+a.origin+r.URL.EscapedPath()+`>; rel="canonical"`)
		w.Header().Set("Cache-Control", "no-cache") // ask each time: names in it change with a build
		if !ok {
			w.Header().Set("Cache-Control", "no-store")
		}
		f.serve(w, r)
	})
}

// Files serves what pages load, under Path. Their names change with their content.
func (a *Assets) Files() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		name := strings.TrimPrefix(r.URL.Path, Path)
		f, ok := a.files[name]
		a.secure(w.Header())
		if !ok || strings.HasSuffix(name, ".html") {
			problems.AnswerOwn(w, r, api.NewProblem(api.CodeNotFound, "there is no such file; reload the page that asks for it"), ident.NewRequestID())
			return
		}
		w.Header().Set("Cache-Control", "public, max-age=31536000, immutable")
		f.serve(w, r)
	})
}

// secure sets what all answers have in common. In path form, pages of tunnels share
// our origin: no window of theirs gets hold of one of ours.
func (a *Assets) secure(h http.Header) {
	h.Set("Content-Security-Policy", a.policy)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("X-Frame-Options", "DENY")
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Permissions-Policy", "camera=(), geolocation=(), microphone=(), clipboard-read=(self), clipboard-write=(self)")
}

func (f file) serve(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Content-Type", f.kind)
	h.Set("ETag", f.tag)
	h.Set("Vary", "Accept-Encoding")
	if r.Header.Get("If-None-Match") == f.tag {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	body := f.data
	if f.zipped != nil && acceptsGzip(r.Header.Values("Accept-Encoding")) {
		h.Set("Content-Encoding", "gzip")
		body = f.zipped
	}
	h.Set("Content-Length", strconv.Itoa(len(body)))
	if r.Method != http.MethodHead {
		_, _ = w.Write(body) // the reader may be gone
	}
}

// acceptsGzip reads Accept-Encoding (RFC 9110, section 12.5.3) as far as our one
// encoding needs it.
func acceptsGzip(values []string) bool {
	for item := range strings.SplitSeq(strings.Join(values, ","), ",") {
		name, param, _ := strings.Cut(item, ";")
		if strings.TrimSpace(name) != "gzip" {
			continue
		}
		q, found := strings.CutPrefix(strings.ReplaceAll(param, " ", ""), "q=")
		weight, err := strconv.ParseFloat(q, 64)
		return !found || err == nil && weight > 0
	}
	return false
}

const notBuilt = `<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Adit: web assets are missing</title>
<body>
<main>
<h1>This relay was built without its web pages</h1>
<p>Everything else works: tunnels, the API and the <code>adit</code> command, which has
<code>adit terminal</code> and <code>adit agents</code>.</p>
<p>To have the pages, install npm and build the relay again with <code>scripts/build</code>:
it bundles <code>relay/internal/web/ui</code> into <code>relay/internal/web/dist</code>, from
where the Go build takes them.</p>
</main>
</body>
</html>
`
