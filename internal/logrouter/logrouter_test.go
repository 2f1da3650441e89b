package logrouter

import (
	"strings"
	"testing"
)

const (
	output = "[OUTPUT]\n    Name cloudwatch_logs\n    Match   *\n    region us-east-1\n"
	filter = "[FILTER]\n    Name parser\n    Match *\n    Key_name log\n    Parser crio\n[FILTER]\n    Name kubernetes\n    Match kube.*\n    Merge_Log On\n"
	// parser is the user guide's.
	parser = "[PARSER]\n    Name crio\n    Format Regex\n    Regex ^(?<time>[^ ]+) (?<stream>stdout|stderr) (?<logtag>P|F) (?<log>.*)$\n    Time_Key    time\n"
)

// TestInvalid: the rules of the user guide (facts 5.1).
func TestInvalid(t *testing.T) {
	for name, tc := range map[string]struct {
		data map[string]string
		want string
	}{
		"facts 5.1: the user guide's sample":         {map[string]string{"flb_log_cw": "false", "filters.conf": filter, "output.conf": output, "parsers.conf": parser}, ""},
		"facts 5.1: an output is enough":             {map[string]string{"output.conf": output}, ""},
		"facts 5.1: several outputs":                 {map[string]string{"output.conf": output + "[OUTPUT]\n    name es\n    MATCH *\n"}, ""},
		"facts 5.1: comments and empty lines":        {map[string]string{"output.conf": "# mine\n\n" + output}, ""},
		"facts 5.1: no output":                       {map[string]string{"filters.conf": filter}, "at least one supported Output plugin has to be provided"},
		"facts 2.5: an output that is not supported": {map[string]string{"output.conf": strings.Replace(output, "cloudwatch_logs", "amazon_data_firehose", 1)}, "amazon_data_firehose is not a supported output plugin"},
		"facts 5.1: a filter that is not supported":  {map[string]string{"output.conf": output, "filters.conf": "[FILTER]\n  Name lua\n  Match *\n"}, "lua is not a supported filter plugin"},
		"facts 5.1: 5300 characters":                 {map[string]string{"output.conf": output + "    tag " + strings.Repeat("x", 5300-len(output)-8)}, ""},
		"facts 5.1: 5301 characters":                 {map[string]string{"output.conf": output + "    tag " + strings.Repeat("x", 5301-len(output)-8)}, "it has 5301 characters, more than 5300"},
		"facts 5.1: another section":                 {map[string]string{"output.conf": "[INPUT]\n  Name tail\n" + output}, "output.conf: line 1: only sections [OUTPUT] are accepted, not [INPUT]"},
		"facts 5.1: a section under another's key":   {map[string]string{"output.conf": output, "filters.conf": parser}, "filters.conf: line 1: only sections [FILTER] are accepted, not [PARSER]"},
		"facts 5.1: no match":                        {map[string]string{"output.conf": "[OUTPUT]\n  Name es\n"}, "output.conf: section [OUTPUT] has no match"},
		"facts 5.1: no format":                       {map[string]string{"output.conf": output, "parsers.conf": "[PARSER]\n  Name p\n"}, "parsers.conf: section [PARSER] has no format"},
		"facts 5.1: environment variables":           {map[string]string{"output.conf": strings.Replace(output, "us-east-1", "${REGION}", 1)}, "output.conf: region: environment variables are not allowed"},
		"facts 5.1: keys not indented alike":         {map[string]string{"output.conf": "[OUTPUT]\n  Name es\n    Match *\n"}, "output.conf: line 3: it is not indented as the keys before it"},
		"facts 5.1: directives not indented alike":   {map[string]string{"output.conf": "[OUTPUT]\n   Name es\n   Match *\n [OUTPUT]\n"}, "output.conf: line 4: it is not indented as the directives before it"},
		"facts 5.1: keys indented as directives":     {map[string]string{"output.conf": "[OUTPUT]\nName es\n"}, "output.conf: line 2: keys are indented more than directives"},
		"facts 5.1: keys of the service":             {map[string]string{"output.conf": output, "filters.conf": filter + "    Kube_URL https://x\n"}, "filters.conf: filter kubernetes: kube_url is service owned and must not be specified"},
		"facts 5.1: flb_log_cw":                      {map[string]string{"output.conf": output, "flb_log_cw": "yes"}, `flb_log_cw is "yes", not true or false`},
		"a key before any section":                   {map[string]string{"output.conf": "  Name es\n"}, "output.conf: line 1: it belongs to no section"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := Invalid(tc.data); got != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
}
