// Command vsockport lets the guest of package vmmtest, which is a script, be asked by vsock: for each line that comes it writes a line to the first file
// and answers with a line of the second.
package main

import (
	"bufio"
	"io"
	"log"
	"net"
	"os"

	"github.com/mdlayher/vsock"
	"golang.org/x/sys/unix"

	"github.com/berth-run/berth/internal/microvm/guestapi"
)

func main() {
	questions, err := os.OpenFile(os.Args[1], os.O_RDWR, 0)
	if err != nil {
		log.Fatal(err)
	}
	answers, err := os.OpenFile(os.Args[2], os.O_RDWR, 0)
	if err != nil {
		log.Fatal(err)
	}
	l, err := vsock.ListenContextID(unix.VMADDR_CID_ANY, guestapi.VsockPort, nil)
	if err != nil {
		log.Fatal(err)
	}
	from := bufio.NewReader(answers)
	for {
		conn, err := l.Accept()
		if err != nil {
			log.Fatal(err)
		}
		serve(conn, questions, from)
	}
}

func serve(conn net.Conn, questions io.Writer, answers *bufio.Reader) {
	defer conn.Close()
	for lines := bufio.NewReader(conn); ; {
		line, err := lines.ReadString('\n')
		if err != nil {
			return
		}
		if _, err = io.WriteString(questions, line); err == nil {
			line, err = answers.ReadString('\n')
		}
		if err != nil {
			log.Fatal(err)
		}
		if _, err := io.WriteString(conn, line); err != nil {
			return
		}
	}
}
