package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/cli-runtime/pkg/printers"

	"github.com/berth-run/berth/internal/layout"
	"github.com/berth-run/berth/internal/microvm/qemu"
	"github.com/berth-run/berth/internal/microvm/template"
	"github.com/berth-run/berth/internal/microvm/vmm"
)

const accelerationAuto = "auto"

// templateFlags say what templates are made of.
type templateFlags struct {
	guest, jail, acceleration, output string
	vcpus                             []int
}

func templateCommand(dirs layout.Dirs) *cobra.Command {
	parent := &cobra.Command{Use: "template", Short: "The templates that microVMs are restored from"}
	parent.AddCommand(templateBuild(dirs), templateList(dirs))
	return parent
}

func templateBuild(dirs layout.Dirs) *cobra.Command {
	f := &templateFlags{}
	c := &cobra.Command{Use: "build", Short: "Build templates ahead of need (root)", Args: cobra.NoArgs,
		Long: `Build the templates that microVMs are restored from: boot a guest, wait until it is ready and save it. This happens by itself when a
pod first needs a template, or when the guest or QEMU has changed; to build ahead saves that pod some seconds.`,
		Example: `  berth template build
  berth template build --vcpus 1,2 --acceleration tcg`,
		RunE: func(c *cobra.Command, _ []string) error {
			shapes, err := shapesFor(f.vcpus)
			if err != nil {
				return err
			}
			built, err := buildTemplates(c.Context(), dirs, f, shapes, c.ErrOrStderr())
			if err != nil {
				return err
			}
			return printTemplates(c.OutOrStdout(), f.output, built)
		}}
	f.bind(c)
	c.Flags().StringVar(&f.acceleration, "acceleration", accelerationAuto, "kvm, tcg (software emulation), or auto for kvm where a guest really boots under it")
	c.Flags().IntSliceVar(&f.vcpus, "vcpus", []int{1}, "numbers of vCPUs to build templates for: 1, 2, 4, 8, 16")
	return c
}

func templateList(dirs layout.Dirs) *cobra.Command {
	f := &templateFlags{}
	c := &cobra.Command{Use: "list", Short: "Show the templates of this machine", Args: cobra.NoArgs, Example: "  berth template list\n  berth template list -o json",
		RunE: func(c *cobra.Command, _ []string) error {
			all := []template.Status{}
			var problems []error
			for _, acceleration := range []string{qemu.KVM, qemu.TCG} {
				list, err := f.store(dirs, f.driver(dirs, acceleration), io.Discard).List(c.Context())
				if err != nil {
					problems = append(problems, err)
				}
				all = append(all, list...)
			}
			// Without KVM there is one problem, which nobody needs to hear of.
			if len(problems) == 2 {
				return problems[1]
			}
			return printTemplates(c.OutOrStdout(), f.output, all)
		}}
	f.bind(c)
	return c
}

func (f *templateFlags) bind(c *cobra.Command) {
	c.Flags().StringVar(&f.guest, "guest", layout.Guest(besideProgram("")), "directory of the guest's files (make guest)")
	c.Flags().StringVar(&f.jail, "jail", besideProgram("berth-jail"), "the program that confines QEMU")
	c.Flags().StringVarP(&f.output, "output", "o", "", "json or yaml")
}

// besideProgram is a file in the directory of this program.
func besideProgram(name string) string {
	program, err := os.Executable()
	if err != nil {
		return name
	}
	return filepath.Join(filepath.Dir(program), name)
}

func (f *templateFlags) driver(dirs layout.Dirs, acceleration string) *qemu.Driver {
	return qemu.New(qemu.Options{Acceleration: acceleration, Dir: dirs.MicroVM(), Jail: f.jail})
}

func (f *templateFlags) store(dirs layout.Dirs, driver vmm.Driver, progress io.Writer) *template.Store {
	began := time.Now()
	return template.NewStore(template.Options{Dir: dirs.Templates(), Driver: driver, Guest: template.GuestIn(f.guest), Confinement: templateConfinement,
		Report: func(what string) { fmt.Fprintf(progress, "%6.1fs  %s\n", time.Since(began).Seconds(), what) }})
}

// templateConfinement is that of the machines which become templates. They live for seconds, one after another.
var templateConfinement = vmm.Confinement{UID: layout.TemplateUser, GID: layout.TemplateUser}

func shapesFor(vcpus []int) ([]vmm.Shape, error) {
	var shapes []vmm.Shape
	for _, s := range template.Shapes {
		if slices.Contains(vcpus, s.VCPUs) {
			shapes = append(shapes, s)
		}
	}
	if len(vcpus) == 0 || len(shapes) != len(vcpus) {
		return nil, fmt.Errorf("--vcpus %v: there are templates for 1, 2, 4, 8 and 16 vCPUs", vcpus)
	}
	return shapes, nil
}

func buildTemplates(ctx context.Context, dirs layout.Dirs, f *templateFlags, shapes []vmm.Shape, progress io.Writer) ([]template.Status, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("building templates needs root (namespaces, users); use sudo")
	}
	driver, err := f.choose(ctx, dirs, progress)
	if err != nil {
		return nil, err
	}
	store := f.store(dirs, driver, progress)
	var built []template.Status
	for _, shape := range shapes {
		fmt.Fprintf(progress, "template for %d vCPUs:\n", shape.VCPUs)
		m, err := store.Build(ctx, shape)
		if err != nil {
			return nil, err
		}
		built = append(built, template.Status{Manifest: m})
	}
	return built, nil
}

// choose takes KVM if a guest boots under it, and says why if it does not.
func (f *templateFlags) choose(ctx context.Context, dirs layout.Dirs, progress io.Writer) (vmm.Driver, error) {
	if f.acceleration != accelerationAuto {
		return f.driver(dirs, f.acceleration), nil
	}
	fmt.Fprintln(progress, "trying whether a guest boots under KVM ...")
	driver, why, err := template.Choose(ctx, f.driver(dirs, qemu.KVM), f.driver(dirs, qemu.TCG), template.GuestIn(f.guest), templateConfinement)
	if err != nil {
		return nil, err
	}
	if why != nil {
		fmt.Fprintln(progress, "it does not, software emulation is taken:", why)
	}
	return driver, nil
}

func printTemplates(out io.Writer, output string, list []template.Status) error {
	if output != "" {
		return encode(out, output, list)
	}
	w := printers.GetNewTabWriter(out)
	fmt.Fprintln(w, "MONITOR\tACCELERATION\tVCPUS\tMEMORY UP TO\tSIZE\tBOOT TIME\tBUILT\tPROBLEM")
	for _, t := range list {
		size := resource.NewQuantity((t.RAM.Bytes+t.State.Bytes)>>20<<20, resource.BinarySI)
		most := resource.NewQuantity(t.Shape.MaxMemory>>30<<30, resource.BinarySI)
		fmt.Fprintf(w, "%s\t%s\t%d\t%s\t%s\t%.1fs\t%s\t%s\n", strings.TrimSpace(t.Monitor.Name+" "+t.Monitor.Version), t.Monitor.Acceleration, t.Shape.VCPUs,
			most, size, t.BootTime.Seconds(), t.Built.Format(time.DateTime), none(t.Problem))
	}
	return w.Flush()
}
