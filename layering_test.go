package robust

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/build"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// layerOrder lists every file of the package that is not a test, lowest layer first.
// A file uses only what it declares itself and what the files before it in this list
// declare: types, functions, methods and fields alike. A new file gets its place
// here; one that seems to need a name of a later file is to be handed a func or a
// small interface instead.
var layerOrder = []string{
	// vocabulary
	"robust.go",
	"errors.go",
	// leaves: bytes, counters, choices; no network
	"scan.go",
	"messages.go",
	"messages_group.go",
	"messages_batch.go",
	"codec_batch.go",
	"codec.go",
	"protocol.go",
	"compress.go",
	"batch.go",
	"batch_read.go",
	"warn.go",
	"filelock.go",
	"filelock_os.go",
	"filelock_none.go",
	"metrics_histogram.go",
	"metrics_file.go",
	"metrics_parts.go",
	"metrics_consumer.go",
	"metrics.go",
	"hooks.go",
	"partition.go",
	"retry.go",
	"notices.go",
	"parallel.go",
	"marks.go",
	"assignor.go",
	"broker_storage.go",
	// settings
	"options.go",
	"options_observe.go",
	// transport
	"pipe.go",
	"conn_prompt_linux.go",
	"conn_prompt_other.go",
	"frames.go",
	"conn_call.go",
	"conn_read.go",
	"conn_turn.go",
	"conn_run.go",
	"conn.go",
	"conn_send.go",
	"hello.go",
	"pool.go",
	// client
	"metadata.go",
	"fetch_budget.go",
	"combine.go",
	"client.go",
	// handles
	"outbox_state.go",
	"outbox_room.go",
	"outbox_queue.go",
	"outbox_single.go",
	"outbox_retry.go",
	"outbox_sender.go",
	"outbox_topic.go",
	"outbox.go",
	"results.go",
	"producer.go",
	"send_messages.go",
	"async.go",
	"fetch_state.go",
	"fetch_locate.go",
	"fetch_answer.go",
	"fetch.go",
	"handover.go",
	"consumer.go",
	"claim.go",
	"session.go",
	"serving.go",
	"membership.go",
	"group.go",
	"each.go",
	"admin.go",
	"group_admin.go",
	// broker
	"broker_options.go",
	"broker_producers.go",
	"broker_memory.go",
	"broker_files_limit.go",
	"broker_files_nolimit.go",
	"broker_files.go",
	"broker_file_header.go",
	"broker_files_json.go",
	"broker_file_cache.go",
	"broker_index.go",
	"broker_segment.go",
	"broker_reserve.go",
	"broker_log.go",
	"broker_log_group.go",
	"broker_log_write.go",
	"broker_log_producers.go",
	"broker_log_sync.go",
	"broker_log_read.go",
	"broker_log_retention.go",
	"broker_recovery_producers.go",
	"broker_recovery_missing.go",
	"broker_recovery.go",
	"broker_journal.go",
	"broker_datadir.go",
	"broker_datadir_check.go",
	"broker_assign.go",
	"broker_assign_sticky.go",
	"broker_topic_table.go",
	"broker_group.go",
	"broker_membership.go",
	"broker_group_state.go",
	"broker_coordinator.go",
	"broker_partition.go",
	"broker_topics.go",
	"metrics_broker.go",
	"broker_handlers.go",
	"broker_produce.go",
	"broker_fetch.go",
	"broker_fetch_batch.go",
	"broker_group_handlers.go",
	"broker_replies.go",
	"broker_gather.go",
	"broker_conn.go",
	"broker_conn_produce.go",
	"broker_conn_fetch.go",
	"broker_conn_serve.go",
	"broker.go",
	"broker_stats.go",
}

const packagePath = "github.com/aminofox/robust-go-sdk"

// maxFileLines is where a file has more than one job.
const maxFileLines = 700

func TestLayering(t *testing.T) {
	place := make(map[string]int, len(layerOrder))
	for i, name := range layerOrder {
		if _, twice := place[name]; twice {
			t.Errorf("%s stands in layerOrder twice", name)
		}
		place[name] = i
	}
	sources := sourceFiles(t)
	for _, name := range sources {
		if _, ok := place[name]; !ok {
			t.Errorf("%s is not in layerOrder; give it its place there", name)
		}
	}
	for _, name := range layerOrder {
		if !slices.Contains(sources, name) {
			t.Errorf("layerOrder names %s, which does not exist", name)
		}
	}

	fset, pkg, info := checkPackage(t)
	upward := make(map[string]bool)
	for ident, object := range info.Uses {
		if object.Pkg() != pkg {
			continue
		}
		use, declared := fset.Position(ident.Pos()), fset.Position(object.Pos())
		from, ok := place[use.Filename]
		to, ok2 := place[declared.Filename]
		if ok && ok2 && from < to {
			upward[fmt.Sprintf("%s:%d: uses %s, which %s:%d declares, a later file in layerOrder",
				use.Filename, use.Line, ident.Name, declared.Filename, declared.Line)] = true
		}
	}
	for _, violation := range slices.Sorted(maps.Keys(upward)) {
		t.Error(violation)
	}
}

func TestFileLength(t *testing.T) {
	for _, name := range sourceFiles(t) {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if n := bytes.Count(text, []byte("\n")); n >= maxFileLines {
			t.Errorf("%s has %d lines; the limit is %d", name, n, maxFileLines)
		}
	}
}

// sourceFiles returns the names of the package's files that are not tests,
// whatever system they are for.
func sourceFiles(t *testing.T) []string {
	t.Helper()
	names, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	return slices.DeleteFunc(names, func(name string) bool { return strings.HasSuffix(name, "_test.go") })
}

// checkPackage type-checks the package's own files. What they import is read from
// the compiler's export data, which the build of this test has left in its cache:
// checking the standard library from source would take many seconds, and without
// it the types of many expressions, and so the uses of methods, would be unknown.
func checkPackage(t *testing.T) (*token.FileSet, *types.Package, *types.Info) {
	t.Helper()
	fset := token.NewFileSet()
	var files []*ast.File
	for _, name := range sourceFiles(t) {
		if ok, err := build.Default.MatchFile(".", name); err != nil {
			t.Fatal(err)
		} else if !ok {
			continue // for another system
		}
		file, err := parser.ParseFile(fset, name, nil, parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, file)
	}

	list := exec.CommandContext(t.Context(), "go", "list", "-export", "-deps",
		"-f", "{{if .Export}}{{.ImportPath}}={{.Export}}{{end}}", ".")
	list.Stderr = os.Stderr
	out, err := list.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	exports := make(map[string]string)
	for line := range strings.Lines(string(out)) {
		path, file, _ := strings.Cut(strings.TrimSpace(line), "=")
		exports[path] = file
	}
	lookup := func(path string) (io.ReadCloser, error) { return os.Open(exports[path]) }

	info := &types.Info{Uses: make(map[*ast.Ident]types.Object)}
	config := types.Config{Importer: importer.ForCompiler(fset, "gc", lookup)}
	pkg, err := config.Check(packagePath, fset, files, info)
	if err != nil {
		t.Fatal(err)
	}
	return fset, pkg, info
}
