package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// Ports of a server: one swallows, one answers a byte and closes, one echoes, one speaks HTTP.
const (
	sinkPort, shortPort, echoPort, httpPort = "5001", "5002", "5003", "8080"

	endless = "/endless" // a page without an end

	parallel = 4 // connections, or requests, at once
	chunk    = 256 << 10
	// silence is how long an echo is waited for.
	silence = 300 * time.Millisecond
	// beginning is how long a client may take until it watches.
	beginning = 30 * time.Second
	// knock is how long a connection is tried before it is tried again.
	knock = 20 * time.Millisecond
)

// traffic are this program's other names: what it does in a pod, in a container, or outside. Each prints one number.
var traffic = map[string]func(args []string) error{
	"serve": serve, "send": send, "connect": connect, "request": request, "visit": visit, "fetch": fetch, "pulse": pulse, "open": open, "begun": isBegun,
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
		web := http.NewServeMux()
		web.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok\n") })
		web.HandleFunc(endless, func(w http.ResponseWriter, _ *http.Request) {
			for data := make([]byte, chunk); ; {
				if _, err := w.Write(data); err != nil {
					return
				}
			}
		})
		failed <- (&http.Server{Addr: ":" + httpPort, ReadHeaderTimeout: time.Minute, Handler: web}).ListenAndServe()
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

// request asks at an address for a host, over connections that stay open.
func request(args []string) error {
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: parallel}}
	return repeat(args[2], func() error { return ask(client, args[0], args[1]) })
}

// visit does it over a new connection each time.
func visit(args []string) error {
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	return repeat(args[2], func() error { return ask(client, args[0], args[1]) })
}

func ask(client *http.Client, address, host string) error {
	resp, err := answer(client, "http://"+address+"/", host)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	return err
}

// answer is one with status 200.
func answer(client *http.Client, url, host string) (*http.Response, error) {
	req, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	req.Host = host
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, errors.Join(errors.New(resp.Status), resp.Body.Close())
	}
	return resp, nil
}

// fetch prints how many Gbit/s one answer carries.
func fetch(args []string) error {
	length, err := span(args[2])
	if err != nil {
		return err
	}
	resp, err := answer(http.DefaultClient, "http://"+args[0]+endless, args[1])
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	data, got, began := make([]byte, chunk), 0, time.Now()
	for time.Since(began) < length {
		n, err := resp.Body.Read(data)
		if err != nil {
			return err
		}
		got += n
	}
	fmt.Println(float64(got) * 8 / 1e9 / time.Since(began).Seconds())
	return nil
}

// pulse prints when the last echo came, as soon as no more come (milliseconds since 1970).
func pulse(args []string) error {
	c, err := net.Dial("tcp", net.JoinHostPort(args[0], echoPort))
	if err != nil {
		return err
	}
	defer c.Close()
	defer os.Remove(begun)
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
		if last.IsZero() {
			begin()
		}
		last = time.Now()
	}
	fmt.Println(millis(last))
	return nil
}

// open prints when a connection can be made for the first time.
func open(args []string) error {
	defer os.Remove(begun)
	for {
		c, err := net.DialTimeout("tcp", net.JoinHostPort(args[0], shortPort), knock)
		if err == nil {
			fmt.Println(millis(time.Now()))
			return c.Close()
		}
		begin()
		time.Sleep(time.Millisecond)
	}
}

// begun is a file that is there while pulse or open watch: the one had an echo, the other none yet.
const begun = "/begun"

func begin() { _ = os.WriteFile(begun, nil, 0o600) } // who waits for it says that it is missing

// isBegun waits for it and prints 1.
func isBegun([]string) error {
	for end := time.Now().Add(beginning); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if _, err := os.Stat(begun); err == nil {
			fmt.Println(1)
			return nil
		}
	}
	return errors.New("the client does not begin to watch")
}

func millis(t time.Time) float64 { return float64(t.UnixMicro()) / 1000 }
