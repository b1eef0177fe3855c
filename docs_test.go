package robust

import (
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// document is a Markdown file, as far as tests look into it.
type document struct {
	tables []docTable
	blocks []docBlock
}

// docTable is a table without the line under its head.
type docTable struct {
	section string // the heading that it stands under
	head    []string
	rows    [][]string
}

// docBlock is a fenced block of code.
type docBlock struct {
	section, language string
	lines             []string
}

func readDocument(t *testing.T, name string) document {
	t.Helper()
	text, err := os.ReadFile(name)
	require.NoError(t, err)
	var d document
	section := ""
	var block *docBlock
	inTable := false
	for line := range strings.Lines(string(text)) {
		line = strings.TrimRight(line, "\n")
		switch {
		case block != nil && line == "```":
			d.blocks = append(d.blocks, *block)
			block = nil
		case block != nil:
			block.lines = append(block.lines, line)
		case strings.HasPrefix(line, "```"):
			block = &docBlock{section: section, language: line[3:]}
		case strings.HasPrefix(line, "#"):
			section = strings.TrimLeft(line, "# ")
		case strings.HasPrefix(line, "|---"):
			continue
		case strings.HasPrefix(line, "|"):
			var cells []string
			for cell := range strings.SplitSeq(strings.Trim(line, "|"), "|") {
				cells = append(cells, strings.TrimSpace(cell))
			}
			if !inTable {
				d.tables = append(d.tables, docTable{section: section, head: cells})
			} else {
				last := &d.tables[len(d.tables)-1]
				last.rows = append(last.rows, cells)
			}
			inTable = true
			continue
		}
		inTable = false
	}
	require.Nil(t, block, "%s: a block of code is not closed", name)
	return d
}

// table returns the one table under a heading whose first column has this head.
func (d *document) table(t *testing.T, section, head string) docTable {
	t.Helper()
	var found []docTable
	for _, table := range d.tables {
		if table.section == section && table.head[0] == head {
			found = append(found, table)
		}
	}
	require.Len(t, found, 1, "tables under %q that begin with %q", section, head)
	return found[0]
}

// bare is a cell without marks and link.
func bare(cell string) string {
	cell = strings.Trim(cell, "*`")
	if text, _, ok := strings.Cut(strings.TrimPrefix(cell, "["), "]("); ok {
		return text
	}
	return cell
}

const protocolDoc = "docs/protocol.md"

// publishedRequests are the payloads of every request, in the order of the document.
func publishedRequests() []struct {
	request
	response
} {
	return []struct {
		request
		response
	}{
		{&produceRequest{}, &produceResponse{}},
		{&fetchRequest{}, &fetchResponse{}},
		{&createTopicRequest{}, &createTopicResponse{}},
		{&deleteTopicRequest{}, &deleteTopicResponse{}},
		{&listTopicsRequest{}, &listTopicsResponse{}},
		{&metadataRequest{}, &metadataResponse{}},
		{&joinGroupRequest{}, &joinGroupResponse{}},
		{&leaveGroupRequest{}, &leaveGroupResponse{}},
		{&syncGroupRequest{}, &syncGroupResponse{}},
		{&commitOffsetRequest{}, &commitOffsetResponse{}},
		{&fetchOffsetRequest{}, &fetchOffsetResponse{}},
		{&listGroupsRequest{}, &listGroupsResponse{}},
		{&clusterInfoRequest{}, &clusterInfoResponse{}},
		{&nodeJoinRequest{}, &nodeJoinResponse{}},
		{&nodeLeaveRequest{}, &nodeLeaveResponse{}},
		{&rebalanceRequest{}, &rebalanceResponse{}},
		{&heartbeatRequest{}, &heartbeatResponse{}},
		{&produceBatchRequest{}, &produceBatchResponse{}},
		{&fetchBatchRequest{}, &fetchBatchResponse{}},
		{&listOffsetsRequest{}, &listOffsetsResponse{}},
		{&initProducerRequest{}, &initProducerResponse{}},
		{&alterTopicRequest{}, &alterTopicResponse{}},
		{&deleteRecordsRequest{}, &deleteRecordsResponse{}},
		{&describeGroupRequest{}, &describeGroupResponse{}},
		{&deleteGroupRequest{}, &deleteGroupResponse{}},
		{&resetOffsetsRequest{}, &resetOffsetsResponse{}},
	}
}

func TestProtocolDocNumbers(t *testing.T) {
	d := readDocument(t, protocolDoc)
	var want [][]string
	for _, r := range publishedRequests() {
		v0 := "–"
		if n, ok := r.kind().v0Number(); ok {
			v0 = strconv.Itoa(n)
		}
		want = append(want, []string{r.kind().String(), strconv.Itoa(int(r.kind())), v0})
	}
	got := d.table(t, "Request numbers", "request").rows
	for i := range got {
		got[i][0] = bare(got[i][0])
	}
	require.Equal(t, want, got)
}

// TestProtocolDocPayloads compares the tables of fields with the structs that the
// payloads are read into.
func TestProtocolDocPayloads(t *testing.T) {
	d := readDocument(t, protocolDoc)
	for _, r := range publishedRequests() {
		section := r.kind().String()
		require.Equal(t, fieldsOf(r.request), d.fields(t, section, "request"), "request of %s", section)
		require.Equal(t, fieldsOf(r.response), d.fields(t, section, "response"), "response of %s", section)
	}
	require.Equal(t, []string{"request_id string", "request_type integer", "type integer"}, d.fields(t, "Envelope", "request")[:3])
	require.Equal(t,
		[]string{"request_id string", "success boolean", "error string", "error_code string", "retriable boolean"},
		d.fields(t, "Envelope", "response")[:5])
}

// fields returns name and type of each row of a table, nothing if it is not there.
func (d *document) fields(t *testing.T, section, head string) []string {
	t.Helper()
	if !slices.ContainsFunc(d.tables, func(table docTable) bool { return table.section == section && table.head[0] == head }) {
		return []string{}
	}
	var fields []string
	for _, row := range d.table(t, section, head).rows {
		fields = append(fields, bare(row[0])+" "+row[1])
	}
	return fields
}

// fieldsOf returns name and type of each field of a payload but error, the nested
// ones by their path.
func fieldsOf(payload any) []string {
	fields := append([]string{}, fieldsUnder("", reflect.TypeOf(payload).Elem())...)
	return slices.DeleteFunc(fields, func(f string) bool { return f == "error string" })
}

func fieldsUnder(path string, t reflect.Type) []string {
	if path != "" && (t.Kind() != reflect.Struct) {
		switch t.Kind() {
		case reflect.Pointer:
			return fieldsUnder(path, t.Elem())
		case reflect.Slice:
			if t.Elem().Kind() == reflect.Pointer || t.Elem().Kind() == reflect.Struct {
				return fieldsUnder(path+"[]", t.Elem())
			}
		default:
		}
		return []string{path + " " + docType(t)}
	}
	var fields []string
	for i := range t.NumField() {
		field := t.Field(i)
		name, _, _ := strings.Cut(field.Tag.Get("json"), ",")
		switch {
		case name == "-":
		case field.Anonymous:
			fields = append(fields, fieldsUnder(path, field.Type)...)
		case path == "":
			fields = append(fields, fieldsUnder(name, field.Type)...)
		default:
			fields = append(fields, fieldsUnder(path+"."+name, field.Type)...)
		}
	}
	return fields
}

// docType is what the document calls a type.
func docType(t reflect.Type) string {
	plural := map[string]string{
		"string": "strings", "integer": "integers", "object of arrays of integers": "objects of arrays of integers",
	}
	switch t.Kind() {
	case reflect.String:
		return "string"
	case reflect.Bool:
		return "boolean"
	case reflect.Int, reflect.Int16, reflect.Int32, reflect.Int64:
		return "integer"
	case reflect.Slice:
		if t.Elem().Kind() == reflect.Uint8 {
			return "base64 or null"
		}
		return "array of " + plural[docType(t.Elem())]
	case reflect.Map:
		if t.Elem().Kind() == reflect.Slice {
			return "object of arrays of " + plural[docType(t.Elem().Elem())]
		}
		return "object of " + plural[docType(t.Elem())]
	default:
		return t.String()
	}
}

// TestProtocolDocFrames holds that every quoted frame is one of the golden ones, and
// that a request and a response of every kind are quoted under its heading: first a
// request, and last a response.
func TestProtocolDocFrames(t *testing.T) {
	golden := make(map[string]string) // name by text
	for _, pattern := range []string{"*.json", "v1/*.json", "v0/*.json"} {
		names, err := filepath.Glob(filepath.Join("testdata", "wire", pattern))
		require.NoError(t, err)
		for _, name := range names {
			text, err := os.ReadFile(name)
			require.NoError(t, err)
			golden[strings.TrimSuffix(string(text), "\n")] = name
		}
	}
	d := readDocument(t, protocolDoc)
	quoted := make(map[string][]string) // golden names by section
	for _, block := range d.blocks {
		if block.language != "json" {
			continue
		}
		for _, line := range block.lines {
			require.Contains(t, golden, line, "under %q", block.section)
			quoted[block.section] = append(quoted[block.section], filepath.Base(golden[line]))
		}
	}
	for _, r := range publishedRequests() {
		prefix := fmt.Sprintf("%02d-", int(r.kind()))
		names := quoted[r.kind().String()]
		require.GreaterOrEqual(t, len(names), 2, r.kind())
		for i, name := range names {
			require.True(t, strings.HasPrefix(name, prefix), "%s under %s", name, r.kind())
			if i == 0 || i == len(names)-1 {
				require.Equal(t, i == 0, strings.HasSuffix(name, ".request.json"), name)
			}
		}
	}
}

func TestProtocolDocErrors(t *testing.T) {
	d := readDocument(t, protocolDoc)
	rows := d.table(t, "Errors", "code").rows
	require.Len(t, rows, len(errorCodes)+1)
	for i, e := range errorCodes {
		again := "no"
		if refusalMayPass(e.err) {
			again = "yes"
		}
		var phrases []string
		for _, p := range e.phrases {
			phrases = append(phrases, "`"+p+"`")
		}
		require.Equal(t, string(e.code), bare(rows[i][0]))
		require.Equal(t, again, rows[i][2], e.code)
		require.Equal(t, strings.Join(phrases, ", "), rows[i][3], e.code)
		require.Contains(t, recordedAPI(t), "var "+bare(rows[i][1])+" error")
		require.Equal(t, strings.ReplaceAll(strings.ToLower(strings.TrimPrefix(bare(rows[i][1]), "Err")), "_", ""),
			strings.ToLower(strings.ReplaceAll(string(e.code), "_", "")))
	}
	require.Equal(t, string(codeInternal), bare(rows[len(rows)-1][0]))
}

func TestProtocolDocFeatures(t *testing.T) {
	d := readDocument(t, protocolDoc)
	var got []string
	for _, row := range d.table(t, "Hello", "feature").rows {
		got = append(got, bare(row[0]))
	}
	require.Equal(t, features(), got)
}

func TestProtocolDocTopicConfig(t *testing.T) {
	d := readDocument(t, protocolDoc)
	c := defaultBrokerConfig()
	var keys []string
	for _, row := range d.table(t, "CreateTopic", "key").rows {
		key := bare(row[0])
		keys = append(keys, key)
		low, _, _ := strings.Cut(strings.ReplaceAll(row[1], ",", ""), " ")
		_, err := c.parseTopicConfig(map[string]string{key: low})
		require.NoError(t, err)
		n, err := strconv.Atoi(low)
		require.NoError(t, err)
		_, err = c.parseTopicConfig(map[string]string{key: strconv.Itoa(n - 1)})
		require.ErrorIs(t, err, ErrInvalidConfig)
	}
	require.ElementsMatch(t, []string{configRetentionHours, configRetentionBytes, configSegmentBytes, configMaxMessage}, keys)
}

// TestProtocolDocKeys holds that keys go where the document says.
func TestProtocolDocKeys(t *testing.T) {
	d := readDocument(t, protocolDoc)
	table := d.table(t, "Keys and partitions", "key")
	require.NotEmpty(t, table.rows)
	for _, row := range table.rows {
		key, err := hex.DecodeString(bare(row[1]))
		require.NoError(t, err)
		if row[0] != "empty" && row[0] != "not text" {
			require.Equal(t, bare(row[0]), string(key))
		}
		hash, err := strconv.ParseUint(bare(row[2]), 16, 32)
		require.NoError(t, err)
		for i, head := range table.head[3:] {
			n, err := strconv.Atoi(strings.TrimPrefix(head, "n = "))
			require.NoError(t, err)
			require.Equal(t, fmt.Sprint(PartitionForKey(key, int32(n))), row[3+i], "key %q, %s", key, head)
			require.Equal(t, fmt.Sprint(hash%uint64(n)), row[3+i], "key %q, %s", key, head)
		}
	}
}

func TestProtocolDocBatch(t *testing.T) {
	d := readDocument(t, protocolDoc)
	at := map[string]int{
		"base offset": 0, "length": batchLengthAt, "magic": batchMagicAt, "partition epoch": batchEpochAt,
		"append time": batchAppendTimeAt, "head crc": batchHeadCRCAt, "crc": batchCRCAt,
		"attributes": batchAttributesAt, "count": batchCountAt, "last offset delta": batchLastDeltaAt,
		"first time": batchFirstTimeAt, "max time": batchMaxTimeAt, "producer id": batchProducerAt,
		"producer epoch": batchProdEpochAt, "base sequence": batchSequenceAt, "records": batchHeaderSize,
	}
	end := 0
	for _, row := range d.table(t, "Record batch", "offset").rows {
		require.Equal(t, strconv.Itoa(end), row[0], row[2])
		require.Equal(t, at[row[2]], end, row[2])
		delete(at, row[2])
		if row[1] == "" {
			continue
		}
		size, err := strconv.Atoi(row[1])
		require.NoError(t, err)
		end += size
	}
	require.Empty(t, at)

	m := NewMessageWithKey("orders", []byte("ann"), []byte("two books"))
	m.Headers = map[string]string{"currency": "EUR"}
	m.Timestamp = 1700000000123
	b := appendBatch(nil, m)
	b.stamp(17, 2, 1700000000456)
	i := slices.IndexFunc(d.blocks, func(b docBlock) bool { return b.language == "hex" })
	require.GreaterOrEqual(t, i, 0)
	quoted, err := hex.DecodeString(strings.ReplaceAll(strings.Join(d.blocks[i].lines, ""), " ", ""))
	require.NoError(t, err)
	require.Equal(t, []byte(b), quoted)
}

func TestProtocolDocLimits(t *testing.T) {
	d := readDocument(t, protocolDoc)
	want := map[string]int{
		"frame, unless":             defaultMaxFrameBytes,
		"lowest value of":           minMaxFrameBytes,
		"nesting":                   maxNesting,
		"name of":                   maxNameBytes,
		"partitions of":             maxTopicPartitions,
		"nodes recorded":            maxNodes,
		"connections, unless":       defaultBrokerConfig().maxConnections,
		"time for the rest":         int(frameTimeout / time.Second),
		"time for a peer":           int(writeTimeout / time.Second),
		"answers waiting":           maxUnread,
		"fetches and heartbeats of": maxHeld,
		"time for which a fetch":    int(maxFetchHold / time.Second),
		"time for which a hear":     int(maxHeartbeatHold / time.Second),
		"requests about groups of":  maxGrouping,
		"groups":                    maxGroups,
		"members of":                maxGroupMembers,
		"topics and patterns":       maxGroupTopics,
		"patterns of":               maxPatterns,
		"pattern, at":               maxPatternBytes,
		"pattern with":              maxPatternSteps,
		"partitions in":             maxOwned,
		"offsets in":                maxOffsets,
		"payload of a request":      maxGroupPayload,
		"metadata of":               maxOffsetMeta,
		"longest session":           int(maxGroupTimeout / time.Hour),
		"session timeout":           int(defaultSession / time.Second),
		"rebalance timeout":         int(defaultRebalance / time.Second),
		"time for which an empty":   int(gatherTime / time.Millisecond),
		"time for a member's":       int(computeTimeout / time.Second),
		"silence after":             int(silentTimeout / time.Second),
	}
	for _, row := range d.table(t, "Limits", "limit").rows {
		value, _, _ := strings.Cut(strings.ReplaceAll(row[1], ",", ""), " ")
		for name := range want {
			if strings.HasPrefix(row[0], name) {
				require.Equal(t, strconv.Itoa(want[name]), value, row[0])
				delete(want, name)
			}
		}
	}
	require.Empty(t, want, "limits that the document does not name")
}

// recordedAPI returns the lines of testdata/api.txt, which TestAPI holds to be right.
func recordedAPI(t *testing.T) []string {
	t.Helper()
	text, err := os.ReadFile(apiFile)
	require.NoError(t, err)
	return strings.Split(strings.TrimSpace(string(text)), "\n")
}

// apiNames returns the names that other packages can use: New, Client.Close,
// Message.Key.
func apiNames(t *testing.T) map[string]bool {
	t.Helper()
	names := make(map[string]bool)
	line := regexp.MustCompile(`^(?:(?:const|func|type|var|field) ([\w.]+)|method \(?\*?(\w+)\)?[. ](\w+))`)
	for _, l := range recordedAPI(t) {
		m := line.FindStringSubmatch(l)
		require.NotNil(t, m, l)
		if m[1] != "" {
			names[m[1]] = true
		} else {
			names[m[2]+"."+m[3]] = true
		}
	}
	return names
}

// TestReadmeOptions holds that the README's tables of options name all of them, with
// their defaults.
func TestReadmeOptions(t *testing.T) {
	d := readDocument(t, "README.md")
	client, broker := defaultConfig(), defaultBrokerConfig()
	defaults := map[string]any{
		"WithClientID":          client.clientID,
		"WithConnectionTimeout": client.connectionTimeout,
		"WithRequestTimeout":    client.requestTimeout,
		"WithMaxConnections":    client.maxConnections,
		"WithMetadataMaxAge":    client.metadataMaxAge,
		"WithRetries":           client.retries,
		"WithRetryBackoff":      client.retryBackoff,
		"WithDeliveryTimeout":   client.deliveryTimeout,
		"WithFetchMaxMessages":  client.fetchMaxMessages,
		"WithFetchMinBytes":     client.fetchMinBytes,
		"WithFetchMaxBytes":     client.fetchMaxBytes,
		"WithFetchMaxWait":      client.fetchMaxWait,
		"WithPollInterval":      client.pollInterval,
		"WithMessageBuffer":     client.messageBuffer,
		"WithAutoCommit":        client.autoCommit,
		"WithSessionTimeout":    client.sessionTimeout,
		"WithRebalanceTimeout":  client.rebalanceTimeout,
		"WithMaxFrameBytes":     client.maxFrameBytes,
		"WithMaxSeries":         client.maxSeries,
		"WithAutoCreateTopics":  broker.autoCreate,
		"WithConnectionLimit":   broker.maxConnections,
	}
	listed := make(map[string]bool)
	for _, table := range d.tables {
		if table.head[0] != "option" {
			continue
		}
		for _, row := range table.rows {
			name := bare(row[0])
			require.False(t, listed[name], "%s is listed twice", name)
			listed[name] = true
			if want, ok := defaults[name]; ok {
				require.Equal(t, shortDefault(want), row[1], name)
			}
		}
	}
	for name := range apiNames(t) {
		if strings.HasPrefix(name, "With") {
			require.True(t, listed[name], "%s is not listed", name)
		}
	}
	for name := range listed {
		require.True(t, apiNames(t)[name], "%s is not an option", name)
	}
}

// shortDefault writes a default as people do: 1m, not 1m0s, and 1 MiB.
func shortDefault(v any) string {
	switch v := v.(type) {
	case time.Duration:
		if v%time.Minute == 0 {
			return fmt.Sprint(int(v.Minutes()), "m")
		}
		return v.String()
	case int:
		if v >= 1<<20 && v%(1<<20) == 0 {
			return fmt.Sprint(v>>20, " MiB")
		}
		return strconv.Itoa(v)
	default:
		return fmt.Sprint(v)
	}
}

// TestMigratingNames holds that the names which docs/migrating.md sends readers to
// exist.
func TestMigratingNames(t *testing.T) {
	d := readDocument(t, "docs/migrating.md")
	names := apiNames(t)
	code := regexp.MustCompile("`([^`]+)`")
	identifier := regexp.MustCompile(`^[A-Z]\w*(\.[A-Z]\w*)?$`)
	checked := 0
	for _, table := range d.tables {
		require.Equal(t, []string{"specification", "here"}, table.head[:2])
		for _, row := range table.rows {
			for _, m := range code.FindAllStringSubmatch(row[1], -1) {
				name := m[1]
				if identifier.MatchString(name) {
					require.True(t, names[name], "%s, which stands for %s", name, row[0])
					checked++
				}
			}
			require.True(t, code.MatchString(row[1]) || strings.Contains(row[1], "not there yet") || strings.Contains(row[1], "nothing"), "%v", row)
		}
	}
	require.Greater(t, checked, 50)
}
