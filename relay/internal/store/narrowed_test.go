package store_test

import (
	"encoding/json"
	"reflect"
	"testing"

	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/api"
)

// A relay of the last release takes credentials of three kinds, for all that their team
// may, and writes a record that it changes without what it does not know. So it must not
// take one that may less.
func TestTheLastReleaseTakesNoNarrowedCredential(t *testing.T) {
	for name, c := range map[string]struct {
		r     store.CredentialRecord
		taken bool
	}{
		"of a release before roles": {store.CredentialRecord{Kind: api.KindIntegration}, true},
		"an admin's":                {store.CredentialRecord{Kind: api.KindDevice, Role: api.RoleAdmin}, true},
		"an owner's":                {store.CredentialRecord{Kind: api.KindIntegration, Role: api.RoleOwner}, true},
		"a machine's, of a pairing": {store.CredentialRecord{Kind: api.KindAgent, Agent: "gpu-1", Role: api.RoleMember}, true},
		"a member's device":         {store.CredentialRecord{Kind: api.KindDevice, Role: api.RoleMember}, false},
		"a viewer's":                {store.CredentialRecord{Kind: api.KindIntegration, Role: api.RoleViewer}, false},
		"with scopes":               {store.CredentialRecord{Kind: api.KindIntegration, Role: api.RoleAdmin, Scopes: []api.Scope{api.ScopeRead}}, false},
		"for some machines":         {store.CredentialRecord{Kind: api.KindIntegration, Role: api.RoleAdmin, Agents: []string{"gpu-*"}}, false},
		"for some ports":            {store.CredentialRecord{Kind: api.KindIntegration, Role: api.RoleAdmin, Ports: "8188"}, false},
	} {
		value, err := json.Marshal(c.r)
		if err != nil {
			t.Fatal(err)
		}
		var old struct { // as the last release reads it
			Kind api.CredentialKind `json:"kind"`
		}
		if err := json.Unmarshal(value, &old); err != nil {
			t.Fatal(err)
		}
		if taken := old.Kind == c.r.Kind; taken != c.taken {
			t.Errorf("%s: it is of kind %s there; taken: %t, want %t", name, old.Kind, taken, c.taken)
		}
		var back store.CredentialRecord
		if err := json.Unmarshal(value, &back); err != nil || !reflect.DeepEqual(back, c.r) {
			t.Errorf("%s: comes back as %+v, %v", name, back, err)
		}
	}
}
