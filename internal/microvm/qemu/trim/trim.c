/*
 * A plugin of QEMU that gives back the memory of the code which the emulator made of the guest's, once the guest is idle.
 *
 * Without hardware virtualization, QEMU translates the guest's code and keeps what it made in a cache (-accel tcg,tb-size). The start of a pod
 * fills it with code that never runs again, and QEMU has no way to give any of it back. This plugin looks at the guest now and then; when
 * it does nearly nothing, the cache is emptied, as it is when it is full, and its pages go back to the kernel. The little that an idle
 * guest runs is translated again.
 *
 * It declares what it needs of QEMU's plugin interface itself (qemu-plugin.h is not in every distribution's packages): these parts are the same
 * in all of its versions. VERSION is the one that the plugin says it was made for.
 */
#include <malloc.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

typedef uint64_t qemu_plugin_id_t;
typedef void (*qemu_plugin_simple_cb_t)(qemu_plugin_id_t id);
typedef void (*qemu_plugin_vcpu_simple_cb_t)(qemu_plugin_id_t id, unsigned int vcpu);
void qemu_plugin_register_vcpu_resume_cb(qemu_plugin_id_t id, qemu_plugin_vcpu_simple_cb_t cb);
void qemu_plugin_reset(qemu_plugin_id_t id, qemu_plugin_simple_cb_t cb);

__attribute__((visibility("default"))) int qemu_plugin_version = VERSION;

#define SECOND INT64_C(1000000000)
#define MIB (UINT64_C(1) << 20)

/* The guest is idle if it took less than a fiftieth of a processor in the last WINDOW. */
#define WINDOW (10 * SECOND)
#define IDLE 50
/* What is worth to be given back; a cache that filled up again is not emptied before FIRST_PAUSE, then twice as long, and so on. */
#define WORTH (16 * MIB)
#define FIRST_PAUSE (60 * SECOND)
/* The beginning of the cache holds how the emulator's own code gets in and out of it. */
#define KEPT (64 << 10)

/* The host's page. */
static uint64_t page;
/* When the guest was looked at, and the processor time that it had taken until then, in nanoseconds. */
static int64_t looked, used;
/* Whether the guest has begun to run. */
static int begun;
/* Not to be emptied before; and for how long it will not be afterwards. */
static int64_t not_before, rest = FIRST_PAUSE;

static int64_t now(clockid_t clock)
{
	struct timespec t;

	return clock_gettime(clock, &t) ? 0 : t.tv_sec * SECOND + t.tv_nsec;
}

/* cache calls what with each part of the cache (guard pages divide it), and adds up what it returns. Nothing else is writable and executable. */
static uint64_t cache(uint64_t (*what)(uint64_t start, uint64_t end))
{
	FILE *maps = fopen("/proc/self/maps", "re");
	char line[512], write, execute;
	unsigned long start, end, inode;
	uint64_t sum = 0, first = 1;

	if (!maps)
		return 0;
	while (fgets(line, sizeof line, maps)) {
		if (sscanf(line, "%lx-%lx r%c%c%*c %*x %*s %lu", &start, &end, &write, &execute, &inode) != 5 || write != 'w' || execute != 'x' || inode)
			continue;
		if (first)
			start += KEPT;
		first = 0;
		if (start < end)
			sum += what(start, end);
	}
	fclose(maps);
	return sum;
}

static uint64_t resident(uint64_t start, uint64_t end)
{
	unsigned char in[1024];
	uint64_t sum = 0;

	while (start < end) {
		uint64_t pages = (end - start) / page;

		if (pages > sizeof in)
			pages = sizeof in;
		if (mincore((void *)start, pages * page, in))
			return sum;
		for (uint64_t i = 0; i < pages; i++)
			sum += in[i] & 1;
		start += pages * page;
	}
	return sum * page;
}

static uint64_t give_back(uint64_t start, uint64_t end)
{
	(void)madvise((void *)start, end - start, MADV_NOHUGEPAGE);
	return madvise((void *)start, end - start, MADV_DONTNEED) ? 0 : end - start;
}

static void resumed(qemu_plugin_id_t id, unsigned int vcpu);

/* emptied is called when no processor of the guest runs and the cache is empty. */
static void emptied(qemu_plugin_id_t id)
{
	cache(give_back);
	malloc_trim(0);
	qemu_plugin_register_vcpu_resume_cb(id, resumed);
}

/* resumed is called when a processor of the guest has waited for something and goes on; QEMU's lock sees to it that there is one at a time. */
static void resumed(qemu_plugin_id_t id, unsigned int vcpu)
{
	int64_t t = now(CLOCK_MONOTONIC), before = looked, took;

	(void)vcpu;
	/* Until here QEMU would take pages of 2 MiB for what is small (the jail has forbidden it); a start is faster with code in such ones. */
	if (!begun)
		begun = !prctl(PR_SET_THP_DISABLE, 0, 0, 0, 0);
	if (t - before < WINDOW)
		return;
	took = now(CLOCK_PROCESS_CPUTIME_ID) - used;
	looked = t;
	used += took;
	if (took * IDLE > t - before || t < not_before || cache(resident) < WORTH)
		return;
	not_before = t + rest;
	rest *= 2;
	qemu_plugin_reset(id, emptied);
}

__attribute__((visibility("default"))) int qemu_plugin_install(qemu_plugin_id_t id, const void *info, int argc, char **argv)
{
	(void)info, (void)argc, (void)argv;
	page = (uint64_t)sysconf(_SC_PAGESIZE);
	looked = now(CLOCK_MONOTONIC);
	qemu_plugin_register_vcpu_resume_cb(id, resumed);
	return 0;
}
