package shim

import (
	"os"
	"path/filepath"
	"testing"
)

func TestQuota(t *testing.T) {
	const limit = "25000 100000"
	file := filepath.Join(t.TempDir(), "cpu.max")
	is := func(want string) {
		t.Helper()
		if got, err := os.ReadFile(file); err != nil || string(got) != want {
			t.Fatalf("the limit is %q (%v), want %q", got, err, want)
		}
	}
	set := func(to string) {
		if err := os.WriteFile(file, []byte(to), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	do := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	idle, busy := func() bool { return true }, func() bool { return false }
	q := &quota{file: file, limit: limit, none: "max"}

	set(limit)
	do(q.lift(busy))
	is(limit)
	do(q.lift(idle))
	is("max")
	do(q.lift(idle))
	do(q.restore())
	is(limit)
	do(q.restore())
	is(limit)

	// A machine in whose place another was, which ended while the limit was lifted.
	set("max 100000\n")
	do(q.lift(idle))
	do(q.restore())
	is(limit)

	do((&quota{}).lift(idle))
}
