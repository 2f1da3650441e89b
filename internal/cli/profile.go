package cli

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"sort"
	"strings"
	"time"

	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/cli-runtime/pkg/printers"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-run/berth/api/v1alpha1"
	"github.com/berth-run/berth/internal/eks"
	"github.com/berth-run/berth/internal/layout"
	"github.com/berth-run/berth/internal/localcluster"
)

const (
	profileWait = 2 * time.Minute
	profilePoll = 50 * time.Millisecond
)

var profileNouns = []string{"fargateprofiles", "profile"}

// connect makes a client for the cluster of that name; there is one on a machine.
func connect(dirs layout.Dirs, cluster string) (client.Client, error) {
	if cluster != layout.DefaultCluster {
		return nil, fmt.Errorf("No cluster found for name: %s.", cluster) //nolint:staticcheck // the text is that of EKS
	}
	c, _, err := localcluster.Client(dirs.AdminKubeconfig())
	return c, err
}

func create(dirs layout.Dirs) *cobra.Command {
	parent := &cobra.Command{Use: "create", Short: "Create a Fargate profile"}
	var cluster, name, namespace, isolation string
	var labels, tags map[string]string
	var subnets []string
	c := &cobra.Command{Use: "fargateprofile", Aliases: profileNouns, Args: cobra.NoArgs, Short: "Create a Fargate profile: which pods run on Berth",
		Example: `  berth create fargateprofile --cluster berth --name web --namespace default --labels app=web
  berth create fargateprofile --namespace 'prod-*' --isolation gvisor`,
		RunE: func(c *cobra.Command, _ []string) error {
			if name == "" {
				name = "fp-" + randomHex()
			}
			if strings.HasPrefix(name, eks.ReservedProfilePrefix) {
				return fmt.Errorf("invalid Fargate profile %q: name should NOT start with %q", name, eks.ReservedProfilePrefix)
			}
			if namespace == "" {
				return fmt.Errorf("invalid Fargate profile %q: invalid profile selector at index #0: empty namespace (--namespace)", name)
			}
			p := &v1alpha1.FargateProfile{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1alpha1.FargateProfileSpec{
				Subnets: subnets, Tags: tags, Isolation: v1alpha1.Isolation(isolation),
				Selectors: []v1alpha1.Selector{{Namespace: namespace, Labels: labels}}}}
			return createProfile(c.Context(), dirs, cluster, p, c.OutOrStdout())
		}}
	f := c.Flags()
	f.StringVar(&cluster, "cluster", layout.DefaultCluster, "name of the cluster")
	f.StringVar(&name, "name", "", "name of the profile (default: a generated one)")
	f.StringVar(&namespace, "namespace", "", "namespace of the pods; * and ? are wildcards")
	f.StringToStringVarP(&labels, "labels", "l", nil, "labels that the pods must have, key=value,...")
	f.StringToStringVarP(&tags, "tags", "t", nil, "tags of the profile, key=value,...")
	f.StringSliceVar(&subnets, "subnets", nil, "private subnets (default: all of the cluster)")
	f.StringVar(&isolation, "isolation", string(v1alpha1.IsolationAuto), "auto, microvm or gvisor")
	parent.AddCommand(c)
	return parent
}

func randomHex() string {
	b := make([]byte, 4)
	_, _ = rand.Read(b) // never fails
	return hex.EncodeToString(b)
}

func createProfile(ctx context.Context, dirs layout.Dirs, cluster string, p *v1alpha1.FargateProfile, out io.Writer) error {
	c, err := connect(dirs, cluster)
	if err != nil {
		return err
	}
	if err := c.Create(ctx, p); apierrors.IsAlreadyExists(err) {
		return errors.New("A Fargate Profile already exists with this name in this cluster.") //nolint:staticcheck // the text is that of EKS
	} else if err != nil {
		return fmt.Errorf("create Fargate profile %q: %w", p.Name, err)
	}
	err = wait.PollUntilContextTimeout(ctx, profilePoll, profileWait, true, func(ctx context.Context) (bool, error) {
		if err := c.Get(ctx, client.ObjectKeyFromObject(p), p); err != nil {
			return false, err
		}
		if p.Status.Status == v1alpha1.ProfileCreateFailed {
			ready := meta.FindStatusCondition(p.Status.Conditions, v1alpha1.ConditionReady)
			return false, errors.New(ready.Message)
		}
		return p.Status.Status == v1alpha1.ProfileActive, nil
	})
	if err == nil {
		fmt.Fprintf(out, "created Fargate profile %q on cluster %q: it is ACTIVE\n", p.Name, cluster)
		return nil
	}
	if p.Status.Status == v1alpha1.ProfileCreateFailed {
		// Nothing useful came of it: leave the name free for the corrected command.
		return errors.Join(err, client.IgnoreNotFound(c.Delete(ctx, p)))
	}
	return fmt.Errorf("wait for Fargate profile %q to be ACTIVE: %w", p.Name, err)
}

func get(dirs layout.Dirs) *cobra.Command {
	parent := &cobra.Command{Use: "get", Short: "Get Fargate profiles"}
	var cluster, name, output string
	c := &cobra.Command{Use: "fargateprofile", Aliases: profileNouns, Args: cobra.NoArgs, Short: "Get Fargate profiles",
		Example: "  berth get fargateprofile --cluster berth\n  berth get fargateprofile --name web -o yaml",
		RunE: func(c *cobra.Command, _ []string) error {
			profiles, err := listProfiles(c.Context(), dirs, cluster, name)
			if err != nil {
				return err
			}
			if output == "table" {
				return printProfiles(c.OutOrStdout(), profiles)
			}
			return encode(c.OutOrStdout(), output, profiles)
		}}
	c.Flags().StringVar(&cluster, "cluster", layout.DefaultCluster, "name of the cluster")
	c.Flags().StringVar(&name, "name", "", "name of a profile (default: all)")
	c.Flags().StringVarP(&output, "output", "o", "table", "table, json or yaml")
	parent.AddCommand(c)
	return parent
}

func listProfiles(ctx context.Context, dirs layout.Dirs, cluster, name string) ([]v1alpha1.FargateProfile, error) {
	c, err := connect(dirs, cluster)
	if err != nil {
		return nil, err
	}
	var list v1alpha1.FargateProfileList
	if err := c.List(ctx, &list); err != nil {
		return nil, fmt.Errorf("list Fargate profiles: %w", err)
	}
	if name == "" {
		return list.Items, nil
	}
	found := slices.DeleteFunc(list.Items, func(p v1alpha1.FargateProfile) bool { return p.Name != name })
	if len(found) == 0 {
		return nil, notFound(name)
	}
	return found, nil
}

func notFound(name string) error {
	return fmt.Errorf("No Fargate Profile found with name: %s.", name) //nolint:staticcheck // the text is that of EKS
}

// printProfiles prints eksctl's columns, a line for each selector.
func printProfiles(out io.Writer, profiles []v1alpha1.FargateProfile) error {
	w := printers.GetNewTabWriter(out)
	fmt.Fprintln(w, "NAME\tSELECTOR_NAMESPACE\tSELECTOR_LABELS\tPOD_EXECUTION_ROLE_ARN\tSUBNETS\tTAGS\tSTATUS")
	for _, p := range profiles {
		for _, s := range p.Spec.Selectors {
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", p.Name, s.Namespace, pairs(s.Labels), none(p.Spec.PodExecutionRoleArn),
				none(strings.Join(p.Status.Subnets, ",")), pairs(p.Spec.Tags), p.Status.Status)
		}
	}
	return w.Flush()
}

func pairs(m map[string]string) string {
	var out []string
	for k, v := range m {
		out = append(out, k+"="+v)
	}
	sort.Strings(out)
	return none(strings.Join(out, ","))
}

func none(s string) string {
	if s == "" {
		return "<none>"
	}
	return s
}

func remove(dirs layout.Dirs) *cobra.Command {
	parent := &cobra.Command{Use: "delete", Short: "Delete a Fargate profile"}
	var cluster, name string
	var await bool
	c := &cobra.Command{Use: "fargateprofile", Aliases: profileNouns, Args: cobra.NoArgs, Short: "Delete a Fargate profile and the pods that run on it",
		Example: "  berth delete fargateprofile --cluster berth --name web --wait",
		RunE: func(c *cobra.Command, _ []string) error {
			return deleteProfile(c.Context(), dirs, cluster, name, await, c.OutOrStdout())
		}}
	c.Flags().StringVar(&cluster, "cluster", layout.DefaultCluster, "name of the cluster")
	c.Flags().StringVar(&name, "name", "", "name of the profile")
	c.Flags().BoolVar(&await, "wait", false, "wait until the profile and its pods are gone")
	if err := c.MarkFlagRequired("name"); err != nil {
		panic(err) // the flag is defined above
	}
	parent.AddCommand(c)
	return parent
}

func deleteProfile(ctx context.Context, dirs layout.Dirs, cluster, name string, await bool, out io.Writer) error {
	c, err := connect(dirs, cluster)
	if err != nil {
		return err
	}
	p := &v1alpha1.FargateProfile{ObjectMeta: metav1.ObjectMeta{Name: name}}
	if err := c.Delete(ctx, p); apierrors.IsNotFound(err) {
		return notFound(name)
	} else if err != nil {
		return fmt.Errorf("delete Fargate profile %q: %w", name, err)
	}
	if await {
		err := wait.PollUntilContextTimeout(ctx, profilePoll, profileWait, true, func(ctx context.Context) (bool, error) {
			err := c.Get(ctx, client.ObjectKeyFromObject(p), p)
			return apierrors.IsNotFound(err), client.IgnoreNotFound(err)
		})
		if err != nil {
			return fmt.Errorf("wait for Fargate profile %q to go: %w", name, err)
		}
	}
	fmt.Fprintf(out, "deleted Fargate profile %q on cluster %q\n", name, cluster)
	return nil
}
