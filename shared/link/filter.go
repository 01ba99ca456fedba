package link

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"time"
)

// Read gives yamux the peer's frames, one header or one piece of a body at a time.
func (m *mux) Read(p []byte) (int, error) {
	for {
		switch {
		case m.give > 0:
			n := copy(p, m.head[headerSize-m.give:])
			m.give -= n
			return n, nil
		case m.body > 0:
			n, err := m.fetch(p[:min(len(p), m.body)])
			m.body -= n
			return n, err
		case m.have == 0 && m.hasInject.Load():
			m.head, m.give = m.takeInjected(), headerSize
		default:
			n, err := m.fetch(m.head[m.have:])
			if m.have += n; m.have == headerSize {
				m.have, m.give = 0, headerSize
				m.incoming()
			} else if err != nil {
				return 0, err
			}
		}
	}
}

func (m *mux) fetch(p []byte) (int, error) {
	n, err := m.c.Read(p)
	if n > 0 {
		now := m.now()
		m.lastIn.Store(int64(now))
		m.bytesIn.Add(uint64(n))
		m.load.add(now, n)
		if m.hooks.Received != nil {
			m.hooks.Received(n)
		}
	}
	if err != nil {
		m.hungUp(err)
		if n == 0 && !errors.Is(err, net.ErrClosed) {
			err = io.EOF // yamux is silent about this one, and the reason is kept
		}
	}
	return n, err
}

// incoming looks at the header in m.head, and changes it where yamux would do harm.
func (m *mux) incoming() {
	flags := binary.BigEndian.Uint16(m.head[2:])
	switch m.head[1] {
	case typePing:
		if flags&flagACK != 0 && binary.BigEndian.Uint32(m.head[8:]) == m.pingID.Load() {
			if sent := m.pingSent.Swap(0); sent != 0 {
				m.measured(max(1, m.now()+1-time.Duration(sent)))
			}
		}
		return
	case typeData:
		m.body = int(binary.BigEndian.Uint32(m.head[8:]))
		if m.body > 0 && flags&flagSYN == 0 {
			m.received(binary.BigEndian.Uint32(m.head[4:]), m.body)
		}
	case typeWindow:
	default:
		return
	}
	if flags&(flagSYN|flagFIN|flagRST) == 0 {
		return
	}
	id := binary.BigEndian.Uint32(m.head[4:])
	if flags&flagSYN != 0 {
		m.track(id)
	}
	k := m.mark(id)
	if k == nil {
		return // forgotten: yamux discards the frame
	}
	if flags&flagRST != 0 {
		// yamux would throw away what was received and not yet read, and with it a
		// verdict. So it sees an end instead, and the stream tells the difference.
		shown := flags &^ flagRST
		if !k.ended {
			shown |= flagFIN
		}
		binary.BigEndian.PutUint16(m.head[2:], shown)
		k.ended = true
		if !k.rst.Swap(true) {
			close(k.gone)
			if s := k.stream.Load(); s != nil {
				s.interruptWrites()
			}
		}
	}
	if flags&flagFIN != 0 {
		k.ended = true
		k.fin.Store(true)
	}
	if k.ended {
		m.tell(k, false)
	}
}

// leave says what becomes of a stream that was closed here: true when the peer
// sends more or had sent what was not read, false when it ends too.
func (m *mux) leave(k *mark) <-chan bool {
	m.smu.Lock()
	defer m.smu.Unlock()
	k.left = make(chan bool, 1)
	switch {
	case k.fin.Load() || k.rst.Load():
		k.left <- false
	case k.unread > 0:
		k.left <- true
	}
	return k.left
}

// tell answers leave, if it was called and has no answer yet.
func (m *mux) tell(k *mark, talks bool) {
	m.smu.Lock()
	defer m.smu.Unlock()
	k.tell(talks)
}

func (k *mark) tell(talks bool) {
	k.speak()
	if k.left != nil {
		select {
		case k.left <- talks:
		default:
		}
	}
}

// inject has yamux read a frame that the peer did not send, before the next one
// that it did.
func (m *mux) inject(h header) {
	m.smu.Lock()
	defer m.smu.Unlock()
	m.injected = append(m.injected, h)
	m.hasInject.Store(true)
}

func (m *mux) takeInjected() header {
	m.smu.Lock()
	defer m.smu.Unlock()
	h := m.injected[0]
	m.injected = m.injected[1:]
	if len(m.injected) == 0 {
		m.injected = nil
		m.hasInject.Store(false)
	}
	return h
}

// track begins a stream's mark.
func (m *mux) track(id uint32) *mark {
	m.smu.Lock()
	defer m.smu.Unlock()
	k := m.streams[id]
	if k == nil {
		k = &mark{gone: make(chan struct{}), room: yamuxWindow}
		m.streams[id] = k
	}
	return k
}

func (m *mux) mark(id uint32) *mark {
	m.smu.Lock()
	defer m.smu.Unlock()
	return m.streams[id]
}

func (m *mux) forget(id uint32) {
	m.smu.Lock()
	defer m.smu.Unlock()
	if k := m.streams[id]; k != nil {
		m.settle(k)
		delete(m.streams, id)
	}
}

// reset tells the peer that a stream is over, and has yamux forget it too. The
// ping makes the peer send something, behind which yamux gets to read that.
func (m *mux) reset(id uint32) {
	m.inject(makeHeader(typeWindow, flagRST, id, 0))
	m.post(makeHeader(typeWindow, flagRST, id, 0))
	m.post(makeHeader(typePing, flagSYN, 0, 0))
	m.forget(id)
}
