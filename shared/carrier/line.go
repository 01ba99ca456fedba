package carrier

import "time"

// Line is the sender's side of a link's socket, where the kernel tells of it and can be told.
type Line interface {
	Sample() (Sample, bool)
	// Restart has BBR forget what it takes the line for and look anew, as at the
	// beginning of a connection, where that is permitted.
	Restart()
	// Limit bounds the rate of sending, in bytes a second; 0: no bound.
	Limit(rate uint64)
}

// Sample is what the kernel tells of a link's socket.
type Sample struct {
	Sent, Retransmitted uint64        // bytes since the connection began; Sent counts those again
	Bandwidth           uint64        // what BBR takes the line for, in bytes a second
	RTT                 time.Duration // as the sender's TCP sees it
}
