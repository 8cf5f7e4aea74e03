/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the scenario programs share: options, TAP output, raw system calls,
 * a reader for smaps, and a model of one region that says what a kernel with
 * a given set of quirks must show.
 *
 * A scenario is one C file that includes this header and is linked statically,
 * so that it runs in a guest that has nothing. Every action is done twice: to
 * the kernel by the system call and to the model by its model_*() twin. The
 * expect_*() functions then compare the two, page by page. The quirks enter the
 * model only, each at one place, so any subset of them is judged by the same
 * lines.
 */
#ifndef CDM_SCENARIO_H
#define CDM_SCENARIO_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <linux/capability.h>
#include <linux/mempolicy.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/swap.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifndef MAP_FIXED_NOREPLACE
#define MAP_FIXED_NOREPLACE	0x100000
#endif
#ifndef MADV_COLD
#define MADV_COLD		20
#endif
#ifndef MADV_PAGEOUT
#define MADV_PAGEOUT		21
#endif
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE		25	/* Linux 6.1 */
#endif
#ifndef SYS_set_mempolicy_home_node
#define SYS_set_mempolicy_home_node	450
#endif
/* An enumerator in the headers that have it (5.15), so #ifdef cannot tell. */
#define POL_PREFERRED_MANY	5

#define PAGE		4096UL
#define HUGE_PAGE	(2UL << 20)
#define HUGE_NR		(HUGE_PAGE / PAGE)
#define GIB		(1UL << 30)

/* Regions are a GiB apart: no two of them can ever become one VMA. */
#define ARENA_START	0x100000000000UL
#define ARENA_SLOTS	64
#define ARENA_END	(ARENA_START + ARENA_SLOTS * GIB)

/* Where a step needs a second or third region: within its GiB, far away */
#define SECOND		(GIB / 4)
#define THIRD		(GIB / 2)

#define MAX_PAGES	2048
#define MAX_REGIONS	48
#define STEP_SECONDS	300

#define UNUSED		__attribute__((unused))
#define PRINTF(f, a)	__attribute__((format(printf, f, a)))
#define ARRAY_SIZE(a)	(sizeof(a) / sizeof((a)[0]))

/* ---- Quirks ---------------------------------------------------------- */

enum quirk {
	Q_BIND_ONLY,
	Q_FAULT_TAG,
	Q_INTERLEAVE_UNTAGGED,
	Q_THP_UNTAGGED,
	Q_ONE_WAY,
	Q_WHOLE_VMA,
	Q_MIGRATION_UNGATED,
	Q_TASK_POLICY,
	Q_KSM_LEFT_ON,
	Q_KSM_MERGE,
	Q_KHUGEPAGED,
	Q_SWAP_READAHEAD,
	Q_SHARED_POLICY,
	Q_NO_REBIND,
	Q_FIRST_NODE,
	Q_DRIVER_UNTAGGED,
	Q_NUMA_RESIDUAL,
	Q_NUMA_SCANNED,
	Q_MERGEABLE_HONOURED,
	Q_DEFAULT_OOPS,
	Q_NULL_VMA,
	Q_UNLOCKED_CLEAR,
	Q_SLOW_RMW,
	Q_WORKQUEUE_TAG,
	Q_MPROTECT_DROP,
	Q_FORK_DROP,
	Q_SPLIT_DROP,
	NR_QUIRKS
};

/* @needs: quirks that the kernel switches on together with this one */
static const struct {
	const char *name;
	unsigned int needs;
} quirk_table[NR_QUIRKS] = {
	[Q_BIND_ONLY]		= { "bind-only", 0 },
	[Q_FAULT_TAG]		= { "fault-tag", 1U << Q_BIND_ONLY },
	[Q_INTERLEAVE_UNTAGGED]	= { "interleave-untagged", 1U << Q_FAULT_TAG },
	[Q_THP_UNTAGGED]	= { "thp-untagged", 1U << Q_FAULT_TAG },
	[Q_ONE_WAY]		= { "one-way", 0 },
	[Q_WHOLE_VMA]		= { "whole-vma", 0 },
	[Q_MIGRATION_UNGATED]	= { "migration-ungated", 0 },
	[Q_TASK_POLICY]		= { "task-policy", 0 },
	[Q_KSM_LEFT_ON]		= { "ksm-left-on", 0 },
	[Q_KSM_MERGE]		= { "ksm-merge", 0 },
	[Q_KHUGEPAGED]		= { "khugepaged", 0 },
	[Q_SWAP_READAHEAD]	= { "swap-readahead", 0 },
	[Q_SHARED_POLICY]	= { "shared-policy", 0 },
	[Q_NO_REBIND]		= { "no-rebind", 0 },
	[Q_FIRST_NODE]		= { "first-node", 0 },
	[Q_DRIVER_UNTAGGED]	= { "driver-untagged", 0 },
	[Q_NUMA_RESIDUAL]	= { "numa-residual", 0 },
	[Q_NUMA_SCANNED]	= { "numa-scanned", 0 },
	[Q_MERGEABLE_HONOURED]	= { "mergeable-honoured", 0 },
	[Q_DEFAULT_OOPS]	= { "default-oops", 0 },
	[Q_NULL_VMA]		= { "null-vma", 1U << Q_FAULT_TAG },
	[Q_UNLOCKED_CLEAR]	= { "unlocked-clear", 1U << Q_ONE_WAY },
	[Q_SLOW_RMW]		= { "slow-rmw", 0 },
	[Q_WORKQUEUE_TAG]	= { "workqueue-tag", 0 },
	[Q_MPROTECT_DROP]	= { "mprotect-drop", 0 },
	[Q_FORK_DROP]		= { "fork-drop", 0 },
	[Q_SPLIT_DROP]		= { "split-drop", 0 },
};

static unsigned int quirks;

static UNUSED bool quirk(enum quirk q)
{
	return quirks & (1U << q);
}

/* Returns false at the first name that is not a quirk, left in @bad. */
static bool parse_quirks(const char *list, unsigned int *set, char *bad,
			 size_t size)
{
	unsigned int q, before;

	*set = 0;
	if (!strcmp(list, "none"))
		return true;
	while (*list) {
		size_t len = strcspn(list, ",");

		for (q = 0; q < NR_QUIRKS; q++)
			if (strlen(quirk_table[q].name) == len &&
			    !strncmp(list, quirk_table[q].name, len))
				break;
		if (q == NR_QUIRKS) {
			snprintf(bad, size, "%.*s", (int)len, list);
			return false;
		}
		*set |= 1U << q;
		list += len;
		if (*list == ',' && !*++list) {
			snprintf(bad, size, "%s", "");
			return false;
		}
	}
	do {
		before = *set;
		for (q = 0; q < NR_QUIRKS; q++)
			if (*set & (1U << q))
				*set |= quirk_table[q].needs;
	} while (*set != before);
	return true;
}

static void quirks_text(char *buf, size_t size, unsigned int set)
{
	size_t at = 0;
	unsigned int q;

	snprintf(buf, size, "none");
	for (q = 0; q < NR_QUIRKS; q++)
		if ((set & (1U << q)) && at < size)
			at += snprintf(buf + at, size - at, "%s%s",
				       at ? "," : "", quirk_table[q].name);
}

/* ---- TAP ------------------------------------------------------------- */

static const char *program;
static const char *current_step = "start";
static unsigned int tap_run, tap_failed;
/*
 * A child has no number to give its test points: it writes its lines, without
 * one, into a pipe, and the parent numbers them.
 */
static int child_fd = -1;

static void write_all(int fd, const char *buf, size_t len)
{
	while (len) {
		ssize_t n = write(fd, buf, len);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			_exit(2);
		buf += n;
		len -= n;
	}
}

/* No stdio on the way out: nothing is buffered when a child is forked. */
static PRINTF(2, 3) void say(int fd, const char *fmt, ...)
{
	char line[2048];
	va_list ap;
	int len;

	va_start(ap, fmt);
	len = vsnprintf(line, sizeof(line), fmt, ap);
	va_end(ap);
	if (len < 0)
		return;
	if ((size_t)len >= sizeof(line)) {
		len = sizeof(line) - 1;
		line[len - 1] = '\n';
	}
	write_all(fd, line, len);
}

static void tap_point(bool ok, const char *text)
{
	tap_run++;
	tap_failed += !ok;
	say(STDOUT_FILENO, "%sok %u - %s\n", ok ? "" : "not ", tap_run, text);
}

static PRINTF(2, 3) void report(bool ok, const char *fmt, ...)
{
	char text[512];
	va_list ap;
	int at;

	at = snprintf(text, sizeof(text), "%s: ", current_step);
	va_start(ap, fmt);
	vsnprintf(text + at, sizeof(text) - at, fmt, ap);
	va_end(ap);
	if (child_fd >= 0)
		say(child_fd, "%sok - %s\n", ok ? "" : "not ", text);
	else
		tap_point(ok, text);
}

static PRINTF(1, 2) void diag(const char *fmt, ...)
{
	char text[1024];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	say(child_fd >= 0 ? child_fd : STDOUT_FILENO, "# %s\n", text);
}

static UNUSED void skip(const char *what, const char *reason)
{
	report(true, "%s # SKIP %s", what, reason);
}

static UNUSED const char *errno_name(int err)
{
	static char other[32];

	switch (err) {
	case 0: return "success";
	case EPERM: return "EPERM";
	case ENOENT: return "ENOENT";
	case EIO: return "EIO";
	case EAGAIN: return "EAGAIN";
	case ENOMEM: return "ENOMEM";
	case EACCES: return "EACCES";
	case EFAULT: return "EFAULT";
	case EBUSY: return "EBUSY";
	case EEXIST: return "EEXIST";
	case ENODEV: return "ENODEV";
	case EINVAL: return "EINVAL";
	case ENOSYS: return "ENOSYS";
	case EOPNOTSUPP: return "EOPNOTSUPP";
	}
	snprintf(other, sizeof(other), "errno %d", err);
	return other;
}

static UNUSED PRINTF(3, 4) bool expect_errno(int found, int expected,
					     const char *fmt, ...)
{
	char text[256], want[32];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	/* errno_name() may answer from one static buffer */
	snprintf(want, sizeof(want), "%s", errno_name(expected));
	report(found == expected, "%s: %s", text, want);
	if (found != expected)
		diag("expected %s, found %s", want, errno_name(found));
	return found == expected;
}

/* ---- Small files ----------------------------------------------------- */

/* Returns the length read, without a trailing newline, or -1. */
static ssize_t read_text(const char *path, char *buf, size_t size)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	size_t len = 0;
	ssize_t n;

	if (fd < 0)
		return -1;
	while (len < size - 1) {
		n = read(fd, buf + len, size - 1 - len);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0) {
			close(fd);
			return -1;
		}
		if (!n)
			break;
		len += n;
	}
	close(fd);
	if (len && buf[len - 1] == '\n')
		len--;
	buf[len] = '\0';
	return len;
}

static UNUSED long read_long(const char *path)
{
	char text[64];

	return read_text(path, text, sizeof(text)) > 0 ? atol(text) : -1;
}

static UNUSED int write_text(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	ssize_t n;
	int err;

	if (fd < 0)
		return errno;
	n = write(fd, text, strlen(text));
	err = n < 0 ? errno : 0;
	close(fd);
	return err;
}

static UNUSED int write_long(const char *path, long value)
{
	char text[32];

	snprintf(text, sizeof(text), "%ld", value);
	return write_text(path, text);
}

static UNUSED void sleep_ms(long ms)
{
	struct timespec ts = { ms / 1000, (ms % 1000) * 1000000 };

	while (nanosleep(&ts, &ts) && errno == EINTR)
		;
}

/* ---- Nodes ----------------------------------------------------------- */

#define NODE_DIR	"/sys/devices/system/node/"

/* A set of nodes as the scenarios speak of it; kernel_mask() resolves it. */
#define RAM		1U
#define CDM		2U

static int cdm_node = -1, ram_node = -1;
static unsigned long cdm_nodes;

/* "1", "1-2,4", or nothing at all; only the first 64 nodes are of interest. */
static bool parse_node_list(const char *list, unsigned long *mask)
{
	*mask = 0;
	while (isspace((unsigned char)*list))
		list++;
	while (*list) {
		unsigned long lo, hi;
		char *end;

		if (!isdigit((unsigned char)*list))
			return false;
		lo = hi = strtoul(list, &end, 10);
		if (*end == '-') {
			if (!isdigit((unsigned char)end[1]))
				return false;
			hi = strtoul(end + 1, &end, 10);
		}
		if (lo > hi || hi > 63)
			return false;
		for (; lo <= hi; lo++)
			*mask |= 1UL << lo;
		if (*end == ',')
			end++;
		else if (*end && *end != '\n')
			return false;
		list = *end == '\n' ? end + 1 : end;
	}
	return true;
}

static bool read_nodes(const char *name, unsigned long *mask)
{
	char path[128], text[256];

	snprintf(path, sizeof(path), NODE_DIR "%s", name);
	return read_text(path, text, sizeof(text)) >= 0 &&
	       parse_node_list(text, mask);
}

static unsigned long kernel_mask(unsigned int set)
{
	return (set & RAM ? 1UL << ram_node : 0) |
	       (set & CDM ? 1UL << cdm_node : 0);
}

static UNUSED const char *set_text(unsigned int set)
{
	static const char *const names[] = { "{}", "{ram}", "{cdm}", "{ram,cdm}" };

	return names[set & (RAM | CDM)];
}

static UNUSED const char *mode_text(int mode)
{
	static const char *const names[] = {
		"DEFAULT", "PREFERRED", "BIND", "INTERLEAVE", "LOCAL",
		"PREFERRED_MANY",
	};

	return (size_t)mode < ARRAY_SIZE(names) ? names[mode] : "?";
}

/* ---- System calls: each returns 0 or an errno, unless it says otherwise */

/* The kernel looks at one bit less than it is told of. */
#define MASK_BITS	(8 * sizeof(unsigned long) + 1)

static UNUSED int sys_mbind(unsigned long start, unsigned long len, int mode,
			    unsigned int set, unsigned int flags)
{
	unsigned long mask = kernel_mask(set);

	return syscall(SYS_mbind, start, len, mode, set ? &mask : NULL,
		       set ? MASK_BITS : 0, flags) ? errno : 0;
}

static UNUSED int sys_home_node(unsigned long start, unsigned long len, int nid)
{
	return syscall(SYS_set_mempolicy_home_node, start, len, nid, 0UL) ?
	       errno : 0;
}

/*
 * Returns what move_pages(2) returns, or minus an errno; the status array is
 * poisoned before, so that a page that the kernel skipped is not read as
 * moved.
 */
static UNUSED long sys_move_pages(unsigned long start, unsigned int nr,
				  int nid, int *status, int flags)
{
	static void *addr[MAX_PAGES];
	static int nodes[MAX_PAGES];
	unsigned int i;
	long ret;

	for (i = 0; i < nr; i++) {
		addr[i] = (void *)(start + i * PAGE);
		nodes[i] = nid;
		status[i] = -12345;
	}
	ret = syscall(SYS_move_pages, 0, (unsigned long)nr, addr,
		      nid < 0 ? NULL : nodes, status, flags);
	return ret < 0 ? -errno : ret;
}

/*
 * CAP_SYS_NICE makes migrate_pages(2) move pages that are shared with other
 * processes as well. The children that move their own pages give it up, or
 * they would move those of their parent.
 */
static UNUSED int drop_sys_nice(void)
{
	struct __user_cap_header_struct head = {
		.version = _LINUX_CAPABILITY_VERSION_3,
	};
	struct __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3];

	if (syscall(SYS_capget, &head, data))
		return errno;
	data[0].effective &= ~(1U << CAP_SYS_NICE);
	return syscall(SYS_capset, &head, data) ? errno : 0;
}

/* ---- The model ------------------------------------------------------- */

enum place { NOWHERE, ON_RAM, ON_CDM, ANYWHERE };

/* What one page, and the VMA around it, must look like */
struct page_model {
	uint8_t mode;		/* policy of the VMA; MPOL_DEFAULT: none */
	uint8_t set;		/* and its nodes */
	uint8_t place;
	uint8_t prot;
	uint8_t more;		/* other flags, as a scenario numbers them */
	bool tag;
	bool mergeable;
};

struct region {
	const char *name;
	unsigned long start;
	unsigned int nr;	/* pages */
	bool huge;		/* faults take huge pages */
	struct page_model p[MAX_PAGES];
};

static struct region regions[MAX_REGIONS];
static unsigned int nr_regions;

static bool same_vma(const struct page_model *a, const struct page_model *b)
{
	return a->mode == b->mode && a->set == b->set && a->prot == b->prot &&
	       a->more == b->more && a->tag == b->tag &&
	       a->mergeable == b->mergeable;
}

/* Widen [*lo, *hi) to the VMAs that it touches. */
static void model_widen(const struct region *r, unsigned int *lo,
			unsigned int *hi)
{
	while (*lo && same_vma(&r->p[*lo - 1], &r->p[*lo]))
		--*lo;
	while (*hi < r->nr && same_vma(&r->p[*hi - 1], &r->p[*hi]))
		++*hi;
}

static bool policy_names_cdm(int mode, unsigned int set)
{
	return mode != MPOL_DEFAULT && mode != MPOL_LOCAL && (set & CDM);
}

/* Does mbind() with this policy set the tag? */
static bool policy_tags(int mode, unsigned int set)
{
	if (!policy_names_cdm(mode, set))
		return false;
	return mode == MPOL_BIND || !quirk(Q_BIND_ONLY);
}

/*
 * mbind(): the tag becomes what the policy says, for exactly the range. Quirk
 * whole-vma sets it before the VMA is split, and so beyond the range; quirk
 * one-way never takes it back. To set it turns KSM off, but for ksm-left-on.
 */
static UNUSED void model_mbind(struct region *r, unsigned int first,
			       unsigned int nr, int mode, unsigned int set)
{
	unsigned int i, lo = first, hi = first + nr;
	bool tags = policy_tags(mode, set);

	if (tags && quirk(Q_WHOLE_VMA))
		model_widen(r, &lo, &hi);
	for (i = lo; tags && i < hi; i++)
		r->p[i].tag = true;
	for (i = first; i < first + nr; i++) {
		if (tags && !quirk(Q_KSM_LEFT_ON))
			r->p[i].mergeable = false;
		if (!tags && !quirk(Q_ONE_WAY))
			r->p[i].tag = false;
		r->p[i].mode = mode;
		r->p[i].set = mode == MPOL_DEFAULT || mode == MPOL_LOCAL ?
			      0 : set;
	}
}

/*
 * A first write to a page. The policy of the VMA decides where it comes from,
 * or that of the task where the VMA has none. Quirk fault-tag tags the VMA
 * when the page is on a CDM node, except on the paths of interleave-untagged
 * and thp-untagged. A page of an interleaved VMA may be on either node; fault
 * at least two, then one of them is on the CDM node and the tag is certain.
 */
static UNUSED void model_fault(struct region *r, unsigned int i, int task_mode,
			       unsigned int task_set)
{
	struct page_model *p = &r->p[i];
	int mode = p->mode == MPOL_DEFAULT ? task_mode : p->mode;
	unsigned int set = p->mode == MPOL_DEFAULT ? task_set : p->set;
	unsigned int lo = i, hi = i + 1;

	if (p->place != NOWHERE)
		return;
	if (mode == MPOL_DEFAULT || mode == MPOL_LOCAL)
		set = RAM;
	p->place = set == CDM ? ON_CDM : set == RAM ? ON_RAM : ANYWHERE;

	if (!quirk(Q_FAULT_TAG) || p->tag || p->place == ON_RAM)
		return;
	if (mode == MPOL_INTERLEAVE && quirk(Q_INTERLEAVE_UNTAGGED))
		return;
	if (r->huge && mode != MPOL_INTERLEAVE && quirk(Q_THP_UNTAGGED))
		return;
	model_widen(r, &lo, &hi);
	for (; lo < hi; lo++)
		r->p[lo].tag = true;
}

/*
 * A page is about to go from the CDM node to RAM. With quirk unlocked-clear that
 * is what takes the tag from its VMA, whatever the policy says.
 */
static UNUSED void model_leave_cdm(struct region *r, unsigned int i)
{
	unsigned int lo = i, hi = i + 1;

	if (!quirk(Q_UNLOCKED_CLEAR) || r->p[i].place != ON_CDM)
		return;
	model_widen(r, &lo, &hi);
	for (; lo < hi; lo++)
		r->p[lo].tag = false;
}

/* mprotect(): quirk split-drop costs what is split off, mprotect-drop the range */
static UNUSED void model_protect(struct region *r, unsigned int first,
				 unsigned int nr, int prot)
{
	unsigned int i, end = first + nr, lo = first, hi = end;

	model_widen(r, &lo, &hi);
	for (i = lo; i < hi; i++) {
		if (i >= first && i < end)
			r->p[i].prot = prot;
		if (i >= first && i < end ? quirk(Q_MPROTECT_DROP) :
					    quirk(Q_SPLIT_DROP))
			r->p[i].tag = false;
	}
}

/* A child has the VMAs of its parent, but for quirk fork-drop. */
static UNUSED void model_fork(struct region *r)
{
	unsigned int i;

	for (i = 0; i < r->nr && quirk(Q_FORK_DROP); i++)
		r->p[i].tag = false;
}

/* mremap() takes one VMA and no more. */
static UNUSED bool model_is_one_vma(const struct region *r)
{
	unsigned int lo = 0, hi = 1;

	model_widen(r, &lo, &hi);
	return hi == r->nr;
}

/* move_pages(): may the page go to the CDM node? It never touches the tag. */
static UNUSED bool model_may_move_to_cdm(const struct page_model *p)
{
	return policy_names_cdm(p->mode, p->set) || quirk(Q_MIGRATION_UNGATED);
}

/* madvise(MADV_MERGEABLE) is ignored where the tag is, or else it is honoured. */
static UNUSED void model_mergeable(struct region *r)
{
	unsigned int i;

	for (i = 0; i < r->nr; i++)
		if (!r->p[i].tag || quirk(Q_MERGEABLE_HONOURED))
			r->p[i].mergeable = true;
}

/* ---- Reading back ---------------------------------------------------- */

struct vma {
	unsigned long start, end;
	bool cd, mg;
	long anon_huge;		/* bytes in huge pages */
	char flags[128];	/* the words of its VmFlags line */
};

static struct vma vmas[128];
static char smaps_text[1 << 20];

static bool has_flag(const char *flags, const char *name)
{
	while (*flags) {
		size_t len;

		flags += strspn(flags, " \t");
		len = strcspn(flags, " \t\n");
		if (len == strlen(name) && !strncmp(flags, name, len))
			return true;
		if (!len)
			break;
		flags += len;
	}
	return false;
}

/*
 * The VMAs of this process that overlap [start, end), in order. Returns how
 * many there are, in vmas[], or -1 if smaps cannot be understood: a VMA whose
 * VmFlags line is missing must not be read as one without flags.
 */
static int read_vmas(unsigned long start, unsigned long end)
{
	ssize_t len = read_text("/proc/self/smaps", smaps_text,
				sizeof(smaps_text));
	char *line, *next;
	struct vma *v = NULL;
	bool complete = true;
	int nr = 0;

	if (len <= 0 || (size_t)len >= sizeof(smaps_text) - 1)
		return -1;
	for (line = smaps_text; line; line = next) {
		unsigned long lo, hi;
		char perms[5];

		next = strchr(line, '\n');
		if (next)
			*next++ = '\0';
		if (sscanf(line, "%lx-%lx %4s", &lo, &hi, perms) == 3) {
			if (!complete)
				return -1;
			v = NULL;
			if (hi <= start || lo >= end)
				continue;
			if (nr == ARRAY_SIZE(vmas))
				return -1;
			v = &vmas[nr++];
			*v = (struct vma){ .start = lo, .end = hi };
			complete = false;
		} else if (v && !strncmp(line, "AnonHugePages:", 14)) {
			v->anon_huge = atol(line + 14) * 1024;
		} else if (v && !strncmp(line, "VmFlags:", 8)) {
			snprintf(v->flags, sizeof(v->flags), "%s", line + 8);
			v->cd = has_flag(line + 8, "cd");
			v->mg = has_flag(line + 8, "mg");
			complete = true;
		}
	}
	return complete ? nr : -1;
}

/* "0-10 -, 11-29 cd, 30-52 -" for one label a page */
static void runs_text(char *buf, size_t size, const char *const *label,
		      unsigned int nr)
{
	unsigned int i, j;
	size_t at = 0;

	buf[0] = '\0';
	for (i = 0; i < nr; i = j) {
		for (j = i + 1; j < nr && !strcmp(label[i], label[j]); j++)
			;
		if (at + 64 > size) {
			snprintf(buf + at, size - at, ", ...");
			return;
		}
		if (j - i == 1)
			at += snprintf(buf + at, size - at, "%s%u %s",
				       i ? ", " : "", i, label[i]);
		else
			at += snprintf(buf + at, size - at, "%s%u-%u %s",
				       i ? ", " : "", i, j - 1, label[i]);
	}
}

static bool expect_runs(const char *const *want, const char *const *got,
			unsigned int nr, const char *what, const char *noun)
{
	char want_text[400], got_text[400];
	unsigned int i;
	bool same = true;

	for (i = 0; i < nr; i++)
		same = same && !strcmp(want[i], got[i]);
	runs_text(want_text, sizeof(want_text), want, nr);
	runs_text(got_text, sizeof(got_text), got, nr);
	report(same, "%s: %s of pages %s", what, noun, want_text);
	if (!same)
		diag("expected %s, found %s", want_text, got_text);
	return same;
}

static const char *status_text(int status)
{
	if (status >= 0)
		return status < 64 && (cdm_nodes >> status & 1) ? "CDM" : "RAM";
	switch (-status) {
	case ENOENT: return "none";
	case EACCES: return "EACCES";
	case EBUSY: return "EBUSY";
	case EFAULT: return "EFAULT";
	case ENOMEM: return "ENOMEM";
	case EAGAIN: return "EAGAIN";
	case 12345: return "untouched";
	}
	return "error";
}

static const char *got_label[MAX_PAGES], *want_label[MAX_PAGES];
static int page_status[MAX_PAGES];

/* The node of every page, by move_pages() without a destination */
static UNUSED bool expect_nodes(const struct region *r, const char *what)
{
	static const char *const names[] = { "none", "RAM", "CDM", "either" };
	long ret = sys_move_pages(r->start, r->nr, -1, page_status, 0);
	unsigned int i;

	if (ret) {
		report(false, "%s: nodes", what);
		diag("expected move_pages() to answer, found %s",
		     errno_name(-ret));
		return false;
	}
	for (i = 0; i < r->nr; i++) {
		int status = page_status[i];

		want_label[i] = names[r->p[i].place];
		got_label[i] = status_text(status);
		/* Of anonymous memory without a page it says EFAULT, too. */
		if (status == -EFAULT)
			got_label[i] = "none";
		if (status >= 0 && r->p[i].place == ANYWHERE)
			got_label[i] = want_label[i];
	}
	return expect_runs(want_label, got_label, r->nr, what, "nodes");
}

static UNUSED unsigned int count_on(const struct region *r, enum place place)
{
	unsigned int i, nr = 0;

	if (sys_move_pages(r->start, r->nr, -1, page_status, 0))
		return 0;
	for (i = 0; i < r->nr; i++)
		nr += !strcmp(status_text(page_status[i]),
			      place == ON_CDM ? "CDM" : "RAM");
	return nr;
}

/* VM_CDM and VM_MERGEABLE of every page's VMA, by smaps */
static UNUSED bool expect_flags(const struct region *r, const char *what)
{
	static const char *const names[] = { "-", "cd", "mg", "cd mg" };
	int n, nr = read_vmas(r->start, r->start + r->nr * PAGE);
	unsigned int i;

	if (nr < 0) {
		report(false, "%s: flags", what);
		diag("expected smaps with VmFlags, found none or too many VMAs");
		return false;
	}
	for (i = 0; i < r->nr; i++) {
		unsigned long addr = r->start + i * PAGE;

		got_label[i] = "unmapped";
		for (n = 0; n < nr; n++)
			if (addr >= vmas[n].start && addr < vmas[n].end)
				got_label[i] = names[vmas[n].cd +
						     2 * vmas[n].mg];
		want_label[i] = names[r->p[i].tag + 2 * r->p[i].mergeable];
	}
	return expect_runs(want_label, got_label, r->nr, what, "flags");
}

/* Where the VMAs begin and end */
static UNUSED bool expect_vmas(const struct region *r, const char *what)
{
	static const char *const names[] = { "a", "b" };
	int n, nr = read_vmas(r->start, r->start + r->nr * PAGE);
	unsigned int i, odd = 0;
	char text[2][400] = { "", "" };
	size_t at = 0;
	bool same;

	for (n = 0; n < nr && at + 64 < sizeof(text[0]); n++)
		at += snprintf(text[0] + at, sizeof(text[0]) - at, "%s%ld-%ld",
			       n ? ", " : "",
			       (long)(vmas[n].start - r->start) / (long)PAGE,
			       (long)(vmas[n].end - r->start) / (long)PAGE - 1);
	at = 0;
	for (i = 0; i < r->nr; i++) {
		if (i && !same_vma(&r->p[i - 1], &r->p[i]))
			odd = !odd;
		want_label[i] = names[odd];
	}
	for (i = 0; i < r->nr && at + 64 < sizeof(text[1]);) {
		unsigned int j = i;

		while (j < r->nr && want_label[j] == want_label[i])
			j++;
		at += snprintf(text[1] + at, sizeof(text[1]) - at, "%s%u-%u",
			       i ? ", " : "", i, j - 1);
		i = j;
	}
	same = !strcmp(text[0], text[1]);
	report(same, "%s: VMAs at pages %s", what, text[1]);
	if (!same)
		diag("expected %s, found %s", text[1], text[0]);
	return same;
}

static UNUSED void expect_state(const struct region *r, const char *what)
{
	expect_nodes(r, what);
	expect_flags(r, what);
}

/* The physical page of an address; 0 if absent or not to be known. */
static UNUSED uint64_t pfn_of(unsigned long addr)
{
	int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	uint64_t entry = 0;

	if (fd < 0)
		return 0;
	if (pread(fd, &entry, sizeof(entry), addr / PAGE * 8) !=
	    (ssize_t)sizeof(entry))
		entry = 0;
	close(fd);
	return entry >> 63 ? entry & ((1ULL << 55) - 1) : 0;
}

/* ---- Actions: kernel and model together ------------------------------ */

/*
 * Map @nr pages at slot @slot of the arena, @offset into it. Returns NULL
 * after a failed test point if the kernel will not.
 */
static UNUSED struct region *map_region(const char *name, unsigned int slot,
					unsigned long offset, unsigned int nr,
					int flags, int fd)
{
	unsigned long start = ARENA_START + slot * GIB + offset;
	struct region *r;
	unsigned int i;
	void *p;

	if (nr_regions == MAX_REGIONS || nr > MAX_PAGES ||
	    slot >= ARENA_SLOTS) {
		report(false, "%s: room for the region", name);
		diag("expected at most %u regions of %u pages in %u slots",
		     MAX_REGIONS, MAX_PAGES, ARENA_SLOTS);
		return NULL;
	}
	p = mmap((void *)start, nr * PAGE, PROT_READ | PROT_WRITE,
		 flags | MAP_FIXED_NOREPLACE, fd, 0);
	if (p != (void *)start) {
		int err = p == MAP_FAILED ? errno : EEXIST;

		if (p != MAP_FAILED)
			munmap(p, nr * PAGE);
		report(false, "%s: mmap of %u pages at %#lx", name, nr, start);
		diag("expected success, found %s", errno_name(err));
		return NULL;
	}
	r = &regions[nr_regions++];
	memset(r, 0, sizeof(*r));
	r->name = name;
	r->start = start;
	r->nr = nr;
	for (i = 0; i < nr; i++)
		r->p[i].prot = PROT_READ | PROT_WRITE;
	return r;
}

static UNUSED struct region *map_anon(const char *name, unsigned int slot,
				      unsigned long offset, unsigned int nr)
{
	return map_region(name, slot, offset, nr, MAP_PRIVATE | MAP_ANONYMOUS,
			  -1);
}

static UNUSED bool bind_pages(struct region *r, unsigned int first,
			      unsigned int nr, int mode, unsigned int set,
			      unsigned int flags, int expected)
{
	int err = sys_mbind(r->start + first * PAGE, nr * PAGE, mode, set,
			    flags);

	if (!expected)
		model_mbind(r, first, nr, mode, set);
	/* The work item comes a fifth of a second later, in an emulated guest. */
	if (!expected && quirk(Q_WORKQUEUE_TAG) && policy_tags(mode, set))
		sleep_ms(1000);
	return expect_errno(err, expected, "%s: mbind(%s, %s%s) on %u pages",
			    r->name, mode_text(mode), set_text(set),
			    flags & MPOL_MF_MOVE ? ", MOVE" : "", nr);
}

static sigjmp_buf fault_jump;
static volatile sig_atomic_t fault_armed;

static void on_fault(int sig)
{
	if (fault_armed)
		siglongjmp(fault_jump, sig);
	signal(sig, SIG_DFL);
	raise(sig);
}

/* No two pages of the arena are alike unless a scenario wants them to be. */
static UNUSED void write_page(unsigned long addr, uint64_t value)
{
	*(volatile uint64_t *)addr = value;
}

/* Writes @nr pages; a signal instead of a page is a failed test point. */
static UNUSED bool fault_pages(struct region *r, unsigned int first,
			       unsigned int nr)
{
	volatile unsigned int i = first;
	int sig;

	sig = sigsetjmp(fault_jump, 1);
	if (!sig) {
		fault_armed = 1;
		for (; i < first + nr; i++)
			write_page(r->start + i * PAGE, r->start + i * PAGE);
	}
	fault_armed = 0;
	if (sig) {
		report(false, "%s: write to %u pages", r->name, nr);
		diag("expected pages, found signal %d at page %u", sig, i);
		return false;
	}
	for (i = first; i < first + nr; i++)
		model_fault(r, i, MPOL_DEFAULT, 0);
	return true;
}

/* Read only: a write would copy the page and hide where it came from. */
static UNUSED void read_pages(unsigned long start, unsigned int nr)
{
	unsigned int i;

	for (i = 0; i < nr; i++)
		(void)*(volatile uint64_t *)(start + i * PAGE);
}

/*
 * move_pages() of the whole region to @place. Judges what it returned and the
 * status of every page, and leaves the model where the pages must be now.
 */
static UNUSED void move_region(struct region *r, enum place place, int flags)
{
	int nid = place == ON_CDM ? cdm_node : ram_node;
	char what[128];
	unsigned int i;
	long ret;

	ret = sys_move_pages(r->start, r->nr, nid, page_status, flags);
	snprintf(what, sizeof(what), "%s: move_pages(%s%s)", r->name,
		 place == ON_CDM ? "cdm" : "ram",
		 flags & MPOL_MF_MOVE_ALL ? ", MOVE_ALL" : "");
	report(ret == 0, "%s of %u pages returns 0", what, r->nr);
	if (ret)
		diag("expected 0, found %ld (%s)", ret,
		     errno_name(ret < 0 ? -ret : 0));
	for (i = 0; i < r->nr; i++) {
		struct page_model *p = &r->p[i];

		got_label[i] = status_text(page_status[i]);
		if (place == ON_RAM || model_may_move_to_cdm(p)) {
			if (place == ON_RAM)
				model_leave_cdm(r, i);
			p->place = place;
			want_label[i] = place == ON_CDM ? "CDM" : "RAM";
		} else {
			want_label[i] = "EACCES";
		}
	}
	expect_runs(want_label, got_label, r->nr, what, "status");
}

static UNUSED void advise_mergeable(struct region *r)
{
	int err = madvise((void *)r->start, r->nr * PAGE, MADV_MERGEABLE) ?
		  errno : 0;

	model_mergeable(r);
	expect_errno(err, 0, "%s: madvise(MERGEABLE)", r->name);
}

struct child {
	pid_t pid;
	int leash;		/* the child stays until this end is closed */
};

/*
 * Runs fn in a child, and returns when it is through; the child is still there
 * then. Its test points are numbered here as they come in.
 */
static UNUSED bool begin_child(struct child *child, void (*fn)(void *),
			       void *arg)
{
	char buf[4096];
	size_t have = 0;
	int fds[2], leash[2];

	if (pipe2(fds, O_CLOEXEC)) {
		report(false, "pipe to a child");
		return false;
	}
	if (pipe2(leash, O_CLOEXEC)) {
		report(false, "pipe to a child");
		close(fds[0]);
		close(fds[1]);
		return false;
	}
	child->pid = fork();
	if (!child->pid) {
		close(fds[0]);
		close(leash[1]);
		child_fd = fds[1];
		alarm(STEP_SECONDS);
		fn(arg);
		close(fds[1]);
		while (read(leash[0], buf, 1) < 0 && errno == EINTR)
			;
		_exit(0);
	}
	close(fds[1]);
	close(leash[0]);
	child->leash = leash[1];
	if (child->pid < 0) {
		report(false, "fork");
		close(fds[0]);
		close(leash[1]);
		return false;
	}
	for (;;) {
		ssize_t n = read(fds[0], buf + have, sizeof(buf) - 1 - have);
		char *line = buf, *end;

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			break;
		have += n;
		buf[have] = '\0';
		while ((end = strchr(line, '\n'))) {
			*end = '\0';
			if (!strncmp(line, "ok - ", 5))
				tap_point(true, line + 5);
			else if (!strncmp(line, "not ok - ", 9))
				tap_point(false, line + 9);
			else
				say(STDOUT_FILENO, "%s\n", line);
			line = end + 1;
		}
		have -= line - buf;
		memmove(buf, line, have);
	}
	close(fds[0]);
	return true;
}

/* Lets the child go, and waits for it; one that dies is a failed test point. */
static UNUSED void end_child(const struct child *child)
{
	int status;

	close(child->leash);
	while (waitpid(child->pid, &status, 0) < 0 && errno == EINTR)
		;
	if (!WIFEXITED(status) || WEXITSTATUS(status)) {
		report(false, "the child ends well");
		diag("expected exit status 0, found %s %d",
		     WIFSIGNALED(status) ? "signal" : "exit status",
		     WIFSIGNALED(status) ? WTERMSIG(status) :
					   WEXITSTATUS(status));
	}
}

/* Runs fn in a child and waits until it is gone. */
static UNUSED void in_child(void (*fn)(void *), void *arg)
{
	struct child child;

	if (begin_child(&child, fn, arg))
		end_child(&child);
}

/* ---- KSM ------------------------------------------------------------- */

#define KSM_DIR		"/sys/kernel/mm/ksm/"

static long ksm_saved[3];
static const char *const ksm_files[3] = {
	KSM_DIR "run", KSM_DIR "sleep_millisecs", KSM_DIR "pages_to_scan",
};

static UNUSED bool ksm_ready(const char *what)
{
	static volatile uint64_t probe;
	unsigned int i;

	for (i = 0; i < 3; i++)
		ksm_saved[i] = read_long(ksm_files[i]);
	if (ksm_saved[0] < 0) {
		skip(what, "no KSM in this kernel");
		return false;
	}
	if (access(ksm_files[0], W_OK)) {
		skip(what, "KSM cannot be run, not root?");
		return false;
	}
	probe = 1;
	if (!pfn_of((unsigned long)&probe)) {
		skip(what, "pagemap shows no page frames, not root?");
		return false;
	}
	return true;
}

/* Lets ksmd pass over everything @scans times; the first two only look. */
static UNUSED bool ksm_scan(long scans)
{
	long start = read_long(KSM_DIR "full_scans");
	unsigned int waited;

	write_long(ksm_files[1], 5);
	write_long(ksm_files[2], 2000);
	write_long(ksm_files[0], 1);
	for (waited = 0; waited < 60000; waited += 20) {
		if (read_long(KSM_DIR "full_scans") >= start + scans)
			return true;
		sleep_ms(20);
	}
	report(false, "ksmd makes %ld full scans", scans);
	diag("expected %ld scans within 60 s, found %ld", scans,
	     read_long(KSM_DIR "full_scans") - start);
	return false;
}

static UNUSED void ksm_restore(void)
{
	unsigned int i;

	for (i = 3; i--;)
		write_long(ksm_files[i], ksm_saved[i]);
}

/* ---- Swap ------------------------------------------------------------ */

#define SWAP_DEVICE	"/dev/zram0"
#define SWAP_BYTES	(64UL << 20)

/* Makes and enables the swap device. Returns NULL or why it cannot. */
static UNUSED const char *swap_begin(void)
{
	static union {
		struct {
			char boot[1024];
			uint32_t version, last_page, nr_bad;
		} info;
		char page[PAGE];
	} head;
	ssize_t n;
	int fd;

	if (access("/sys/block/zram0/disksize", W_OK))
		return "no zram device";
	if (read_long("/sys/block/zram0/disksize") != 0)
		return "zram0 is in use";
	if (write_long("/sys/block/zram0/disksize", SWAP_BYTES))
		return "the size of zram0 cannot be set";
	head.info.version = 1;
	head.info.last_page = SWAP_BYTES / PAGE - 1;
	memcpy(head.page + PAGE - 10, "SWAPSPACE2", 10);
	fd = open(SWAP_DEVICE, O_WRONLY | O_CLOEXEC);
	if (fd < 0) {
		write_text("/sys/block/zram0/reset", "1");
		return "no " SWAP_DEVICE;
	}
	n = write(fd, head.page, PAGE);
	if (n != (ssize_t)PAGE || fsync(fd) || close(fd) ||
	    swapon(SWAP_DEVICE, 0)) {
		write_text("/sys/block/zram0/reset", "1");
		return "swapon failed";
	}
	return NULL;
}

static UNUSED void swap_end(void)
{
	int err = swapoff(SWAP_DEVICE) ? errno : 0;

	expect_errno(err, 0, "swapoff");
	write_text("/sys/block/zram0/reset", "1");
}

/* ---- cpusets --------------------------------------------------------- */

/* A group in a hierarchy that is mounted for it, each gone after the step */
static char group_root[256], group[300];

static UNUSED int write_group(const char *file, const char *text)
{
	char path[400];

	snprintf(path, sizeof(path), "%s/%s", group, file);
	return write_text(path, text);
}

static UNUSED bool group_begin(const char *what)
{
	const char *dir = getenv("TMPDIR");

	snprintf(group_root, sizeof(group_root), "%s/scenario-XXXXXX",
		 dir && *dir ? dir : "/tmp");
	if (!mkdtemp(group_root)) {
		skip(what, "no directory can be made in TMPDIR or /tmp");
		return false;
	}
	if (mount("none", group_root, "cgroup2", 0, NULL)) {
		skip(what, "cgroup2 cannot be mounted, not root?");
		rmdir(group_root);
		return false;
	}
	snprintf(group, sizeof(group), "%s", group_root);
	write_group("cgroup.subtree_control", "+cpuset");
	snprintf(group, sizeof(group), "%s/scenario-%d", group_root, getpid());
	if (!mkdir(group, 0755))
		return true;
	skip(what, "no cgroup can be made");
	umount(group_root);
	rmdir(group_root);
	return false;
}

static UNUSED void group_end(void)
{
	unsigned int i;

	/* A dead task leaves its group a little later. */
	for (i = 0; i < 50 && rmdir(group) && errno == EBUSY; i++)
		sleep_ms(20);
	umount(group_root);
	rmdir(group_root);
}

/* ---- main ------------------------------------------------------------ */

struct step {
	const char *name;
	const char *what;
	void (*run)(void);
	bool slow;		/* only with --slow or when named by --step */
};

static volatile sig_atomic_t released;

static void on_release(int sig)
{
	(void)sig;
	released = 1;
}

/* Wait for a line on stdin or SIGUSR1; a stdin that has ended says nothing. */
static void hold(const char *when)
{
	struct pollfd in = { .fd = STDIN_FILENO, .events = POLLIN };
	sigset_t none;

	sigemptyset(&none);
	alarm(0);
	say(STDOUT_FILENO, "READY %d %s\n", getpid(), when);
	while (!released) {
		char c = 0;
		ssize_t n;

		if (ppoll(&in, 1, NULL, &none) < 0)
			continue;
		n = read(STDIN_FILENO, &c, 1);
		if (n <= 0)
			in.fd = -1;
		else if (c == '\n')
			break;
	}
	released = 0;
}

/* The lines of numa_maps that belong to the arena, unchanged */
static bool save_numa_maps(const char *path)
{
	char *line, *next;
	int fd;

	if (read_text("/proc/self/numa_maps", smaps_text,
		      sizeof(smaps_text)) < 0)
		return false;
	fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
	if (fd < 0)
		return false;
	for (line = smaps_text; line && *line; line = next) {
		unsigned long addr;

		next = strchr(line, '\n');
		if (next)
			*next++ = '\0';
		addr = strtoul(line, NULL, 16);
		if (addr >= ARENA_START && addr < ARENA_END)
			say(fd, "%s\n", line);
	}
	return !close(fd);
}

/* What of this header can be tried on any kernel */
static void self_test(void)
{
	unsigned long mask;
	unsigned int set;
	struct region *r;
	char text[256];

	current_step = "self-test";
	report(parse_node_list("1\n", &mask) && mask == 2, "node list 1");
	report(parse_node_list("1-2,4", &mask) && mask == 0x16,
	       "node list 1-2,4");
	report(parse_node_list("", &mask) && !mask, "empty node list");
	report(!parse_node_list("1-", &mask) && !parse_node_list("x", &mask) &&
	       !parse_node_list("2-1", &mask) && !parse_node_list("64", &mask),
	       "node lists that are none");
	report(parse_quirks("none", &set, text, sizeof(text)) && !set,
	       "quirks none");
	report(parse_quirks("one-way,fault-tag", &set, text, sizeof(text)) &&
	       set == (1U << Q_ONE_WAY | 1U << Q_FAULT_TAG | 1U << Q_BIND_ONLY) &&
	       parse_quirks("thp-untagged", &set, text, sizeof(text)) &&
	       set == (1U << Q_THP_UNTAGGED | 1U << Q_FAULT_TAG |
		       1U << Q_BIND_ONLY),
	       "a quirk brings what it needs");
	report(!parse_quirks("one-way,nonsense", &set, text, sizeof(text)) &&
	       !strcmp(text, "nonsense"), "a quirk that is none");
	report(!parse_quirks("one-way,", &set, text, sizeof(text)),
	       "a list that ends in a comma");
	report(has_flag(" rd wr mr mw me ac cd ", "cd") &&
	       has_flag(" cd", "cd") && !has_flag(" rd wr", "cd") &&
	       !has_flag(" cdx xcd", "cd") && !has_flag("", "cd"),
	       "flags of a VmFlags line");

	/* An ordinary VMA, split by hand: 0-4 rw, 5-6 r, 7-10 rw */
	if (ram_node < 0)
		ram_node = 0;
	r = map_anon("ordinary", 0, 0, 11);
	if (!r)
		return;
	expect_state(r, "untouched");
	fault_pages(r, 0, 11);
	expect_state(r, "faulted");
	expect_vmas(r, "one");
	mprotect((void *)(r->start + 5 * PAGE), 2 * PAGE, PROT_READ);
	for (set = 5; set < 7; set++)
		r->p[set].prot = PROT_READ;
	expect_vmas(r, "split by mprotect");
	expect_flags(r, "split by mprotect");

	/* The model, against what the thread says of the posted patches */
	r = &regions[nr_regions++];
	memset(r, 0, sizeof(*r));
	r->nr = 53;
	quirks = 0;
	model_mbind(r, 11, 19, MPOL_BIND, CDM);
	report(!r->p[10].tag && r->p[11].tag && r->p[29].tag && !r->p[30].tag,
	       "model: a partial mbind tags its range");
	model_mbind(r, 11, 19, MPOL_DEFAULT, 0);
	report(!r->p[11].tag, "model: the tag goes with the policy");
	quirks = 1U << Q_WHOLE_VMA | 1U << Q_ONE_WAY;
	model_mbind(r, 11, 19, MPOL_BIND, CDM);
	report(r->p[0].tag && r->p[52].tag, "model: whole-vma");
	model_mbind(r, 0, 53, MPOL_BIND, RAM);
	report(r->p[0].tag && r->p[11].tag, "model: one-way");
	memset(r->p, 0, sizeof(r->p));
	quirks = 1U << Q_BIND_ONLY | 1U << Q_FAULT_TAG;
	model_mbind(r, 0, 53, MPOL_PREFERRED, CDM);
	report(!r->p[0].tag, "model: bind-only");
	model_fault(r, 7, MPOL_DEFAULT, 0);
	report(r->p[0].tag && r->p[7].place == ON_CDM, "model: fault-tag");
	quirks = 1U << Q_UNLOCKED_CLEAR | 1U << Q_ONE_WAY;
	model_leave_cdm(r, 6);
	report(r->p[0].tag, "model: unlocked-clear, a page that was not there");
	model_leave_cdm(r, 7);
	report(!r->p[0].tag && !r->p[52].tag, "model: unlocked-clear");
	quirks = 1U << Q_SPLIT_DROP;
	model_mbind(r, 0, 53, MPOL_BIND, CDM);
	model_protect(r, 11, 19, PROT_READ);
	report(!r->p[10].tag && r->p[11].tag && r->p[29].tag && !r->p[30].tag &&
	       !model_is_one_vma(r), "model: split-drop");
	quirks = 1U << Q_MPROTECT_DROP;
	model_mbind(r, 0, 53, MPOL_BIND, CDM);
	model_protect(r, 11, 19, PROT_WRITE);
	report(r->p[10].tag && !r->p[11].tag && !r->p[29].tag && r->p[30].tag,
	       "model: mprotect-drop");
	quirks = 0;
}

static bool chosen(const char *list, const char *name)
{
	size_t len = strlen(name);

	while (*list) {
		size_t n = strcspn(list, ",");

		if (n == len && !strncmp(list, name, n))
			return true;
		list += n + (list[n] == ',');
	}
	return false;
}

static PRINTF(1, 2) void trouble(const char *fmt, ...)
{
	char text[512];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	say(STDERR_FILENO, "%s: %s\n", program, text);
	exit(2);
}

static void usage(int fd)
{
	say(fd,
	    "usage: %s [OPTIONS]\n"
	    "  --quirks LIST       quirks that are on in this kernel, by commas, or none\n"
	    "  --cdm-node N        the CDM node; else the first one of\n"
	    "                      " NODE_DIR "is_coherent_device\n"
	    "  --step NAME[,NAME]  only these steps\n"
	    "  --list              list the steps\n"
	    "  --slow              also the steps that fill a whole node, or take memory away\n"
	    "  --hold              print READY and the pid, and wait for a line on stdin\n"
	    "                      or SIGUSR1, before the first step and after the last\n"
	    "  --numa-maps FILE    at the end, copy the numa_maps lines of the regions\n"
	    "exit status: 0 all passed, 1 a check failed, 2 trouble\n",
	    program);
}

static void find_nodes(long wanted)
{
	unsigned long memory, named = 0;
	bool exported = read_nodes("is_coherent_device", &named);

	if (!read_nodes("has_memory", &memory))
		trouble("cannot read " NODE_DIR "has_memory: no NUMA kernel?");
	if (wanted < 0 && !exported)
		trouble("this kernel names no CDM node (no " NODE_DIR
			"is_coherent_device); boot the lab's kernel, or give --cdm-node");
	if (wanted < 0 && !named)
		trouble("the list of CDM nodes in " NODE_DIR
			"is_coherent_device is empty; boot with cdm-nodes=, or give --cdm-node");
	cdm_nodes = wanted < 0 ? named : named | 1UL << wanted;
	cdm_node = wanted < 0 ? __builtin_ctzl(named) : wanted;
	if (!(memory >> cdm_node & 1))
		trouble("node %d has no memory", cdm_node);
	if (!(memory & ~cdm_nodes))
		trouble("node %d would leave no node for RAM", cdm_node);
	ram_node = __builtin_ctzl(memory & ~cdm_nodes);
}

static void check_step_names(const char *list, const struct step *steps,
			     unsigned int nr)
{
	while (*list) {
		size_t len = strcspn(list, ",");
		unsigned int i;

		for (i = 0; i < nr; i++)
			if (strlen(steps[i].name) == len &&
			    !strncmp(list, steps[i].name, len))
				break;
		if (i == nr)
			trouble("no step is called '%.*s'; see --list",
				(int)len, list);
		list += len + (list[len] == ',');
	}
}

static int scenario_main(int argc, char **argv, const struct step *steps,
			 unsigned int nr)
{
	enum { QUIRKS = 256, CDM_NODE, STEP, LIST, SLOW, HOLD, NUMA_MAPS,
	       SELF_TEST, HELP };
	static const struct option options[] = {
		{ "quirks", required_argument, NULL, QUIRKS },
		{ "cdm-node", required_argument, NULL, CDM_NODE },
		{ "step", required_argument, NULL, STEP },
		{ "list", no_argument, NULL, LIST },
		{ "slow", no_argument, NULL, SLOW },
		{ "hold", no_argument, NULL, HOLD },
		{ "numa-maps", required_argument, NULL, NUMA_MAPS },
		{ "self-test", no_argument, NULL, SELF_TEST },
		{ "help", no_argument, NULL, HELP },
		{ NULL, 0, NULL, 0 }
	};
	bool list = false, slow = false, held = false, self = false;
	const char *only = NULL, *numa_maps = NULL;
	struct sigaction act = { .sa_handler = on_release };
	char text[512], *end;
	long wanted = -1;
	unsigned int i;
	int c;

	program = strrchr(argv[0], '/') ? strrchr(argv[0], '/') + 1 : argv[0];
	while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
		switch (c) {
		case QUIRKS:
			if (!parse_quirks(optarg, &quirks, text, sizeof(text)))
				trouble("no quirk is called '%s'", text);
			break;
		case CDM_NODE:
			wanted = strtol(optarg, &end, 10);
			if (!isdigit((unsigned char)*optarg) || *end ||
			    wanted > 63)
				trouble("'%s' is not a node number", optarg);
			break;
		case STEP:
			only = optarg;
			break;
		case LIST:
			list = true;
			break;
		case SLOW:
			slow = true;
			break;
		case HOLD:
			held = true;
			break;
		case NUMA_MAPS:
			numa_maps = optarg;
			break;
		case SELF_TEST:
			self = true;
			break;
		case HELP:
			usage(STDOUT_FILENO);
			return 0;
		default:
			usage(STDERR_FILENO);
			return 2;
		}
	}
	if (optind < argc) {
		usage(STDERR_FILENO);
		return 2;
	}
	if (list) {
		for (i = 0; i < nr; i++)
			say(STDOUT_FILENO, "%-16s%s%s\n", steps[i].name,
			    steps[i].what, steps[i].slow ? " (slow)" : "");
		return 0;
	}
	if (only)
		check_step_names(only, steps, nr);
	if (!self)
		find_nodes(wanted);

	if (held) {
		sigset_t block;

		sigemptyset(&block);
		sigaddset(&block, SIGUSR1);
		sigprocmask(SIG_BLOCK, &block, NULL);
		sigaction(SIGUSR1, &act, NULL);
	}
	act.sa_handler = on_fault;
	sigaction(SIGBUS, &act, NULL);
	sigaction(SIGSEGV, &act, NULL);

	say(STDOUT_FILENO, "TAP version 13\n");
	if (self) {
		self_test();
		nr = 0;
	} else {
		quirks_text(text, sizeof(text), quirks);
		diag("%s: CDM node %d, RAM node %d, quirks %s", program,
		     cdm_node, ram_node, text);
	}
	if (held)
		hold("before");
	for (i = 0; i < nr; i++) {
		if (only ? !chosen(only, steps[i].name) :
			   steps[i].slow && !slow)
			continue;
		current_step = steps[i].name;
		diag("%s: %s", steps[i].name, steps[i].what);
		/* A kernel that spins in a fault ends the run, not the guest. */
		alarm(STEP_SECONDS);
		steps[i].run();
	}
	alarm(0);
	current_step = "end";
	if (numa_maps && !save_numa_maps(numa_maps)) {
		report(false, "numa_maps copied to %s", numa_maps);
		diag("expected a copy, found %s", errno_name(errno));
	}
	say(STDOUT_FILENO, "1..%u\n", tap_run);
	diag("%u of %u passed", tap_run - tap_failed, tap_run);
	if (held)
		hold("after");
	return tap_failed ? 1 : 0;
}

#endif /* CDM_SCENARIO_H */
