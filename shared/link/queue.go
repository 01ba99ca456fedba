package link

import "github.com/adit-tunnel/adit/shared/carrier"

// queue holds received data until it is read, in pooled pieces. One fills it and one
// reads it, each under the same lock; only the room that was given out is written
// to without it.
type queue struct {
	pieces  []piece // the first unread at begin
	begin   int
	filling bool // the last piece's room was given out
}

type piece struct {
	box  *[]byte // from the pools of buffers
	r, w int     // read and written up to here
}

func (q *queue) empty() bool {
	return q.begin == len(q.pieces) || q.pieces[q.begin].r == q.pieces[q.begin].w
}

// reserve returns room for some of the n bytes that are to come, at least one.
func (q *queue) reserve(n int) []byte {
	q.filling = true
	if i := len(q.pieces) - 1; i >= q.begin {
		last := &q.pieces[i]
		if size := cap(*last.box); size-last.w >= min(n, carrier.DirectRead) {
			return (*last.box)[last.w:min(size, last.w+n)]
		}
	}
	box := carrier.GetBuffer(n)
	q.pieces = append(q.pieces, piece{box: box})
	return (*box)[:min(cap(*box), n)]
}

// commit notes how much of that room was filled.
func (q *queue) commit(n int) {
	q.filling = false
	q.pieces[len(q.pieces)-1].w += n
}

// clear gives everything back, but for a piece that is being filled.
func (q *queue) clear() {
	for n := len(q.pieces) - q.begin; n > 1 || n == 1 && !q.filling; n-- {
		q.drop()
	}
}

// drop gives the first piece back.
func (q *queue) drop() {
	carrier.PutBuffer(q.pieces[q.begin].box)
	q.pieces[q.begin] = piece{}
	q.begin++
	if n := len(q.pieces); q.begin == n || q.begin >= 16 && q.begin > n/2 {
		q.pieces = q.pieces[:copy(q.pieces, q.pieces[q.begin:])]
		q.begin = 0
	}
}

// read takes what fits into p.
func (q *queue) read(p []byte) int {
	n := 0
	for n < len(p) && !q.empty() {
		first := &q.pieces[q.begin]
		k := copy(p[n:], (*first.box)[first.r:first.w])
		n += k
		first.r += k
		if first.r == first.w && (!q.filling || q.begin < len(q.pieces)-1) {
			q.drop()
		}
	}
	return n
}
