package main

import (
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/go-analyze/charts"
)

const (
	chartWidth  = 900
	chartBar    = 26 // pixels of height for each row
	chartFrame  = 90 // and for the rest
	chartMargin = 12
)

// panel is one chart of several.
type panel struct {
	title  string
	names  []string
	powers []float64 // of ten, of the rates
	ours   []bool
}

// drawChart draws the rates of rows with one partition, a panel for each kind and size,
// in bars whose scale is logarithmic. It returns an SVG; nil if there is nothing to draw.
func drawChart(rows []row) ([]byte, error) {
	panels := chartPanels(rows)
	if len(panels) == 0 {
		return nil, nil
	}
	// All panels have the same scale, of whole powers of ten.
	low, high := math.Inf(1), math.Inf(-1)
	height := 0
	for _, p := range panels {
		low, high = min(low, math.Floor(slices.Min(p.powers))), max(high, math.Ceil(slices.Max(p.powers)))
		height += p.height()
	}
	painter := charts.NewPainter(charts.PainterOptions{OutputFormat: charts.ChartOutputSVG, Width: chartWidth, Height: height})
	painter.FilledRect(0, 0, chartWidth, height, charts.ColorWhite, charts.ColorWhite, 0)
	top := 0
	for _, p := range panels {
		box := charts.NewBox(0, top, chartWidth, top+p.height())
		if err := painter.Child(charts.PainterBoxOption(box)).BarChart(p.options(low, high)); err != nil {
			return nil, err
		}
		top = box.Bottom
	}
	return painter.Bytes()
}

func chartPanels(rows []row) []panel {
	var panels []panel
	for i := range rows {
		r := &rows[i]
		s := r.summary()
		if r.Partitions != 1 || r.Kind == kindLatency || s.Runs == 0 || s.Failed > 0 || s.Rate <= 0 {
			continue
		}
		title := heading(r.Kind, r.Size, r.Partitions, 0)
		k := slices.IndexFunc(panels, func(p panel) bool { return p.title == title })
		if k < 0 {
			k = len(panels)
			panels = append(panels, panel{title: title})
		}
		p := &panels[k]
		p.names = append(p.names, fmt.Sprintf("%s  %s/s", r.Contestant, formatRate(s.Rate)))
		p.powers = append(p.powers, math.Log10(s.Rate))
		p.ours = append(p.ours, strings.HasPrefix(r.Contestant, reference))
	}
	return panels
}

func (p *panel) height() int { return chartFrame + chartBar*len(p.names) }

// options has two series, ours and the others, so that they differ in colour. Each has
// nothing where the other has a bar. Bars that are stacked begin at 0, which is therefore
// where low is drawn.
func (p *panel) options(low, high float64) charts.BarChartOption {
	ours, others := make([]float64, len(p.powers)), make([]float64, len(p.powers))
	for i, power := range p.powers {
		if p.ours[i] {
			ours[i] = power - low
		} else {
			others[i] = power - low
		}
	}
	names := slices.Clone(p.names)
	for _, s := range [][]float64{ours, others} {
		slices.Reverse(s) // The library begins below.
	}
	slices.Reverse(names)
	o := charts.NewBarChartOptionWithData([][]float64{others, ours})
	o.Horizontal = true
	o.StackSeries = charts.Ptr(true)
	o.Title = charts.TitleOption{Text: p.title}
	o.Legend.Show = charts.Ptr(false)
	o.Padding = charts.NewBoxEqual(chartMargin)
	o.CategoryAxis.Labels = names
	o.ValueAxis = []charts.ValueAxisOption{{
		Min: charts.Ptr(0.0), Max: charts.Ptr(high - low), LabelCount: int(high-low) + 1, PreferNiceIntervals: charts.Ptr(false),
		RangeValuePaddingScale: charts.Ptr(0.0), Unit: 1,
		ValueFormatter: func(power float64) string { return formatPower(low + power) },
	}}
	return o
}

// formatPower writes a power of ten.
func formatPower(power float64) string {
	n := math.Round(math.Pow(10, power))
	switch {
	case n >= 1e6:
		return fmt.Sprintf("%.0f M", n/1e6)
	case n >= 1e3:
		return fmt.Sprintf("%.0f k", n/1e3)
	default:
		return fmt.Sprintf("%.0f", n)
	}
}
