package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"time"
)

// sockperfPort and iperfPort are the server's.
const (
	sockperfPort = "11111"
	iperfPort    = "5201"
	dataDir      = "/data"
)

// measure is one line of the result.
type measure struct {
	name, unit string
	command    []string
	read       func(printed string) (float64, error)
}

// measures of the network between a side and the server, of its disk, and of what its kernel does for a program.
func measures(server string, span time.Duration) []measure {
	seconds := strconv.Itoa(max(1, int(span.Seconds())))
	iperf := func(more ...string) []string {
		return append([]string{"iperf3", "--client", server, "--port", iperfPort, "--time", seconds, "--json"}, more...)
	}
	fio := func(pattern string, more ...string) []string {
		return append([]string{"fio", "--name=bench", "--filename=" + dataDir + "/file", "--size=128M", "--ioengine=psync", "--invalidate=1",
			"--output-format=json", "--time_based", "--runtime=" + seconds, "--rw=" + pattern}, more...)
	}
	stress := func(what string) []string {
		return []string{"stress-ng", "--" + what, "1", "--timeout", seconds, "--metrics", "--stdout", "--temp-path", dataDir}
	}
	const direct = "--direct=1"
	return []measure{
		{"TCP out of the pod", "Gbit/s", iperf(), iperfRate},
		{"TCP into the pod", "Gbit/s", iperf("--reverse"), iperfRate},
		{"TCP message of 14 bytes, one way", "µs", []string{"sockperf", "ping-pong", "--tcp", "--ip", server, "--port", sockperfPort, "--time", seconds}, sockperfLatency},
		{"disk, write in sequence (1 MiB, flushed)", "MB/s", fio("write", "--bs=1M", "--end_fsync=1"), fioRate("write")},
		{"disk, read in sequence (1 MiB, direct)", "MB/s", fio("read", "--bs=1M", direct), fioRate("read")},
		{"disk, read 4 KiB at random (direct)", "µs", fio("randread", "--bs=4k", direct), fioLatency("read")},
		{"disk, write 4 KiB at random and flush", "µs", fio("randwrite", "--bs=4k", "--fdatasync=1"), fioPeriod("write")},
		{"system calls (write to /dev/null)", "1000/s", stress("null"), stressRate("null", 1000)},
		{"bytes between processes (pipe)", "1000/s", stress("pipe"), stressRate("pipe", 1000)},
		{"processes started (fork)", "/s", stress("fork"), stressRate("fork", 1)},
		{"files made and removed (dentry)", "1000/s", stress("dentry"), stressRate("dentry", 1000)},
		{"computing (cpu)", "/s", stress("cpu"), stressRate("cpu", 1)},
	}
}

func iperfRate(printed string) (float64, error) {
	var report struct {
		Error string
		End   struct {
			Received struct {
				BitsPerSecond float64 `json:"bits_per_second"`
			} `json:"sum_received"`
		}
	}
	if err := json.Unmarshal([]byte(printed), &report); err != nil {
		return 0, fmt.Errorf("read what iperf3 printed: %w", err)
	}
	if report.Error != "" {
		return 0, errors.New(report.Error)
	}
	return report.End.Received.BitsPerSecond / 1e9, nil
}

var sockperfMedian = regexp.MustCompile(`percentile 50\.000 =\s+([\d.]+)`)

func sockperfLatency(printed string) (float64, error) { return find(sockperfMedian, printed) }

// fioJob is what fio says of reading or writing.
type fioJob struct {
	Bytes   float64 `json:"io_bytes"`
	Runtime float64 `json:"runtime"` // ms
	IOs     float64 `json:"total_ios"`
	Latency struct {
		Percentile map[string]float64 // ns
	} `json:"clat_ns"`
}

func fioReport(printed, what string) (fioJob, error) {
	var report struct{ Jobs []map[string]json.RawMessage }
	var job fioJob
	if err := json.Unmarshal([]byte(printed), &report); err != nil || len(report.Jobs) != 1 {
		return job, fmt.Errorf("read what fio printed: %w: %.200s", err, printed)
	}
	return job, json.Unmarshal(report.Jobs[0][what], &job)
}

func fioRate(what string) func(string) (float64, error) {
	return func(printed string) (float64, error) {
		job, err := fioReport(printed, what)
		return job.Bytes / 1e6 / (job.Runtime / 1000), err
	}
}

func fioLatency(what string) func(string) (float64, error) {
	return func(printed string) (float64, error) {
		job, err := fioReport(printed, what)
		return job.Latency.Percentile["50.000000"] / 1000, err
	}
}

// fioPeriod is from one write to the next, so with its flush.
func fioPeriod(what string) func(string) (float64, error) {
	return func(printed string) (float64, error) {
		job, err := fioReport(printed, what)
		return 1000 * job.Runtime / job.IOs, err
	}
}

// stressRate reads stress-ng's operations in a second of the clock.
func stressRate(what string, unit float64) func(string) (float64, error) {
	line := regexp.MustCompile(`\b` + what + `\s+\d+\s+[\d.]+\s+[\d.]+\s+[\d.]+\s+([\d.]+)\s`)
	return func(printed string) (float64, error) {
		rate, err := find(line, printed)
		return rate / unit, err
	}
}

func find(pattern *regexp.Regexp, printed string) (float64, error) {
	found := pattern.FindStringSubmatch(printed)
	if found == nil {
		return 0, fmt.Errorf("no %q in %q", pattern, printed)
	}
	return strconv.ParseFloat(found[1], 64)
}
