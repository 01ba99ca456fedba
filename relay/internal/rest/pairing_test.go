package rest_test

import (
	"testing"

	"github.com/adit-tunnel/adit/shared/api"
)

// The requests are those of the published contract.
func TestPairing(t *testing.T) {
	w := newWorld(t)
	for _, body := range []string{"", "{}", `{"client":"adit/1","machine_name":"laptop","keys":["device","agent"],"agent_id":"gpu-9"}`} {
		if got := into[api.PairStarted](t, w.do("POST", "/desktop/pair/start", "", body), 200); got.DeviceCode != "pc-x" || got.ExpiresIn != 300 || got.Interval != 2 {
			t.Errorf("%q begins %+v", body, got)
		}
	}
	if got := into[api.PairPolled](t, w.do("POST", "/desktop/pair/poll", "", `{"device_code":"pc-x"}`), 200); got != (api.PairPolled{Status: "pending"}) {
		t.Errorf("a program that waits is told %+v", got)
	}
	if got := into[api.PairPolled](t, w.do("POST", "/desktop/pair/poll", "", `{"device_code":"pc-y"}`), 200); got.Status != "approved" || got.RawKey != "dk-x" || got.AgentKey != "ak-x" {
		t.Errorf("one that was let in gets %+v", got)
	}
	if got := into[api.PairAsked](t, w.do("POST", "/desktop/pair/show", "user", `{"user_code":"AB7K-PNQ3"}`), 200); got.RemoteAddr != "203.0.113.9" {
		t.Errorf("who asks is %+v", got)
	}
	if got := into[api.PairConfirmed](t, w.do("POST", "/desktop/pair/confirm", "user", `{"user_code":"AB7K-PNQ3","device_name":"laptop"}`), 200); got.Status != "approved" || got.TeamID != ours || got.DeviceName != "laptop" {
		t.Errorf("it is let in: %+v", got)
	}
	for _, c := range [][4]string{
		{"start", "", `{"user_code":"x"}`, "Bad Request unknown_field"},
		{"start", "", `{"keys":"device"}`, "Bad Request invalid_field"},
		{"start", "", `{"client":"flood"}`, "Too Many Requests too_many_tries"},
		{"poll", "", ``, "Bad Request invalid_body"},
		{"poll", "", `{"device_code":"pc-z"}`, "Not Found pairing_not_found"},
		{"poll", "", `{"device_code":7}`, "Bad Request invalid_field"},
		{"show", "", `{"user_code":"AB7K-PNQ3"}`, "Unauthorized unauthenticated"},
		{"show", "device", `{"user_code":"AB7K-PNQ3"}`, "Forbidden forbidden"},
		{"confirm", "", `{"user_code":"AB7K-PNQ3","device_name":"x"}`, "Unauthorized unauthenticated"},
		{"confirm", "device", `{"user_code":"AB7K-PNQ3","device_name":"x"}`, "Forbidden forbidden"},
		{"confirm", "integration", `{"user_code":"AB7K-PNQ3","device_name":"x"}`, "Forbidden forbidden"},
		{"confirm", "agent", `{"user_code":"AB7K-PNQ3","device_name":"x"}`, "Forbidden forbidden"},
		{"confirm", "user", `{"user_code":"no such code"}`, "Not Found pairing_not_found"},
	} {
		if got := w.do("POST", "/desktop/pair/"+c[0], c[1], c[2]).code(); got != c[3] {
			t.Errorf("%s as %q with %s: %s, want %s", c[0], c[1], c[2], got, c[3])
		}
	}
}

func TestADeviceEndsItself(t *testing.T) {
	w := newWorld(t)
	if got := into[api.Revoked](t, w.do("POST", "/auth/device/revoke", "device", ""), 200); got.Credentials != 2 || got.Tunnels != 3 {
		t.Errorf("with its tunnels: %+v", got)
	}
	if got := into[api.Revoked](t, w.do("POST", "/auth/device/revoke?keep_tunnels=true", "device", ""), 200); got.Tunnels != 0 {
		t.Errorf("without them: %+v", got)
	}
	w.want(w.do("POST", "/auth/device/revoke?keep_tunnels=perhaps", "device", ""), "Unprocessable Entity out_of_range")
	w.want(w.do("POST", "/auth/device/revoke", "user", ""), "Forbidden forbidden")
}
