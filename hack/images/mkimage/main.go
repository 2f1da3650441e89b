// Command mkimage turns directories into OCI images without a container engine, with the same bytes for the same content:
//
//	mkimage layer -o base.tar.gz DIR                     all of DIR
//	mkimage layer -o nginx.tar.gz -base base.tar.gz DIR  what DIR has more, else or less than the layer below
//	mkimage image -o nginx.tar -config nginx.json -layer base.tar.gz -layer nginx.tar.gz NAME:TAG...
//	mkimage image -o other.tar -from LAYOUT NAME:TAG...  the image of an OCI layout, under other names
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "mkimage:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) == 0 {
		return errors.New("want a command: layer or image")
	}
	flags := flag.NewFlagSet(args[0], flag.ContinueOnError)
	out := flags.String("o", "", "file to write")
	base := flags.String("base", "", "the layer below (layer)")
	config := flags.String("config", "", "the image's configuration as JSON (image)")
	from := flags.String("from", "", "an OCI layout whose image gets other names, instead of -config and -layer (image)")
	var layers, hollow list
	flags.Var(&layers, "layer", "a layer, the lowest first (image, repeated)")
	flags.Var(&hollow, "hollow", "a directory that is kept without its content, such as proc (layer, repeated)")
	if err := flags.Parse(args[1:]); err != nil {
		return err
	}
	switch {
	case *out == "":
		return errors.New("-o is missing")
	case args[0] == "layer" && flags.NArg() == 1:
		return writeLayer(*out, *base, flags.Arg(0), hollow)
	case args[0] == "image" && flags.NArg() > 0 && *from != "":
		image, err := first(*from)
		if err != nil {
			return err
		}
		return writeImage(*out, image, flags.Args())
	case args[0] == "image" && flags.NArg() > 0:
		image, err := assemble(*config, layers)
		if err != nil {
			return err
		}
		return writeImage(*out, image, flags.Args())
	}
	return fmt.Errorf("want: layer DIR, or image NAME:TAG..., not %q", strings.Join(args, " "))
}

// list is a flag that may be given more than once.
type list []string

func (l *list) String() string     { return strings.Join(*l, ",") }
func (l *list) Set(s string) error { *l = append(*l, s); return nil }
