package config

import "github.com/adit-tunnel/adit/shared/api"

// Access bounds how open tunnels and named links may be.
type Access struct {
	Minimum string `conf:"minimum" help:"how open tunnels and named links may be at most: anyone (who has the URL), pin, knock, team or people, each narrower than the one before; nothing wider is opened then"`
	Default string `conf:"default" help:"who may use a tunnel that is opened without saying so: anyone, knock, team, or people, which is then whoever opened it alone (default: as access.minimum, and team where that is pin)"`
}

// complete lets what is opened without a word of it be as open as may be, but for a PIN,
// which nobody said then.
func (a *Access) complete() {
	if a.Default != "" {
		return
	}
	if a.Default = a.Minimum; a.Default == string(api.AccessPIN) {
		a.Default = string(api.AccessTeam)
	}
}

func (c *Relay) validateAccess(fault faultFunc) {
	least, def := api.AccessMode(c.Access.Minimum), api.AccessMode(c.Access.Default)
	switch {
	case !least.Valid():
		fault("access.minimum", "%q is none of anyone, pin, knock, team and people", c.Access.Minimum)
	case def == api.AccessPIN:
		fault("access.default", "a PIN is chosen for each tunnel; use anyone, knock, team or people")
	case !def.Valid():
		fault("access.default", "%q is none of anyone, knock, team and people", c.Access.Default)
	case !def.AtLeast(least):
		fault("access.default", "%s is wider than access.minimum, %s", def, least)
	}
}
