// Package gate owns the rule between tunnels and task leases: while a tunnel is
// open on an agent, or waits to open, or is being closed, no new task is admitted
// there. machine.go is that rule as a pure function of an agent's record; Gate
// runs it as one compare-and-set per change, and Run ends what must end by itself.
//
// It never touches a socket: what carries a tunnel's bytes is told to cut through
// Local. It never trusts an etcd lease for safety: what counts are the absolute
// expiries in the record, with a margin for clocks that differ.
package gate
