package splice

import (
	"errors"
	"io"
	"sync"
)

const (
	smallBuffer = 4 << 10   // of a direction that carries little: thousands are idle
	bigBuffer   = 256 << 10 // of a bulk transfer
)

var (
	smallBuffers = sync.Pool{New: func() any { b := make([]byte, smallBuffer); return &b }}
	bigBuffers   = sync.Pool{New: func() any { b := make([]byte, bigBuffer); return &b }}
)

func putBuffer(b *[]byte) {
	if len(*b) == smallBuffer {
		smallBuffers.Put(b)
	} else {
		bigBuffers.Put(b)
	}
}

// copyTo carries src to dst until the end of src, and says on which side it failed.
// It uses a small buffer until a read fills it, and a big one for as long as reads
// need it.
//
// io.Copy's fast paths are of no use here. splice(2) works between two sockets
// only, and one side here is always a stream of a link or a WebSocket; it would
// also tell neither the progress nor which side failed. The generic ReadFrom and
// WriteTo are this same loop without the counting.
func copyTo(d *direction, src io.Reader, dst io.Writer, count func(int)) (rerr, werr error) {
	buf := smallBuffers.Get().(*[]byte)
	defer func() { putBuffer(buf) }()
	for {
		n, err := src.Read(*buf)
		if n > 0 {
			m, err := dst.Write((*buf)[:n])
			if m > 0 {
				d.n.Add(int64(m))
				if count != nil {
					count(m)
				}
			}
			if err == nil && m < n {
				err = io.ErrShortWrite
			}
			if err != nil {
				return nil, err
			}
		}
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = nil
			}
			return err, nil
		}
		switch {
		case n == smallBuffer && len(*buf) == smallBuffer:
			putBuffer(buf)
			buf = bigBuffers.Get().(*[]byte)
		case n < smallBuffer/2 && len(*buf) == bigBuffer:
			putBuffer(buf)
			buf = smallBuffers.Get().(*[]byte)
		}
	}
}
