/* SPDX-License-Identifier: GPL-2.0-only */
/* The machine as it is asked: small files, nodes, system calls (a part of scenario.h) */
#ifndef SCENARIO_SYSTEM_H
#define SCENARIO_SYSTEM_H

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

/*
 * Is this kernel of that version, or newer? For what no call tells of without doing
 * it; a kernel that is new enough has no excuse.
 */
static UNUSED bool since(int major, int minor)
{
	static int is_major, is_minor;
	struct utsname name;

	if (!is_major && (uname(&name) ||
			  sscanf(name.release, "%d.%d", &is_major, &is_minor) != 2))
		is_major = INT_MAX;
	return is_major > major || (is_major == major && is_minor >= minor);
}

static UNUSED bool has_preferred_many(void)
{
	return since(5, 15);
}

static UNUSED bool has_collapse(void)
{
	return since(6, 1);
}

/*
 * What was freed waits in a list of its cpu, and is no room for others until that
 * is emptied: of another node's memory after some rounds of the statistics.
 */
static UNUSED void empty_cpu_lists(void)
{
	unsigned int i;

	for (i = 0; i < 8; i++)
		write_text("/proc/sys/vm/stat_refresh", "1");
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

#endif
