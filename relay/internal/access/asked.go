package access

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/api"
)

// Bounds of a rule.
const (
	maxPeople    = 64
	maxPerson    = 254 // bytes of one of them
	maxNetworks  = 32
	minPIN       = 6 // characters
	maxPIN       = 64
	groupPattern = "group:"
)

// Floor is what the operator allows. The zero value allows everything.
type Floor struct {
	Minimum api.AccessMode // nothing wider; empty: anyone
	Default api.AccessMode // where nothing is asked for; empty: anyone
}

// Rule checks what is asked for a tunnel or a named link of it, and makes a rule of it. Of a
// PIN that is not said it makes a rule without one, which Replace completes.
func (f Floor) Rule(req api.AccessRequest, protocol api.Protocol) (store.AccessRule, error) {
	r := store.AccessRule{Mode: req.Access, ReadOnly: req.ReadOnly}
	if r.Mode == "" {
		if r.Mode = f.Default; r.Mode == "" {
			r.Mode = api.AccessAnyone
		}
	} else if r.Mode == api.AccessPeople && len(req.People) == 0 && f.Default != api.AccessPeople { // nobody but its opener: by default only
		return r, invalid("people", "with access people, name at least one: an address, *@example.com or group:NAME")
	}
	switch {
	case !r.Mode.Valid():
		return r, invalid("access", "one of anyone, team, people, pin and knock")
	case r.Mode != api.AccessPeople && len(req.People) > 0:
		return r, invalid("people", "it goes with access people only")
	case r.Mode != api.AccessPIN && req.PIN != "":
		return r, invalid("pin", "it goes with access pin only")
	case r.ReadOnly && protocol == api.ProtocolTCP:
		return r, invalid("read_only", "of what passes through a tunnel of protocol tcp nobody can tell reading from writing: leave it out, or use protocol http")
	case !f.allows(r.Mode):
		return r, api.Problemf(api.CodeAccessTooWide, "access %s is wider than this relay's operator allows: use %s", r.Mode, strings.Join(f.allowed(), " or "))
	}
	var err error
	if r.People, err = people(req.People); err != nil {
		return r, err
	}
	if r.From, err = networks(req.From); err != nil {
		return r, err
	}
	if req.PIN == "" {
		return r, nil
	}
	if n := utf8.RuneCountInString(req.PIN); n < minPIN || n > maxPIN || !printable(req.PIN) {
		return r, invalid("pin", "%d to %d printable characters", minPIN, maxPIN)
	}
	if r.PINHash, err = HashPIN(req.PIN); err != nil {
		return r, fmt.Errorf("hash a PIN: %w", err)
	}
	return r, nil
}

// Replace returns the rule to write in the place of another one, or of none, and
// store.ErrUnchanged when all is as it was. A PIN that is not said anew stays, and is asked
// for again.
func Replace(old *store.AccessRule, r store.AccessRule, now time.Time) (*store.AccessRule, error) {
	if r.Mode == api.AccessPIN && r.PINHash == "" {
		if old == nil || old.Mode != api.AccessPIN {
			return nil, invalid("pin", "with access pin, say one of %d to %d characters", minPIN, maxPIN)
		}
		r.PINHash = old.PINHash
	}
	// The time makes that no version comes back when there was no rule in between.
	r.Version = uint64(now.UnixMicro())
	if old != nil {
		r.Version = max(r.Version, old.Version+1)
		if r.Mode != api.AccessPIN && r.Mode == old.Mode && r.ReadOnly == old.ReadOnly && slices.Equal(r.People, old.People) && slices.Equal(r.From, old.From) {
			return old, store.ErrUnchanged
		}
	}
	return &r, nil
}

// ReplaceTunnel is Replace for a tunnel, which has no rule when whoever has the URL may use it.
func ReplaceTunnel(old *store.AccessRule, r store.AccessRule, now time.Time) (*store.AccessRule, error) {
	if r.Mode != api.AccessAnyone || len(r.From) > 0 || r.ReadOnly {
		return Replace(old, r, now)
	}
	if old == nil {
		return nil, store.ErrUnchanged
	}
	return nil, nil
}

// Warning says of a rule that was made before the operator allowed less; empty: it is
// within what is allowed.
func (f Floor) Warning(r *store.AccessRule) string {
	mode := Public(r).Access
	if f.allows(mode) {
		return ""
	}
	return fmt.Sprintf("its access, %s, is wider than this relay's operator allows now: change it to %s", mode, strings.Join(f.allowed(), " or "))
}

func (f Floor) allows(m api.AccessMode) bool { return f.Minimum == "" || m.AtLeast(f.Minimum) }

func (f Floor) allowed() []string {
	var out []string
	for _, m := range api.AccessModes {
		if f.allows(m) {
			out = append(out, string(m))
		}
	}
	return out
}

// Public is a rule as lists show it; no rule: anyone.
func Public(r *store.AccessRule) api.Access {
	if r == nil {
		return api.Access{Access: api.AccessAnyone}
	}
	return api.Access{Access: r.Mode, People: r.People, From: r.From, ReadOnly: r.ReadOnly}
}

// people checks who is named: addresses, all of a domain, groups and ids of persons.
func people(list []string) ([]string, error) {
	if len(list) > maxPeople {
		return nil, invalid("people", "at most %d", maxPeople)
	}
	var out []string
	for _, p := range list {
		p = strings.TrimSpace(p)
		domain, all := strings.CutPrefix(p, "*@")
		group, named := strings.CutPrefix(p, groupPattern)
		rest := p
		switch {
		case all:
			rest = domain
		case named:
			rest = group
		}
		if rest == "" || len(p) > maxPerson || !printable(p) || strings.Contains(rest, "*") || all && strings.Contains(domain, "@") {
			return nil, invalid("people", "each is an address as alice@example.com, all of a domain as *@example.com, group:NAME or the id of a person")
		}
		if !slices.Contains(out, p) {
			out = append(out, p)
		}
	}
	return out, nil
}

// networks checks networks, and writes each in its one spelling.
func networks(list []string) ([]string, error) {
	if len(list) > maxNetworks {
		return nil, invalid("from", "at most %d networks", maxNetworks)
	}
	var out []string
	for _, text := range list {
		text = strings.TrimSpace(text)
		net, err := netip.ParsePrefix(text)
		if err != nil {
			a, aerr := netip.ParseAddr(text)
			if aerr != nil || a.Zone() != "" {
				return nil, invalid("from", "each is a network as 203.0.113.0/24 or 2001:db8::/48, or one address")
			}
			a = a.Unmap()
			net = netip.PrefixFrom(a, a.BitLen())
		}
		if net.Addr().Is4In6() {
			return nil, invalid("from", "write networks of IPv4 as 203.0.113.0/24")
		}
		if s := net.Masked().String(); !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out, nil
}

func printable(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, func(c rune) bool { return !unicode.IsPrint(c) })
}

func invalid(field, format string, args ...any) error {
	return api.Problemf(api.CodeOutOfRange, "%s: %s", field, fmt.Sprintf(format, args...))
}
