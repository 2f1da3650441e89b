package shim

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/cgroups/v3/cgroup2"
	"google.golang.org/protobuf/proto"
)

// TestMetrics: what is made of a control group's files is what containerd's own library makes of them.
func TestMetrics(t *testing.T) {
	full := map[string]string{
		"cpu.stat":            "usage_usec 42\nuser_usec 40\nsystem_usec 2\nnr_periods 7\nnr_throttled 3\nthrottled_usec 5\nnr_bursts 1\nburst_usec 2\ncore_sched.force_idle_usec 0\n",
		"cpu.pressure":        "some avg10=1.50 avg60=0.25 avg300=0.00 total=12345\nfull avg10=0.00 avg60=0.00 avg300=0.01 total=7\n",
		"memory.stat":         "anon 1\nfile 2\nkernel 9\nkernel_stack 3\nshmem 4\nfile_mapped 5\ninactive_file 6\npgfault 7\npgmajfault 8\nworkingset_refault_anon 1\nthp_collapse_alloc 10\n",
		"memory.current":      "1048576\n",
		"memory.max":          "max\n",
		"memory.peak":         "2097152\n",
		"memory.swap.current": "0\n",
		"memory.swap.max":     "18446744073709547520\n",
		"memory.events":       "low 0\nhigh 1\nmax 2\noom 3\noom_kill 4\noom_group_kill 5\n",
		"memory.pressure":     "some avg10=0.00 avg60=0.00 avg300=0.00 total=0\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n",
		"pids.current":        "3\n",
		"pids.max":            "100\n",
		"io.stat":             "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6\n254:16 rbytes=10 wbytes=20 rios=30 wios=40 dbytes=0 dios=0\n",
		"io.pressure":         "some avg10=0.00 avg60=0.00 avg300=0.00 total=9\n",
	}
	for name, files := range map[string]map[string]string{"all": full, "none": {}, "some": {"memory.stat": "anon 4\n", "memory.current": "5\n", "cpu.stat": "usage_usec 1\n", "memory.events": "oom_kill 1\n"}} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			var contents []string
			for _, file := range measured {
				contents = append(contents, files[file])
				if files[file] == "" {
					continue
				}
				if err := os.WriteFile(filepath.Join(dir, file), []byte(files[file]), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			group, err := cgroup2.Load("/", cgroup2.WithMountpoint(dir))
			if err != nil {
				t.Fatal(err)
			}
			want, err := group.Stat()
			if err != nil {
				t.Fatal(err)
			}
			want.Rdma, want.Hugetlb = nil, nil // the guest has none
			if got := metrics(contents); !proto.Equal(got, want) {
				t.Errorf("got  %v\nwant %v", got, want)
			}
		})
	}
}
