package agent

// OwnPorts lists the ports of the agent's own listeners, in the order of their keys.
func OwnPorts(a *Agent) []uint16 { return a.own() }
