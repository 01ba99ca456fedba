package e2e

import (
	"context"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"

	"github.com/adit-tunnel/adit/relay/e2e/world"
)

// needPages skips a test of a relay that was built without its pages.
func needPages(r *world.Relay) {
	r.W.T.Helper()
	if _, body := world.Get(r.W.HTTP(), r.URL+"/console"); strings.Contains(body, "built without its web pages") {
		r.W.T.Skip("this relay has no pages: scripts/build makes them")
	}
}

// reads evaluates a text in a tab.
func reads(w *world.World, tab context.Context, js string) string {
	w.T.Helper()
	s, err := chromedp.Run(tab, chromedp.Evaluate[string](js))
	if err != nil {
		w.T.Fatalf("%s: %v", js, err)
	}
	return s
}

func TestSignInWithTheIssuerInABrowser(t *testing.T) {
	t.Parallel()
	w := world.New(t)
	r := w.NewRelay()
	o := w.NewOIDC(r, "alice")
	o.Start()
	o.Control(map[string]any{"teams": map[string][]string{"alice": {world.Team}}})
	r.Start()
	r.WaitReady(30 * time.Second)
	needPages(r)
	tab := w.Browser(2 * time.Minute)
	issuerName := strings.TrimPrefix(o.URL, "http://")
	w.Do(tab, "the console leads to the issuer, and back",
		world.Navigate(r.URL+"/console"), press("Sign in with "+issuerName),
		world.Until(`document.querySelector("#username")`), chromedp.SendKeys("#username", "alice"), chromedp.SendKeys("#password", "alice"), chromedp.Click(`button[type=submit]`),
		live(), text("alice"))
	if at := reads(w, tab, `location.href`); at != r.URL+"/console" {
		t.Errorf("no code stays in the address bar: %s", at)
	}
	if seen := reads(w, tab, `document.cookie + JSON.stringify(sessionStorage) + JSON.stringify(localStorage)`); regexp.MustCompile(`(si|bt)-`).MatchString(seen) {
		t.Errorf("a script can read a secret: %s", seen)
	}
	w.Do(tab, "a reload keeps the sign-in", chromedp.Reload(), live())
	second := w.Tab(tab)
	w.Do(second, "so does a second tab", world.Navigate(r.URL+"/console"), live())
	w.Do(tab, "back, to the issuer's page, and forward", evaluate(`setTimeout(() => history.back())`), world.Until(`document.querySelector("#username")`), evaluate(`setTimeout(() => history.forward())`), live())
	if err := r.Stop(30 * time.Second); err != nil {
		t.Errorf("the relay stops: %v", err)
	}
	r.Start()
	r.WaitReady(30 * time.Second)
	w.Do(tab, "the page comes back after a restart of the relay, by itself", live())
	w.Do(second, "and after a reload", chromedp.Reload(), live())
	w.Do(second, "signing out everywhere", evaluate(`location.hash = "#devices"`), press("Sign out everywhere"), world.Until(`document.querySelector("dialog[open]")`), press("Sign out everywhere"),
		text("Sign in with "+issuerName))
	w.Do(tab, "ends the other tab's sign-in too", text("not signed in any more"), text("Sign in with "+issuerName))
	w.Do(tab, "a reload does not bring it back", chromedp.Reload(), text("Sign in with "+issuerName))
	w.Do(tab, "a link to a terminal leads back to it after signing in", world.Navigate(r.URL+"/auth/login?return_to=/desktop/pair%3Fuser_code=AB7K-PNQ3"),
		world.Until(`document.querySelector("#username")`), chromedp.SendKeys("#username", "alice"), chromedp.SendKeys("#password", "alice"), chromedp.Click(`button[type=submit]`),
		world.Until(fmt.Sprintf(`location.href === %q`, r.URL+"/desktop/pair?user_code=AB7K-PNQ3")))
}
