package enroll_test

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/adit-tunnel/adit/agent/internal/enroll"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/api/client"
	"github.com/adit-tunnel/adit/shared/ident"
)

const good = `{"agent_id":"gpu-1","credential_id":"cred_1","credential":"ak-secret"}`

// relay answers every enrollment alike and counts them.
func relay(t *testing.T, status int, body string) (url string, asked *int) {
	t.Helper()
	asked = new(int)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		*asked++
		var req api.EnrollRequest
		if err := json.NewDecoder(r.Body).Decode(&req); err != nil || req.AgentID != "gpu-1" || r.Method != http.MethodPost ||
			r.URL.Path != "/base"+api.EnrollPath || r.Header.Get("Authorization") != "Bearer en-token" {
			t.Errorf("the relay was asked %s %s %v: %+v %v", r.Method, r.URL, r.Header, req, err)
		}
		if status == http.StatusFound {
			w.Header().Set("Location", "http://192.0.2.1/")
		}
		w.WriteHeader(status)
		_, _ = w.Write([]byte(body))
	}))
	t.Cleanup(s.Close)
	return "ws" + strings.TrimPrefix(s.URL, "http") + "/base", asked
}

func options(t *testing.T, url string) enroll.Options {
	return enroll.Options{RelayURL: url, Agent: "gpu-1", Token: ident.Secret("en-token"), File: filepath.Join(t.TempDir(), "credential"), Owner: -1}
}

func TestTheCredentialIsWrittenOnce(t *testing.T) {
	url, asked := relay(t, http.StatusCreated, good)
	o := options(t, url)
	got, err := enroll.Enroll(t.Context(), o)
	if err != nil || got.CredentialID != "cred_1" {
		t.Fatalf("enroll: %+v %v", got, err)
	}
	b, err := os.ReadFile(o.File)
	info, _ := os.Stat(o.File)
	if err != nil || string(b) != "ak-secret\n" || info.Mode().Perm() != 0o600 {
		t.Fatalf("the file holds the credential, for its owner alone: %q %v %v", b, info.Mode(), err)
	}
	if _, err := enroll.Enroll(t.Context(), o); !errors.Is(err, enroll.ErrEnrolled) || *asked != 1 {
		t.Errorf("a second time nobody is asked: %v, %d requests", err, *asked)
	}
	if list, _ := os.ReadDir(filepath.Dir(o.File)); len(list) != 1 {
		t.Errorf("more than the credential is left: %v", list)
	}
}

func TestNothingIsLeftOfARefusal(t *testing.T) {
	for name, c := range map[string]struct {
		status int
		body   string
		check  func(error) bool
	}{
		"refused":      {401, `{"code":"enrolment_refused","status":401}`, func(err error) bool { var p *api.Problem; return errors.As(err, &p) && p.Code == "enrolment_refused" }},
		"no relay":     {404, `<html>`, func(err error) bool { return strings.Contains(err.Error(), "is the address right") }},
		"redirected":   {302, ``, func(err error) bool { return strings.Contains(err.Error(), "is the address right") }},
		"no secret":    {201, `{}`, func(err error) bool { return errors.Is(err, enroll.ErrUnanswered) }},
		"two lines":    {201, `{"credential":"ak-x\nak-y"}`, func(err error) bool { return errors.Is(err, enroll.ErrUnanswered) }},
		"another kind": {201, `{"credential":"sk-x"}`, func(err error) bool { return errors.Is(err, enroll.ErrUnanswered) }},
	} {
		url, _ := relay(t, c.status, c.body)
		o := options(t, url)
		_, err := enroll.Enroll(t.Context(), o)
		if err == nil || !c.check(err) || strings.Contains(err.Error(), "en-token") {
			t.Errorf("%s: %v", name, err)
		}
		if list, _ := os.ReadDir(filepath.Dir(o.File)); len(list) != 0 {
			t.Errorf("%s: left %v", name, list)
		}
	}
}

func TestATokenIsNotSpentOnWhatCannotBeKept(t *testing.T) {
	url, asked := relay(t, http.StatusCreated, good)
	o := options(t, url)
	o.File = filepath.Join(filepath.Dir(o.File), "missing", "credential")
	if _, err := enroll.Enroll(t.Context(), o); err == nil || *asked != 0 {
		t.Errorf("a directory that is not there: %v, %d requests", err, *asked)
	}
	o = options(t, url)
	if err := os.WriteFile(o.File, []byte("not a credential"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := enroll.Enroll(t.Context(), o); err == nil || errors.Is(err, enroll.ErrEnrolled) || *asked != 0 {
		t.Errorf("a damaged file: %v, %d requests", err, *asked)
	}
	if b, _ := os.ReadFile(o.File); string(b) != "not a credential" {
		t.Errorf("the damaged file was changed: %q", b)
	}
}

// letIn plays a relay where a person lets a machine in at its second poll, or nobody does.
func letIn(t *testing.T, key string, expires int) (url string, asked *api.PairStartRequest) {
	t.Helper()
	asked = new(api.PairStartRequest)
	polls := 0
	mux := http.NewServeMux()
	mux.HandleFunc("POST /base/api/v1/desktop/pair/start", func(w http.ResponseWriter, r *http.Request) {
		if err := json.NewDecoder(r.Body).Decode(asked); err != nil || r.Header.Get("Authorization") != "" {
			t.Errorf("the relay is asked with %v: %v", r.Header, err)
		}
		_ = json.NewEncoder(w).Encode(api.PairStarted{DeviceCode: "pc-x", UserCode: "AB7K-PNQ3", VerificationURI: "https://x/desktop/pair?user_code=AB7K-PNQ3", ExpiresIn: expires, Interval: 1})
	})
	mux.HandleFunc("POST /base/api/v1/desktop/pair/poll", func(w http.ResponseWriter, r *http.Request) {
		out := api.PairPolled{Status: "pending"}
		if polls++; polls > 1 && key != "" {
			out = api.PairPolled{Status: "approved", AgentKey: key, AgentID: "gpu-1"}
		}
		_ = json.NewEncoder(w).Encode(out)
	})
	s := httptest.NewServer(mux)
	t.Cleanup(s.Close)
	return "ws" + strings.TrimPrefix(s.URL, "http") + "/base", asked
}

func TestAPersonLetsTheMachineIn(t *testing.T) {
	url, asked := letIn(t, "ak-secret", 300)
	o := options(t, url)
	shown := ""
	o.Token, o.Client, o.Show = "", "adit-agent/1", func(p api.PairStarted) { shown = p.UserCode }
	got, err := enroll.Enroll(t.Context(), o)
	if err != nil || got.AgentID != "gpu-1" || shown != "AB7K-PNQ3" {
		t.Fatalf("enroll: %+v %v, shown %q", got, err, shown)
	}
	if len(asked.Keys) != 1 || asked.Keys[0] != api.PairAgent || asked.AgentID != "gpu-1" || asked.Client != "adit-agent/1" {
		t.Errorf("it asks for %+v, want a key of this machine alone", asked)
	}
	b, err := os.ReadFile(o.File)
	if info, _ := os.Stat(o.File); err != nil || string(b) != "ak-secret\n" || info.Mode().Perm() != 0o600 {
		t.Errorf("the file holds the credential, for its owner alone: %q %v", b, err)
	}
}

func TestNothingIsLeftOfAPairingThatFails(t *testing.T) {
	for name, c := range map[string]struct {
		key     string
		expires int
		want    error
	}{
		"nobody says yes": {"", 2, client.ErrNotLetIn},
		"another key":     {"dk-secret", 300, enroll.ErrUnanswered},
	} {
		url, _ := letIn(t, c.key, c.expires)
		o := options(t, url)
		o.Token, o.Show = "", func(api.PairStarted) {}
		if _, err := enroll.Enroll(t.Context(), o); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
		if list, _ := os.ReadDir(filepath.Dir(o.File)); len(list) != 0 {
			t.Errorf("%s: left %v", name, list)
		}
	}
}
