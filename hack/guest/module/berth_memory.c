// SPDX-License-Identifier: GPL-2.0-only
/*
 * Plugs in memory that the machine has but the kernel was told to leave alone (mem= on its command line). Writing
 * "<start> <bytes>", hexadecimal, to /sys/module/berth_memory/parameters/add adds that range to node 0. Both are whole
 * memory blocks (/sys/devices/system/memory/block_size_bytes). The kernel itself has no such interface without
 * CONFIG_ARCH_MEMORY_PROBE, which distributions leave out.
 */
#include <linux/memory_hotplug.h>
#include <linux/module.h>
#include <linux/moduleparam.h>

static int berth_memory_add(const char *val, const struct kernel_param *kp)
{
	unsigned long long start, size;

	if (sscanf(val, "%llx %llx", &start, &size) != 2)
		return -EINVAL;
	return add_memory(0, start, size, MHP_NONE);
}

static const struct kernel_param_ops berth_memory_ops = {
	.set = berth_memory_add,
};

module_param_cb(add, &berth_memory_ops, NULL, 0200);
MODULE_PARM_DESC(add, "range of memory to plug in: <start> <bytes>, hexadecimal");
MODULE_DESCRIPTION("Plugs in memory by its address");
MODULE_LICENSE("GPL");
