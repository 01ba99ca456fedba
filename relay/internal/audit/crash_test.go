package audit_test

import (
	"bufio"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/adit-tunnel/adit/relay/internal/audit"
	"github.com/adit-tunnel/adit/shared/ident"
)

func TestEveryAcknowledgedRecordSurvivesKill9(t *testing.T) {
	dir := t.TempDir()
	acknowledged := make(map[ident.TaskID]bool)
	for round := range 8 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "AUDIT_TEST_KILL_DIR="+dir)
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		for n := 0; lines.Scan(); n++ {
			acknowledged[ident.TaskID(lines.Text())] = true
			if n == 150+70*round {
				if err := cmd.Process.Kill(); err != nil {
					t.Fatal(err)
				}
			} // and read on: what was acknowledged before the kill took effect counts
		}
		_ = cmd.Wait()
	}

	seqs := make(map[uint64]bool)
	total := 0
	for rec, err := range audit.Read(dir, audit.Filter{}) {
		if err != nil {
			t.Errorf("reading back: %v", err)
			continue
		}
		if seqs[rec.Seq] {
			t.Errorf("seq %d was given twice", rec.Seq)
		}
		seqs[rec.Seq] = true
		delete(acknowledged, rec.Task)
		total++
	}
	if len(acknowledged) > 0 {
		t.Errorf("%d acknowledged records are not in the log after kill -9", len(acknowledged))
	}
	if total < 8*150 {
		t.Fatalf("only %d records: the writers did not write", total)
	}
	for seq := uint64(1); seq <= uint64(total); seq++ {
		if !seqs[seq] {
			t.Errorf("seq %d is missing of %d: kill -9 must leave no gap", seq, total)
			break
		}
	}
}

func TestFullDiskIsReportedAndLosesNothingAcknowledged(t *testing.T) {
	dir := t.TempDir()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "AUDIT_TEST_FULL_DIR="+dir)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("writer: %v", err)
	}
	want := strings.Fields(string(out))
	var got []string
	for rec, err := range audit.Read(dir, audit.Filter{}) {
		if err != nil {
			t.Errorf("half a record was left in the middle of the log: %v", err)
			continue
		}
		got = append(got, string(rec.Task))
	}
	if strings.Join(got, " ") != strings.Join(want, " ") {
		t.Errorf("acknowledged:\n%v\nin the log:\n%v", want, got)
	}
	if len(want) < 20 {
		t.Errorf("only %d records were written before and after the disk was full", len(want))
	}
}
