package caller_test

import (
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/adit-tunnel/adit/relay/internal/caller"
)

// crowd notes who was dropped from a room, in order.
type crowd struct {
	room *caller.Room
	mu   sync.Mutex
	out  []string
}

func (c *crowd) enter(holder, name string) *caller.Place {
	return c.room.Enter(holder, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.out = append(c.out, name)
	})
}

func (c *crowd) want(t *testing.T, what string, names ...string) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	if !slices.Equal(c.out, names) {
		t.Errorf("%s: dropped %v, want %v", what, c.out, names)
	}
}

func TestAHolderAtItsShareDropsItsOwnOldest(t *testing.T) {
	c := &crowd{room: caller.NewRoom(10, 2)}
	c.enter("a", "a1")
	c.enter("b", "b1")
	a2 := c.enter("a", "a2")
	c.want(t, "within the shares")
	c.enter("a", "a3")
	c.want(t, "over its share", "a1")
	a2.Leave()
	a2.Leave()
	c.enter("a", "a4")
	c.want(t, "a place that was left is free, once", "a1")
	c.enter("a", "a5")
	c.want(t, "over its share again", "a1", "a3")
}

func TestAFullRoomDropsTheOldestOfWhoHasMost(t *testing.T) {
	c := &crowd{room: caller.NewRoom(4, 3)}
	b := c.enter("b", "b1")
	for i := range 3 {
		c.enter("a", fmt.Sprint("a", i+1))
	}
	c.enter("c", "c1")
	c.want(t, "a newcomer of another address", "a1")
	c.enter("d", "d1")
	c.want(t, "another one", "a1", "a2")
	c.enter("e", "e1")
	c.want(t, "all have one: who waits longest goes", "a1", "a2", "b1")
	b.Leave() // it was dropped: nothing is given back
	c.enter("f", "f1")
	c.want(t, "the room is still full", "a1", "a2", "b1", "a3")
}

// Whatever one address does, who comes from another one has its place until many
// others have come after it.
func TestOneAddressCannotKeepOthersOut(t *testing.T) {
	c := &crowd{room: caller.NewRoom(512, 64)}
	c.enter("honest", "honest")
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range 2000 {
				p := c.enter(fmt.Sprint("flood", g), "flood")
				if i%3 == 0 {
					p.Leave()
				}
			}
		})
	}
	wg.Wait()
	if slices.Contains(c.out, "honest") {
		t.Error("the one connection of another address was dropped for eight that flood")
	}
	if len(c.out) < 8*1000 {
		t.Errorf("%d were dropped: the room is not bounded", len(c.out))
	}
}
