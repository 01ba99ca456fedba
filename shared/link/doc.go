// Package link owns the one multiplexed connection between an agent and a relay, or
// between two relays: streams over one connection of package carrier. It batches frames,
// keeps each stream's windows within one budget of memory, finds out whether the peer is
// alive, turns every way of dying into an error and gives streams the closing semantics of
// TCP. It is the only package that imports yamux. It never looks into a stream beyond the
// hello and the verdict, never connects again and never decides who may connect.
//
// # Frames
//
// The frames are yamux's, version 0, and so is the life of a stream: its number, opening
// and accepting, its two ends. yamux has a mux (mux.go) for its connection, which shows it
// nothing but headers, and only those that concern that life. Everything else goes past
// yamux: it hands each frame to another goroutine and copies its body on both sides, which
// costs more than all else that a link does, and its window stays at 256 KiB.
//
//	frame               sent by            received by        why
//	Data                mux                mux                the body goes from the socket into the
//	                                                          stream's queue, without a copy by yamux
//	Window Update
//	  with SYN          yamux              yamux, mux         opens a stream; the mux makes its flow
//	  with ACK          yamux              yamux              accepts it; gives the opener's place in
//	                                                          the backlog back
//	  with FIN          yamux              yamux, mux         ends one direction (half-close)
//	  with RST          mux; yamux, where  yamux, mux         ends both; the mux shows its own to this
//	                    nobody accepts                        side's yamux too (inject), which cannot
//	                                                          reset a stream
//	  credit            mux                mux                windows follow the line, the reader and
//	                                                          the Budget (window.go); yamux always
//	                                                          sends a credit of 0
//	Ping                mux                mux                keepalive and round trip (keepalive.go);
//	                                                          yamux would judge by one ping's answer
//	Go Away             yamux              yamux              a peer that broke the protocol
//
// A Data frame with flags, which only a foreign yamux sends, is split: the mux takes the
// body, and yamux sees the flags. What is no frame at all goes to yamux, which ends the
// session.
//
// A hello and the first credit travel with their stream's SYN: the mux holds yamux's header
// back until the opener has added them. An ACK is held back until the acceptor pauses.
//
// # Locks
//
// They are taken in this order, and of one line one at a time.
//
//	flow.sending       one call of Write, with the writing of its data
//	Stream.verdictMu   the reading of the verdict
//	Budget.relieving   giving streams up; keepalive.mu: one check
//	mux.bulk           whose turn it is to send bulk; keepalive only tries it
//	mux.flowsMu        which flows there are
//	flow.mu            one stream's windows, queue, ends and what it counts in the Budget
//	mux.mu             what waits to be written; Budget.mu: the tree of accounts; Link.mu:
//	                   why the link ends, and its goroutines
//
// Only flow.sending and mux.bulk are held while the connection is written, and none while it
// is read. Budget.Relieved is called with Budget.relieving held.
package link
