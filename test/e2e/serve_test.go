package e2e

import (
	"crypto/sha1"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
)

// serve is what this program does in a pod: HTTP (1.1, and 2 without TLS) with an echo for whoever upgrades at 8080, gRPC at 9000, and at 9001 the
// client's address as a PROXY protocol's header says it.
func serve() error {
	failed := make(chan error)
	go func() {
		var protocols http.Protocols
		protocols.SetHTTP1(true)
		protocols.SetUnencryptedHTTP2(true)
		server := &http.Server{Addr: ":8080", Protocols: &protocols, ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(tell)}
		failed <- server.ListenAndServe()
	}()
	go func() {
		l, err := net.Listen("tcp", ":9000")
		if err != nil {
			failed <- err
			return
		}
		server := grpc.NewServer()
		grpc_health_v1.RegisterHealthServer(server, health.NewServer())
		failed <- server.Serve(l)
	}()
	go func() { failed <- listen(":9001", proxied) }()
	return <-failed
}

// tell answers with what it knows of the request.
func tell(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Upgrade") == "" {
		fmt.Fprintf(w, "%s %s from %s by %s\n", r.Proto, r.URL.Path, r.Header.Get("X-Forwarded-For"), r.Header.Get("X-Forwarded-Proto"))
		return
	}
	conn, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	defer conn.Close()
	accept := sha1.Sum([]byte(r.Header.Get("Sec-WebSocket-Key") + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11")) // RFC 6455
	fmt.Fprintf(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: %s\r\n\r\n",
		base64.StdEncoding.EncodeToString(accept[:]))
	_, _ = io.Copy(conn, buffered)
}

func listen(address string, handle func(net.Conn) error) error {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer c.Close()
			if err := handle(c); err != nil {
				fmt.Fprintln(c, err)
			}
		}()
	}
}

// signature begins a header of version 2 of the PROXY protocol.
const signature = "\r\n\r\n\x00\r\nQUIT\n"

// proxied answers with the address in the header.
func proxied(c net.Conn) error {
	header := make([]byte, 16)
	if _, err := io.ReadFull(c, header); err != nil {
		return err
	}
	rest := make([]byte, binary.BigEndian.Uint16(header[14:]))
	if _, err := io.ReadFull(c, rest); err != nil {
		return err
	}
	if string(header[:12]) != signature || header[13] != 0x11 || len(rest) < 12 { // TCP over IPv4
		return errors.New("no PROXY protocol version 2 of a TCP connection")
	}
	_, err := fmt.Fprintln(c, "client", netip.AddrFrom4([4]byte(rest[:4])))
	return err
}
