package main

import (
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/stretchr/testify/require"

	robust "github.com/aminofox/robust-go-sdk"
	"github.com/aminofox/robust-go-sdk/robustprom"
)

// dashboard is what a test looks at of dashboard.json.
type dashboard struct {
	Title      string
	UID        string
	Panels     []panel
	Templating struct{ List []variable }
}

type panel struct {
	ID          int
	Type        string
	Title       string
	Description string
	Datasource  source
	GridPos     struct{ H, W, X, Y int }
	FieldConfig struct{ Defaults struct{ Unit string } }
	Targets     []target
}

type target struct {
	RefID        string
	Datasource   source
	Expr         string
	LegendFormat string
}

type source struct{ Type, UID string }

type variable struct {
	Name, Type, Definition string
}

func theDashboard(t *testing.T) dashboard {
	t.Helper()
	text, err := os.ReadFile("../robustprom/dashboard.json")
	require.NoError(t, err)
	var d dashboard
	require.NoError(t, json.Unmarshal(text, &d))
	return d
}

// exported are the names that the collectors have, with the labels of their series.
func exported(t *testing.T) map[string][]string {
	t.Helper()
	b, err := robust.NewBroker()
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, b.Close()) })
	descs := make(chan *prometheus.Desc)
	go func() {
		defer close(descs)
		robustprom.NewClientCollector(new(robust.Metrics)).Describe(descs)
		robustprom.NewBrokerCollector(b).Describe(descs)
	}()
	form := regexp.MustCompile(`fqName: "([^"]+)".*variableLabels: \{([^}]*)\}`)
	names := make(map[string][]string)
	for d := range descs {
		match := form.FindStringSubmatch(d.String())
		require.NotNil(t, match, d.String())
		names[match[1]] = nil
		if match[2] != "" {
			names[match[1]] = strings.Split(match[2], ",")
		}
	}
	return names
}

// kind is what a query may do with a name.
type kind int

const (
	gauge   kind = iota
	counter      // to be asked for its rate
	buckets      // likewise; has the label le
)

// lookUp returns the name under which a query's is exported, as what, and its labels.
func lookUp(names map[string][]string, asked string) (name string, k kind, labels []string, ok bool) {
	if labels, ok := names[asked]; ok {
		if strings.HasSuffix(asked, "_total") {
			return asked, counter, labels, true
		}
		return asked, gauge, labels, !isHistogram(asked)
	}
	for _, suffix := range []string{"_bucket", "_sum", "_count"} {
		base, cut := strings.CutSuffix(asked, suffix)
		labels, known := names[base]
		switch {
		case !cut || !known || !isHistogram(base):
		case suffix == "_bucket":
			return base, buckets, append(slices.Clone(labels), "le"), true
		default:
			return base, counter, labels, true
		}
	}
	return "", 0, nil, false
}

// isHistogram tells distributions apart: of these names all are, and no others.
func isHistogram(name string) bool {
	return regexp.MustCompile(`_duration_seconds$|_(batch|append)_(messages|bytes)$|_fetch_bytes$`).MatchString(name)
}

// plain puts something in place of Grafana's variables.
func plain(expr string) string {
	return strings.NewReplacer("$__rate_interval", "5m", "$job", ".*", "$instance", ".*").Replace(expr)
}

// given are the labels that Prometheus itself adds.
var given = []string{"job", "instance"}

// TestQueries holds that each query of the dashboard is one, asks for names and labels that
// there are, and for each as what it is; and that there is no name that none asks for.
func TestQueries(t *testing.T) {
	names, asked := exported(t), make(map[string]bool)
	queries := 0
	for _, p := range theDashboard(t).Panels {
		for _, target := range p.Targets {
			t.Run(fmt.Sprint(p.Title, " ", target.RefID), func(t *testing.T) {
				for _, name := range checkQuery(t, names, target) {
					asked[name] = true
				}
			})
			queries++
		}
	}
	require.Greater(t, queries, 50)
	for name := range names {
		require.True(t, asked[name], "no panel shows %s", name)
	}
}

// checkQuery returns the names that a query asks for.
func checkQuery(t *testing.T, names map[string][]string, target target) (asked []string) {
	t.Helper()
	require.NotContains(t, plain(target.Expr), "$")
	expr, err := parser.NewParser(parser.Options{}).ParseExpr(plain(target.Expr))
	require.NoError(t, err)
	var known []string // labels of what is asked for
	kinds := make(map[kind]bool)
	parser.Inspect(expr, func(node parser.Node, path []parser.Node) error {
		v, ok := node.(*parser.VectorSelector)
		if !ok {
			return nil
		}
		name, kind, of, found := lookUp(names, v.Name)
		require.True(t, found, "nothing exports %s", v.Name)
		asked, known = append(asked, name), append(known, of...)
		kinds[kind] = true
		require.Equal(t, kind != gauge, inRate(path), "%s in rate", v.Name)
		var matched []string
		for _, m := range v.LabelMatchers {
			if m.Name == model.MetricNameLabel {
				continue
			}
			require.Contains(t, slices.Concat(of, given), m.Name)
			matched = append(matched, m.Name)
		}
		require.Subset(t, matched, given, "the variables choose what is shown")
		return nil
	})
	parser.Inspect(expr, func(node parser.Node, _ []parser.Node) error {
		switch n := node.(type) {
		case *parser.AggregateExpr:
			require.False(t, n.Without)
			require.Subset(t, slices.Concat(known, given), n.Grouping)
		case *parser.Call:
			if n.Func.Name == "histogram_quantile" {
				require.Equal(t, map[kind]bool{buckets: true}, kinds)
				sum, ok := n.Args[1].(*parser.AggregateExpr)
				require.True(t, ok)
				require.Contains(t, sum.Grouping, "le")
			}
		default:
		}
		return nil
	})
	require.True(t, !kinds[buckets] || strings.HasPrefix(target.Expr, "histogram_quantile("))
	shown := grouping(expr)
	for _, label := range regexp.MustCompile(`\{\{(\w+)\}\}`).FindAllStringSubmatch(target.LegendFormat, -1) {
		require.Contains(t, shown, label[1], "the legend names what the query has summed up")
	}
	return asked
}

// TestUnits holds that each panel counts in the unit of what it shows, which names end with.
func TestUnits(t *testing.T) {
	for _, p := range theDashboard(t).Panels {
		for _, target := range p.Targets {
			require.Equal(t, unitOf(target.Expr), p.FieldConfig.Defaults.Unit, "%s: %s", p.Title, target.Expr)
		}
	}
}

// unitOf is Grafana's name of the unit of a query.
func unitOf(expr string) string {
	name := regexp.MustCompile(`robust_\w+`).FindString(expr)
	switch {
	case strings.HasSuffix(name, "_total") && strings.Contains(expr, " / "):
		return "short"
	case strings.HasSuffix(name, "_bytes_total"):
		return "Bps"
	case strings.HasSuffix(name, "_total"):
		return "cps"
	case strings.HasSuffix(name, "_duration_seconds_count"):
		return "reqps"
	}
	base := regexp.MustCompile(`_(bucket|sum|count)$`).ReplaceAllString(name, "")
	switch {
	case strings.HasSuffix(base, "_seconds"):
		return "s"
	case strings.HasSuffix(base, "_bytes"):
		return "bytes"
	default:
		return "short"
	}
}

// inRate tells whether the innermost function is a rate.
func inRate(path []parser.Node) bool {
	for _, node := range slices.Backward(path) {
		if call, ok := node.(*parser.Call); ok {
			return call.Func.Name == "rate"
		}
	}
	return false
}

// grouping is what is left of the labels by the outermost sum that has some.
func grouping(expr parser.Expr) (labels []string) {
	parser.Inspect(expr, func(node parser.Node, _ []parser.Node) error {
		if a, ok := node.(*parser.AggregateExpr); ok && labels == nil && len(a.Grouping) > 0 {
			labels = a.Grouping
		}
		return nil
	})
	return labels
}

// TestVariables holds that the lists of jobs and instances come from names that are exported.
func TestVariables(t *testing.T) {
	names := exported(t)
	form := regexp.MustCompile(`^label_values\((.*), (\w+)\)$`)
	var found []string
	for _, v := range theDashboard(t).Templating.List {
		found = append(found, v.Name)
		if v.Type == "datasource" {
			continue
		}
		match := form.FindStringSubmatch(v.Definition)
		require.NotNil(t, match, v.Definition)
		require.Equal(t, v.Name, match[2])
		matchers, err := parser.NewParser(parser.Options{}).ParseMetricSelector(plain(match[1]))
		require.NoError(t, err)
		for _, m := range matchers {
			if m.Name != model.MetricNameLabel {
				require.Contains(t, given, m.Name)
				continue
			}
			for name := range strings.SplitSeq(m.Value, "|") {
				require.Contains(t, names, name)
			}
		}
	}
	require.Equal(t, []string{"datasource", "job", "instance"}, found)
}

// TestPanels holds that Grafana can show the panels: side by side, each with a unit, a word on
// what it shows, and the data source that was chosen.
func TestPanels(t *testing.T) {
	d := theDashboard(t)
	require.NotEmpty(t, d.Title)
	require.NotEmpty(t, d.UID)
	ids, cells := make(map[int]bool), make(map[[2]int]string)
	for _, p := range d.Panels {
		require.False(t, ids[p.ID], "panel %d stands there twice", p.ID)
		ids[p.ID] = true
		require.NotEmpty(t, p.Title)
		at := p.GridPos
		require.LessOrEqual(t, at.X+at.W, 24, p.Title)
		for x := range at.W {
			for y := range at.H {
				cell := [2]int{at.X + x, at.Y + y}
				require.Empty(t, cells[cell], "%s covers it", p.Title)
				cells[cell] = p.Title
			}
		}
		if p.Type == "row" {
			require.Empty(t, p.Targets)
			continue
		}
		require.NotEmpty(t, p.Description, p.Title)
		require.NotEmpty(t, p.FieldConfig.Defaults.Unit, p.Title)
		require.NotEmpty(t, p.Targets, p.Title)
		chosen := source{"prometheus", "${datasource}"}
		require.Equal(t, chosen, p.Datasource, p.Title)
		refs := make(map[string]bool)
		for _, target := range p.Targets {
			require.False(t, refs[target.RefID], p.Title)
			refs[target.RefID] = true
			require.Equal(t, chosen, target.Datasource, p.Title)
			require.NotEmpty(t, target.LegendFormat, p.Title)
		}
	}
}
