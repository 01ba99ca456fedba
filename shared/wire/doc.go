// Package wire owns what Adit's two halves say to each other over a link: the
// binary hello and verdict that begin a stream, and the JSON messages of the
// control stream. It never opens a connection and knows neither half.
//
// # A link
//
// An agent asks for one with GET LinkPath, its credential as a bearer, and the subprotocol
// Subprotocol: as a WebSocket (RFC 6455), or as a plain upgrade where both ends and all
// proxies between them take it (package carrier). A refusal is an HTTP answer with a
// problem document. On the connection there are frames and streams (package link). Relays
// of one pool have the same kind of link to each other over TLS, without HTTP.
//
// # A stream
//
// Whoever opens a stream sends a Hello and goes on with its data at once. The other end
// answers with a Verdict, which the opener reads before the other's data: no round trip is
// spent on it. Anything but CodeOK ends the stream. The kinds, and who opens them:
//
//	KindControl   agent   the first stream of every link, and the only one until the
//	                      agent is welcome
//	KindTCP       relay   bytes to and from a port of the machine: one request after the
//	                      other, or one connection
//	KindTerminal  relay   frames of a terminal (FrameType); the payload is a TerminalOpen
//	KindGate      agent   HTTP/1.1 to the relay's own task routes, as this agent
//	KindPeer      relay   to another relay: a stream to be passed to an agent, a question,
//	                      or the relay's introduction
//
// # The control stream
//
// One Message a line, in both directions, in this order:
//
//	agent   hello           who it is, the generation it knows, what it is and can do
//	relay   welcome         the generation of its session, the tunnels that are open, the
//	                        pool's other relays. From here on streams may be opened
//	agent   facts           what it observed, every HeartbeatInterval
//	agent   state           what its owner declared, at once when it changes
//	agent   ping            with the facts; the relay answers pong. Frames of the link tell
//	                        whether the peer is alive, this whether it still listens
//	relay   tunnel_opened,  as tunnels of the agent come and go. The list in welcome is the
//	        tunnel_closed   truth to which the agent reconciles
//	relay   probe           asks what listens on a port; the agent answers probed
//	either  goodbye         why the link ends, last
//
// # Versions
//
// Releases N and N-1 work together in both directions. Readers ignore types of message,
// fields, and what stands behind the known part of a hello, so things are added and never
// changed; a code that is not known counts as CodeInternal. What only newer agents do is
// named among the hello's capabilities. Everything an agent says is bounded before it is
// kept (Bound), since its words are a stranger's.
package wire
