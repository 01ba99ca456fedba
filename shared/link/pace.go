package link

import (
	"time"

	"github.com/adit-tunnel/adit/shared/carrier"
)

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
	// and at least paceBytes: of fewer packets, too many may be lost by chance.
	paceEvery  = 250 * time.Millisecond
	paceRounds = 3
	paceBytes  = 2 << 20
	// paceLoss is the part of the bytes sent that was lost, of a thousand, from which the
	// line counts as overfilled. BBRv3 (draft-ietf-ccwg-bbr, BBRLossThresh) takes 20; a
	// line that loses 10 by itself should not be mistaken for one.
	paceLoss = 30
	// paceCuts that brought the loss down by less than a half say that it is not this
	// link's doing: the line loses, or others fill it. Two good looks make up for one.
	paceCuts = 5
	// mostNoise is the most that a line is believed to lose by itself, of a thousand.
	mostNoise = 100
	// A limit begins a tenth below what did too much, and grows by steps that begin at
	// leastStep of a thousand and become half as large again with each good look.
	leastStep, mostStep = 5, 100
	// leastLimit and a leastPart of the most that the line was taken for bound every
	// mistake.
	leastLimit = 256 << 10
	leastPart  = 16
)

// pacer watches a link's line for whoever sends bulk. It is for one caller at a time.
type pacer struct {
	line   carrier.Line
	slowed func()        // called for each slowing down; may be nil
	last   time.Duration // when bulk was sent last, or was about to be
	looked time.Duration
	then   carrier.Sample // at that time
	best   uint64         // the most that the line was taken for
	limit  uint64         // 0: none
	step   uint64         // of its growth
	cuts   int            // not made up for, times two
	lost   uint64         // of a thousand, before the first of them
	noise  uint64         // what the line loses anyway, of a thousand
}

// bulk is called before bulk is sent, at now.
func (p *pacer) bulk(now time.Duration) {
	begins := p.last == 0 || now-p.last >= paceQuiet
	p.last = now
	since := now - p.looked
	if !begins && since < max(paceEvery, paceRounds*p.then.RTT) {
		return
	}
	v, ok := p.line.Sample()
	switch {
	case !ok:
		p.looked = now // and there is nothing to see
		return
	case begins:
		p.begin(v)
	case v.Sent-p.then.Sent < paceBytes:
		return
	default:
		p.judge(v)
	}
	p.looked, p.then = now, v
}

// sent is called when bulk was sent: the line may have taken it slowly.
func (p *pacer) sent(now time.Duration) { p.last = now }

// stop lifts the limit when there is no bulk: it is not meant for what else is sent.
func (p *pacer) stop(now time.Duration) {
	if p.limit > 0 && now-p.last >= paceQuiet {
		p.bound(0)
		p.best = 0
	}
}

// begin forgets what was found while others shared the line, and what cannot be trusted.
func (p *pacer) begin(v carrier.Sample) {
	if p.limit > 0 {
		p.bound(0)
		p.best = 0
	}
	if p.best == 0 || v.Bandwidth <= p.best/2 {
		p.line.Restart()
	}
	p.cuts = 0
	p.best = max(p.best-p.best/8, v.Bandwidth) // a line may have become slower for good
}

// judge sends slower when the line is overfilled, and then faster again by and by.
func (p *pacer) judge(v carrier.Sample) {
	p.best = max(p.best, v.Bandwidth)
	lost := (v.Retransmitted - p.then.Retransmitted) * 1000 / (v.Sent - p.then.Sent)
	switch {
	case lost <= p.noise+paceLoss:
		p.cuts = max(p.cuts-1, 0)
		p.noise -= (max(p.noise, lost) - lost + 7) / 8
		p.grow()
		return
	case p.cuts == 0 || lost <= p.lost/2:
		p.cuts, p.lost = 0, lost
	case p.cuts >= 2*paceCuts:
		p.cuts, p.noise = 0, min(lost, mostNoise)
		p.bound(0)
		return
	}
	p.cuts += 2
	from := v.Bandwidth
	if p.limit > 0 {
		from = min(from, p.limit)
	}
	p.step = leastStep
	p.bound(max(from-from/10, leastLimit, p.best/leastPart))
	if p.slowed != nil {
		p.slowed()
	}
}

func (p *pacer) grow() {
	if p.limit == 0 {
		return
	}
	rate := p.limit + p.limit*p.step/1000
	p.step = min(p.step*3/2, mostStep)
	if rate > p.best {
		rate = 0
	}
	p.bound(rate)
}

func (p *pacer) bound(rate uint64) {
	p.limit = rate
	p.line.Limit(rate)
}
