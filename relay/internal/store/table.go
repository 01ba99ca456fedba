package store

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
)

// table is the mirror's part for one kind of record that is small in number and needs
// no order of its own: records by name, and in lists by what they belong to. The
// mirror's rules hold for it: one writer, entries are replaced, mu guards all.
type table[T any] struct {
	kind  Kind
	dir   string
	named func(name string, r *T) // gives the record the name that its key has
	lists func(r *T) []string     // that it is in; nil: none
	after func(r *T, c *Change)   // what a change of it says beyond the name; nil: nothing
	of    map[string]*entry[T]    // by name: the key after its dir
	in    map[string][]*entry[T]  // by list, in order of their names
	names map[*entry[T]]string    // of the entries in lists
}

// mirrored is a table without its type.
type mirrored interface {
	put(name string, kv *mvccpb.KeyValue, generation uint32) (commit, error)
	drop(name string) *Change
	missed(generation uint32) (keys []string)
}

func newTable[T any](kind Kind, dir string, named func(string, *T), lists func(*T) []string, after func(*T, *Change)) *table[T] {
	return &table[T]{
		kind: kind, dir: dir, named: named, lists: lists, after: after,
		of: map[string]*entry[T]{}, in: map[string][]*entry[T]{}, names: map[*entry[T]]string{},
	}
}

func (t *table[T]) put(name string, kv *mvccpb.KeyValue, generation uint32) (commit, error) {
	e, err := decode(t.of[name], kv, generation)
	if e == nil {
		return nil, err
	}
	t.named(name, &e.record)
	return func() *Change {
		if old, ok := t.of[name]; ok {
			t.unlist(old)
		}
		t.of[name], t.names[e] = e, name
		for _, list := range t.listsOf(e) {
			insert(t.in, list, e, t.byName)
		}
		return t.change(name, e, false)
	}, nil
}

func (t *table[T]) drop(name string) *Change {
	e, ok := t.of[name]
	if !ok {
		return nil
	}
	delete(t.of, name)
	t.unlist(e)
	return t.change(name, e, true)
}

func (t *table[T]) missed(generation uint32) (keys []string) {
	for name, e := range t.of {
		if e.seen != generation {
			keys = append(keys, root+t.dir+"/"+name)
		}
	}
	return keys
}

func (t *table[T]) unlist(e *entry[T]) {
	for _, list := range t.listsOf(e) {
		remove(t.in, list, e, t.byName)
	}
	delete(t.names, e)
}

func (t *table[T]) listsOf(e *entry[T]) []string {
	if t.lists == nil {
		return nil
	}
	return t.lists(&e.record)
}

func (t *table[T]) byName(a, b *entry[T]) int { return cmp.Compare(t.names[a], t.names[b]) }

func (t *table[T]) change(name string, e *entry[T], deleted bool) *Change {
	c := &Change{Kind: t.kind, Name: name, Deleted: deleted}
	if t.after != nil {
		t.after(&e.record, c)
	}
	return c
}

// all returns every record, in order of their names.
func all[T any](m *mirror, t *table[T]) []T {
	m.mu.RLock()
	defer m.mu.RUnlock()
	out := make([]T, 0, len(t.of))
	for _, name := range slices.Sorted(maps.Keys(t.of)) {
		out = append(out, t.of[name].record)
	}
	return out
}

// encoded is a record's value in the store.
func encoded(doing string, record any) (string, error) {
	b, err := json.Marshal(record)
	if err != nil {
		return "", fmt.Errorf("%s: %w", doing, err)
	}
	return string(b), nil
}

// create writes a new record; ErrExists when its name is taken. With an end it goes by
// itself then.
func create(ctx context.Context, s *Store, doing, key string, record any, ends time.Time) error {
	defer s.metrics.took(opPeople)()
	if err := s.takesNew(ctx, doing); err != nil {
		return err
	}
	value, err := encoded(doing, record)
	if err != nil {
		return err
	}
	var p proposal
	if p.value = value; !ends.IsZero() {
		left := ends.Sub(s.now())
		if left <= 0 {
			return fmt.Errorf("%s: it has expired already", doing)
		}
		if p.lease, err = s.grant(ctx, left); err != nil {
			return unavailable(ctx, doing, err)
		}
	}
	return s.swap(ctx, doing, key, func(cur *keyValue) (proposal, error) {
		if cur != nil {
			return proposal{}, fmt.Errorf("%s: %w", doing, ErrExists)
		}
		return p, nil
	})
}

// upsert is changeRecord for a record that need not be there yet.
func upsert[R any](ctx context.Context, s *Store, doing, key string, change func(*R) error) (R, error) {
	defer s.metrics.took(opPeople)()
	var record, none R
	err := s.swap(ctx, doing, key, func(cur *keyValue) (proposal, error) {
		record = none
		if cur != nil {
			if err := json.Unmarshal(cur.value, &record); err != nil {
				return proposal{}, fmt.Errorf("%s: %w", doing, err)
			}
		} else if !s.Room() {
			return proposal{}, noRoom(doing)
		}
		if err := change(&record); err != nil {
			return proposal{}, err
		}
		value, err := encoded(doing, record)
		return proposal{value: value}, err
	})
	if err != nil {
		return none, err
	}
	return record, nil
}

func (s *Store) forget(ctx context.Context, doing, key string) error {
	defer s.metrics.took(opPeople)()
	return s.swap(ctx, doing, key, func(cur *keyValue) (proposal, error) {
		if cur == nil {
			return proposal{}, ErrUnchanged
		}
		return proposal{delete: true}, nil
	})
}
