package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"time"

	runc "github.com/containerd/go-runc"
	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/log"
	"gvisor.dev/gvisor/pkg/shim/v1/runsccmd"
	"gvisor.dev/gvisor/runsc/config"
	"gvisor.dev/gvisor/runsc/container"
	"gvisor.dev/gvisor/runsc/flag"
	"gvisor.dev/gvisor/runsc/specutils"
)

// failed is runsc's exit status when it cannot do what it was told.
const failed = 128

// direct is gVisor's process monitor, without processes where there need be none: what `runsc create`, `start`, `wait`,
// `state`, `events --stats` and `kill` do is done in the shim, by the same packages of gVisor that runsc is made of. A
// runsc process costs about 50 ms of processor time before it does anything; a pod's start executed six of them one
// after another, its statistics one each time, and the wait for each container one that lives as long as it does. The
// sandbox and its gofers remain processes of runsc, and every other command is executed as before.
type direct struct {
	runsccmd.ProcessMonitor
	// spawning is held while processes of the sandbox are made: gVisor hands them os.Stdin, os.Stdout and os.Stderr and,
	// under cgroup v1, enters the pod's cgroup for as long.
	spawning sync.Mutex
	// memory has the mount options of the pod's volumes in memory, by their directory on the host. The sandbox's spec sets it, first of all.
	memory map[string]string
}

// installDirect is for after gVisor's service has set its own monitor.
func installDirect() {
	// runsc says such things in its debug log only, and with that it is executed (see parse).
	log.SetTarget(discard{})
	runsccmd.Monitor = &direct{ProcessMonitor: runsccmd.Monitor}
}

type discard struct{}

func (discard) Emit(int, log.Level, time.Time, string, ...any) {}

// command is a runsc command to be carried out.
type command struct {
	conf *config.Config
	args *flag.FlagSet // of the subcommand: its flags and arguments
	run  func(*direct, *command, *exec.Cmd) error
}

// commands are those that this process carries out, and the flags that gVisor's shim gives them.
var commands = map[string]struct {
	run            func(*direct, *command, *exec.Cmd) error
	bools, strings []string
}{
	"create": {run: (*direct).create, strings: []string{"bundle", "pid-file", "console-socket", "user-log"}},
	"start":  {run: (*direct).start},
	"wait":   {run: (*direct).wait},
	"state":  {run: (*direct).state},
	"events": {run: (*direct).stats, bools: []string{"stats"}},
	"kill":   {run: (*direct).kill, bools: []string{"all"}},
}

// parse reads a command line of runsc; nil is one that has to be executed.
func parse(args []string) *command {
	global := flag.NewFlagSet("runsc", flag.ContinueOnError)
	global.SetOutput(io.Discard)
	config.RegisterFlags(global)
	if global.Parse(args[1:]) != nil || global.NArg() == 0 {
		return nil
	}
	known, ok := commands[global.Arg(0)]
	if !ok {
		return nil
	}
	own := flag.NewFlagSet(global.Arg(0), flag.ContinueOnError)
	own.SetOutput(io.Discard)
	for _, name := range known.bools {
		own.Bool(name, false, "")
	}
	for _, name := range known.strings {
		own.String(name, "", "")
	}
	if own.Parse(global.Args()[1:]) != nil || own.NArg() == 0 {
		return nil
	}
	conf, err := config.NewFromFlags(global)
	if err != nil || conf.Debug || conf.Rootless || conf.SystemdCgroup {
		return nil
	}
	c := &command{conf: conf, args: own, run: known.run}
	if own.Name() == "events" && c.flag("stats") != "true" {
		return nil // a stream of events, not one answer
	}
	return c
}

// Start carries cmd out or executes it.
func (d *direct) Start(cmd *exec.Cmd) (chan runc.Exit, error) {
	c := parse(cmd.Args)
	if c == nil {
		return d.ProcessMonitor.Start(cmd)
	}
	done := make(chan runc.Exit, 1)
	carryOut := func() {
		exit := runc.Exit{}
		if err := c.run(d, c, cmd); err != nil {
			exit.Status = failed
			c.complain(cmd, err)
		}
		exit.Timestamp = time.Now()
		done <- exit
	}
	if c.args.Name() == "wait" {
		go carryOut()
	} else {
		carryOut() // before Start returns, because the caller closes the container's ends of its pipes then
	}
	return done, nil
}

// Wait gives the exit status of a command. One that was carried out has no process.
func (d *direct) Wait(cmd *exec.Cmd, done chan runc.Exit) (int, error) {
	if cmd.Process != nil {
		return d.ProcessMonitor.Wait(cmd, done)
	}
	return (<-done).Status, nil
}

// complain tells an error as runsc does: on standard error, and in the log that gVisor's shim takes messages from.
func (c *command) complain(cmd *exec.Cmd, err error) {
	if cmd.Stderr != nil {
		fmt.Fprintln(cmd.Stderr, err)
	}
	file, openErr := os.OpenFile(c.conf.LogFilename, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if openErr != nil {
		return
	}
	defer file.Close()
	_ = json.NewEncoder(file).Encode(map[string]any{"msg": err.Error(), "level": "error", "time": time.Now()})
}

func (c *command) flag(name string) string { return c.args.Lookup(name).Value.String() }

// load finds the container that the command names.
func (c *command) load() (*container.Container, error) {
	loaded, err := container.Load(c.conf.RootDir, container.FullID{ContainerID: c.args.Arg(0)}, container.LoadOpts{})
	if err != nil {
		return nil, fmt.Errorf("loading container: %w", err)
	}
	return loaded, nil
}

func (d *direct) create(c *command, cmd *exec.Cmd) error {
	bundle := c.flag("bundle")
	if err := d.prepareVolumes(bundle); err != nil {
		return fmt.Errorf("preparing volumes: %w", err)
	}
	spec, err := specutils.ReadSpec(bundle, c.conf)
	if err != nil {
		return fmt.Errorf("reading spec: %w", err)
	}
	if err := specutils.FixConfig(c.conf, spec); err != nil {
		return fmt.Errorf("applying annotations to the configuration: %w", err)
	}
	if err := applySize(c.conf, spec); err != nil {
		return err
	}
	applyLimits(spec)
	return d.spawn(cmd, func() error {
		_, err := container.New(c.conf, container.Args{ID: c.args.Arg(0), Spec: spec, BundleDir: bundle,
			ConsoleSocket: c.flag("console-socket"), PIDFile: c.flag("pid-file"), UserLog: c.flag("user-log")})
		if err != nil {
			return fmt.Errorf("creating container: %w", err)
		}
		return nil
	})
}

func (d *direct) start(c *command, cmd *exec.Cmd) error {
	loaded, err := c.load()
	if err != nil {
		return err
	}
	if err := specutils.FixConfig(c.conf, loaded.Spec); err != nil {
		return fmt.Errorf("applying annotations to the configuration: %w", err)
	}
	if err := applySize(c.conf, loaded.Spec); err != nil {
		return err
	}
	applyLimits(loaded.Spec)
	return d.spawn(cmd, func() error {
		if err := loaded.Start(c.conf); err != nil {
			return fmt.Errorf("starting container: %w", err)
		}
		return nil
	})
}

// spawn runs what may start processes of runsc, with cmd's files as this process's own.
func (d *direct) spawn(cmd *exec.Cmd, what func() error) error {
	d.spawning.Lock()
	defer d.spawning.Unlock()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	file := func(stream any) *os.File {
		if f, ok := stream.(*os.File); ok {
			return f
		}
		return null // a buffer: the container's output does not go there, runsc's own does
	}
	stdin, stdout, stderr := os.Stdin, os.Stdout, os.Stderr
	defer func() { os.Stdin, os.Stdout, os.Stderr = stdin, stdout, stderr }()
	os.Stdin, os.Stdout, os.Stderr = file(cmd.Stdin), file(cmd.Stdout), file(cmd.Stderr)
	specutils.ExePath = cmd.Path
	return what()
}

func (d *direct) wait(c *command, cmd *exec.Cmd) error {
	loaded, err := c.load()
	if err != nil {
		return err
	}
	status, err := loaded.Wait()
	if err != nil {
		return fmt.Errorf("waiting on container %q: %w", loaded.ID, err)
	}
	code := status.ExitStatus()
	if status.Signaled() {
		code = 128 + int(status.Signal())
	}
	return json.NewEncoder(cmd.Stdout).Encode(map[string]any{"id": loaded.ID, "exitStatus": code})
}

func (d *direct) state(c *command, cmd *exec.Cmd) error {
	loaded, err := c.load()
	if err != nil {
		return err
	}
	return json.NewEncoder(cmd.Stdout).Encode(loaded.State())
}

func (d *direct) stats(c *command, cmd *exec.Cmd) error {
	loaded, err := c.load()
	if err != nil {
		return err
	}
	event, err := loaded.Event()
	if err != nil {
		return fmt.Errorf("getting statistics of container %q: %w", loaded.ID, err)
	}
	return json.NewEncoder(cmd.Stdout).Encode(event.Event)
}

func (d *direct) kill(c *command, _ *exec.Cmd) error {
	number, err := strconv.Atoi(c.args.Arg(1))
	if err != nil {
		return fmt.Errorf("unknown signal %q", c.args.Arg(1))
	}
	loaded, err := c.load()
	if err != nil {
		return err
	}
	return loaded.SignalContainer(unix.Signal(number), c.flag("all") == "true")
}
