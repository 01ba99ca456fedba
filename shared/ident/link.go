package ident

import "fmt"

// LinkID names a named link: a further address of a tunnel, with an end and a
// number of uses of its own. Like a SessionID it is 128 random bits as 32
// lower-case hexadecimal digits, so that it makes a segment of the same shape.
type LinkID string

// NewLinkID returns a fresh random link id.
func NewLinkID() LinkID { return LinkID(randomHex(16)) }

// ParseLinkID checks a named link's id.
func ParseLinkID(s string) (LinkID, error) {
	if sessionPattern.MatchString(s) {
		return LinkID(s), nil
	}
	return "", fmt.Errorf("%w: a link id is 32 lower-case hexadecimal digits", ErrInvalid)
}

// LinkSegment computes the segment of a named link. Ids of links and sessions are
// of one space, so one check of a segment serves both, in the same time.
func (k ClusterKey) LinkSegment(id LinkID) Segment { return k.Segment(SessionID(id)) }
