package link

// Watch has f called once, in a goroutine that the link's Close waits for, when the
// peer says anything on the stream: data, an end, or nothing any more because the
// link died. Nobody may read meanwhile. It costs nothing while the peer is silent,
// unlike a reader that waits.
func (s *Stream) Watch(f func()) {
	m := s.link.mux
	m.smu.Lock()
	defer m.smu.Unlock()
	s.mark.spoken = func() { s.link.spawn(f) }
	if s.mark.unread > 0 || s.mark.settled || s.mark.fin.Load() || s.mark.rst.Load() {
		s.mark.speak()
	}
}

// Unwatch takes Watch back and says whether the peer has been silent since.
func (s *Stream) Unwatch() bool {
	m := s.link.mux
	m.smu.Lock()
	defer m.smu.Unlock()
	silent := s.mark.spoken != nil
	s.mark.spoken = nil
	return silent
}

// speak calls who watches. The lock of marks is held.
func (k *mark) speak() {
	if k.spoken != nil {
		k.spoken()
		k.spoken = nil
	}
}
