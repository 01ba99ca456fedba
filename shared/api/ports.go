package api

import (
	"fmt"
	"strconv"
	"strings"
)

// Ports is a set of TCP ports, such as those a tunnel may reach. The zero value
// holds none.
type Ports struct{ ranges []portRange }

type portRange struct{ low, high uint16 }

// maxPortRanges bounds the text of a set, which an agent scans for every stream.
const maxPortRanges = 256

// ParsePorts reads a list of ports and ranges, such as "8188,8888-8899". An
// empty text is an error: it could be meant as all or as none.
func ParsePorts(s string) (Ports, error) {
	if strings.TrimSpace(s) == "" {
		return Ports{}, fmt.Errorf("names no port: write 1-65535 for all, or a list like 8188,8888-8899")
	}
	var p Ports
	for part := range strings.SplitSeq(s, ",") {
		low, high, isRange := strings.Cut(strings.TrimSpace(part), "-")
		r := portRange{}
		var err error
		if r.low, err = parsePort(low); err != nil {
			return Ports{}, err
		}
		r.high = r.low
		if isRange {
			if r.high, err = parsePort(high); err != nil {
				return Ports{}, err
			}
		}
		if r.low > r.high {
			return Ports{}, fmt.Errorf("range %d-%d is the wrong way round", r.low, r.high)
		}
		if len(p.ranges) == maxPortRanges {
			return Ports{}, fmt.Errorf("has more than %d parts", maxPortRanges)
		}
		p.ranges = append(p.ranges, r)
	}
	return p, nil
}

func parsePort(s string) (uint16, error) {
	s = strings.TrimSpace(s)
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 || s[0] == '+' {
		return 0, fmt.Errorf("%.20q is no port: ports are 1 to 65535", s)
	}
	return uint16(n), nil
}

// Contain says whether a port is in the set.
func (p Ports) Contain(port uint16) bool {
	for _, r := range p.ranges {
		if r.low <= port && port <= r.high {
			return true
		}
	}
	return false
}

// String is a text that ParsePorts reads as the same set.
func (p Ports) String() string {
	parts := make([]string, len(p.ranges))
	for i, r := range p.ranges {
		parts[i] = strconv.Itoa(int(r.low))
		if r.high != r.low {
			parts[i] += "-" + strconv.Itoa(int(r.high))
		}
	}
	return strings.Join(parts, ",")
}
