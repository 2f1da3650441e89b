// Package chart is Berth's Helm chart; its custom resource definitions and roles are embedded for `berth up`.
package chart

import "embed"

// Files holds crds/*.yaml and templates/*.yaml; the templates are plain YAML.
//
//go:embed crds/*.yaml templates/*.yaml
var Files embed.FS
