// Package logrouter judges the configuration of EKS's log router, ConfigMap aws-logging, by the rules of the EKS user guide,
// fargate-logging (facts 5.1). Berth has no log router: it says what is wrong, as EKS does, and that there is none. Pure.
package logrouter

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// maxSize of all values together, in characters.
const maxSize = 5300

// kind of section: the key of the ConfigMap where it stands, what each must have, and the plugins that it may name.
type kind struct {
	key, section, noun string
	required           []string
	plugins            []string
	// optional: there need be none.
	optional bool
}

var kinds = []kind{
	{key: "output.conf", section: "OUTPUT", noun: "output", required: []string{"name", "match"},
		plugins: []string{"es", "firehose", "kinesis_firehose", "cloudwatch", "cloudwatch_logs", "kinesis"}},
	{key: "filters.conf", section: "FILTER", noun: "filter", required: []string{"name", "match"}, optional: true,
		plugins: []string{"grep", "parser", "record_modifier", "rewrite_tag", "throttle", "nest", "modify", "kubernetes"}},
	{key: "parsers.conf", section: "PARSER", noun: "parser", required: []string{"name", "format"}, optional: true},
}

// owned are the keys of filter kubernetes that are the service's own.
var owned = []string{"kube_url", "kube_ca_file", "kube_token_command", "kube_token_file"}

// Invalid says what is wrong with the ConfigMap's data, without a full stop; empty means nothing.
func Invalid(data map[string]string) string {
	size := 0
	for _, text := range data {
		size += len([]rune(text))
	}
	if size > maxSize {
		return fmt.Sprintf("it has %d characters, more than %d", size, maxSize)
	}
	for _, k := range kinds {
		sections, wrong := parse(k, data[k.key])
		if wrong != "" {
			return k.key + ": " + wrong
		}
		if len(sections) == 0 && !k.optional {
			return "at least one supported Output plugin has to be provided"
		}
		for _, s := range sections {
			if wrong := k.judge(s); wrong != "" {
				return wrong
			}
		}
	}
	if value, set := data["flb_log_cw"]; set && value != "true" && value != "false" {
		return fmt.Sprintf("flb_log_cw is %q, not true or false", value)
	}
	return ""
}

// judge says what is wrong with a section, whose keys are in lower case.
func (k kind) judge(section map[string]string) string {
	for _, key := range k.required {
		if section[key] == "" {
			return fmt.Sprintf("%s: section [%s] has no %s", k.key, k.section, key)
		}
	}
	name := section["name"]
	if k.plugins != nil && !slices.Contains(k.plugins, strings.ToLower(name)) {
		return fmt.Sprintf("%s is not a supported %s plugin", name, k.noun) // EKS's words
	}
	if strings.EqualFold(name, "kubernetes") && k.section == "FILTER" {
		for _, key := range owned {
			if _, set := section[key]; set {
				return fmt.Sprintf("%s: filter kubernetes: %s is service owned and must not be specified", k.key, key)
			}
		}
	}
	for _, key := range slices.Sorted(maps.Keys(section)) {
		if strings.Contains(section[key], "${") {
			return fmt.Sprintf("%s: %s: environment variables are not allowed", k.key, key)
		}
	}
	return ""
}

// parse reads sections of one kind: lines of a directive in brackets, and of keys and values that are indented more.
func parse(k kind, text string) (sections []map[string]string, wrong string) {
	const unknown = -1
	directives, keys := unknown, unknown // their indentation
	number := 0
	for line := range strings.Lines(text) {
		number++
		content := strings.TrimSpace(line)
		if content == "" || strings.HasPrefix(content, "#") {
			continue
		}
		indent := strings.Index(line, content)
		if strings.HasPrefix(content, "[") {
			if !strings.EqualFold(content, "["+k.section+"]") {
				return nil, fmt.Sprintf("line %d: only sections [%s] are accepted, not %s", number, k.section, content)
			}
			if directives != unknown && indent != directives {
				return nil, fmt.Sprintf("line %d: it is not indented as the directives before it", number)
			}
			directives = indent
			sections = append(sections, map[string]string{})
			continue
		}
		switch {
		case len(sections) == 0:
			return nil, fmt.Sprintf("line %d: it belongs to no section", number)
		case keys != unknown && indent != keys:
			return nil, fmt.Sprintf("line %d: it is not indented as the keys before it", number)
		case indent <= directives:
			return nil, fmt.Sprintf("line %d: keys are indented more than directives", number)
		}
		keys = indent
		key, value := content, ""
		if i := strings.IndexAny(content, " \t"); i >= 0 {
			key, value = content[:i], strings.TrimSpace(content[i:])
		}
		sections[len(sections)-1][strings.ToLower(key)] = value
	}
	return sections, ""
}
