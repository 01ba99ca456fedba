package audit_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"testing"

	"go.uber.org/goleak"

	"github.com/adit-tunnel/adit/relay/internal/audit"
	"github.com/adit-tunnel/adit/shared/ident"
)

// The test binary is also the process that is killed, or whose disk is full.
func TestMain(m *testing.M) {
	if dir := os.Getenv("AUDIT_TEST_KILL_DIR"); dir != "" {
		os.Exit(writeForever(dir))
	}
	if dir := os.Getenv("AUDIT_TEST_FULL_DIR"); dir != "" {
		os.Exit(writeUntilFull(dir))
	}
	goleak.VerifyTestMain(m)
}

// writeForever appends from many goroutines and prints the task of each record
// that was acknowledged, each by one write of the kernel's.
func writeForever(dir string) int {
	l, err := audit.Open(audit.Config{Dir: dir, Relay: "r1", MaxBytes: 64 << 10, Keep: 10_000, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := 0; ; i++ {
				task := fmt.Sprintf("%d-%d-%d", os.Getpid(), g, i)
				if err := l.Append(context.Background(), audit.Record{Event: audit.TaskAdmitted, Task: ident.TaskID(task), Detail: "a task of a run that is about to be killed"}); err != nil {
					fmt.Fprintln(os.Stderr, err)
					return
				}
				_, _ = os.Stdout.WriteString(task + "\n")
			}
		})
	}
	wg.Wait()
	return 1
}

// writeUntilFull lets the kernel refuse to let a file grow, which cuts the last
// write short, then allows it again.
func writeUntilFull(dir string) int {
	l, err := audit.Open(audit.Config{Dir: dir, Relay: "r1", Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	signal.Ignore(syscall.SIGXFSZ)
	var free syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &free); err != nil {
		return 1
	}
	full := syscall.Rlimit{Cur: 5000, Max: free.Max}
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &full); err != nil {
		return 1
	}
	refused := 0
	for i := 0; refused < 3; i++ {
		if l.Append(context.Background(), audit.Record{Event: audit.TaskAdmitted, Task: ident.TaskID(fmt.Sprint(i))}) != nil {
			refused++
			continue
		}
		fmt.Println(i)
	}
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &free); err != nil {
		return 1
	}
	for i := 1000; i < 1010; i++ {
		if err := l.Append(context.Background(), audit.Record{Event: audit.TaskAdmitted, Task: ident.TaskID(fmt.Sprint(i))}); err != nil {
			fmt.Fprintln(os.Stderr, "after the disk had room again:", err)
			return 1
		}
		fmt.Println(i)
	}
	if err := l.Close(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}
