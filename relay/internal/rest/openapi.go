package rest

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"net/http"

	"go.yaml.in/yaml/v3"

	"github.com/adit-tunnel/adit/relay/internal/creds"
)

// description is the interface in OpenAPI 3.1, written by hand.
//
//go:embed openapi.yaml
var description []byte

// specification is the description as JSON, as it is served.
func specification() ([]byte, error) {
	var doc map[string]any
	if err := yaml.Unmarshal(description, &doc); err != nil {
		return nil, fmt.Errorf("read the OpenAPI description: %w", err)
	}
	out, err := json.Marshal(doc)
	if err != nil {
		return nil, fmt.Errorf("encode the OpenAPI description: %w", err)
	}
	return out, nil
}

func (a *API) openAPI(w http.ResponseWriter, _ *http.Request, _ creds.Principal) error {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", fmt.Sprint(len(a.spec)))
	_, _ = w.Write(a.spec)
	return nil
}
