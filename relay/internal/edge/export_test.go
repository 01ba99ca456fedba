package edge

// IdleStreams counts the streams kept for reuse.
func (e *Edge) IdleStreams() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	n := 0
	for _, p := range e.idle {
		p.mu.Lock()
		n += len(p.idle)
		p.mu.Unlock()
	}
	return n
}

// Active counts the requests and connections under way.
func (e *Edge) Active() (n int64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, p := range e.idle {
		n += p.active.Load()
	}
	return n
}

// RewriteCookie is rewriteCookie for fuzzing.
var RewriteCookie = rewriteCookie
