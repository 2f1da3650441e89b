package cli

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-run/berth/api/v1alpha1"
	"github.com/berth-run/berth/internal/eks"
	"github.com/berth-run/berth/internal/layout"
	"github.com/berth-run/berth/internal/localcluster"
	rules "github.com/berth-run/berth/internal/profile"
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
	if _, err := localcluster.GetStatus(context.Background(), dirs); err != nil {
		return nil, err // better than what a client says that reaches nobody
	}
	c, _, err := localcluster.Client(dirs.AdminKubeconfig())
	return c, err
}

func create(dirs layout.Dirs) *cobra.Command {
	parent := &cobra.Command{Use: "create", Short: "Create a Fargate profile"}
	var cluster, name, namespace, isolation, sizing, token string
	var labels, tags map[string]string
	var subnets, allowed []string
	var privileged bool
	c := &cobra.Command{Use: "fargateprofile [NAME]", Aliases: profileNouns, Args: cobra.MaximumNArgs(1), Short: "Create a Fargate profile: which pods run on Berth",
		Example: `  berth create fargateprofile --cluster berth --name web --namespace default --labels app=web
  berth create fargateprofile --namespace 'prod-*' --isolation gvisor
  berth create fargateprofile --name builds --namespace ci --isolation microvm --allow-privileged`,
		RunE: func(c *cobra.Command, args []string) error {
			if err := errors.Join(takeName(c, args, &name), notEmpty(c, "subnets", len(subnets))); err != nil {
				return err
			}
			if name == "" {
				name = generatedName(token)
			}
			if strings.HasPrefix(name, eks.ReservedProfilePrefix) {
				return fmt.Errorf("invalid Fargate profile %q: name should NOT start with %q", name, eks.ReservedProfilePrefix)
			}
			if namespace == "" {
				return fmt.Errorf("invalid Fargate profile %q: invalid profile selector at index #0: empty namespace (--namespace)", name)
			}
			p := &v1alpha1.FargateProfile{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1alpha1.FargateProfileSpec{
				Subnets: subnets, Tags: tags, Sizing: v1alpha1.Sizing(sizing),
				Isolation: v1alpha1.Isolation(isolation), AllowedIsolations: toIsolations(allowed), AllowPrivileged: privileged,
				Selectors: []v1alpha1.Selector{{Namespace: namespace, Labels: labels}}}}
			if token != "" {
				p.Annotations = map[string]string{v1alpha1.AnnotationClientRequestToken: token}
			}
			return createProfile(c.Context(), dirs, cluster, p, c.OutOrStdout())
		}}
	f := c.Flags()
	f.StringVar(&cluster, "cluster", layout.DefaultCluster, "name of the cluster")
	f.StringVar(&name, "name", "", "name of the profile (default: a generated one)")
	f.StringVar(&namespace, "namespace", "", "namespace of the pods; * and ? are wildcards")
	f.StringToStringVarP(&labels, "labels", "l", nil, "labels that the pods must have, key=value,...")
	f.StringToStringVarP(&tags, "tags", "t", nil, "tags of the profile, key=value,...")
	f.StringSliceVar(&subnets, "subnets", nil, "private subnets (default: all of the cluster)")
	f.StringVar(&token, "client-request-token", "", "a text of your own that names this request: repeated with the same token, it creates nothing more and succeeds")
	f.StringVar(&sizing, "sizing", string(v1alpha1.SizingTable), "table (the sizes of EKS) or exact (what the pod requests)")
	f.StringVar(&isolation, "isolation", "", "what the pods run in: auto, microvm or gvisor (default: the cluster's, see berth up)")
	f.StringSliceVar(&allowed, "allowed-isolations", nil, "isolations that a pod may ask for by annotation "+v1alpha1.AnnotationIsolation+" (default: none)")
	f.BoolVar(&privileged, "allow-privileged", false, "let containers have all rights inside their virtual machine; needs --isolation microvm")
	parent.AddCommand(c)
	return parent
}

func toIsolations(names []string) []v1alpha1.Isolation {
	var out []v1alpha1.Isolation
	for _, n := range names {
		out = append(out, v1alpha1.Isolation(n))
	}
	return out
}

// takeName takes a profile's name that was given without its flag. A flag that is given has a value: an unset variable of a shell is a mistake.
func takeName(c *cobra.Command, args []string, name *string) error {
	if len(args) == 1 {
		if c.Flags().Changed("name") {
			return fmt.Errorf("two names are given, %q and --name %q: give one", args[0], *name)
		}
		*name = args[0]
		return nil
	}
	return notEmpty(c, "name", len(*name))
}

func notEmpty(c *cobra.Command, flag string, length int) error {
	if c.Flags().Changed(flag) && length == 0 {
		return fmt.Errorf("--%s is empty: leave it out, or give it a value", flag)
	}
	return nil
}

// generatedName is a name such as eksctl makes, fp-9bfc77ad; the same for the same token.
func generatedName(token string) string {
	b := make([]byte, 4)
	_, _ = rand.Read(b) // never fails
	if token != "" {
		sum := sha256.Sum256([]byte(token))
		b = sum[:4]
	}
	return "fp-" + hex.EncodeToString(b)
}

func createProfile(ctx context.Context, dirs layout.Dirs, cluster string, p *v1alpha1.FargateProfile, out io.Writer) error {
	c, err := connect(dirs, cluster)
	if err != nil {
		return err
	}
	if err := submitProfile(ctx, c, cluster, p); err != nil {
		return err
	}
	return awaitActive(ctx, c, cluster, p, out)
}

// submitProfile creates the profile, unless the same request has created it before.
func submitProfile(ctx context.Context, c client.Client, cluster string, p *v1alpha1.FargateProfile) error {
	var list v1alpha1.FargateProfileList
	if err := c.List(ctx, &list); err != nil {
		return fmt.Errorf("list Fargate profiles: %w", err)
	}
	if existing := find(list.Items, p.Name); existing != nil && existing.DeletionTimestamp != nil {
		return errors.New(rules.MessageCannotCreate(p.Name, cluster, existing))
	} else if existing != nil {
		return repeated(existing, p)
	}
	if ahead := rules.Busy(p.Name, list.Items); ahead != nil {
		return errors.New(rules.MessageCannotCreate(p.Name, cluster, ahead))
	}
	want := p.DeepCopy()
	err := c.Create(ctx, p)
	if apierrors.IsAlreadyExists(err) {
		if err := c.Get(ctx, client.ObjectKeyFromObject(p), p); err != nil {
			return fmt.Errorf("get Fargate profile %q: %w", p.Name, err)
		}
		return repeated(p, want)
	}
	if err != nil {
		return fmt.Errorf("create Fargate profile %q: %w", p.Name, err)
	}
	return nil
}

func find(profiles []v1alpha1.FargateProfile, name string) *v1alpha1.FargateProfile {
	for i := range profiles {
		if profiles[i].Name == name {
			return &profiles[i]
		}
	}
	return nil
}

// repeated is nil if the profile that exists was created by the same request: same token, same parameters.
func repeated(existing, asked *v1alpha1.FargateProfile) error {
	token := asked.Annotations[v1alpha1.AnnotationClientRequestToken]
	if token == "" || existing.Annotations[v1alpha1.AnnotationClientRequestToken] != token {
		return errors.New("A Fargate Profile already exists with this name in this cluster.") //nolint:staticcheck // the text is that of EKS
	}
	if !equality.Semantic.DeepEqual(existing.Spec, asked.Spec) {
		return fmt.Errorf("client request token %q was used before, for profile %s with other parameters; use another token", token, existing.Name)
	}
	return nil
}

func awaitActive(ctx context.Context, c client.Client, cluster string, p *v1alpha1.FargateProfile, out io.Writer) error {
	err := wait.PollUntilContextTimeout(ctx, profilePoll, profileWait, true, func(ctx context.Context) (bool, error) {
		if err := c.Get(ctx, client.ObjectKeyFromObject(p), p); err != nil {
			return false, err
		}
		if p.Status.Status == v1alpha1.ProfileCreateFailed {
			return false, errors.New(whyNotReady(p))
		}
		return p.Status.Status == v1alpha1.ProfileActive, nil
	})
	if err == nil {
		fmt.Fprintf(out, "created Fargate profile %q on cluster %q: it is ACTIVE\n", p.Name, cluster)
		return warnIsolation(ctx, c, p, out)
	}
	if p.Status.Status == v1alpha1.ProfileCreateFailed {
		// Nothing useful came of it: leave the name free for the corrected command.
		return errors.Join(err, client.IgnoreNotFound(c.Delete(ctx, p)), awaitGone(ctx, c, p))
	}
	return fmt.Errorf("wait for Fargate profile %q to be ACTIVE (%s): %w", p.Name, whyNotReady(p), err)
}

// warnIsolation says so if no host can run the isolation that the profile asks for.
func warnIsolation(ctx context.Context, c client.Client, p *v1alpha1.FargateProfile, out io.Writer) error {
	var hosts v1alpha1.HostList
	if err := c.List(ctx, &hosts); err != nil {
		return fmt.Errorf("list hosts: %w", err)
	}
	asked := p.Status.Isolation
	able := slices.ContainsFunc(hosts.Items, func(h v1alpha1.Host) bool { return slices.Contains(h.Status.Isolations, asked) })
	if able || asked == v1alpha1.IsolationAuto {
		return nil
	}
	fmt.Fprintf(out, "warning: no host runs isolation %s: the profile's pods will wait for one\n", asked)
	for _, h := range hosts.Items {
		for _, probe := range h.Status.Probes {
			if probe.Isolation == asked {
				fmt.Fprintf(out, "  host %s: %s\n", h.Name, probe.Message)
			}
		}
	}
	return nil
}

func whyNotReady(p *v1alpha1.FargateProfile) string {
	if ready := meta.FindStatusCondition(p.Status.Conditions, v1alpha1.ConditionReady); ready != nil {
		return ready.Message
	}
	return "berth-controller has not looked at it yet; `berth status` tells whether it runs"
}

func awaitGone(ctx context.Context, c client.Client, p *v1alpha1.FargateProfile) error {
	err := wait.PollUntilContextTimeout(ctx, profilePoll, profileWait, true, func(ctx context.Context) (bool, error) {
		err := c.Get(ctx, client.ObjectKeyFromObject(p), p)
		return apierrors.IsNotFound(err), client.IgnoreNotFound(err)
	})
	if err != nil {
		return fmt.Errorf("wait for Fargate profile %q to go (%s): %w", p.Name, whyNotReady(p), err)
	}
	return nil
}

func get(dirs layout.Dirs) *cobra.Command {
	parent := &cobra.Command{Use: "get", Short: "Get Fargate profiles"}
	var cluster, name, output string
	c := &cobra.Command{Use: "fargateprofile [NAME]", Aliases: profileNouns, Args: cobra.MaximumNArgs(1), Short: "Get Fargate profiles",
		Example: "  berth get fargateprofile --cluster berth\n  berth get fargateprofile --name web -o yaml",
		RunE: func(c *cobra.Command, args []string) error {
			if err := takeName(c, args, &name); err != nil {
				return err
			}
			profiles, err := listProfiles(c.Context(), dirs, cluster, name)
			if err != nil {
				return err
			}
			if output == "table" {
				return printProfiles(c.OutOrStdout(), profiles)
			}
			return encode(c.OutOrStdout(), output, eksctlProfiles(profiles))
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

func remove(dirs layout.Dirs) *cobra.Command {
	parent := &cobra.Command{Use: "delete", Short: "Delete a Fargate profile"}
	var cluster, name string
	var await bool
	c := &cobra.Command{Use: "fargateprofile [NAME]", Aliases: profileNouns, Args: cobra.MaximumNArgs(1), Short: "Delete a Fargate profile and the pods that run on it",
		Example: "  berth delete fargateprofile --cluster berth --name web --wait",
		RunE: func(c *cobra.Command, args []string) error {
			if err := takeName(c, args, &name); err != nil {
				return err
			}
			if name == "" {
				return errors.New("required flag(s) \"name\" not set: which profile?")
			}
			return deleteProfile(c.Context(), dirs, cluster, name, await, c.OutOrStdout())
		}}
	c.Flags().StringVar(&cluster, "cluster", layout.DefaultCluster, "name of the cluster")
	c.Flags().StringVar(&name, "name", "", "name of the profile")
	c.Flags().BoolVar(&await, "wait", false, "wait until the profile and its pods are gone")
	parent.AddCommand(c)
	return parent
}

func deleteProfile(ctx context.Context, dirs layout.Dirs, cluster, name string, await bool, out io.Writer) error {
	c, err := connect(dirs, cluster)
	if err != nil {
		return err
	}
	var list v1alpha1.FargateProfileList
	if err := c.List(ctx, &list); err != nil {
		return fmt.Errorf("list Fargate profiles: %w", err)
	}
	p := find(list.Items, name)
	if p == nil {
		return notFound(name)
	}
	if p.DeletionTimestamp == nil {
		if ahead := rules.Busy(name, list.Items); ahead != nil {
			return errors.New(rules.MessageCannotDelete(name, cluster, ahead))
		}
	}
	if err := c.Delete(ctx, p); client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("delete Fargate profile %q: %w", name, err)
	}
	if !await {
		fmt.Fprintf(out, "deleting Fargate profile %q on cluster %q: its pods end first (--wait waits for that)\n", name, cluster)
		return nil
	}
	if err := awaitGone(ctx, c, p); err != nil {
		return err
	}
	fmt.Fprintf(out, "deleted Fargate profile %q on cluster %q\n", name, cluster)
	return nil
}
