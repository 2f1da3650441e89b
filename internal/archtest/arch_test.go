package archtest

import (
	"bytes"
	"go/ast"
	"go/doc"
	"go/token"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const maxMainLines = 60

// clockFunctions of package time read the clock or wait on it.
var clockFunctions = []string{"Now", "Since", "Until", "Sleep", "After", "AfterFunc", "Tick", "NewTimer", "NewTicker"}

func TestImportsRunDownwards(t *testing.T) {
	all, positions := sources(t)
	for _, pkg := range all {
		for _, file := range pkg.files {
			for _, spec := range file.Imports {
				if why := refuse(pkg.path, importPath(spec)); why != "" {
					t.Errorf("%s: import of %s: %s", positions.Position(spec.Pos()), importPath(spec), why)
				}
			}
		}
	}
}

// TestPurePackagesReachNoClient looks at everything that pure packages are linked with, not only at what they name.
func TestPurePackagesReachNoClient(t *testing.T) {
	all, _ := sources(t)
	args := []string{"list", "-deps"}
	for path := range all {
		if isPure(path) {
			args = append(args, "./"+path)
		}
	}
	if len(args) == 2 {
		t.Fatal("no pure package found: mend purePackages in rules_test.go")
	}
	var errors bytes.Buffer
	list := exec.Command("go", args...)
	list.Dir, list.Stderr = root(t), &errors
	out, err := list.Output()
	if err != nil {
		t.Fatalf("list what pure packages import (the go command must be in PATH): %v\n%s", err, &errors)
	}
	for path := range strings.FieldsSeq(string(out)) {
		if under(path, clients...) {
			t.Errorf("a pure package reaches %s; `go list -deps` on each of %v tells which", path, purePackages)
		}
	}
}

func TestPurePackagesHaveNoClock(t *testing.T) {
	all, positions := sources(t)
	for _, pkg := range all {
		if !isPure(pkg.path) {
			continue
		}
		for _, file := range pkg.files {
			for _, use := range clockUses(file) {
				t.Errorf("%s: time.%s: a pure package has no clock; let its caller hand the time in", positions.Position(use.Pos()), use.Sel.Name)
			}
		}
	}
}

// clockUses finds clockFunctions of package time, under whatever name the file imports it.
func clockUses(file *ast.File) []*ast.SelectorExpr {
	name := ""
	for _, spec := range file.Imports {
		if importPath(spec) == "time" {
			name = "time"
			if spec.Name != nil {
				name = spec.Name.Name
			}
		}
	}
	var uses []*ast.SelectorExpr
	ast.Inspect(file, func(n ast.Node) bool {
		sel, ok := n.(*ast.SelectorExpr)
		if !ok {
			return true
		}
		if x, ok := sel.X.(*ast.Ident); ok && name != "" && x.Name == name && slices.Contains(clockFunctions, sel.Sel.Name) {
			uses = append(uses, sel)
		}
		return true
	})
	return uses
}

func TestEveryPackageSaysWhatItIsFor(t *testing.T) {
	all, _ := sources(t)
	for _, pkg := range all {
		if why := docProblem(pkg); why != "" {
			t.Errorf("%s: %s", pkg.path, why)
		}
	}
}

// docProblem says what is wrong with a package's comment: it must be there and begin as Go wants it.
func docProblem(pkg *source) string {
	for _, name := range slices.Sorted(maps.Keys(pkg.files)) {
		file := pkg.files[name]
		if file.Doc == nil {
			continue
		}
		text := new(doc.Package).Synopsis(file.Doc.Text())
		if file.Name.Name == "main" {
			if strings.HasPrefix(text, "Command ") || strings.HasPrefix(text, "Program ") {
				return ""
			}
		} else if strings.HasPrefix(text, "Package "+file.Name.Name+" ") {
			return ""
		}
	}
	return "no file has a package comment that begins with \"Package <name> \" (\"Command <name> \" for a main package): say what it is for and who may import it"
}

func TestMainFilesAreSmall(t *testing.T) {
	all, positions := sources(t)
	for _, pkg := range all {
		file := pkg.files["main.go"]
		if file == nil || !under(pkg.path, "cmd") {
			continue
		}
		if lines := positions.File(file.Pos()).LineCount(); lines > maxMainLines {
			t.Errorf("%s/main.go has %d lines, at most %d are allowed: parse, build, run, and leave the rest to a package below internal/", pkg.path, lines, maxMainLines)
		}
	}
}

func TestPackageNamesSaySomething(t *testing.T) {
	all, positions := sources(t)
	for _, pkg := range all {
		for _, file := range pkg.files {
			if slices.Contains(badNames, file.Name.Name) || slices.Contains(badNames, filepath.Base(pkg.path)) {
				t.Errorf("%s: package %s in %s: name it after what it holds", position(positions, file), file.Name.Name, pkg.path)
			}
		}
	}
}

func position(positions *token.FileSet, file *ast.File) token.Position {
	return positions.Position(file.Package)
}

// TestAPICanBeImported: replace directives do not reach those who import a module.
func TestAPICanBeImported(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(root(t), "api", "go.mod"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(strings.TrimSpace(line), "replace") {
			t.Errorf("api/go.mod: %q: the module must need no replace directive", strings.TrimSpace(line))
		}
	}
}
