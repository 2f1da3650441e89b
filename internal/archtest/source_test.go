package archtest

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// source is one package as it is written, whatever its build constraints; tests are left out.
type source struct {
	// path inside the repository, such as internal/node.
	path string
	// files by name.
	files map[string]*ast.File
}

// root is the folder with the module's go.mod.
func root(t *testing.T) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for ; ; dir = filepath.Dir(dir) {
		text, err := os.ReadFile(filepath.Join(dir, "go.mod"))
		if err == nil && strings.HasPrefix(string(text), "module "+module+"\n") {
			return dir
		}
		if dir == filepath.Dir(dir) {
			t.Fatalf("no go.mod of %s above this folder", module)
		}
	}
}

// sources reads every package of the two modules that are ours: the root's and api's.
func sources(t *testing.T) (map[string]*source, *token.FileSet) {
	t.Helper()
	top, positions, all := root(t), token.NewFileSet(), map[string]*source{}
	err := filepath.WalkDir(top, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(top, path)
		if err != nil {
			return err
		}
		rel = filepath.ToSlash(rel)
		if entry.IsDir() {
			return descend(path, rel)
		}
		if !strings.HasSuffix(rel, ".go") || strings.HasSuffix(rel, "_test.go") {
			return nil
		}
		file, err := parser.ParseFile(positions, path, nil, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		dir := filepath.ToSlash(filepath.Dir(rel))
		if all[dir] == nil {
			all[dir] = &source{path: dir, files: map[string]*ast.File{}}
		}
		all[dir].files[filepath.Base(rel)] = file
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all, positions
}

// descend is nil for a folder with code of ours, else filepath.SkipDir: other modules, hidden folders, testdata, bin.
func descend(path, rel string) error {
	name := filepath.Base(rel)
	switch {
	case rel == "." || rel == "api":
		return nil
	case strings.HasPrefix(name, "."), strings.HasPrefix(name, "_"), name == "testdata", rel == "bin", under(rel, temporary...):
		return filepath.SkipDir
	}
	if _, err := os.Stat(filepath.Join(path, "go.mod")); err == nil {
		return filepath.SkipDir
	}
	return nil
}

func importPath(spec *ast.ImportSpec) string {
	path, err := strconv.Unquote(spec.Path.Value)
	if err != nil {
		return spec.Path.Value
	}
	return path
}
