package problems_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/adit-tunnel/adit/relay/internal/problems"
	"github.com/adit-tunnel/adit/shared/api"
)

// What browsers send when a person opens an address.
const browser = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"

func answer(r *http.Request, p *api.Problem, write func(http.ResponseWriter, *http.Request)) *http.Response {
	w := httptest.NewRecorder()
	if write == nil {
		write = func(w http.ResponseWriter, r *http.Request) { problems.AnswerOwn(w, r, p, "req_1") }
	}
	write(w, r)
	return w.Result()
}

func request(method string, header ...string) *http.Request {
	r := httptest.NewRequest(method, "/x", nil)
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	return r
}

func TestPeopleGetAPageAndProgramsADocument(t *testing.T) {
	const form, parts = "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"
	for name, c := range map[string]struct {
		r    *http.Request
		page bool
	}{
		"a browser on https":                   {request("GET", "Accept", browser, "Sec-Fetch-Mode", "navigate"), true},
		"a browser on plain http":              {request("GET", "Accept", browser), true},
		"its HEAD":                             {request("HEAD", "Accept", browser), true},
		"a form of a page":                     {request("POST", "Accept", browser, "Sec-Fetch-Mode", "navigate", "Content-Type", form), true},
		"a form on plain http":                 {request("POST", "Accept", browser, "Content-Type", form), true},
		"a form with a file on plain http":     {request("POST", "Accept", browser, "Content-Type", parts), true},
		"HTML alone":                           {request("GET", "Accept", "text/html"), true},
		"HTML rather than JSON":                {request("GET", "Accept", "application/json;q=0.5, text/html"), true},
		"curl":                                 {request("GET", "Accept", "*/*"), false},
		"curl with a form":                     {request("POST", "Accept", "*/*", "Content-Type", form), false},
		"no Accept":                            {request("GET"), false},
		"JSON":                                 {request("GET", "Accept", "application/json"), false},
		"problems":                             {request("GET", "Accept", "application/problem+json, text/html;q=0.9"), false},
		"JSON rather than HTML":                {request("GET", "Accept", "text/html;q=0.5, application/json"), false},
		"JSON first":                           {request("GET", "Accept", "application/json, text/plain, text/html"), false},
		"no HTML":                              {request("GET", "Accept", "text/html;q=0, */*"), false},
		"HTML with a weight that is none":      {request("GET", "Accept", "text/html;q=x"), false},
		"fetch() of a page":                    {request("GET", "Accept", "*/*", "Sec-Fetch-Mode", "cors"), false},
		"fetch() that asks for HTML":           {request("GET", "Accept", "text/html", "Sec-Fetch-Mode", "same-origin"), false},
		"fetch() that sends a form":            {request("POST", "Accept", "text/html", "Sec-Fetch-Mode", "cors", "Content-Type", form), false},
		"fetch() of JSON that asks for HTML":   {request("POST", "Accept", "text/html", "Content-Type", "application/json"), false},
		"a script's DELETE that asks for HTML": {request("DELETE", "Accept", "text/html"), false},
		"a WebSocket":                          {request("GET", "Accept", browser, "Connection", "keep-alive, Upgrade", "Upgrade", "websocket"), false},
	} {
		res := answer(c.r, api.NotFound(api.CodeAgentNotFound), nil)
		want := api.ProblemContentType
		if c.page {
			want = "text/html; charset=utf-8"
		}
		if got := res.Header.Get("Content-Type"); got != want || res.StatusCode != http.StatusNotFound {
			t.Errorf("%s gets %d %s, want 404 %s", name, res.StatusCode, got, want)
		}
		for header, want := range map[string]string{
			"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Vary": "Accept, Sec-Fetch-Mode",
		} {
			if got := res.Header.Get(header); got != want {
				t.Errorf("%s: %s is %q, want %q", name, header, got, want)
			}
		}
		if csp := res.Header.Get("Content-Security-Policy"); !strings.HasPrefix(csp, "default-src 'none'") || !strings.Contains(csp, "frame-ancestors 'none'") || strings.Contains(csp, "unsafe") || strings.Contains(csp, "script") {
			t.Errorf("%s: the policy is %q", name, csp)
		}
	}
}

func body(t *testing.T, res *http.Response) string {
	t.Helper()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestThePage(t *testing.T) {
	hostile := api.NewProblem(api.CodeAppRefused, `<script>alert("a")</script>`).WithRetry(4500 * time.Millisecond)
	ofTunnel := func(w http.ResponseWriter, r *http.Request) { problems.Answer(w, r, hostile, "req_<b>") }
	text := body(t, answer(request("GET", "Accept", browser), nil, ofTunnel))
	for _, want := range []string{"<h1>The app is not running</h1>", "&lt;script&gt;", `<li aria-current="step">app</li>`, `content="5"`, "502 app_refused", "request req_&lt;b&gt;"} {
		if !strings.Contains(text, want) {
			t.Errorf("the page of a tunnel should hold %q:\n%s", want, text)
		}
	}
	for _, not := range []string{"<script", "req_<b>", api.ConsolePath} {
		if strings.Contains(text, not) {
			t.Errorf("the page of a tunnel should not hold %q:\n%s", not, text)
		}
	}

	own := answer(request("POST", "Accept", browser, "Sec-Fetch-Mode", "navigate"), api.NewProblem(api.CodeNotSignedIn, "this needs ümlauts").WithRetry(time.Second), nil)
	if got := own.Header.Get("WWW-Authenticate"); got != api.DefaultChallenge {
		t.Errorf("a page with 401 has WWW-Authenticate %q", got)
	}
	if got := own.Header.Get("Retry-After"); got != "1" {
		t.Errorf("Retry-After is %q", got)
	}
	text = body(t, own)
	for _, want := range []string{"<p>This needs ümlauts.</p>", `<a href="/console">`, "from the relay", "request req_1", "Try again in 1 s"} {
		if !strings.Contains(text, want) {
			t.Errorf("the relay's own page should hold %q:\n%s", want, text)
		}
	}
	if strings.Contains(text, "http-equiv") {
		t.Error("what a form sent must not be asked for again as something else")
	}

	head := answer(request("HEAD", "Accept", browser), hostile, nil)
	if sent := body(t, head); head.Header.Get("Content-Length") == "" || sent != "" {
		t.Errorf("the answer to a HEAD has a length and no body: %v %q", head.Header, sent)
	}
	if text := body(t, answer(request("GET", "Accept", browser), &api.Problem{Status: 404, Title: "Not Found"}, nil)); !strings.Contains(text, "<h1>Not Found</h1>") {
		t.Errorf("without a title for its code a page shows its status:\n%s", text)
	}
}

func TestWaysOn(t *testing.T) {
	text := body(t, answer(request("GET", "Accept", browser), nil, func(w http.ResponseWriter, r *http.Request) {
		problems.AnswerOwn(w, r, api.NewProblem(api.CodeIssuerUnavailable, "it is down"), "req_1", problems.Link{Address: `/again?to="x"`, Text: "Begin <again>"})
	}))
	if want := `<a href="/again?to=&#34;x&#34;">Begin &lt;again&gt;</a> · <a href="/console">To the console</a>`; !strings.Contains(text, want) {
		t.Errorf("the page should hold %s:\n%s", want, text)
	}
}

func TestTitlesAreOfCodes(t *testing.T) {
	for code := range problems.Titles() {
		if code.Meaning() == "" {
			t.Errorf("there is a title for %s, which is no code", code)
		}
	}
}
