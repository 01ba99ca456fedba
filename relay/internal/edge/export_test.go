package edge

// IdleStreams counts the streams kept for reuse.
func (e *Edge) IdleStreams() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	n := 0
	for _, p := range e.pools {
		p.mu.Lock()
		n += len(p.idle)
		p.mu.Unlock()
	}
	return n
}

// RewriteCookie is rewriteCookie for fuzzing.
var RewriteCookie = rewriteCookie
