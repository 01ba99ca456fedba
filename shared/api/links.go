package api

import (
	"time"

	"github.com/adit-tunnel/adit/shared/ident"
)

// CreateLinkRequest is the body of POST /tunnels/{session_id}/links.
type CreateLinkRequest struct {
	Name      string    `json:"name"`
	ExpiresIn *Duration `json:"expires_in,omitempty"` // absent: as long as the tunnel is open
	MaxUses   *int      `json:"max_uses,omitempty"`   // viewers, 1 to MaxLinkUses; absent: any number
	AccessRequest
}

// MaxLinkUses is the largest max_uses of a named link.
const MaxLinkUses = 1000

// NamedLink is a further address of a tunnel, as lists show it.
type NamedLink struct {
	LinkID        ident.LinkID    `json:"link_id"`
	SessionID     ident.SessionID `json:"session_id"`
	Name          string          `json:"name"`
	URL           string          `json:"url"`
	AlternateURLs []string        `json:"alternate_urls"`
	Segment       string          `json:"segment"`
	CreatedBy     string          `json:"created_by"`
	CreatedByName string          `json:"created_by_name,omitempty"` // as opened_by_name of a tunnel
	CreatedAt     time.Time       `json:"created_at"`
	ExpiresAt     time.Time       `json:"expires_at"`
	MaxUses       int             `json:"max_uses,omitempty"` // absent: any number
	Uses          int             `json:"uses"`               // viewers admitted so far
	LastUsedAt    time.Time       `json:"last_used_at,omitzero"`
	Viewers       int             `json:"viewers"` // now
	Access
}

// NamedLinkList is the answer of GET /tunnels/{session_id}/links.
type NamedLinkList struct {
	Links []NamedLink `json:"links"`
}
