// Package checker proves from what a pool of relays left behind that the gate held:
// from the audit files of all relays, from every version of the agents' records in
// the store, and from a journal of what callers were told. It owns the rules and
// the counts; it reads what is given to it and starts nothing.
//
// The audit alone decides nearly everything. A relay that was killed between a
// change and its record leaves the record out, and then the audit can only say that
// it does not know: such cases are counted as unproven, never taken as good or bad.
// With the store's history, which has every change, nothing is unproven, and the
// audit is held against it: a record may be missing only where a relay was killed.
package checker

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/adit-tunnel/adit/relay/internal/audit"
	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/ident"
)

// Version is an agent's record as one change left it.
type Version struct {
	Key     ident.AgentKey
	Record  store.AgentRecord
	Deleted bool
}

// Input is what is left of a run that has come to rest.
type Input struct {
	Audit []audit.Record // of all relays, in any order
	// History are all versions of all agents' records, in the store's order. Without
	// it what the audit does not tell stays unproven.
	History []Version
	// Journal are the calls of every caller there was. It may be nil, but not partial:
	// what nobody asked for is a violation.
	Journal []Call
	// Capacity is how many tasks one agent may run at once; 0: not checked.
	Capacity int
	// Skew is how far the clocks of the relays and of the journal may be apart.
	Skew time.Duration
}

// Violation is a broken promise.
type Violation struct {
	Rule  string
	Agent ident.AgentKey
	Text  string
}

func (v Violation) String() string {
	return fmt.Sprintf("%s: agent %s: %s", v.Rule, v.Agent.Agent, v.Text)
}

// Report says what was checked and what was found.
type Report struct {
	Violations []Violation
	// Unproven are questions that a record lost in a kill leaves open.
	Unproven []string
	counts   []count
}

type count struct {
	name string
	n    int
}

func (r *Report) violate(rule string, key ident.AgentKey, format string, args ...any) {
	r.Violations = append(r.Violations, Violation{rule, key, fmt.Sprintf(format, args...)})
}

func (r *Report) add(name string, n int) {
	for i := range r.counts {
		if r.counts[i].name == name {
			r.counts[i].n += n
			return
		}
	}
	r.counts = append(r.counts, count{name, n})
}

// Count returns one of the counts that String prints.
func (r *Report) Count(name string) int {
	for _, c := range r.counts {
		if c.name == name {
			return c.n
		}
	}
	return 0
}

// Broken says whether a rule was broken.
func (r *Report) Broken(rule string) bool {
	return slices.ContainsFunc(r.Violations, func(v Violation) bool { return v.Rule == rule })
}

// String prints the counts, one a line, and what was found.
func (r *Report) String() string {
	var b strings.Builder
	for _, c := range r.counts {
		fmt.Fprintf(&b, "%-46s %d\n", c.name, c.n)
	}
	fmt.Fprintf(&b, "%-46s %d\n", "unproven for want of a record", len(r.Unproven))
	fmt.Fprintf(&b, "%-46s %d\n", "violations", len(r.Violations))
	for i, v := range r.Violations {
		if i == 50 {
			fmt.Fprintf(&b, "  and %d more\n", len(r.Violations)-i)
			break
		}
		fmt.Fprintf(&b, "  %s\n", v)
	}
	return b.String()
}

// ReadAudit reads the audit directories of several relays. Damage is an error: what
// it hides cannot be checked.
func ReadAudit(dirs ...string) ([]audit.Record, error) {
	var out []audit.Record
	var faults []error
	for _, dir := range dirs {
		for rec, err := range audit.Read(dir, audit.Filter{}) {
			if err != nil {
				faults = append(faults, err)
				continue
			}
			out = append(out, rec)
		}
	}
	return out, errors.Join(faults...)
}

// Check checks everything that the input allows to.
func Check(in Input) *Report {
	r := &Report{}
	logs := readLogs(r, in.Audit)
	r.add("audit records", len(in.Audit))
	r.add("relay runs", logs.runs)
	r.add("relay runs that ended without a stop", len(logs.crashes))

	told := auditEvents(in.Audit)
	for _, key := range sortedKeys(told) {
		t := timeline{report: r, key: key, events: told[key], capacity: in.Capacity, lost: logs.mayLack(told[key])}
		t.check()
		t.countInto(r)
	}
	for _, rec := range in.Audit {
		if rec.Event == audit.AgentConnected {
			r.add("agents' links", 1)
		}
	}
	if in.History != nil {
		h := deriveHistory(r, in.History)
		full := &Report{} // the same rules, on all changes there were; counted once
		for _, key := range sortedKeys(h.events) {
			t := timeline{report: full, key: key, events: h.events[key], capacity: in.Capacity}
			t.check()
		}
		r.Violations = append(r.Violations, full.Violations...)
		compare(r, told, h, logs)
		if in.Journal != nil {
			checkJournal(r, in, told, h)
		}
	} else if in.Journal != nil {
		checkJournal(r, in, told, nil)
	}
	return r
}

func sortedKeys[V any](m map[ident.AgentKey]V) []ident.AgentKey {
	keys := make([]ident.AgentKey, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, func(a, b ident.AgentKey) int { return cmp.Compare(a.String(), b.String()) })
	return keys
}
