package lab

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// proc is a line of the process table.
type proc struct {
	parent int
	cpu    time.Duration // with the children that it has waited for
}

// tick is the unit of /proc/PID/stat: USER_HZ is 100 on every Linux that Go knows.
const tick = 10 * time.Millisecond

// readProcs reads the process table.
func readProcs() map[int]proc {
	out := map[int]proc{}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return out
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		stat, err := os.ReadFile("/proc/" + e.Name() + "/stat")
		if err != nil {
			continue // it ended
		}
		// The command, in parentheses, may contain anything.
		field := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
		if len(field) < 15 {
			continue
		}
		parent, err := strconv.Atoi(field[1])
		if err != nil {
			continue
		}
		var ticks int64
		for _, f := range field[11:15] { // utime, stime, cutime, cstime
			n, err := strconv.ParseInt(f, 10, 64)
			if err == nil {
				ticks += n
			}
		}
		out[pid] = proc{parent: parent, cpu: time.Duration(ticks) * tick}
	}
	return out
}

// family lists processes and all that descend from them.
func family(table map[int]proc, roots ...int) []int {
	in := map[int]bool{}
	for _, pid := range roots {
		in[pid] = true
	}
	for grown := true; grown; {
		grown = false
		for pid, p := range table {
			if !in[pid] && in[p.parent] {
				in[pid], grown = true, true
			}
		}
	}
	out := make([]int, 0, len(in))
	for pid := range in {
		out = append(out, pid)
	}
	return out
}

// CPU is the processor time that processes and what they started have used.
func CPU(pids ...int) time.Duration {
	table := readProcs()
	var sum time.Duration
	for _, pid := range family(table, pids...) {
		sum += table[pid].cpu
	}
	return sum
}

// Busy is the processor time that the whole machine has used, and what it had.
func Busy() (used, all time.Duration) {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, 0
	}
	line, _, _ := strings.Cut(string(b), "\n")
	for i, f := range strings.Fields(line)[1:9] {
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			continue
		}
		all += time.Duration(n) * tick
		if i != 3 && i != 4 { // idle, and waiting for disks
			used += time.Duration(n) * tick
		}
	}
	return used, all
}

// Memory is the memory of processes and of what they started, in bytes.
type Memory struct{ RSS, PSS int64 }

// ReadMemory adds up what the kernel says of each.
func ReadMemory(pids ...int) Memory {
	var sum Memory
	for _, pid := range family(readProcs(), pids...) {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
		if err != nil {
			continue // it ended
		}
		for line := range strings.Lines(string(b)) {
			f := strings.Fields(line)
			if len(f) < 3 {
				continue
			}
			n, err := strconv.ParseInt(f[1], 10, 64)
			switch {
			case err != nil:
			case f[0] == "Rss:":
				sum.RSS += n << 10
			case f[0] == "Pss:":
				sum.PSS += n << 10
			}
		}
	}
	return sum
}
