package terminal

// Count is the number of terminals that run.
func (t *Terminals) Count() int { return len(t.list()) }
