package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// Ports of a server: one swallows, one answers a byte and closes, one echoes, one speaks HTTP.
const (
	sinkPort, shortPort, echoPort, httpPort = "5001", "5002", "5003", "8080"

	parallel = 4 // connections, or requests, at once
	chunk    = 256 << 10
	// silence is how long an echo is waited for.
	silence = 300 * time.Millisecond
	// knock is how long a connection is tried before it is tried again.
	knock = 20 * time.Millisecond
)

// traffic are this program's other names: what it does in a pod, in a container, or outside. Each prints one number.
var traffic = map[string]func(args []string) error{
	"serve": serve, "send": send, "connect": connect, "request": request, "pulse": pulse, "open": open,
}

func serve([]string) error {
	failed := make(chan error)
	for port, handle := range map[string]func(net.Conn){
		sinkPort:  func(c net.Conn) { _, _ = io.CopyBuffer(io.Discard, struct{ io.Reader }{c}, make([]byte, chunk)) },
		shortPort: func(c net.Conn) { _, _ = c.Write([]byte("x")) },
		echoPort:  func(c net.Conn) { _, _ = io.Copy(c, c) },
	} {
		l, err := net.Listen("tcp", ":"+port)
		if err != nil {
			return err
		}
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					failed <- err
					return
				}
				go func() {
					defer c.Close()
					handle(c)
				}()
			}
		}()
	}
	go func() {
		failed <- (&http.Server{Addr: ":" + httpPort, ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, "ok\n")
		})}).ListenAndServe()
	}()
	return <-failed
}

func span(text string) (time.Duration, error) {
	seconds, err := strconv.ParseFloat(text, 64)
	return time.Duration(seconds * float64(time.Second)), err
}

// send prints how many Gbit/s one connection carries.
func send(args []string) error {
	length, err := span(args[1])
	if err != nil {
		return err
	}
	c, err := net.Dial("tcp", net.JoinHostPort(args[0], sinkPort))
	if err != nil {
		return err
	}
	defer c.Close()
	data, sent, began := make([]byte, chunk), 0, time.Now()
	for time.Since(began) < length {
		n, err := c.Write(data)
		if err != nil {
			return err
		}
		sent += n
	}
	fmt.Println(float64(sent) * 8 / 1e9 / time.Since(began).Seconds())
	return nil
}

// repeat does it, some at once, and prints how often a second.
func repeat(text string, do func() error) error {
	length, err := span(text)
	if err != nil {
		return err
	}
	var done atomic.Int64
	var g sync.WaitGroup
	failed := make(chan error, parallel)
	began := time.Now()
	for range parallel {
		g.Go(func() {
			for time.Since(began) < length {
				if err := do(); err != nil {
					failed <- err
					return
				}
				done.Add(1)
			}
		})
	}
	g.Wait()
	close(failed)
	if err := <-failed; err != nil {
		return err
	}
	fmt.Println(float64(done.Load()) / time.Since(began).Seconds())
	return nil
}

func connect(args []string) error {
	return repeat(args[1], func() error {
		c, err := net.Dial("tcp", net.JoinHostPort(args[0], shortPort))
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = io.ReadAll(c)
		return err
	})
}

// request asks at an address for a host.
func request(args []string) error {
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: parallel}}
	return repeat(args[2], func() error {
		req, err := http.NewRequest(http.MethodGet, "http://"+args[0]+"/", nil)
		if err != nil {
			return err
		}
		req.Host = args[1]
		resp, err := client.Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return errors.New(resp.Status)
		}
		_, err = io.Copy(io.Discard, resp.Body)
		return err
	})
}

// pulse prints when the last echo came, as soon as no more come (milliseconds since 1970).
func pulse(args []string) error {
	c, err := net.Dial("tcp", net.JoinHostPort(args[0], echoPort))
	if err != nil {
		return err
	}
	defer c.Close()
	var last time.Time
	for one := []byte{0}; ; time.Sleep(time.Millisecond) {
		if err := c.SetDeadline(time.Now().Add(silence)); err != nil {
			return err
		}
		_, werr := c.Write(one)
		_, rerr := io.ReadFull(c, one)
		if errors.Join(werr, rerr) != nil {
			break
		}
		last = time.Now()
	}
	fmt.Println(millis(last))
	return nil
}

// open prints when a connection can be made for the first time.
func open(args []string) error {
	for {
		c, err := net.DialTimeout("tcp", net.JoinHostPort(args[0], shortPort), knock)
		if err == nil {
			fmt.Println(millis(time.Now()))
			return c.Close()
		}
		time.Sleep(time.Millisecond)
	}
}

func millis(t time.Time) float64 { return float64(t.UnixMicro()) / 1000 }
