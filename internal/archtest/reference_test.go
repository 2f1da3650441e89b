package archtest

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// reference is the table of every rule of EKS on Fargate. Each row names the tests that prove what it says of Berth.
const reference = "docs/reference/eks-fargate.md"

// ruleID is the section of the sourced facts and a word.
var ruleID = regexp.MustCompile(`^\d\.\d-[a-z0-9-]+$`)

// code is a span of code.
var code = regexp.MustCompile("`[^`]+`")

// rule is a row of the reference.
type rule struct {
	id    string
	tests []string // such as "internal/sizing TestVectors/facts 3.3: 300m"
}

// readRules reads the rows whose table begins with column id, and says what is wrong with them.
func readRules(text string) (rules []rule, wrong []string) {
	seen, columns := map[string]bool{}, 0
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if !strings.HasPrefix(line, "|") {
			columns = 0
			continue
		}
		cells := strings.Split(strings.Trim(line, "|"), "|")
		first := strings.TrimSpace(cells[0])
		switch {
		case first == "id":
			columns = len(cells)
		case columns == 0 || strings.HasPrefix(first, "---"):
		case len(cells) != columns:
			wrong = append(wrong, fmt.Sprintf("%s: %d columns, want %d", first, len(cells), columns))
		case !ruleID.MatchString(first):
			wrong = append(wrong, fmt.Sprintf("%q is no id: section and word, such as 1.4-wildcards", first))
		case seen[first]:
			wrong = append(wrong, first+" is there twice")
		default:
			r := rule{id: first}
			for _, span := range code.FindAllString(cells[columns-1], -1) {
				r.tests = append(r.tests, strings.Trim(span, "`"))
			}
			if len(r.tests) == 0 {
				wrong = append(wrong, first+" names no test")
			}
			seen[first] = true
			rules = append(rules, r)
		}
	}
	return rules, wrong
}

// TestEveryRuleIsTested: the reference cannot name a test, or a case of a table, that does not exist.
func TestEveryRuleIsTested(t *testing.T) {
	top := root(t)
	text, err := os.ReadFile(filepath.Join(top, reference))
	if err != nil {
		t.Fatal(err)
	}
	rules, wrong := readRules(string(text))
	if len(rules) < 100 {
		t.Errorf("%s has %d rules; has its form changed?", reference, len(rules))
	}
	for _, w := range wrong {
		t.Errorf("%s: %s", reference, w)
	}
	known := map[string]map[string]map[string]bool{}
	for _, r := range rules {
		for _, name := range r.tests {
			folder, test, found := strings.Cut(name, " ")
			if !found {
				t.Errorf("%s: %s: %q is not a folder and a test", reference, r.id, name)
				continue
			}
			if known[folder] == nil {
				known[folder] = testsOf(t, filepath.Join(top, folder))
			}
			function, one, _ := strings.Cut(test, "/")
			if cases, there := known[folder][function]; !there {
				t.Errorf("%s: %s: %s has no %s", reference, r.id, folder, function)
			} else if one != "" && !cases[one] {
				t.Errorf("%s: %s: the file of %s has no case %q", reference, r.id, function, one)
			}
		}
	}
}

// testsOf are the tests of a folder, each with the strings of its file: a case's name is one of them.
func testsOf(t *testing.T, folder string) map[string]map[string]bool {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(folder, "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]map[string]bool{}
	for _, name := range files {
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		texts := map[string]bool{}
		ast.Inspect(file, func(n ast.Node) bool {
			if lit, ok := n.(*ast.BasicLit); ok && lit.Kind == token.STRING {
				if text, err := strconv.Unquote(lit.Value); err == nil {
					texts[text] = true
				}
			}
			return true
		})
		for _, d := range file.Decls {
			if f, ok := d.(*ast.FuncDecl); ok && (strings.HasPrefix(f.Name.Name, "Test") || strings.HasPrefix(f.Name.Name, "Fuzz")) {
				out[f.Name.Name] = texts
			}
		}
	}
	return out
}

// TestReferenceRulesBite: rows that prove nothing are noticed.
func TestReferenceRulesBite(t *testing.T) {
	const head = "| id | rule | test |\n|---|---|---|\n"
	for name, test := range map[string]struct{ text, wrong string }{
		"good":            {head + "| 1.4-wildcards | x | `internal/profile TestGlob` |\n", ""},
		"no test":         {head + "| 1.4-wildcards | x | none |\n", "1.4-wildcards names no test"},
		"twice":           {head + "| 1.4-a | x | `a TestB` |\n| 1.4-a | x | `a TestB` |\n", "1.4-a is there twice"},
		"no id":           {head + "| wildcards | x | `a TestB` |\n", `"wildcards" is no id: section and word, such as 1.4-wildcards`},
		"a column short":  {head + "| 1.4-a | `a TestB` |\n", "1.4-a: 2 columns, want 3"},
		"another's table": {"| word | meaning |\n|---|---|\n| x | y |\n", ""},
	} {
		if _, wrong := readRules(test.text); strings.Join(wrong, "; ") != test.wrong {
			t.Errorf("%s: got %q, want %q", name, wrong, test.wrong)
		}
	}
}
