package rest

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/adit-tunnel/adit/relay/internal/creds"
	"github.com/adit-tunnel/adit/shared/api"
)

// description is the interface in OpenAPI 3.1, written by hand. It ends with the
// schemas, to which specification adds the codes.
//
//go:embed openapi.yaml
var description []byte

// specification is the description as JSON, as it is served, with what each route asks of
// its callers, from the table.
func specification(table []route) ([]byte, error) {
	text := append(slices.Clone(description), "    Code:\n      type: string\n      description: |\n"+
		"        Which problem it is. Releases add codes: what is not known is treated by its status.\n\n"...)
	for _, c := range api.RelayCodes() {
		text = fmt.Appendf(text, "        - `%s`: %s\n", c, c.Meaning())
	}
	text = append(text, "      enum:\n"...)
	for _, c := range api.RelayCodes() {
		text = fmt.Appendf(text, "        - %s\n", c)
	}
	var doc map[string]any
	if err := yaml.Unmarshal(text, &doc); err != nil {
		return nil, fmt.Errorf("read the OpenAPI description: %w", err)
	}
	paths, _ := doc["paths"].(map[string]any)
	for _, rt := range table {
		item, _ := paths[api.Base+rt.path].(map[string]any)
		operation, ok := item[strings.ToLower(rt.method)].(map[string]any)
		if !ok {
			return nil, fmt.Errorf("the OpenAPI description has no %s %s", rt.method, rt.path)
		}
		if rt.role != "" {
			operation["x-role"] = rt.role
		}
		if rt.others != "" {
			operation["x-role-for-others"] = rt.others
		}
		if !rt.public {
			operation["x-scopes"] = notNil(rt.scopes)
		}
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
