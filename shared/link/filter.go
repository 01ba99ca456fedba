package link

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/adit-tunnel/adit/shared/carrier"
)

var (
	errWindow = errors.New("the peer sent more than it was allowed")
	errEarly  = errors.New("the peer opened a second stream before it was greeted")
)

// Read gives yamux the peer's frames that concern a stream's life. Data, windows and
// pings are dealt with here.
func (m *mux) Read(p []byte) (int, error) {
	if m.came {
		// yamux has the stream in its queue: it asks for more only then.
		m.came = false
		if f := m.onIncoming.Load(); f != nil {
			(*f)()
		}
	}
	for m.give == 0 {
		if m.have == 0 && m.hasInject.Load() {
			m.head, m.give = m.takeInjected(), headerSize
			break
		}
		n, err := m.fetch(m.head[m.have:])
		switch m.have += n; {
		case m.have == headerSize:
			m.have = 0
			if err := m.incoming(); err != nil {
				return 0, err
			}
		case err != nil:
			return 0, err
		}
	}
	n := copy(p, m.head[headerSize-m.give:])
	m.give -= n
	return n, nil
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

// incoming deals with the frame whose header is in m.head, and says in m.give
// whether yamux is to see it.
func (m *mux) incoming() error {
	h := &m.head
	flags := binary.BigEndian.Uint16(h[2:])
	id, length := binary.BigEndian.Uint32(h[4:]), binary.BigEndian.Uint32(h[8:])
	switch {
	case h[0] != 0:
		m.give = headerSize // yamux knows what to say
		return nil
	case h[1] == typePing:
		m.pinged(flags, length)
		return nil
	case h[1] != typeData && h[1] != typeWindow:
		m.give = headerSize
		return nil
	}
	f := m.flow(id)
	if f == nil && flags&flagSYN != 0 {
		if m.opened && m.greeting.Load() {
			m.hungUp(errEarly)
			return errEarly
		}
		f = m.track(id)
		m.came, m.opened = true, true
	}
	if h[1] == typeData {
		if err := m.receive(f, int(length)); err != nil {
			return err
		}
	} else if f != nil && length > 0 {
		f.credited(length)
	}
	if flags&(flagSYN|flagACK|flagFIN|flagRST) == 0 {
		return nil
	}
	if f != nil && flags&flagRST != 0 {
		f.reset()
	} else if f != nil && flags&flagFIN != 0 {
		f.finished()
	}
	binary.BigEndian.PutUint32(h[8:], 0) // whatever it carried was taken
	m.give = headerSize
	return nil
}

// pinged answers a ping, or takes the answer to one.
func (m *mux) pinged(flags uint16, id uint32) {
	if flags&flagACK == 0 {
		m.reply(makeHeader(typePing, flagACK, 0, id))
		return
	}
	if id == m.pingID.Load() {
		if sent := m.pingSent.Swap(0); sent != 0 {
			m.measured(max(1, m.now()+1-time.Duration(sent)))
		}
	}
}

// receive takes a frame's body to its stream, as it comes; f may be nil.
func (m *mux) receive(f *flow, n int) error {
	keep := false
	if f != nil && n > 0 {
		allowed := false
		if allowed, keep = f.announce(n); !allowed {
			err := fmt.Errorf("%w: %d bytes on stream %d", errWindow, n, f.id)
			m.hungUp(err)
			return err
		}
	}
	if keep {
		m.budget.waits(int64(n))
	}
	for n > 0 {
		var space []byte
		if keep {
			space = f.space(n)
		}
		if space == nil {
			return m.skip(n)
		}
		k, err := m.fetch(space)
		f.arrived(k)
		if n -= k; err != nil && n > 0 {
			return err
		}
	}
	return nil
}

// skip reads over what nobody wants.
func (m *mux) skip(n int) error {
	box := carrier.GetBuffer(min(n, carrier.BigBuffer))
	defer carrier.PutBuffer(box)
	for n > 0 {
		k, err := m.fetch((*box)[:min(n, cap(*box))])
		if n -= k; err != nil && n > 0 {
			return err
		}
	}
	return nil
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

// track begins a stream's flow, if it has none.
func (m *mux) track(id uint32) *flow {
	m.smu.Lock()
	defer m.smu.Unlock()
	f := m.flows[id]
	if f == nil {
		f = newFlow(id, m.now())
		f.dead = m.over
		m.flows[id] = f
	}
	return f
}

// flow returns a stream's flow; nil when it was forgotten, or never was.
func (m *mux) flow(id uint32) *flow {
	m.smu.Lock()
	defer m.smu.Unlock()
	return m.flows[id]
}

func (m *mux) forget(id uint32) {
	m.smu.Lock()
	f := m.flows[id]
	delete(m.flows, id)
	m.smu.Unlock()
	if f != nil {
		f.forget(m.budget)
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
