package robust_test

import (
	"bufio"
	"go/ast"
	"go/parser"
	"go/token"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	robust "github.com/aminofox/robust-go-sdk"
)

// documents are the pages whose Go code is compared with the examples.
func documents(t *testing.T) []string {
	t.Helper()
	names := []string{"README.md", "DESIGN.md", "CONTRIBUTING.md", filepath.Join("examples", "README.md"), filepath.Join("examples", "QUICKSTART.md"), filepath.Join("bench", "README.md")}
	pages, err := filepath.Glob(filepath.Join("docs", "*.md"))
	require.NoError(t, err)
	return append(names, pages...)
}

// fenced returns the blocks of code of one language in a page.
func fenced(t *testing.T, name, language string) []string {
	t.Helper()
	text, err := os.ReadFile(name)
	require.NoError(t, err)
	var blocks []string
	for _, m := range regexp.MustCompile("(?ms)^```(\\w*)\n(.*?)^```$").FindAllStringSubmatch(string(text), -1) {
		if m[1] == language {
			blocks = append(blocks, m[2])
		}
	}
	return blocks
}

// TestReadmeCode holds that every block of Go on the pages is a run of lines of an
// example function, which the tests run.
func TestReadmeCode(t *testing.T) {
	bodies := exampleBodies(t)
	count := 0
	for _, name := range documents(t) {
		for _, block := range fenced(t, name, "go") {
			found := false
			for _, body := range bodies {
				found = found || strings.Contains("\n"+body, "\n"+block)
			}
			require.True(t, found, "%s: no example holds these lines:\n%s", name, block)
			count++
		}
	}
	require.GreaterOrEqual(t, count, 7)
}

// exampleBodies returns what stands in each example function, one tab further left.
func exampleBodies(t *testing.T) []string {
	t.Helper()
	files, err := filepath.Glob("example*_test.go")
	require.NoError(t, err)
	var bodies []string
	for _, file := range files {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		fset := token.NewFileSet()
		parsed, err := parser.ParseFile(fset, file, text, 0)
		require.NoError(t, err)
		for _, d := range parsed.Decls {
			f, ok := d.(*ast.FuncDecl)
			if !ok || !strings.HasPrefix(f.Name.Name, "Example") {
				continue
			}
			body := string(text[fset.Position(f.Body.Lbrace).Offset+2 : fset.Position(f.Body.Rbrace).Offset])
			bodies = append(bodies, strings.TrimPrefix(strings.ReplaceAll("\n"+body, "\n\t", "\n"), "\n"))
		}
	}
	require.NotEmpty(t, bodies)
	return bodies
}

// TestReadmeByHand sends what the README has readers send with nc.
func TestReadmeByHand(t *testing.T) {
	line := regexp.MustCompile(`printf '(.*)\\n' \| nc 127\.0\.0\.1 8686`)
	var request string
	for _, block := range fenced(t, "README.md", "sh") {
		if m := line.FindStringSubmatch(block); m != nil {
			request = m[1]
		}
	}
	require.NotEmpty(t, request)
	answers := fenced(t, "README.md", "json")
	require.Len(t, answers, 1)

	broker := newBroker(t, robust.WithTopic("orders", 3))
	addr, err := broker.Listen("127.0.0.1:0")
	require.NoError(t, err)
	conn, err := new(net.Dialer).DialContext(t.Context(), "tcp", addr.String())
	require.NoError(t, err)
	defer conn.Close()
	require.NoError(t, conn.SetDeadline(time.Now().Add(time.Minute)))
	_, err = conn.Write([]byte(request + "\n"))
	require.NoError(t, err)
	answer, err := bufio.NewReader(conn).ReadString('\n')
	require.NoError(t, err)
	require.Equal(t, answers[0], answer)
}

// TestLinks holds that what the pages link to is there.
func TestLinks(t *testing.T) {
	link := regexp.MustCompile(`\]\(([^)]+)\)`)
	for _, name := range append(documents(t), "CHANGELOG.md") {
		text, err := os.ReadFile(name)
		require.NoError(t, err)
		for _, m := range link.FindAllStringSubmatch(string(text), -1) {
			target, anchor, _ := strings.Cut(m[1], "#")
			if strings.HasPrefix(target, "https:") {
				continue
			}
			if target == "" {
				heading := regexp.MustCompile(`(?mi)^#+ ` + strings.ReplaceAll(regexp.QuoteMeta(anchor), "-", " ") + `$`)
				require.Regexp(t, heading, string(text), "%s links to #%s", name, anchor)
				continue
			}
			_, err := os.Stat(filepath.Join(filepath.Dir(name), filepath.FromSlash(target)))
			require.NoError(t, err, "%s links to %s", name, m[1])
		}
	}
}
