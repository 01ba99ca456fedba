package caller

import "sync"

// Room is a waiting room: it bounds who is at a door and has shown no right to pass
// yet, over all and for each holder (an address, a team). It never turns a newcomer
// away, since whoever is inside may be silent for ever: when a holder has its share,
// its own oldest goes; when the room is full, the oldest of the holder that has most.
// So what one holder sends cannot shut the door for the others. It is safe for
// concurrent use.
type Room struct {
	most, share int

	mu      sync.Mutex
	inside  int
	entered uint64 // places given, ever
	of      map[string][]*Place
}

// Place is one place in a Room.
type Place struct {
	room   *Room
	holder string
	number uint64
	drop   func()
	gone   bool // guarded by room.mu
}

// NewRoom returns a Room with so many places, of which one holder has at most share.
func NewRoom(most, share int) *Room {
	return &Room{most: most, share: share, of: map[string][]*Place{}}
}

// Enter takes a place for one more of a holder. drop is called once if the place is
// taken away before Leave, by whoever needed it: it must not wait.
func (r *Room) Enter(holder string, drop func()) *Place {
	p := &Place{room: r, holder: holder, drop: drop}
	r.mu.Lock()
	var out *Place
	switch {
	case len(r.of[holder]) >= r.share:
		out = r.of[holder][0]
	case r.inside >= r.most:
		out = r.heaviest()
	}
	if out != nil {
		r.remove(out)
	}
	r.entered++
	p.number = r.entered
	r.of[holder] = append(r.of[holder], p)
	r.inside++
	r.mu.Unlock()
	if out != nil {
		out.drop()
	}
	return p
}

// heaviest is the oldest place of the holder with most of them; of several such
// holders, of the one that waits longest.
func (r *Room) heaviest() *Place {
	var out *Place
	most := 0
	for _, places := range r.of {
		if n := len(places); n > most || n == most && places[0].number < out.number {
			most, out = n, places[0]
		}
	}
	return out
}

// Leave gives the place back: its holder has shown its right, or is gone. It may be
// called more than once, and after the place was taken away.
func (p *Place) Leave() {
	p.room.mu.Lock()
	defer p.room.mu.Unlock()
	p.room.remove(p)
}

// remove needs mu.
func (r *Room) remove(p *Place) {
	if p.gone {
		return
	}
	p.gone = true
	r.inside--
	places := r.of[p.holder]
	for i, x := range places {
		if x == p {
			places = append(places[:i], places[i+1:]...)
			break
		}
	}
	if r.of[p.holder] = places; len(places) == 0 {
		delete(r.of, p.holder)
	}
}
