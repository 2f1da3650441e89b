package policy

import (
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"

	networking "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Names of the sets that every table has.
const (
	// IsolatedSet holds the addresses of local pods that any policy selects.
	IsolatedSet = "policy/isolated"
	// SelfSet holds each of them twice, as source and as destination: a pod always reaches itself.
	SelfSet = "policy/self"
)

// Table keeps what a packet filter must hold while policies, pods and namespaces come and go. The cost of a change is that
// of what changes: a pod is held against all selectors, a policy against all pods. It is not safe for concurrent use.
//
// The filter it describes: a local pod's address leads, by direction, to a group; a group is the list of the policies that
// select the pod, shared by all pods with the same ones; a policy is a list of Allow; what none of them allows is denied.
type Table struct {
	namespaces map[string]map[string]string
	pods       map[types.UID]Pod
	byAddr     map[netip.Addr]map[types.UID]bool
	specs      map[types.NamespacedName]*networking.NetworkPolicy
	policies   map[types.NamespacedName]*compiled

	selections map[string]*selection
	portNames  map[string]portName
	sets       map[string]*set

	groups   [len(Directions)]map[netip.Addr]Group
	regroup  map[netip.Addr]bool
	rewrite  map[types.NamespacedName]bool
	released released
}

// released is what the filter was last told to hold.
type released struct {
	chains map[string]bool
	groups map[string]int // name -> verdicts that lead to it
	leads  [len(Directions)]map[netip.Addr]string
}

// NewTable is empty: it isolates nothing.
func NewTable() *Table {
	t := &Table{
		namespaces: map[string]map[string]string{}, pods: map[types.UID]Pod{}, byAddr: map[netip.Addr]map[types.UID]bool{},
		specs: map[types.NamespacedName]*networking.NetworkPolicy{}, policies: map[types.NamespacedName]*compiled{},
		selections: map[string]*selection{}, portNames: map[string]portName{}, sets: map[string]*set{},
		regroup: map[netip.Addr]bool{}, rewrite: map[types.NamespacedName]bool{},
		released: released{chains: map[string]bool{}, groups: map[string]int{}},
	}
	for _, d := range Directions {
		t.groups[d], t.released.leads[d] = map[netip.Addr]Group{}, map[netip.Addr]string{}
	}
	t.set(IsolatedSet, KindAddr).users, t.set(SelfSet, KindAddrPair).users = 1, 1
	return t
}

// SetNamespace adds a namespace or changes its labels; one that is unknown has none.
func (t *Table) SetNamespace(name string, labels map[string]string) {
	if maps.Equal(t.namespaces[name], labels) {
		return
	}
	for _, p := range t.pods {
		if p.Namespace == name {
			t.count(&p, -1)
		}
	}
	if len(labels) == 0 {
		delete(t.namespaces, name)
	} else {
		t.namespaces[name] = labels
	}
	for _, p := range t.pods {
		if p.Namespace == name {
			t.count(&p, +1)
		}
	}
}

// DeleteNamespace forgets a namespace; its pods and policies go by themselves.
func (t *Table) DeleteNamespace(name string) { t.SetNamespace(name, nil) }

// SetPod adds or changes a pod.
func (t *Table) SetPod(p Pod) {
	old, known := t.pods[p.UID]
	if known && reflect.DeepEqual(old, p) {
		return
	}
	t.DeletePod(p.UID)
	t.pods[p.UID] = p
	t.count(&p, +1)
	if p.Addr.IsValid() {
		if t.byAddr[p.Addr] == nil {
			t.byAddr[p.Addr] = map[types.UID]bool{}
		}
		t.byAddr[p.Addr][p.UID] = true
		t.regroup[p.Addr] = true
	}
}

// DeletePod forgets a pod.
func (t *Table) DeletePod(uid types.UID) {
	p, known := t.pods[uid]
	if !known {
		return
	}
	t.count(&p, -1)
	delete(t.pods, uid)
	if p.Addr.IsValid() {
		delete(t.byAddr[p.Addr], uid)
		if len(t.byAddr[p.Addr]) == 0 {
			delete(t.byAddr, p.Addr)
		}
		t.regroup[p.Addr] = true
	}
}

// count adds the pod to the sets that it belongs to, or takes it out.
func (t *Table) count(p *Pod, by int) {
	if !p.Addr.Is4() {
		return
	}
	for name, s := range t.selections {
		if s.matches(p, t.namespaces[p.Namespace]) {
			t.sets[name].count(Element{Addr: p.Addr}, by)
		}
	}
	for name, n := range t.portNames {
		t.countPort(name, n, p, by)
	}
}

func (t *Table) countPort(set string, n portName, p *Pod, by int) {
	if number, ok := (Endpoint{Pod: p}).Named(n.name, n.protocol); ok {
		t.sets[set].count(Element{Addr: p.Addr, Port: number}, by)
	}
}

// SetPolicy adds or changes a policy. It fails for what the API server does not let in; the policy then stays as it was.
func (t *Table) SetPolicy(np *networking.NetworkPolicy) error {
	key := types.NamespacedName{Namespace: np.Namespace, Name: np.Name}
	if old := t.specs[key]; old != nil && reflect.DeepEqual(old.Spec, np.Spec) {
		return nil
	}
	c, err := compile(np)
	if err != nil {
		return err
	}
	old := t.policies[key]
	t.use(c)
	if old != nil {
		t.unuse(old)
	}
	t.specs[key], t.policies[key] = np, c
	t.rewrite[key] = true
	t.regroupTargets(old, c)
	return nil
}

// DeletePolicy forgets a policy.
func (t *Table) DeletePolicy(key types.NamespacedName) {
	old := t.policies[key]
	if old == nil {
		return
	}
	t.unuse(old)
	delete(t.specs, key)
	delete(t.policies, key)
	t.rewrite[key] = true
	t.regroupTargets(old)
}

// Policies are the names of all that the table holds.
func (t *Table) Policies() []types.NamespacedName {
	return slices.Collect(maps.Keys(t.policies))
}

func (t *Table) regroupTargets(policies ...*compiled) {
	for _, p := range t.pods {
		for _, c := range policies {
			if c != nil && p.Local && p.Addr.IsValid() && c.selects(&p) {
				t.regroup[p.Addr] = true
			}
		}
	}
}

// use makes the sets of a policy, or shares those that are there.
func (t *Table) use(c *compiled) {
	for name, s := range c.selections {
		t.set(name, KindAddr).users++
		if t.selections[name] == nil {
			t.selections[name] = s
			for _, p := range t.pods {
				if p.Addr.Is4() && s.matches(&p, t.namespaces[p.Namespace]) {
					t.sets[name].count(Element{Addr: p.Addr}, +1)
				}
			}
		}
	}
	for name, n := range c.portNames {
		t.set(name, KindAddrPort).users++
		if _, known := t.portNames[name]; !known {
			t.portNames[name] = n
			for _, p := range t.pods {
				if p.Addr.Is4() {
					t.countPort(name, n, &p, +1)
				}
			}
		}
	}
}

// unuse leaves sets without users as they are until the next Take, so that another policy may come to use them.
func (t *Table) unuse(c *compiled) {
	for name := range c.selections {
		t.sets[name].users--
	}
	for name := range c.portNames {
		t.sets[name].users--
	}
}

func (t *Table) set(name string, kind Kind) *set {
	if t.sets[name] == nil {
		t.sets[name] = &set{kind: kind, holders: map[Element]int{}, changed: map[Element]bool{}}
	}
	return t.sets[name]
}

// group is what the local pods at the address are held to in the direction; no policies: not isolated.
func (t *Table) group(addr netip.Addr, d Direction) Group {
	var chains []string
	for uid := range t.byAddr[addr] {
		p := t.pods[uid]
		if !p.Local || !addr.Is4() {
			continue
		}
		for _, c := range t.policies {
			if c.isolates[d] && c.selects(&p) {
				chains = append(chains, chainName(c.key, d))
			}
		}
	}
	if len(chains) == 0 {
		return Group{}
	}
	slices.Sort(chains)
	chains = slices.Compact(chains)
	return Group{Name: "policy/group/" + d.String() + "/" + hash(chains...), Chains: chains}
}

// chainName can be read, and fits the kernel's 128 characters with a suffix.
func chainName(key types.NamespacedName, d Direction) string {
	name := key.Name
	if len(name) > 24 {
		name = name[:24]
	}
	return strings.Join([]string{"policy", d.String(), key.Namespace, name, hash(key.Namespace, key.Name)}, "/")
}
