package creds

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/adit-tunnel/adit/shared/metric"
)

// outcome is how an authentication ended; a closed list, since it is a label.
type outcome string

const (
	outcomeOK           outcome = "ok"
	outcomeMissing      outcome = "missing"       // no bearer secret at all
	outcomeMalformed    outcome = "malformed"     // not a secret of any known form
	outcomeUnknown      outcome = "unknown"       // no such credential
	outcomeExpired      outcome = "expired"       //
	outcomeRevoked      outcome = "revoked"       //
	outcomeNotYet       outcome = "not_yet_valid" // nbf or iat lies ahead
	outcomeAlgorithm    outcome = "bad_algorithm" // outside the allow-list
	outcomeIssuer       outcome = "bad_issuer"    //
	outcomeAudience     outcome = "bad_audience"  //
	outcomeKey          outcome = "unknown_key"   // the issuer has no such key
	outcomeSignature    outcome = "bad_signature" //
	outcomeClaims       outcome = "bad_claims"    // sub, exp or teams are not usable
	outcomeTeamRequired outcome = "team_required" //
	outcomeTeamInvalid  outcome = "team_invalid"  //
	outcomeNotMember    outcome = "not_a_member"  //
	outcomeUnavailable  outcome = "unavailable"   // the issuer or the store cannot say
)

// Values of the label kind where no Kind is known.
const (
	labelNone    = "none"
	labelUnknown = "unknown"
	labelBrowser = "browser" // a page whose browser is signed in
)

type metrics struct {
	auth      *prometheus.CounterVec // kind, outcome
	misses    *prometheus.CounterVec // outcome: confirmed (absent), found, cached, limited, unavailable
	refreshes *prometheus.CounterVec // source: issuer, file; outcome: ok, error, limited
	watched   prometheus.Gauge
	touches   *prometheus.CounterVec // outcome: ok, error, dropped
}

func newMetrics(reg prometheus.Registerer) *metrics {
	f := metric.In(reg)
	return &metrics{
		auth:      f.Counters("adit_relay_auth_total", "Authentications, by kind of secret and outcome.", "kind", "outcome"),
		misses:    f.Counters("adit_relay_auth_misses_total", "Credentials and sign-ins that are not in the index, by how the miss was settled.", "outcome"),
		refreshes: f.Counters("adit_relay_auth_key_refreshes_total", "Attempts to read the keys that verify user sessions, by source and outcome.", "source", "outcome"),
		watched:   f.Gauge("adit_relay_auth_watched", "Links and sockets that end when their credential or sign-in does."),
		touches:   f.Counters("adit_relay_auth_last_use_writes_total", "Writes of credentials' last use, by outcome.", "outcome"),
	}
}
