package lifecycle

import (
	"bufio"
	"bytes"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// leaveProgram unmaps the pages of the program's file that this process has touched.
// Only mappings that cannot be written and that hold no page of the process's own are
// left: there is nothing in them that the file does not have.
func leaveProgram() {
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return
	}
	smaps, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		return
	}
	var from, to uint64
	lines := bufio.NewScanner(bytes.NewReader(smaps))
	for lines.Scan() {
		f := strings.Fields(lines.Text())
		switch {
		case len(f) >= 6 && strings.Contains(f[0], "-"): // 00400000-00ada000 r-xp 00000000 fe:00 123 /usr/bin/adit-agent
			from, to = 0, 0
			if f[5] == exe && len(f[1]) == 4 && f[1][0] == 'r' && f[1][1] == '-' && f[1][3] == 'p' {
				a, b, _ := strings.Cut(f[0], "-")
				from, _ = strconv.ParseUint(a, 16, 64)
				to, _ = strconv.ParseUint(b, 16, 64)
			}
		case len(f) == 5 && strings.Contains(f[0], "-"):
			from, to = 0, 0 // memory without a file
		case len(f) == 3 && f[0] == "Anonymous:" && f[1] == "0" && from < to:
			_, _, _ = unix.Syscall(unix.SYS_MADVISE, uintptr(from), uintptr(to-from), unix.MADV_DONTNEED)
		}
	}
}
