package link

import "time"

// BBR, as kernels have it (version 1), leaves two things to be desired on a link. It
// does not slow down for loss: several links that share a line with a short queue go on
// overfilling it, and each small answer that is lost with the rest is late by a round
// trip. And a link that carried little for a while may come to believe that the line
// is slow: an estimate made of a few packets after a loss grows by a quarter in eight
// round trips only. So bulk watches the line, now and then.
const (
	// paceQuiet without bulk makes the next bulk a beginning.
	paceQuiet = time.Second
	// paceEvery and paceRounds round trips, whichever is longer, lie between two looks,
	// and at least paceBytes, so that chance makes no difference.
	paceEvery  = 250 * time.Millisecond
	paceRounds = 3
	paceBytes  = 512 << 10
	// paceLoss is the part of the bytes sent that was lost, in percent, from which the
	// line counts as overfilled. BBRv3 (draft-ietf-ccwg-bbr, BBRLossThresh) takes 2; a
	// line that loses 1 by itself should not be mistaken for one.
	paceLoss = 3
	// A limit begins a tenth below what did too much, and grows by steps that begin at
	// leastStep of a thousand and become half as large again with each good look.
	leastStep, mostStep = 5, 100
	leastLimit          = 64 << 10
)

// vitals are what the kernel tells of a link's socket.
type vitals struct {
	sent, resent uint64        // bytes since the connection began; sent counts those again
	bandwidth    uint64        // what BBR takes the line for, in bytes a second
	rtt          time.Duration // as the sender's TCP sees it
}

// line is the sender's side of a link's socket.
type line interface {
	vitals() (vitals, bool)
	// restart has BBR forget what it takes the line for and look anew, as at the
	// beginning of a connection.
	restart()
	// limit bounds the rate of sending, in bytes a second; 0: no bound.
	limit(rate uint64)
}

// pacer watches a link's line for whoever sends bulk. It is for one caller at a time.
type pacer struct {
	line   line
	slowed func()        // called for each slowing down; may be nil
	last   time.Duration // when bulk was sent last
	looked time.Duration
	then   vitals // at that time
	best   uint64 // the most that the line was taken for
	limit  uint64 // 0: none
	step   uint64
}

// bulk is called before bulk is sent, at now.
func (p *pacer) bulk(now time.Duration) {
	begins := p.last == 0 || now-p.last >= paceQuiet
	p.last = now
	since := now - p.looked
	if !begins && since < max(paceEvery, paceRounds*p.then.rtt) {
		return
	}
	v, ok := p.line.vitals()
	switch {
	case !ok:
		p.looked = now // and there is nothing to see
		return
	case begins:
		p.begin(v)
	case v.sent-p.then.sent < paceBytes:
		return
	default:
		p.best = max(p.best, v.bandwidth)
		p.judge(v)
	}
	p.looked, p.then = now, v
}

// begin forgets what was found while others shared the line, and what cannot be trusted.
func (p *pacer) begin(v vitals) {
	if p.limit > 0 {
		p.limit = 0
		p.line.limit(0)
		p.best = 0
	}
	if v.bandwidth <= p.best/2 || p.best == 0 {
		p.line.restart()
	}
	p.best -= p.best / 8 // a line may have become slower for good
}

// judge sends slower when the line is overfilled, and then faster again by and by.
func (p *pacer) judge(v vitals) {
	switch {
	case (v.resent-p.then.resent)*100 > (v.sent-p.then.sent)*paceLoss:
		if p.limit == 0 || v.bandwidth < p.limit {
			p.limit = v.bandwidth
		}
		p.limit = max(p.limit-p.limit/10, leastLimit)
		p.step = leastStep
		if p.slowed != nil {
			p.slowed()
		}
	case p.limit == 0:
		return
	default:
		p.limit += p.limit / 1000 * p.step
		p.step = min(p.step*3/2, mostStep)
		if p.limit > p.best {
			p.limit = 0
		}
	}
	p.line.limit(p.limit)
}
