package qemu

import (
	"context"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-run/berth/internal/microvm/guestapi"
	"github.com/berth-run/berth/internal/microvm/vmm"
)

const block = vmm.BlockMemory

func TestBlocksAvoidTheHole(t *testing.T) {
	shape := vmm.Shape{VCPUs: 1, MaxMemory: vmm.BaseMemory + 63*block}
	below := int64(holeStart - blocksStart)
	for name, tt := range map[string]struct {
		memory int64
		want   []guestapi.Range
	}{
		"none":           {vmm.BaseMemory, nil},
		"less than base": {1, nil},
		"one":            {vmm.BaseMemory + 1, []guestapi.Range{{Start: blocksStart, Bytes: block}}},
		"up to the hole": {vmm.BaseMemory + below, []guestapi.Range{{Start: blocksStart, Bytes: uint64(below)}}},
		"one beyond the hole": {vmm.BaseMemory + below + 1, []guestapi.Range{
			{Start: blocksStart, Bytes: uint64(below)}, {Start: holeEnd, Bytes: block}}},
		"all": {shape.MaxMemory, []guestapi.Range{
			{Start: blocksStart, Bytes: uint64(below)}, {Start: holeEnd, Bytes: 63*block - uint64(below)}}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := blocks(shape, tt.memory)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Error(diff)
			}
			// The last block must be memory that the machine has.
			if len(got) > 0 {
				last := got[len(got)-1]
				end := int64(last.Start + last.Bytes)
				if last.Start >= holeEnd {
					end -= holeEnd - holeStart
				}
				if end > totalMemory(shape) {
					t.Errorf("the blocks end at %d, the memory at %d", end, totalMemory(shape))
				}
			}
		})
	}
}

func TestShapesAreChecked(t *testing.T) {
	for name, s := range map[string]vmm.Shape{
		"no processor":     {VCPUs: 0, MaxMemory: vmm.BaseMemory + block},
		"too many":         {VCPUs: 256, MaxMemory: vmm.BaseMemory + block},
		"no block":         {VCPUs: 1, MaxMemory: vmm.BaseMemory},
		"part of a block":  {VCPUs: 1, MaxMemory: vmm.BaseMemory + block + 1},
		"less than a base": {VCPUs: 1, MaxMemory: block},
	} {
		t.Run(name, func(t *testing.T) {
			if err := checkShape(s); err == nil {
				t.Error("accepted")
			}
		})
	}
}

// TestTurns: emulated vCPUs take turns while a guest boots, if there are several, and never afterwards.
func TestTurns(t *testing.T) {
	for vcpus, boot := range map[int]string{1: "thread=multi", 2: "thread=single", 16: "thread=single"} {
		shape := vmm.Shape{VCPUs: vcpus, MaxMemory: vmm.BaseMemory + block}
		for how, tt := range map[string]struct {
			arguments []string
			want      string
		}{
			"boot":    {bootArguments(TCG, shape, firstDescriptors, 0, 1), boot},
			"restore": {restoreArguments(TCG, shape, firstDescriptors, 0), "thread=multi"},
		} {
			if !strings.Contains(strings.Join(tt.arguments, " "), tt.want) {
				t.Errorf("%s with %d vCPUs has no %s: %q", how, vcpus, tt.want, tt.arguments)
			}
		}
	}
}

// TestTSCRateIsSteady: two measurements agree to a hundred thousandth, or the guest's clock would drift by a second a day.
func TestTSCRateIsSteady(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	first, err := tscKHz(ctx)
	if err != nil {
		t.Fatal(err)
	}
	second, err := tscKHz(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if first < 100_000 || math.Abs(float64(first-second)) > float64(first)/100_000 {
		t.Errorf("%d kHz, then %d kHz", first, second)
	}
}

func TestConsoleIsBounded(t *testing.T) {
	kept := newTail(8)
	l := &limited{to: kept, left: 5}
	for _, text := range []string{"abc", "defg", "h"} {
		if n, err := l.Write([]byte(text)); n != len(text) || err != nil {
			t.Errorf("write %q: %d, %v", text, n, err)
		}
	}
	if got := kept.String(); got != "abcde" {
		t.Errorf("the log has %q", got)
	}
	last := newTail(4)
	for _, text := range []string{"ab", "cdef", "g"} {
		_, _ = last.Write([]byte(text)) // never fails
	}
	if got := last.String(); got != "defg" {
		t.Errorf("the tail is %q", got)
	}
}
