package main

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
)

// reference is the contestant of which the others' rates are given as multiples.
const reference = "robust"

// summary is the middle of a row's results, each figure by itself.
type summary struct {
	result
	Low, High float64 // of the rates
	Failed    int
	Runs      int
}

func (r *row) summary() summary {
	s := summary{Runs: len(r.Results)}
	var good []result
	for _, one := range r.Results {
		if one.Err != "" {
			s.Failed++
			s.Err = one.Err
			continue
		}
		good = append(good, one)
	}
	if len(good) == 0 {
		return s
	}
	s.Kind = r.Kind
	s.Messages = median(good, func(r result) int64 { return r.Messages })
	s.Rate = median(good, func(r result) float64 { return r.Rate })
	s.AckP50 = median(good, func(r result) time.Duration { return r.AckP50 })
	s.AckP99 = median(good, func(r result) time.Duration { return r.AckP99 })
	s.EndP50 = median(good, func(r result) time.Duration { return r.EndP50 })
	s.EndP99 = median(good, func(r result) time.Duration { return r.EndP99 })
	s.ClientCPU = median(good, func(r result) time.Duration { return r.ClientCPU })
	s.BrokerCPU = median(good, func(r result) time.Duration { return r.BrokerCPU })
	s.ClientPeak = median(good, func(r result) int64 { return r.ClientPeak })
	s.BrokerPeak = median(good, func(r result) int64 { return r.BrokerPeak })
	s.Low = slices.MinFunc(good, byRate).Rate
	s.High = slices.MaxFunc(good, byRate).Rate
	return s
}

func byRate(a, b result) int { return cmp.Compare(a.Rate, b.Rate) }

// median returns the middle value, the lower one of two.
func median[T cmp.Ordered](results []result, of func(result) T) T {
	values := make([]T, len(results))
	for i, r := range results {
		values[i] = of(r)
	}
	slices.Sort(values)
	return values[(len(values)-1)/2]
}

// column is a column of a table. The text for what was not measured is "".
type column struct {
	title string
	text  func(s, reference *summary, size int) string
}

func columns(k kind) []column {
	rate := column{"messages/s", func(s, _ *summary, _ int) string { return formatRate(s.Rate) }}
	spread := column{"lowest to highest", func(s, _ *summary, _ int) string {
		return formatRate(s.Low) + " to " + formatRate(s.High)
	}}
	relative := column{"times " + reference, func(s, reference *summary, _ int) string {
		if reference == nil {
			return ""
		}
		return formatDigits(s.Rate / reference.Rate)
	}}
	volume := column{"MB/s", func(s, _ *summary, size int) string { return formatDigits(s.Rate * float64(size) / 1e6) }}
	clientCPU := column{"client CPU, us a message", func(s, _ *summary, _ int) string { return formatMicros(s.ClientCPU) }}
	brokerCPU := column{"broker CPU", func(s, _ *summary, _ int) string { return formatMicros(s.BrokerCPU) }}
	clientPeak := column{"client peak, MiB", func(s, _ *summary, _ int) string { return formatMiB(s.ClientPeak) }}
	brokerPeak := column{"broker peak", func(s, _ *summary, _ int) string { return formatMiB(s.BrokerPeak) }}
	cost := []column{clientCPU, brokerCPU, clientPeak, brokerPeak}
	ack := func(name string) []column {
		return []column{
			{name + " p50, us", func(s, _ *summary, _ int) string { return formatMicros(s.AckP50) }},
			{"p99", func(s, _ *summary, _ int) string { return formatMicros(s.AckP99) }},
		}
	}
	switch k {
	case kindProduce:
		return slices.Concat([]column{rate, spread, relative, volume}, ack("acknowledged"), cost)
	case kindConsume:
		return slices.Concat([]column{rate, spread, relative, volume}, cost)
	case kindSync:
		return slices.Concat([]column{rate, spread, relative}, ack("acknowledged"), cost)
	case kindLatency:
		received := []column{
			{"received p50, us", func(s, _ *summary, _ int) string { return formatMicros(s.EndP50) }},
			{"p99", func(s, _ *summary, _ int) string { return formatMicros(s.EndP99) }},
		}
		return slices.Concat(ack("acknowledged"), received, cost)
	default:
		return nil
	}
}

// heading says what a table shows.
func heading(k kind, size, partitions, rate int) string {
	where := fmt.Sprintf("%d B, %d partitions", size, partitions)
	if size%1024 == 0 {
		where = fmt.Sprintf("%d KiB, %d partitions", size/1024, partitions)
	}
	if partitions == 1 {
		where = strings.TrimSuffix(where, "s")
	}
	switch k {
	case kindProduce:
		return "Produce, many in flight, " + where
	case kindConsume:
		return "Consume, " + where
	case kindSync:
		return "One message at a time, " + where
	case kindLatency:
		return fmt.Sprintf("Latency at %d messages/s, %s", rate, where)
	default:
		return string(k)
	}
}

// writeTables writes a table for each kind, size and number of partitions, in Markdown.
func writeTables(w io.Writer, rows []row, rate int) error {
	rows = slices.DeleteFunc(slices.Clone(rows), func(r row) bool { return len(r.Results) == 0 })
	slices.SortStableFunc(rows, compareTables)
	var b strings.Builder
	for len(rows) > 0 {
		r := &rows[0]
		n := 1 + slices.IndexFunc(rows[1:], func(other row) bool { return compareTables(*r, other) != 0 })
		if n == 0 {
			n = len(rows)
		}
		fmt.Fprintf(&b, "\n### %s\n\n", heading(r.Kind, r.Size, r.Partitions, rate))
		writeTable(&b, r.Kind, rows[:n])
		rows = rows[n:]
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// compareTables orders rows by the table that they belong to.
func compareTables(a, b row) int {
	order := []kind{kindProduce, kindConsume, kindSync, kindLatency}
	return cmp.Or(
		cmp.Compare(slices.Index(order, a.Kind), slices.Index(order, b.Kind)),
		cmp.Compare(a.Partitions, b.Partitions),
		cmp.Compare(a.Size, b.Size),
	)
}

func writeTable(b *strings.Builder, k kind, rows []row) {
	cols := columns(k)
	b.WriteString("| |")
	for _, c := range cols {
		fmt.Fprintf(b, " %s |", c.title)
	}
	b.WriteString("\n|---|" + strings.Repeat("--:|", len(cols)) + "\n")
	var base *summary
	for _, r := range rows {
		if s := r.summary(); r.Contestant == reference && s.Failed == 0 {
			base = &s
		}
	}
	for _, r := range rows {
		s := r.summary()
		fmt.Fprintf(b, "| %s |", title(r.Contestant))
		if s.Failed > 0 {
			reason := strings.NewReplacer("\n", " ", "|", "/").Replace(s.Err)
			fmt.Fprintf(b, " **failed** %d of %d: %s |%s\n", s.Failed, s.Runs, reason, strings.Repeat(" |", len(cols)-1))
			continue
		}
		for _, c := range cols {
			text := c.text(&s, base, r.Size)
			if text == "" {
				text = "–"
			}
			fmt.Fprintf(b, " %s |", text)
		}
		b.WriteString("\n")
	}
}

func title(contestant string) string {
	if c := findContestant(contestant); c != nil {
		return c.about().title
	}
	return contestant
}

// formatRate writes a number of messages in three digits.
func formatRate(n float64) string {
	switch {
	case n >= 999_500:
		return formatDigits(n/1e6) + " M"
	case n >= 999.5:
		return formatDigits(n/1e3) + " k"
	default:
		return formatDigits(n)
	}
}

// formatDigits writes three digits, none of them behind the point from 100 up.
func formatDigits(n float64) string {
	switch {
	case n >= 99.95:
		return fmt.Sprintf("%.0f", n)
	case n >= 9.995:
		return fmt.Sprintf("%.1f", n)
	default:
		return fmt.Sprintf("%.2f", n)
	}
}

func formatMicros(d time.Duration) string {
	if d <= 0 {
		return ""
	}
	return formatDigits(float64(d) / float64(time.Microsecond))
}

func formatMiB(n int64) string {
	if n <= 0 {
		return ""
	}
	return fmt.Sprintf("%.0f", float64(n)/(1<<20))
}
