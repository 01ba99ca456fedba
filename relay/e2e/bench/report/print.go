package report

import (
	"fmt"
	"io"
	"strings"

	"github.com/adit-tunnel/adit/relay/e2e/bench/load"
)

// Print writes the table and the verdicts as Markdown.
func (t Table) Print(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "\n### %s\n\nMedians of %d rounds; x is the ratio to %s. Others used %.0f %% of the machine.\n\n", t.Case, t.Rounds, t.references(), 100*t.Others)
	head := []string{""}
	head = append(head, t.Targets...)
	line(&b, head)
	line(&b, strings.Split(strings.Repeat("---,", len(head)-1)+"---", ","))
	for _, row := range t.Rows {
		cells := []string{row.Title}
		for _, target := range t.Targets {
			cells = append(cells, t.text(row, target))
		}
		line(&b, cells)
		if row.Name == "down-1" {
			cells := []string{"CPU s/GiB of it, relay + agent"}
			for _, target := range t.Targets {
				cells = append(cells, number(t.Cells[row.Name][target].CPUPerGiB, "%.2f"))
			}
			line(&b, cells)
		}
	}
	if len(t.Idle) > 0 {
		cells := []string{"idle PSS relay / agent, MiB"}
		for _, target := range t.Targets {
			i := t.Idle[target]
			cells = append(cells, number(float64(i.RelayPSS)/(1<<20), "%.0f")+" / "+number(float64(i.AgentPSS)/(1<<20), "%.0f"))
		}
		line(&b, cells)
	}
	if len(t.Verdicts) > 0 {
		b.WriteByte('\n')
	}
	for _, v := range t.Verdicts {
		fmt.Fprintf(&b, "    %s\n", v)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func (t Table) references() string {
	var names []string
	for _, target := range t.Targets {
		if ref := t.Reference[target]; len(names) == 0 || names[len(names)-1] != ref && names[0] != ref {
			names = append(names, ref)
		}
	}
	return strings.Join(names, " (without TLS) or ")
}

func (t Table) text(row Row, target string) string {
	c, ok := t.Cells[row.Name][target]
	if !ok {
		return "-"
	}
	var s string
	switch {
	case row.Kind == load.UnderBulk:
		s = fmt.Sprintf("p99 %.3g ms at %.0f MB/s x%.2f", c.P99, c.Bulk/1e6, c.BulkRatio)
	case row.IsBytes():
		s = fmt.Sprintf("%.4g MB/s x%.2f", c.Rate/1e6, c.Ratio)
	default:
		s = fmt.Sprintf("%.0f/s x%.2f", c.Rate, c.Ratio)
	}
	if c.Errors > 0 {
		s += fmt.Sprintf(" (%d errors)", c.Errors)
	}
	return s
}

func number(v float64, format string) string {
	if v == 0 {
		return "-"
	}
	return fmt.Sprintf(format, v)
}

func line(b *strings.Builder, cells []string) {
	b.WriteString("| " + strings.Join(cells, " | ") + " |\n")
}
