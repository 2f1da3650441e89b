package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	nodev1 "k8s.io/api/node/v1"
	clientscheme "k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-run/berth/api/v1alpha1"
	"github.com/berth-run/berth/internal/explain"
	"github.com/berth-run/berth/internal/layout"
	"github.com/berth-run/berth/internal/placement"
	"github.com/berth-run/berth/internal/podcheck"
	"github.com/berth-run/berth/internal/topology"
)

func explainCommand(dirs layout.Dirs) *cobra.Command {
	var cluster, file, namespace, output string
	var pod *cobra.Command
	parent := &cobra.Command{Use: "explain", Short: "Say what Berth makes of a pod or a connection, and why",
		Long: "Say what Berth makes of a pod, or of the pods of a manifest before anything is created: which profile takes it and why the others " +
			"do not, what is refused and how to mend it, its size and price, and where it would go.",
		Example: "  berth explain pod default/web-0\n  berth explain connection default/web-0 default/db-0 5432\n  berth explain --file deployment.yaml\n  helm template my-chart | berth explain --file -",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) == 1 && strings.HasPrefix(args[0], "pod/") {
				return pod.RunE(c, args)
			}
			if file == "" || len(args) > 0 {
				return errors.New("name a pod (berth explain pod NAMESPACE/NAME) or a manifest (--file FILE, - for standard input)")
			}
			return explainFile(c.Context(), dirs, cluster, file, namespace, output, c.InOrStdin(), c.OutOrStdout())
		}}
	pod = &cobra.Command{Use: "pod NAMESPACE/NAME", Aliases: []string{"pods", "po"}, Short: "Explain a pod of the cluster", Args: cobra.ExactArgs(1),
		Example: "  berth explain pod default/web-0",
		RunE: func(c *cobra.Command, args []string) error {
			named := strings.TrimPrefix(args[0], "pod/") // as kubectl get -o name prints it
			key := client.ObjectKey{Namespace: namespace, Name: named}
			if ns, name, found := strings.Cut(named, "/"); found {
				key = client.ObjectKey{Namespace: ns, Name: name}
			}
			kube, err := connect(dirs, cluster)
			if err != nil {
				return err
			}
			var p corev1.Pod
			if err := kube.Get(c.Context(), key, &p); err != nil {
				return fmt.Errorf("get the pod: %w", err)
			}
			return explainAll(c.Context(), kube, []explain.Template{{Name: key.String(), Pod: &p}}, output, c.OutOrStdout())
		}}
	f := parent.PersistentFlags()
	f.StringVar(&cluster, "cluster", layout.DefaultCluster, "name of the cluster")
	f.StringVarP(&namespace, "namespace", "n", corev1.NamespaceDefault, "namespace of what names none")
	f.StringVarP(&output, "output", "o", "text", "text, json or yaml")
	parent.Flags().StringVarP(&file, "file", "f", "", "manifest to explain, - for standard input")
	parent.AddCommand(pod, explainConnection(dirs, &cluster, &namespace, &output))
	return parent
}

func explainFile(ctx context.Context, dirs layout.Dirs, cluster, file, namespace, output string, in io.Reader, out io.Writer) error {
	var manifest []byte
	var err error
	if file == "-" {
		manifest, err = io.ReadAll(in)
	} else {
		manifest, err = os.ReadFile(file)
	}
	if err != nil {
		return fmt.Errorf("read the manifest: %w", err)
	}
	templates, err := explain.Templates(manifest, clientscheme.Codecs.UniversalDeserializer(), namespace)
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	if len(templates) == 0 {
		return fmt.Errorf("%s has nothing in it that makes pods", file)
	}
	kube, err := connect(dirs, cluster)
	if err != nil {
		return err
	}
	return explainAll(ctx, kube, templates, output, out)
}

func explainAll(ctx context.Context, kube client.Client, templates []explain.Template, output string, out io.Writer) error {
	state, err := clusterState(ctx, kube)
	if err != nil {
		return err
	}
	var reports []explain.Report
	for _, t := range templates {
		report := explain.Pod(t.Name, t.Pod, state)
		report.Replicas = t.Replicas
		reports = append(reports, report)
	}
	if output != "text" {
		return encode(out, output, reports)
	}
	for _, r := range reports {
		if err := r.Print(out); err != nil {
			return err
		}
	}
	return nil
}

// clusterState reads all that an explanation depends on.
func clusterState(ctx context.Context, kube client.Client) (explain.Cluster, error) {
	var profiles v1alpha1.FargateProfileList
	var subnets v1alpha1.SubnetList
	var hosts v1alpha1.HostList
	var berths v1alpha1.BerthList
	var namespaces corev1.NamespaceList
	var pods corev1.PodList // those of other schedulers have no berth and are not placed
	for _, list := range []client.ObjectList{&profiles, &subnets, &hosts, &berths, &namespaces, &pods} {
		if err := kube.List(ctx, list); err != nil {
			return explain.Cluster{}, fmt.Errorf("read the cluster's profiles, subnets, hosts, berths, namespaces and pods: %w", err)
		}
	}
	labels := map[string]map[string]string{}
	for _, n := range namespaces.Items {
		labels[n.Name] = n.Labels
	}
	return explain.Cluster{
		Profiles: profiles.Items, Berths: berths.Items, Region: layout.DefaultRegion,
		NamespaceLabels: func(name string) map[string]string {
			if known, ok := labels[name]; ok {
				return known
			}
			return map[string]string{corev1.LabelMetadataName: name} // what the API server will give it
		},
		Check: podcheck.Options{PVC: func(namespace, name string) (*corev1.PersistentVolumeClaim, *corev1.PersistentVolume, error) {
			claim, volume := &corev1.PersistentVolumeClaim{}, &corev1.PersistentVolume{}
			if err := kube.Get(ctx, client.ObjectKey{Namespace: namespace, Name: name}, claim); err != nil {
				return nil, nil, err
			}
			if claim.Spec.VolumeName == "" {
				return claim, nil, nil
			}
			return claim, volume, kube.Get(ctx, client.ObjectKey{Name: claim.Spec.VolumeName}, volume)
		}},
		RuntimeClass: func(name string) (*nodev1.RuntimeClass, error) {
			class := &nodev1.RuntimeClass{}
			return class, kube.Get(ctx, client.ObjectKey{Name: name}, class)
		},
		Topology: func(pod *corev1.Pod) placement.Topology {
			if !topology.Concerns(pod, pods.Items) {
				return nil
			}
			return topology.New(layout.DefaultRegion, topology.Of(pods.Items, berths.Items), namespaces.Items)
		},
		Snapshot: func(p *v1alpha1.FargateProfile) placement.Input {
			return placement.Snapshot(p, subnets.Items, hosts.Items, berths.Items, func(s *v1alpha1.Subnet) int { return int(s.Status.AvailableIPs) })
		},
	}, nil
}
