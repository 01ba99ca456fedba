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
	errEarly  = errors.New("the peer opened a second stream before the handshake was done")
)

// Read gives yamux the peer's frames that concern a stream's life. Data, windows and
// pings are dealt with here.
func (m *mux) Read(p []byte) (int, error) {
	if m.synPassed {
		// yamux has the stream in its queue: it asks for more only then.
		m.synPassed = false
		if f := m.onIncoming.Load(); f != nil {
			(*f)()
		}
	}
	for m.headLeft == 0 {
		if m.headRead == 0 && m.hasInject.Load() {
			m.head, m.headLeft = m.takeInjected(), headerSize
			break
		}
		n, err := m.readConn(m.head[m.headRead:])
		switch m.headRead += n; {
		case m.headRead == headerSize:
			m.headRead = 0
			if err := m.handleFrame(); err != nil {
				return 0, err
			}
		case err != nil:
			return 0, err
		}
	}
	n := copy(p, m.head[headerSize-m.headLeft:])
	m.headLeft -= n
	return n, nil
}

// readConn reads the connection, counts, and notes how reading ends.
func (m *mux) readConn(p []byte) (int, error) {
	n, err := m.conn.Read(p)
	if n > 0 {
		now := m.now()
		m.lastRead.Store(int64(now))
		m.bytesIn.Add(uint64(n))
		m.load.add(now, n)
		if m.hooks.Received != nil {
			m.hooks.Received(n)
		}
	}
	if err != nil {
		m.readFailed(err)
		if n == 0 && !errors.Is(err, net.ErrClosed) {
			err = io.EOF // yamux is silent about this one, and the reason is kept
		}
	}
	return n, err
}

// handleFrame deals with the frame whose header is in m.head, and says in m.headLeft
// whether yamux is to see it.
func (m *mux) handleFrame() error {
	h := &m.head
	flags := binary.BigEndian.Uint16(h[2:])
	id, length := binary.BigEndian.Uint32(h[4:]), binary.BigEndian.Uint32(h[8:])
	switch {
	case h[0] != 0:
		m.headLeft = headerSize // yamux ends the session for it
		return nil
	case h[1] == typePing:
		m.handlePing(flags, length)
		return nil
	case h[1] != typeData && h[1] != typeWindow:
		m.headLeft = headerSize
		return nil
	}
	f := m.flow(id)
	if f == nil && flags&flagSYN != 0 {
		if m.synSeen && m.handshake.Load() {
			m.readFailed(errEarly)
			return errEarly
		}
		f = m.openFlow(id)
		m.synPassed, m.synSeen = true, true
	}
	if h[1] == typeData {
		if err := m.handleData(f, int(length)); err != nil {
			return err
		}
	} else if f != nil && length > 0 {
		f.addCredit(length)
	}
	if flags&(flagSYN|flagACK|flagFIN|flagRST) == 0 {
		return nil
	}
	if f != nil && flags&flagRST != 0 {
		f.handleReset()
	} else if f != nil && flags&flagFIN != 0 {
		f.handleFIN()
	}
	binary.BigEndian.PutUint32(h[8:], 0) // whatever it carried was taken
	m.headLeft = headerSize
	return nil
}

// handlePing answers a ping, or takes the answer to one.
func (m *mux) handlePing(flags uint16, id uint32) {
	if flags&flagACK == 0 {
		m.sendReply(makeHeader(typePing, flagACK, 0, id))
		return
	}
	if id == m.pingID.Load() {
		if sent := m.pingSent.Swap(0); sent != 0 {
			m.handleRTT(max(1, m.now()+1-time.Duration(sent)))
		}
	}
}

// handleData takes a frame's body to its stream, as it comes; f may be nil.
func (m *mux) handleData(f *flow, n int) error {
	keep := false
	if f != nil && n > 0 {
		allowed := false
		if allowed, keep = f.spendCredit(n); !allowed {
			err := fmt.Errorf("%w: %d bytes on stream %d", errWindow, n, f.id)
			m.readFailed(err)
			return err
		}
	}
	if keep {
		m.budget.add(int64(n))
	}
	for n > 0 {
		var space []byte
		if keep {
			space = f.reserve(n)
		}
		if space == nil {
			return m.skip(n)
		}
		k, err := m.readConn(space)
		f.commit(k)
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
		k, err := m.readConn((*box)[:min(n, cap(*box))])
		if n -= k; err != nil && n > 0 {
			return err
		}
	}
	return nil
}

// inject has yamux read a frame that the peer did not send, before the next one
// that it did.
func (m *mux) inject(h header) {
	m.flowsMu.Lock()
	defer m.flowsMu.Unlock()
	m.injected = append(m.injected, h)
	m.hasInject.Store(true)
}

func (m *mux) takeInjected() header {
	m.flowsMu.Lock()
	defer m.flowsMu.Unlock()
	h := m.injected[0]
	m.injected = m.injected[1:]
	if len(m.injected) == 0 {
		m.injected = nil
		m.hasInject.Store(false)
	}
	return h
}

// openFlow begins a stream's flow, if it has none.
func (m *mux) openFlow(id uint32) *flow {
	m.flowsMu.Lock()
	defer m.flowsMu.Unlock()
	f := m.flows[id]
	if f == nil {
		f = newFlow(id, m.now())
		f.linkDead = m.dead
		m.flows[id] = f
	}
	return f
}

// flow returns a stream's flow; nil when it was forgotten, or never was.
func (m *mux) flow(id uint32) *flow {
	m.flowsMu.Lock()
	defer m.flowsMu.Unlock()
	return m.flows[id]
}

// dropFlow forgets a stream's flow, and frees what it holds.
func (m *mux) dropFlow(id uint32) {
	m.flowsMu.Lock()
	f := m.flows[id]
	delete(m.flows, id)
	m.flowsMu.Unlock()
	if f != nil {
		f.drop(m.budget)
	}
}

// resetStream tells the peer that a stream is over, and has yamux forget it too. The
// ping makes the peer send something, behind which yamux gets to read that.
func (m *mux) resetStream(id uint32) {
	m.inject(makeHeader(typeWindow, flagRST, id, 0))
	m.sendControl(makeHeader(typeWindow, flagRST, id, 0))
	m.sendControl(makeHeader(typePing, flagSYN, 0, 0))
	m.dropFlow(id)
}
