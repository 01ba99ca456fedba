package edge

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"time"

	"github.com/adit-tunnel/adit/relay/internal/access"
	"github.com/adit-tunnel/adit/relay/internal/problems"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
)

// Doors let in who is not known; access.Doors are such.
type Doors interface {
	// PIN returns a pass for the right PIN; an empty one when none is asked for any more.
	PIN(ctx context.Context, req access.Request, pin string) (pass ident.Secret, ends time.Time, err error)
	// Knock has a browser wait, which the secret binds to it.
	Knock(ctx context.Context, req access.Request, name string) (ident.Secret, error)
	// Waited returns the pass of who was let in, or access.ErrWaiting or access.ErrNoKnock.
	Waited(ctx context.Context, req access.Request, knock ident.Secret) (pass ident.Secret, ends time.Time, err error)
}

const (
	cookieKnock = "adit-knock" // what binds a knock to the browser
	lookAgain   = 3 * time.Second

	maxForm  = 8 << 10          // bytes of a form of the relay's own
	formTime = 10 * time.Second // to read it
	maxTo    = 2 << 10          // bytes of what is gone on to
)

// atDoor says whether the request is for where the forms of the relay's own go to.
func (x *exchange) atDoor() bool {
	return x.e.config.Doors != nil && (x.route.Rest == access.PINPath || x.route.Rest == access.KnockPath)
}

// door takes a form of the relay's own.
func (x *exchange) door(req access.Request) {
	h := x.w.Header()
	h.Set("Cache-Control", "no-store")
	ctx := x.r.Context()
	if x.r.Method != http.MethodPost { // the page was loaded again
		if _, err := x.e.config.Access.Check(ctx, req); err != nil {
			x.refuse(err, req, false)
			return
		}
		x.goOn(x.askedFor())
		return
	}
	form, err := x.readForm()
	if err != nil {
		x.problem(err)
		return
	}
	to := x.within(form.Get("to"))
	if x.route.Rest == access.KnockPath {
		secret, err := x.e.config.Doors.Knock(ctx, req, form.Get("name"))
		if err != nil {
			x.form(asProblem(err), req, to)
			return
		}
		if secret != "" {
			x.setCookie(cookieKnock, secret.Reveal(), access.KnockTime)
		}
		x.goOn(to)
		return
	}
	pass, ends, perr := x.e.config.Doors.PIN(ctx, req, form.Get("pin"))
	if perr != nil {
		x.form(asProblem(perr), req, to)
		return
	}
	if pass != "" {
		x.letIn(pass, ends)
	}
	x.goOn(to)
}

// readForm reads what a form of the relay's own sent.
func (x *exchange) readForm() (formValues, *api.Problem) {
	_ = x.rc.SetReadDeadline(time.Now().Add(formTime)) // not every connection has deadlines
	defer func() { _ = x.rc.SetReadDeadline(time.Time{}) }()
	x.r.Body = http.MaxBytesReader(x.w, x.r.Body, maxForm)
	if err := x.r.ParseForm(); err != nil || x.r.PostForm == nil {
		return nil, api.Problemf(api.CodeOutOfRange, "a form of at most %d bytes is taken here", maxForm)
	}
	return x.r.PostForm, nil
}

type formValues interface{ Get(name string) string }

// within is where to go on to within the tunnel's address: what is none is its first page.
func (x *exchange) within(to string) string {
	path, _, _ := strings.Cut(to, "?")
	bad := func(c rune) bool { return c <= ' ' || c == '\\' || c == '#' || c >= 0x7f }
	if len(to) > maxTo || !strings.HasPrefix(to, "/") || !hasPrefixPath(path, x.route.Prefix) || strings.ContainsFunc(to, bad) {
		return x.route.Prefix + "/"
	}
	return to
}

func (x *exchange) letIn(pass ident.Secret, ends time.Time) {
	x.setCookie(cookiePass, pass.Reveal(), max(time.Second, time.Until(ends)))
}

// goOn sends the browser on within the tunnel's address.
func (x *exchange) goOn(to string) {
	h := x.w.Header()
	h.Set("Location", x.route.Origin+to) // whole: a path may begin with two slashes
	h.Set("Cache-Control", "no-store")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Content-Length", "0")
	x.status = http.StatusSeeOther
	x.w.WriteHeader(x.status)
}

// hasForm says whether a person is asked for something of a refusal: not where only
// programs come.
func (x *exchange) hasForm(p *api.Problem, req access.Request) bool {
	return x.e.config.Doors != nil && (p.Code == api.CodePINRequired || p.Code == api.CodeKnockWaiting) &&
		len(req.Auth) == 0 && x.route.Record.Protocol != api.ProtocolTCP && problems.Shown(x.r)
}

// ask shows the form that a refusal leads to, or has who waits go on.
func (x *exchange) ask(p *api.Problem, req access.Request) {
	if x.r.Method == http.MethodPost { // of a page of the app
		x.status = p.Status
		x.e.metrics.problem(p)
		p = api.NewProblem(p.Code, "you are not let in, or not any more, and what you sent was not taken: go in first, then send it again")
		problems.AnswerOn(x.w, x.r, p, x.id, problems.Link{Address: x.route.Origin + x.cameFrom(), Text: "Go in"})
		return
	}
	to := x.within(x.askedFor())
	if p.Code == api.CodeKnockWaiting && x.r.Method == http.MethodGet {
		if value, n := x.cookie(cookieKnock); n == 1 {
			pass, ends, err := x.e.config.Doors.Waited(x.r.Context(), req, ident.Secret(value))
			switch {
			case err == nil:
				x.setCookie(cookieKnock, "", 0)
				x.letIn(pass, ends)
				x.goOn(to)
				return
			case errors.Is(err, access.ErrWaiting):
				p = api.NewProblem(p.Code, "the people of the tunnel see that you wait; this page goes on as soon as one of them lets you in").WithRetry(lookAgain)
				x.doorPage(p, req, to, nil)
				return
			case !errors.Is(err, access.ErrNoKnock):
				x.doorPage(asProblem(err), req, to, nil)
				return
			}
		}
	}
	x.form(p, req, to)
}

// form shows a form of the relay's own, with what is to be said to it.
func (x *exchange) form(p *api.Problem, req access.Request, to string) {
	action := x.route.Prefix
	form := &problems.Form{To: to}
	switch rule := access.RuleOf(req.Tunnel, req.Link); {
	case p.Code == api.CodePINLocked || p.Code == api.CodeAccessDenied: // nothing that is sent helps
		form = nil
	case rule != nil && rule.Mode == api.AccessKnock:
		form.Action, form.Field, form.Label, form.Button = action+access.KnockPath, "name", "Your name", "Knock"
		if p.Code == api.CodeKnockWaiting {
			p = api.NewProblem(p.Code, "say who you are, for the people of the tunnel to let you in")
		}
	default:
		form.Action, form.Field, form.Label, form.Button, form.Secret = action+access.PINPath, "pin", "PIN", "Open", true
		if p.Code == api.CodePINRequired && x.r.Method != http.MethodPost {
			p = api.NewProblem(p.Code, "whoever sent you the address has the PIN")
		}
	}
	x.doorPage(p, req, to, form)
}

// doorPage shows a page of a door, with the way in for who is of the team.
func (x *exchange) doorPage(p *api.Problem, req access.Request, to string, form *problems.Form) {
	var on []problems.Link
	if x.e.config.SignIn != "" && problems.Shown(x.r) {
		on = []problems.Link{{Address: x.signInAt(req, to), Text: "Sign in, if you are of the team"}}
	}
	x.status = p.Status
	x.e.metrics.problem(p)
	problems.AnswerForm(x.w, x.r, p, x.id, form, on...)
}

func asProblem(err error) *api.Problem {
	if p, ok := errors.AsType[*api.Problem](err); ok {
		return p
	}
	return api.Internal(err)
}
