package robust

import (
	"flag"
	"fmt"
	"go/types"
	"os"
	"slices"
	"strings"
	"testing"
)

var updateAPI = flag.Bool("update-api", false, "write the exported API to "+apiFile)

// apiFile holds every exported declaration of the package, one a line, so that a
// change of the public API is a visible line of a commit.
const apiFile = "testdata/api.txt"

func TestAPI(t *testing.T) {
	_, pkg, _ := checkPackage(t)
	now := apiOf(pkg)
	if *updateAPI {
		if err := os.WriteFile(apiFile, []byte(strings.Join(now, "\n")+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	text, err := os.ReadFile(apiFile)
	if err != nil {
		t.Fatalf("%v; write it with: make api", err)
	}
	recorded := strings.Split(strings.TrimSpace(string(text)), "\n")
	var diff strings.Builder
	for _, line := range recorded {
		if !slices.Contains(now, line) {
			fmt.Fprintf(&diff, "- %s\n", line)
		}
	}
	for _, line := range now {
		if !slices.Contains(recorded, line) {
			fmt.Fprintf(&diff, "+ %s\n", line)
		}
	}
	if diff.Len() > 0 {
		t.Errorf("the exported API is not what %s records; if that is meant: make api\n%s", apiFile, &diff)
	}
}

// apiOf returns the exported declarations of pkg, one a line, sorted.
func apiOf(pkg *types.Package) []string {
	var lines []string
	for _, name := range pkg.Scope().Names() {
		object := pkg.Scope().Lookup(name)
		if !object.Exported() {
			continue
		}
		switch object := object.(type) {
		case *types.Const:
			lines = append(lines, fmt.Sprintf("const %s %s = %s", name, typeText(object.Type()), object.Val().ExactString()))
		case *types.TypeName:
			lines = append(lines, typeLines(object)...)
		default:
			lines = append(lines, types.ObjectString(object, shortNames))
		}
	}
	slices.Sort(lines)
	return lines
}

// typeLines describes an exported type: its kind, then a line for each member
// that other packages can reach.
func typeLines(object *types.TypeName) []string {
	name := object.Name()
	if object.IsAlias() {
		return []string{fmt.Sprintf("type %s = %s", name, typeText(types.Unalias(object.Type())))}
	}
	named := object.Type().(*types.Named)
	head := "type " + typeText(named)
	if named.TypeParams().Len() > 0 {
		// ObjectString writes the constraints too, before the underlying type.
		head = strings.TrimSuffix(types.ObjectString(object, shortNames), " "+typeText(named.Underlying()))
	}
	switch underlying := named.Underlying().(type) {
	case *types.Struct:
		return append(memberLines(name, named), head+" struct")
	case *types.Interface:
		return append(interfaceLines(name, underlying), head+" interface"+closedMark(underlying))
	default:
		return append(memberLines(name, named), head+" "+typeText(underlying))
	}
}

// memberLines lists the exported fields and methods of a type. What an embedded
// type of an unexported name brings counts as the type's own, since nothing else
// would show it.
func memberLines(name string, t types.Type) []string {
	var lines []string
	named, _ := types.Unalias(t).(*types.Named)
	if named == nil {
		return nil
	}
	for method := range named.Methods() {
		if !method.Exported() {
			continue
		}
		receiver := name
		if _, ok := method.Signature().Recv().Type().(*types.Pointer); ok {
			receiver = "*" + name
		}
		lines = append(lines, fmt.Sprintf("method (%s) %s%s", receiver, method.Name(), signatureText(method)))
	}
	structure, ok := named.Underlying().(*types.Struct)
	if !ok {
		return lines
	}
	for field := range structure.Fields() {
		switch {
		case field.Exported() && field.Embedded():
			lines = append(lines, fmt.Sprintf("field %s.%s embedded %s", name, field.Name(), typeText(field.Type())))
		case field.Exported():
			lines = append(lines, fmt.Sprintf("field %s.%s %s", name, field.Name(), typeText(field.Type())))
		case field.Embedded():
			inner := field.Type()
			if pointer, ok := inner.(*types.Pointer); ok {
				inner = pointer.Elem()
			}
			lines = append(lines, memberLines(name, inner)...)
		}
	}
	return lines
}

// interfaceLines lists the exported methods of an interface, embedded ones too.
func interfaceLines(name string, iface *types.Interface) []string {
	var lines []string
	for method := range iface.Methods() {
		if method.Exported() {
			lines = append(lines, fmt.Sprintf("method %s.%s%s", name, method.Name(), signatureText(method)))
		}
	}
	return lines
}

// closedMark tells an interface that other packages can implement from one that
// they cannot: changing between the two breaks them without changing a name.
func closedMark(iface *types.Interface) string {
	for method := range iface.Methods() {
		if !method.Exported() {
			return " with unexported methods"
		}
	}
	return ""
}

func signatureText(f *types.Func) string {
	return strings.TrimPrefix(typeText(f.Signature()), "func")
}

func typeText(t types.Type) string { return types.TypeString(t, shortNames) }

// shortNames writes the package's own names bare and others after their package's
// name, as source does.
func shortNames(other *types.Package) string {
	if other.Path() == packagePath {
		return ""
	}
	return other.Name()
}
