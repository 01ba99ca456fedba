package link

// Watch has f called once, in a goroutine that the link's Close waits for, when the
// peer says anything on the stream: data, an end, or nothing any more because the
// link died. Nobody may read meanwhile. It costs nothing while the peer is silent,
// unlike a reader that waits.
func (s *Stream) Watch(f func()) {
	w := s.flow
	w.mu.Lock()
	defer w.mu.Unlock()
	w.readerPaused(s.link.mux.budget)
	w.watcher = func() { s.link.spawn(f) }
	if w.unread.Load() > 0 || w.released || w.finReceived.Load() || w.rstReceived.Load() {
		w.wakeWatcher()
	}
}

// Unwatch takes Watch back and says whether the peer has been silent since.
func (s *Stream) Unwatch() bool {
	w := s.flow
	w.mu.Lock()
	defer w.mu.Unlock()
	silent := w.watcher != nil
	w.watcher = nil
	return silent
}
