package world

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/chromedp/chromedp"

	"github.com/adit-tunnel/adit/shared/testkit"
)

// Browser starts a real headless Chromium with a profile of its own. The context
// is for chromedp; it ends after three times the time that the test should need, and the
// browser with the test.
func (w *World) Browser(limit time.Duration) context.Context {
	w.T.Helper()
	profile, err := os.MkdirTemp(w.Dir, "chromium-")
	if err != nil {
		w.T.Fatal(err)
	}
	opts := append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(w.Program("chromium", "chromium")),
		chromedp.NoSandbox,
		chromedp.Flag("disable-quic", true),
		chromedp.Flag("disable-background-networking", true),
		chromedp.Flag("disable-component-update", true),
		chromedp.Flag("no-proxy-server", true),
		// A test sees pages at rest; one that is about motion emulates it.
		chromedp.Flag("force-prefers-reduced-motion", true),
		chromedp.WindowSize(1200, 900),
		chromedp.UserDataDir(profile),
	)
	actx, stop := chromedp.NewExecAllocator(context.Background(), opts...)
	ctx, cancel := chromedp.NewContext(actx)
	ctx, expire := context.WithTimeout(ctx, 3*limit) // machines are shared
	// The browser starts here, so that every tab of it finds it running.
	if err := chromedp.Do(ctx); err != nil {
		w.T.Fatalf("start Chromium: %v", err)
	}
	w.T.Cleanup(func() {
		if w.T.Failed() {
			w.saveScreenshot(ctx)
		}
		expire()
		cancel()
		stop()
	})
	return ctx
}

// Tab opens another tab in the browser of a Browser context.
func (w *World) Tab(browser context.Context) context.Context {
	w.T.Helper()
	ctx, cancel := chromedp.NewContext(browser)
	w.T.Cleanup(cancel)
	return ctx
}

// Do runs browser actions and fails the test, in the words given, when they do not
// work.
func (w *World) Do(ctx context.Context, what string, actions ...chromedp.Action[chromedp.Void]) {
	w.T.Helper()
	if err := chromedp.Do(ctx, actions...); err != nil {
		href, _ := chromedp.Run(ctx, chromedp.Location())
		text, _ := chromedp.Run(ctx, chromedp.Evaluate[string](`document.body ? document.body.innerText.slice(0, 600) : ""`))
		w.T.Fatalf("expected in the browser: %s: %v\nat %s the page says: %s", what, err, href, text)
	}
}

// Until waits until a JavaScript expression is true in the page, over any number
// of navigations.
func Until(expression string) chromedp.Action[chromedp.Void] {
	return func(ctx context.Context, t *chromedp.Target) (chromedp.Void, error) {
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		limit := time.NewTimer(untilTime)
		defer limit.Stop()
		for {
			// An error is a page between two documents, or one that has no such element yet.
			if ok, err := chromedp.Evaluate[bool]("!!("+expression+")")(ctx, t); err == nil && ok {
				return chromedp.Void{}, nil
			}
			select {
			case <-tick.C:
			case <-limit.C:
				return chromedp.Void{}, fmt.Errorf("not within %s: %s", untilTime, expression)
			case <-ctx.Done():
				return chromedp.Void{}, fmt.Errorf("%w: %s", ctx.Err(), expression)
			}
		}
	}
}

// untilTime is how long a page may take: generous, since machines are shared.
const untilTime = testkit.Patience

// saveScreenshot keeps what the page looked like where ADIT_E2E_SHOTS says.
func (w *World) saveScreenshot(ctx context.Context) {
	dir := os.Getenv("ADIT_E2E_SHOTS")
	if dir == "" {
		return
	}
	if png, err := chromedp.Run(ctx, chromedp.CaptureScreenshot()); err == nil {
		_ = os.WriteFile(dir+"/"+w.T.Name()+".png", png, 0o644)
	}
}

// Navigate opens a URL and waits for the page to load.
func Navigate(url string) chromedp.Action[chromedp.Void] { return chromedp.Navigate(url) }
