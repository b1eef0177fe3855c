package main

import (
	"fmt"
	"math"
	"slices"

	"github.com/go-analyze/charts"
)

const (
	chartWidth  = 900
	chartBar    = 26 // pixels of height for each row
	chartFrame  = 90 // and for the rest
	chartMargin = 12
)

// drawChart draws the rates of produce and consume with one partition, a panel for each
// kind and size, in bars whose scale is logarithmic. It returns an SVG; nil if there is
// nothing to draw.
func drawChart(rows []row) ([]byte, error) {
	type panel struct {
		title  string
		names  []string
		powers []float64 // of ten, of the rates
	}
	var panels []panel
	low, high := math.Inf(1), math.Inf(-1)
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
		power := math.Log10(s.Rate)
		low, high = min(low, power), max(high, power)
		panels[k].names = append(panels[k].names, fmt.Sprintf("%s  %s/s", r.Contestant, formatRate(s.Rate)))
		panels[k].powers = append(panels[k].powers, power)
	}
	if len(panels) == 0 {
		return nil, nil
	}
	height := 0
	heights := make([]int, len(panels))
	for i, p := range panels {
		heights[i] = chartFrame + chartBar*len(p.names)
		height += heights[i]
	}
	painter := charts.NewPainter(charts.PainterOptions{OutputFormat: charts.ChartOutputSVG, Width: chartWidth, Height: height})
	painter.FilledRect(0, 0, chartWidth, height, charts.ColorWhite, charts.ColorWhite, 0)
	// All panels have the same scale, of whole powers of ten.
	low, high = math.Floor(low), math.Ceil(high)
	top := 0
	for i, p := range panels {
		slices.Reverse(p.names) // The library begins below.
		slices.Reverse(p.powers)
		o := charts.NewBarChartOptionWithData([][]float64{p.powers})
		o.Horizontal = true
		o.Title = charts.TitleOption{Text: p.title}
		o.Padding = charts.NewBoxEqual(chartMargin)
		o.CategoryAxis.Labels = p.names
		o.ValueAxis = []charts.ValueAxisOption{{
			Min: &low, Max: &high, LabelCount: int(high-low) + 1,
			ValueFormatter: func(power float64) string { return formatRate(math.Pow(10, power)) },
		}}
		part := painter.Child(charts.PainterBoxOption(charts.NewBox(0, top, chartWidth, top+heights[i])))
		if err := part.BarChart(o); err != nil {
			return nil, err
		}
		top += heights[i]
	}
	return painter.Bytes()
}
