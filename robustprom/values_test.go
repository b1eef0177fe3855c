package robustprom

import (
	"encoding/json"
	"os"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"github.com/stretchr/testify/require"

	robust "github.com/aminofox/robust-go-sdk"
)

// fill sets all numbers below v, which are next and those behind it, so that no two are the
// same. Maps get two keys.
func fill(v reflect.Value, next *int64) {
	switch {
	case v.Type() == reflect.TypeFor[time.Time]():
	case v.CanInt():
		v.SetInt(*next)
		*next++
	case v.CanUint():
		v.SetUint(uint64(*next))
		*next++
	case v.CanFloat():
		v.SetFloat(float64(*next))
		*next++
	case v.Kind() == reflect.Struct:
		for i := range v.NumField() {
			if v.Field(i).CanSet() {
				fill(v.Field(i), next)
			}
		}
	case v.Kind() == reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
		for _, name := range []string{"a", "b"} {
			key, value := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
			if key.Kind() == reflect.String {
				key.SetString(name)
			} else {
				key.Set(reflect.ValueOf(robust.TopicPartition{Topic: name, Partition: int32(*next)}))
			}
			fill(value, next)
			v.SetMapIndex(key, value)
		}
	default:
		panic("nothing is known of " + v.Type().String())
	}
}

// number is a counter or a gauge; of a distribution, which has a sum too, the count.
type number struct{ value, sum float64 }

// shown returns what a snapshot's JSON has at a path, such as by_topic.bytes, by the labels of
// the series that are to tell it.
func shown(t *testing.T, at any, path string) map[string]number {
	t.Helper()
	first, rest, deeper := strings.Cut(path, ".")
	object, _ := at.(map[string]any)
	require.Contains(t, object, first)
	all := make(map[string]number)
	switch v := object[first].(type) {
	case float64:
		all[""] = number{value: v}
	case map[string]any:
		if _, ok := v["p99_9"]; ok {
			all[""] = distribution(t, v)
			break
		}
		for key, value := range v {
			if deeper {
				all[key] = shown(t, value, rest)[""]
			} else {
				n, ok := value.(float64)
				require.True(t, ok, "%s of %s is %v", path, key, value)
				all[key] = number{value: n}
			}
		}
	default:
		require.Fail(t, "neither number nor object", "%s is %v", path, v)
	}
	return all
}

func distribution(t *testing.T, v map[string]any) number {
	t.Helper()
	count, ok1 := v["count"].(float64)
	sum, ok2 := v["sum"].(float64)
	require.True(t, ok1 && ok2)
	return number{count, sum}
}

// told returns the values of the series of a name, by their labels.
func told(f *dto.MetricFamily, labels []string) map[string]number {
	all := make(map[string]number)
	for _, m := range f.GetMetric() {
		values := make([]string, len(labels))
		for _, l := range m.GetLabel() {
			for i, name := range labels {
				if l.GetName() == name {
					values[i] = l.GetValue()
				}
			}
		}
		n := number{value: m.GetCounter().GetValue() + m.GetGauge().GetValue()}
		if h := m.GetHistogram(); h != nil {
			n = number{float64(h.GetSampleCount()), h.GetSampleSum()}
		}
		all[strings.Join(values, "/")] = n
	}
	return all
}

// TestValues has each series compared with what the JSON of the same snapshot shows under the
// name that docs/metrics.md says. No two numbers of the snapshot are the same.
func TestValues(t *testing.T) {
	var client robust.Stats
	var broker robust.BrokerStats
	next := int64(1)
	fill(reflect.ValueOf(&client).Elem(), &next)
	fill(reflect.ValueOf(&broker).Elem(), &next)
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(newCollector(func() robust.Stats { return client }, clientFamilies()),
		newCollector(func() robust.BrokerStats { return broker }, brokerFamilies()))
	gathered, err := registry.Gather()
	require.NoError(t, err)
	families := make(map[string]*dto.MetricFamily)
	for _, f := range gathered {
		families[f.GetName()] = f
	}

	var snapshots map[string]any
	text, err := json.Marshal(client)
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(text, &snapshots))
	var b map[string]any
	text, err = json.Marshal(broker)
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(text, &b))
	snapshots["broker"] = b

	doc, err := os.ReadFile("../docs/metrics.md")
	require.NoError(t, err)
	compared := make(map[string]bool)
	row := regexp.MustCompile("(?m)^\\| `([^`]+)` \\| `([^`{]+)(?:\\{([^`]*)\\})?` \\|")
	for _, part := range strings.Split(string(doc), "\n## ")[1:] {
		title, table, _ := strings.Cut(part, "\n")
		for _, r := range row.FindAllStringSubmatch(table, -1) {
			var labels []string
			if r[3] != "" {
				labels = strings.Split(r[3], ",")
			}
			want, got := shown(t, snapshots[strings.ToLower(title)], r[1]), told(families[r[2]], labels)
			for key, n := range got {
				if n == (number{}) { // A usual reason that there was not.
					delete(got, key)
				}
			}
			require.Len(t, got, len(want), r[2])
			for key, n := range want {
				require.InDelta(t, n.value, got[key].value, 0, "%s of %q", r[2], key)
				require.InDelta(t, n.sum, got[key].sum, 1e-12, "%s of %q", r[2], key)
			}
			compared[r[2]] = true
		}
	}
	require.Len(t, compared, len(families))
}
