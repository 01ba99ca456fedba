package store

import (
	"encoding/json"
	"strings"

	"github.com/adit-tunnel/adit/shared/api"
)

// narrowed begins the kind, in the store, of a credential that may less than its whole
// team's. A relay of the last release knows nothing of roles and scopes: it would let it do
// everything, and on noting its use write the record anew without them. Of a kind that it
// does not know it takes none.
const narrowed = "narrowed-"

// mayLess says whether a release before roles and scopes would take the credential for
// more than it is. An agent's never had any.
func (r CredentialRecord) mayLess() bool {
	return r.Kind != api.KindAgent &&
		(r.Role != "" && !r.Role.AtLeast(api.RoleAdmin) || len(r.Scopes) > 0 || len(r.Agents) > 0 || r.Ports != "")
}

// storedCredential is a record as it is in the store.
type storedCredential CredentialRecord

// MarshalJSON writes the record for the store.
func (r CredentialRecord) MarshalJSON() ([]byte, error) {
	if r.mayLess() {
		r.Kind = narrowed + r.Kind
	}
	return json.Marshal(storedCredential(r))
}

// UnmarshalJSON reads what MarshalJSON, or the last release, wrote.
func (r *CredentialRecord) UnmarshalJSON(b []byte) error {
	if err := json.Unmarshal(b, (*storedCredential)(r)); err != nil {
		return err //nolint:wrapcheck // the caller says what it read
	}
	r.Kind = api.CredentialKind(strings.TrimPrefix(string(r.Kind), narrowed))
	return nil
}
