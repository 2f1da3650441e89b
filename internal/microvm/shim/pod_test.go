package shim

import (
	"reflect"
	"testing"

	"github.com/berth-run/berth/internal/microvm/guestapi"
	"github.com/berth-run/berth/internal/microvm/vmm"
)

// TestBeyond: a guest is not told to plug in what its template has.
func TestBeyond(t *testing.T) {
	const block = vmm.BlockMemory
	low, high := guestapi.Range{Start: 2 * block, Bytes: 4 * block}, guestapi.Range{Start: 32 * block, Bytes: 2 * block}
	for name, c := range map[string]struct {
		blocks []guestapi.Range
		memory int64
		want   []guestapi.Range
	}{
		"a template of before":     {[]guestapi.Range{low}, 0, []guestapi.Range{low}},
		"nothing plugged in":       {[]guestapi.Range{low, high}, vmm.BaseMemory, []guestapi.Range{low, high}},
		"a part":                   {[]guestapi.Range{low, high}, vmm.BaseMemory + 3*block, []guestapi.Range{{Start: 5 * block, Bytes: block}, high}},
		"all below the hole":       {[]guestapi.Range{low, high}, vmm.BaseMemory + 4*block, []guestapi.Range{high}},
		"beyond the hole":          {[]guestapi.Range{low, high}, vmm.BaseMemory + 5*block, []guestapi.Range{{Start: 33 * block, Bytes: block}}},
		"just as much":             {[]guestapi.Range{low, high}, vmm.BaseMemory + 6*block, nil},
		"more, for a smaller size": {[]guestapi.Range{low}, vmm.BaseMemory + 6*block, nil},
		"no more than the base":    {nil, vmm.BaseMemory + block, nil},
	} {
		t.Run(name, func(t *testing.T) {
			if got := beyond(c.blocks, c.memory); !reflect.DeepEqual(got, c.want) {
				t.Errorf("%v, want %v", got, c.want)
			}
		})
	}
}
