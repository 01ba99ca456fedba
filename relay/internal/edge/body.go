package edge

import (
	"errors"
	"io"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

const (
	smallBuffer = 4 << 10   // of a body that is small or comes in small pieces: streams of events wait in one
	bigBuffer   = 256 << 10 // of bulk
	// continueWait is how long an app may think about Expect: 100-continue before
	// the body is sent anyway (RFC 9110, section 10.1.1: not for ever).
	continueWait = time.Second
	// uploadLinger is how long an upload is read on and thrown away after the app
	// answered without it: closing at once would reset the connection and lose the
	// answer on its way (RFC 9112, section 9.6).
	uploadLinger = 2 * time.Second
	// sentWait is how long a stream's reuse may wait for the end of a write that an
	// app has answered already.
	sentWait = 50 * time.Millisecond
	// brokenWait is how long the app may take to say why it no longer reads.
	brokenWait = 5 * time.Second
)

// chunkRoom is what a chunk's size needs in front of it: 8 digits and CRLF.
const chunkRoom = 10

var (
	smallBuffers = sync.Pool{New: func() any { b := make([]byte, smallBuffer+chunkRoom+2); return &b }}
	bigBuffers   = sync.Pool{New: func() any { b := make([]byte, bigBuffer+chunkRoom+2); return &b }}
)

// getBuffer returns a buffer for a body of so many bytes; negative: not known.
func getBuffer(size int64) *[]byte {
	if size > smallBuffer {
		return bigBuffers.Get().(*[]byte)
	}
	return smallBuffers.Get().(*[]byte)
}

func putBuffer(b *[]byte) {
	if len(*b) > smallBuffer+chunkRoom+2 {
		bigBuffers.Put(b)
	} else {
		smallBuffers.Put(b)
	}
}

// grown changes a buffer that a read has filled for a big one.
func grown(b *[]byte, n int) *[]byte {
	if n < smallBuffer || len(*b) > smallBuffer+chunkRoom+2 {
		return b
	}
	putBuffer(b)
	return getBuffer(bigBuffer)
}

// sender sends a request's body beside the reading of its answer: apps may answer
// before they have all of it, or while it comes.
type sender struct {
	done    chan struct{}
	proceed chan struct{} // closed when the app wants the body
	stop    chan struct{} // closed when nobody wants it any more
	once    sync.Once     // closes proceed
	read    atomic.Bool   // all of it was read from the user
	err     error         // why it was not sent whole; valid when done
}

func (x *exchange) startBody(u *upstream, head []byte) {
	s := &sender{done: make(chan struct{}), proceed: make(chan struct{}), stop: make(chan struct{})}
	x.body = s
	_ = x.rc.EnableFullDuplex() // HTTP/2 always is
	go func() {                 // finishBody waits for it
		defer close(s.done)
		s.err = x.sendBody(s, u, head)
		switch {
		case s.err == nil:
			x.guard.arm(u, x.e.config.HeaderTimeout)
		case errors.Is(s.err, errBodyRead):
			_ = u.Reset() // a cut request must not look like a whole one
		default:
			x.guard.arm(u, brokenWait)
			s.discard(x.r.Body)
		}
	}()
}

var errBodyRead = errors.New("read the request's body")

func (x *exchange) sendBody(s *sender, u *upstream, head []byte) error {
	box := getBuffer(x.r.ContentLength)
	defer func() { putBuffer(box) }()
	chunked := x.r.ContentLength < 0
	pending := 0 // bytes of the head still to be sent, at the buffer's begin
	if chunked || x.expects() || len(head) > smallBuffer/2 {
		if _, err := u.Write(head); err != nil {
			return err
		}
		if x.expects() && !s.waitContinue() {
			return errors.New("the body is not wanted")
		}
	} else {
		pending = copy(*box, head) // goes with the first piece of the body
	}
	for {
		buf := *box
		from := pending
		if chunked {
			from = chunkRoom
		}
		n, err := x.r.Body.Read(buf[from : len(buf)-2])
		if errors.Is(err, io.EOF) {
			s.read.Store(true)
		} else if err != nil {
			return errors.Join(errBodyRead, err)
		}
		out := buf[:from+n]
		if chunked {
			out = nil
			if n > 0 {
				out = chunk(buf, n)
			}
		}
		if len(out) > 0 {
			if _, err := u.Write(out); err != nil {
				return err
			}
		}
		pending = 0
		if err != nil {
			break
		}
		box = grown(box, n)
	}
	if !chunked {
		return nil
	}
	end := append((*box)[:0], "0\r\n"...)
	for name, values := range x.r.Trailer {
		if x.drops(name, false) {
			continue
		}
		for _, v := range values {
			end = appendField(end, name, v)
		}
	}
	_, err := u.Write(append(end, "\r\n"...))
	return err
}

// chunk frames n bytes at buf[chunkRoom:] in place.
func chunk(buf []byte, n int) []byte {
	var digits [16]byte
	d := append(strconv.AppendInt(digits[:0], int64(n), 16), "\r\n"...)
	begin := chunkRoom - len(d)
	copy(buf[begin:], d)
	copy(buf[chunkRoom+n:], "\r\n")
	return buf[begin : chunkRoom+n+2]
}

// waitContinue waits until the body is to be sent; false: it is not.
func (s *sender) waitContinue() bool {
	t := time.NewTimer(continueWait)
	defer t.Stop()
	select {
	case <-s.proceed:
	case <-t.C:
	case <-s.stop:
		return false
	}
	return true
}

// goOn says that the app wants the body.
func (s *sender) goOn() { s.once.Do(func() { close(s.proceed) }) }

// discard reads on for a user who does not look at the answer before the whole
// request is sent. It ends with the body, or by finishBody's deadline.
func (s *sender) discard(body io.Reader) {
	select {
	case <-s.stop:
		return // with Expect nothing was read, and nothing will come
	default:
	}
	box := getBuffer(bigBuffer)
	defer putBuffer(box)
	for {
		if _, err := body.Read(*box); err != nil {
			s.read.Store(s.read.Load() || errors.Is(err, io.EOF))
			return
		}
	}
}

// sent says whether the app has had the whole body. It may have answered its last
// byte before the goroutine that wrote it came round to saying so.
func (s *sender) sent() bool {
	if !s.read.Load() {
		return false
	}
	t := time.NewTimer(sentWait)
	defer t.Stop()
	select {
	case <-s.done:
		return s.err == nil
	case <-t.C:
		return false
	}
}

// finishBody waits until nothing reads the user's body any more. The stream to the
// app must be closed, or have had all of the body.
func (x *exchange) finishBody() {
	s := x.body
	if s == nil {
		return
	}
	select {
	case <-s.done:
		return
	default:
	}
	close(s.stop)
	if !x.aborted {
		_ = x.rc.Flush() // the answer first
	}
	wait := uploadLinger
	if x.r.ProtoMajor != 1 || x.aborted || x.cause() != nil {
		wait = 0 // HTTP/2 has a way to say it: RST_STREAM
	}
	// The connection is closed after this answer (bodyOpen), so the deadline
	// hurts no later request.
	_ = x.rc.SetReadDeadline(time.Now().Add(wait))
	<-s.done
}

// bodyOpen says whether some of the user's body is still to be read. An HTTP/1
// answer must then close the connection: what comes later could otherwise be taken
// for the next request.
func (x *exchange) bodyOpen() bool {
	return x.body != nil && !x.body.read.Load() && x.r.ProtoMajor == 1
}

// guard holds the stream of an exchange for those who must act on it from aside:
// the end of the use, and the sender of the body.
type guard struct {
	mu       sync.Mutex
	stream   *upstream
	cut      bool
	answered bool
}

// set makes u the current stream; false: the exchange is over.
func (g *guard) set(u *upstream) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.stream, g.answered = u, false
	return !g.cut
}

// arm bounds the wait for the answer's header, if that still is awaited.
func (g *guard) arm(u *upstream, d time.Duration) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.stream == u && !g.answered {
		_ = u.SetReadDeadline(time.Now().Add(d))
	}
}

// disarm says that the header came.
func (g *guard) disarm(u *upstream) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.answered = true
	_ = u.SetReadDeadline(time.Time{})
}

func (g *guard) wasCut() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.cut
}

// end cuts the exchange: the app's stream at once, the user's side with a moment
// left for an error page.
func (g *guard) end(rc *http.ResponseController) {
	g.mu.Lock()
	g.cut = true
	u := g.stream
	g.mu.Unlock()
	if u != nil {
		_ = u.Reset()
	}
	_ = rc.SetReadDeadline(longAgo)
	_ = rc.SetWriteDeadline(time.Now().Add(cutLinger))
}
