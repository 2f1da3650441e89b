package podnet

import (
	"fmt"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

const (
	// burstTime is how long a pod that was silent may send at the speed of the link, and minBurst bytes it always may: a
	// packet that is larger than the burst must be cut before it passes.
	burstTime = 100 * time.Millisecond
	minBurst  = 64 << 10
	// queueTime is how long a packet waits for its turn before the queue is full.
	queueTime = 50 * time.Millisecond
)

// limit holds the link to the pod's bandwidth: a token bucket at each end for what leaves there. The pod's own end is in
// its network namespace, which belongs to the host: nothing in the sandbox reaches its queue.
func limit(ns netns.NsHandle, host netlink.Link, c Config) error {
	if c.Ingress > 0 {
		if err := netlink.QdiscReplace(bucket(host, c.Ingress)); err != nil {
			return fmt.Errorf("limit the pod's ingress bandwidth (kernel option CONFIG_NET_SCH_TBF): %w", err)
		}
	}
	if c.Egress == 0 {
		return nil
	}
	h, err := netlink.NewHandleAt(ns)
	if err != nil {
		return fmt.Errorf("enter the pod's network namespace: %w", err)
	}
	defer h.Close()
	link, err := h.LinkByName(PodLink)
	if err != nil {
		return fmt.Errorf("find the pod's %s: %w", PodLink, err)
	}
	if err := h.QdiscReplace(bucket(link, c.Egress)); err != nil {
		return fmt.Errorf("limit the pod's egress bandwidth (kernel option CONFIG_NET_SCH_TBF): %w", err)
	}
	return nil
}

// bucket is the queue of a link that sends so many bits per second.
func bucket(link netlink.Link, bits uint64) *netlink.Tbf {
	rate := max(bits/8, 1)
	burst := max(uint64(burstTime.Seconds()*float64(rate)), minBurst)
	return &netlink.Tbf{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: link.Attrs().Index, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT},
		Rate:       rate, Buffer: netlink.Xmittime(rate, uint32(min(burst, 1<<31))),
		Limit: uint32(min(burst+uint64(queueTime.Seconds()*float64(rate)), 1<<31)),
	}
}
