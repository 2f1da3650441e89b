package testkit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// InstallCRDs creates the custom resources of a directory and waits until the API server serves them.
func InstallCRDs(ctx context.Context, config *rest.Config, dir string) error {
	files, err := filepath.Glob(filepath.Join(dir, "*.yaml"))
	if err != nil || len(files) == 0 {
		return fmt.Errorf("no custom resources in %s: %w", dir, err)
	}
	c, err := client.New(config, client.Options{})
	if err != nil {
		return fmt.Errorf("make the API client: %w", err)
	}
	for _, file := range files {
		objects, err := create(ctx, c, file)
		if err != nil {
			return err
		}
		for _, o := range objects {
			if err := established(ctx, c, o); err != nil {
				return err
			}
		}
	}
	return nil
}

// Create creates the objects of a YAML file below the module root, such as charts/berth/templates/controller-rbac.yaml.
func (e *Env) Create(ctx context.Context, file string) error {
	root, err := moduleRoot()
	if err != nil {
		return err
	}
	c, err := client.New(e.Config, client.Options{})
	if err != nil {
		return fmt.Errorf("make the API client: %w", err)
	}
	_, err = create(ctx, c, filepath.Join(root, file))
	return err
}

func create(ctx context.Context, c client.Client, file string) ([]*unstructured.Unstructured, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read a manifest: %w", err)
	}
	var objects []*unstructured.Unstructured
	decoder := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(data), 4096)
	for {
		o := &unstructured.Unstructured{}
		if err := decoder.Decode(&o.Object); errors.Is(err, io.EOF) {
			return objects, nil
		} else if err != nil {
			return nil, fmt.Errorf("decode %s: %w", file, err)
		}
		if len(o.Object) == 0 {
			continue
		}
		if err := c.Create(ctx, o); err != nil && !apierrors.IsAlreadyExists(err) {
			return nil, fmt.Errorf("create what is in %s: %w", file, err)
		}
		objects = append(objects, o)
	}
}

func established(ctx context.Context, c client.Client, crd *unstructured.Unstructured) error {
	for {
		if err := c.Get(ctx, client.ObjectKeyFromObject(crd), crd); err != nil {
			return fmt.Errorf("get custom resource %s: %w", crd.GetName(), err)
		}
		status, _ := crd.Object["status"].(map[string]any)
		list, _ := status["conditions"].([]any)
		for _, c := range list {
			if m, ok := c.(map[string]any); ok && m["type"] == "Established" && m["status"] == "True" {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("custom resource %s is not served: %w", crd.GetName(), ctx.Err())
		case <-time.After(pollInterval):
		}
	}
}
