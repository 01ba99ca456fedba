package diag

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"runtime"
	"runtime/debug"
	"strings"
)

// kernelFiles are facts of the kernel that decide how far a daemon gets: none names a
// user, a key or a command line.
var kernelFiles = []string{
	"/proc/version", "/proc/loadavg", "/proc/uptime", "/proc/meminfo", "/proc/pressure/cpu", "/proc/pressure/memory", "/proc/pressure/io",
	"/proc/self/limits", "/proc/self/status", "/proc/self/cgroup", "/proc/net/sockstat", "/proc/net/sockstat6", "/proc/net/netstat", "/proc/net/snmp",
	"/proc/sys/net/core/somaxconn", "/proc/sys/net/core/rmem_max", "/proc/sys/net/core/wmem_max", "/proc/sys/net/core/netdev_max_backlog", "/proc/sys/net/core/default_qdisc",
	"/proc/sys/net/ipv4/tcp_congestion_control", "/proc/sys/net/ipv4/tcp_available_congestion_control", "/proc/sys/net/ipv4/tcp_rmem", "/proc/sys/net/ipv4/tcp_wmem", "/proc/sys/net/ipv4/tcp_mem",
	"/proc/sys/net/ipv4/tcp_max_syn_backlog", "/proc/sys/net/ipv4/tcp_slow_start_after_idle", "/proc/sys/net/ipv4/tcp_notsent_lowat", "/proc/sys/net/ipv4/tcp_tw_reuse",
	"/proc/sys/net/ipv4/ip_local_port_range", "/proc/sys/net/ipv4/ip_unprivileged_port_start", "/proc/sys/net/netfilter/nf_conntrack_max", "/proc/sys/net/netfilter/nf_conntrack_count",
	"/proc/sys/fs/file-max", "/proc/sys/fs/file-nr", "/proc/sys/fs/nr_open", "/proc/sys/kernel/pid_max", "/proc/sys/vm/overcommit_memory", "/proc/sys/vm/swappiness",
	"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/cpu.max",
}

// Kernel is what the kernel says of the machine and of this process; what is not
// there or may not be read is left out.
func Kernel() File {
	return File{"kernel.txt", func(w io.Writer) error {
		out := bufio.NewWriter(w)
		for _, name := range kernelFiles {
			text, err := os.ReadFile(name)
			if err != nil {
				fmt.Fprintf(out, "== %s: not readable\n", name)
				continue
			}
			fmt.Fprintf(out, "== %s\n%s\n", name, strings.TrimRight(string(text), "\n"))
		}
		return out.Flush()
	}}
}

// Build is which program this is, made of what.
func Build(version string) File {
	return File{"version.txt", func(w io.Writer) error {
		fmt.Fprintf(w, "version %s\n%s %s/%s, %d CPUs, GOMAXPROCS %d\n", version, runtime.Version(), runtime.GOOS, runtime.GOARCH, runtime.NumCPU(), runtime.GOMAXPROCS(0))
		info, ok := debug.ReadBuildInfo()
		if !ok {
			return nil
		}
		_, err := io.WriteString(w, info.String())
		return err
	}}
}
